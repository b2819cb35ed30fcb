// The model in a thread of its own, so that the page stays alive while it works.
//
// Says {kind: "loading" | "heard", done, total}, {kind: "ready", model}, {kind: "found", found} and
// {kind: "failed", reason}; is asked by a Float32Array of samples.

import { recognise } from "./recogniser.js";

const GRAPH = "model.onnx";
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
  const total = model.bytes[GRAPH] + model.bytes[WASM];
  let done = 0;
  const told = (size) => postMessage({ kind: "loading", done: (done += size), total });
  const [graph, wasm, ort] = await Promise.all([
    fetched(GRAPH, told),
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
  return { model, hear };
}

self.onmessage = async ({ data: samples }) => {
  try {
    const { model, hear } = await loaded;
    const told = (done, total) => postMessage({ kind: "heard", done, total });
    postMessage({ kind: "found", found: await recognise(samples, model, hear, told) });
  } catch (error) {
    postMessage({ kind: "failed", reason: error.message });
  }
};

loaded = load();
loaded.then(
  ({ model }) => postMessage({ kind: "ready", model }),
  (error) => postMessage({ kind: "failed", reason: `The model cannot be loaded: ${error.message}` }),
);
