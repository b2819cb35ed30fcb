// The model in a thread of its own, so that the page stays alive while it works.
//
// Says {kind: "loading" | "heard", done, total}, {kind: "ready", model}, {kind: "found", found},
// {kind: "live", final, open} and {kind: "failed", reason}; is asked by {kind: "whole", samples}, or
// for a stream by {kind: "begin"} and then {kind: "packet", samples}. It answers one after the other.

import { recognise } from "./recogniser.js";
import { Stream } from "./stream.js";

const GRAPH = "model.onnx";
const STREAM_GRAPH = "stream.onnx";
const WASM = "runtime/ort-wasm-simd-threaded.wasm";
const THREADS = 4;

let loaded;

/** The bytes of a file; `told` is called with the size of each part that came. */
async function fetched(name, told) {
  const answer = await fetch(new URL(name, import.meta.url)).catch((error) => {
    throw new Error(`${name} did not come: ${error.message}`);
  });
  if (!answer.ok) throw new Error(`${name} is not beside the page (status ${answer.status}).`);
  const parts = [];
  for (let reader = answer.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) return new Uint8Array(await new Blob(parts).arrayBuffer());
    parts.push(value);
    told(value.length);
  }
}

async function load() {
  const text = await fetched("model.json", () => {});
  const model = JSON.parse(new TextDecoder().decode(text));
  const total = Object.values(model.bytes).reduce((sum, size) => sum + size);
  let done = 0;
  const told = (size) => postMessage({ kind: "loading", done: (done += size), total });
  const [graph, streamGraph, wasm, ort] = await Promise.all([
    fetched(GRAPH, told),
    model.stream && fetched(STREAM_GRAPH, told),
    fetched(WASM, told),
    import("./runtime/ort.wasm.bundle.min.mjs"),
  ]);
  ort.env.wasm.wasmBinary = wasm.buffer;
  // Threads share memory, which browsers allow where the server sends COOP and COEP headers.
  ort.env.wasm.numThreads = self.crossOriginIsolated
    ? Math.min(THREADS, navigator.hardwareConcurrency)
    : 1;
  const session = await ort.InferenceSession.create(graph);
  const hear = async (samples) => {
    const { logprobs } = await session.run({
      input_values: new ort.Tensor("float32", samples, [1, samples.length]),
      input_lengths: new ort.Tensor("int64", BigInt64Array.of(BigInt(samples.length)), [1]),
    });
    const logProbs = logprobs.data;
    const count = logprobs.dims[1];
    return { logProbs, count };
  };
  const hearChunk = model.stream && (await chunks(ort, streamGraph, model.stream.states));
  return { model, hear, hearChunk };
}

/** Hears a chunk with the states of the one before, which the graph gives back as new_…. */
async function chunks(ort, graph, shapes) {
  const session = await ort.InferenceSession.create(graph);
  const first = () =>
    Object.fromEntries(
      Object.entries(shapes).map(([name, { type, dims }]) => {
        const size = dims.reduce((product, dim) => product * dim, 1);
        const zeros = type === "int64" ? new BigInt64Array(size) : new Float32Array(size);
        return [name, new ort.Tensor(type, zeros, dims)];
      }),
    );
  return async (piece, states) => {
    const audio = new ort.Tensor("float32", piece, [1, piece.length]);
    const { log_probs: told, ...after } = await session.run({ audio, ...(states ?? first()) });
    const renamed = Object.entries(after).map(([name, state]) => [name.replace("new_", ""), state]);
    return { logProbs: told.data, count: told.dims[1], states: Object.fromEntries(renamed) };
  };
}

let stream;

const TASKS = {
  async whole({ samples }, { model, hear }) {
    const told = (done, total) => postMessage({ kind: "heard", done, total });
    postMessage({ kind: "found", found: await recognise(samples, model, hear, told) });
  },
  async begin(_, { model, hearChunk }) {
    stream = new Stream(model, hearChunk);
  },
  async packet({ samples }) {
    if (await stream.push(samples)) postMessage({ kind: "live", ...stream.words() });
  },
};

let last = Promise.resolve();

self.onmessage = ({ data }) => {
  last = last
    .then(async () => TASKS[data.kind](data, await loaded))
    .catch((error) => postMessage({ kind: "failed", reason: error.message }));
};

loaded = load();
loaded.then(
  ({ model }) => postMessage({ kind: "ready", model }),
  (error) => postMessage({ kind: "failed", reason: `The model cannot be loaded: ${error.message}` }),
);
