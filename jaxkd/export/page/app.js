// The page: what is chosen or said goes to the worker, what it finds is shown.

import { decoded, Microphone } from "./audio.js";
import { Posteriors } from "./posteriors.js";

const at = (id) => document.getElementById(id);
const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
const microphone = new Microphone();
const posteriors = new Posteriors(at("posteriors"), at("player"), at("zoom"));

let model = null;
let recording = null; // the timer's id while the microphone is on
let spoken = ""; // words that are final, each with a space behind it

/** Shows what goes on; `share` in [0, 1] moves the bar, null hides it. */
function tell(text, share = null) {
  if (at("status").textContent !== text) at("status").textContent = text; // it is read aloud
  at("progress").hidden = share === null;
  if (share !== null) at("progress").value = share;
}

/** Shows what went wrong, in one line; "" takes it away. */
function fail(text) {
  at("error").textContent = text;
  at("error").hidden = text === "";
}

function allow(file, button) {
  at("file").disabled = !file;
  at("record").disabled = !button;
}

/** Back to where something can be chosen; after an error only where there is a model. */
function rest(text = "") {
  at("live").hidden = true;
  at("live").textContent = "";
  tell(text);
  allow(model !== null, model !== null);
}

async function transcribe(blob, name) {
  allow(false, false);
  fail("");
  at("result").hidden = true;
  tell(`Reading ${name} …`, 0);
  try {
    const samples = await decoded(blob, name);
    if (at("player").src) URL.revokeObjectURL(at("player").src);
    at("player").src = URL.createObjectURL(blob);
    tell("Listening …", 0);
    worker.postMessage({ kind: "whole", samples });
  } catch (error) {
    fail(error.message);
    rest();
  }
}

function show(found) {
  at("result").hidden = false;
  at("text").textContent = found.text || "No words were heard.";
  at("words").replaceChildren(...found.words.map(row));
  posteriors.show(found, model);
  const sure = found.words.length ? `, confidence ${found.confidence.toFixed(2)}` : "";
  rest(`${found.words.length} words in ${found.seconds.toFixed(1)} s${sure}.`);
}

/** A word's row: its text is a button that plays from there. */
function row(word) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = word.text;
  button.title = `Play from ${clock(word.start)}`;
  button.addEventListener("click", () => {
    at("player").currentTime = word.start;
    at("player").play();
  });
  const line = document.createElement("tr");
  const cells = [button, clock(word.start), clock(word.end), word.confidence.toFixed(2)];
  for (const content of cells) line.insertCell().append(content);
  return line;
}

/** 83.4 → 1:23.40 */
function clock(seconds) {
  const minutes = Math.floor(seconds / 60);
  return `${minutes}:${(seconds - 60 * minutes).toFixed(2).padStart(5, "0")}`;
}

async function toggleRecording() {
  fail("");
  allow(false, false); // a second click comes while the microphone starts or stops
  if (recording !== null) {
    clearInterval(recording);
    recording = null;
    at("record").textContent = "Record";
    try {
      await transcribe(await microphone.stop(), "what was said");
    } catch (error) {
      fail(error.message);
      rest();
    }
    return;
  }
  at("result").hidden = true;
  try {
    await microphone.start();
  } catch (error) {
    fail(error.message);
    rest();
    return;
  }
  at("live").hidden = !(model.stream && (await followed()));
  const begin = performance.now();
  const running = () => {
    at("record").textContent = `Stop (${Math.round((performance.now() - begin) / 1000)} s)`;
  };
  tell(at("live").hidden ? "Recording …" : "Listening: words come as they are said …");
  running();
  recording = setInterval(running, 1000);
  allow(false, true);
  at("record").focus();
}

/** Gives what is said to the worker while it is said; false where the browser cannot. */
function followed() {
  spoken = "";
  worker.postMessage({ kind: "begin" });
  return microphone.follow((samples) => worker.postMessage({ kind: "packet", samples }));
}

/** Words that are final now, and those that may go on; but for those that come after the end. */
function showLive({ final, open }) {
  if (recording === null) return;
  const texts = (words) => words.map((word) => `${word.text} `).join("");
  spoken += texts(final);
  at("live").textContent = (spoken + texts(open)).trimEnd();
}

function ready(given) {
  model = given;
  const size = (model.bytes["model.onnx"] / 1e6).toFixed(1);
  const frame = (1000 * model.frame_samples) / model.sample_rate_hz;
  const parameters = model.parameters.toLocaleString("en");
  at("about").textContent = `${parameters} parameters, ${size} MB, a frame every ${frame} ms.`;
  rest("Ready: choose a recording, or speak.");
}

const HEARS = {
  loading: ({ done, total }) =>
    tell(`Loading the model, ${Math.ceil(total / 1e6)} MB …`, done / total),
  ready: (message) => ready(message.model),
  heard: ({ done, total }) => tell("Listening …", done / total),
  live: showLive,
  found: ({ found }) => show(found),
  failed: ({ reason }) => {
    fail(reason);
    rest();
  },
};

worker.addEventListener("message", ({ data }) => HEARS[data.kind](data));
worker.addEventListener("error", (event) => {
  fail(`The model cannot be loaded: ${event.message || "files of this page are missing."}`);
  rest();
});
at("file").addEventListener("change", ({ target }) => {
  const [file] = target.files;
  if (file) transcribe(file, file.name);
});
// So that the same file can be chosen again.
at("file").addEventListener("click", ({ target }) => (target.value = ""));
at("record").addEventListener("click", toggleRecording);
