// From samples to words: what `jaxkd transcribe` does, without a browser's or a worker's parts.
//
// A model is what model.json says; its class 0 is the blank.

const ALPHA = 1 / 3; // order of the entropy that confidences come from
export const KEPT = 3; // classes beside the blank whose probabilities are kept for the picture

/**
 * What is said in a recording.
 *
 * @param {Float32Array} samples one channel at 16 kHz.
 * @param {object} model
 * @param {(piece: Float32Array) => Promise<{logProbs: Float32Array, count: number}>} hear
 *   gives log p of every class of `count` frames.
 * @param {(done: number, total: number) => void} [told] is called with samples that were heard.
 * @returns {Promise<{text: string, words: object[], labels: object[], frames: object,
 *   confidence: number, seconds: number}>}
 */
export async function recognise(samples, model, hear, told = () => {}) {
  const parts = [];
  for (const piece of pieces(samples.length, model)) {
    const { logProbs, count } = await hear(samples.subarray(piece.start, piece.end));
    parts.push(framesOf(logProbs, model.classes.length, piece.first, Math.min(piece.last, count)));
    told(piece.end, samples.length);
  }
  const frames = joined(parts);
  const labels = labelsOf(frames.path);
  const seconds = samples.length / model.sample_rate_hz;
  const words = wordsOf(labels, frames.confidence, seconds, model);
  const sum = words.reduce((total, word) => total + word.confidence, 0);
  const confidence = sum / Math.max(words.length, 1);
  return { text: words.map((word) => word.text).join(" "), words, labels, frames, confidence, seconds };
}

/**
 * All of a short recording, or windows of a long one whose kept frames follow one another.
 *
 * @returns {{start: number, end: number, first: number, last: number}[]} samples from start to end;
 *   of their frames those from first to last are kept.
 */
export function pieces(length, model) {
  const { frame_samples: step, window_frames: frames, margin_frames: margin } = model;
  const size = frames * step;
  const hop = frames - 2 * margin;
  const found = [];
  let [start, first] = [0, 0];
  while (length - start > (start === 0 ? model.longest_samples : size)) {
    found.push({ start, end: start + size, first, last: margin + hop });
    start += hop * step;
    first = margin;
  }
  found.push({ start, end: length, first, last: Infinity });
  return found;
}

/**
 * What is kept of frames from first to last: the best class, how sure it is, p of the blank, and
 * the KEPT most probable other classes with their p.
 */
export function framesOf(logProbs, classes, first, last) {
  const count = Math.max(0, last - first);
  const frames = emptyFrames(count);
  const most = classes ** (1 - ALPHA) - 1;
  for (let t = 0; t < count; t++) {
    const row = logProbs.subarray((first + t) * classes, (first + t + 1) * classes);
    let best = 0;
    let spread = -1;
    for (let id = 0; id < classes; id++) {
      spread += Math.exp(ALPHA * row[id]);
      if (row[id] > row[best]) best = id;
    }
    frames.path[t] = best;
    frames.confidence[t] = Math.min(1, Math.max(0, 1 - spread / most));
    frames.blank[t] = Math.exp(row[0]);
    keepBest(row, frames.ids.subarray(t * KEPT, (t + 1) * KEPT), frames.p.subarray(t * KEPT));
  }
  return frames;
}

/** Fills ids with the most probable classes but the blank, and p with their probabilities. */
function keepBest(row, ids, p) {
  for (let id = 1; id < row.length; id++) {
    let place = ids.length;
    while (place > 0 && (ids[place - 1] === 0 || row[id] > row[ids[place - 1]])) place--;
    if (place === ids.length) continue;
    ids.copyWithin(place + 1, place);
    ids[place] = id;
  }
  ids.forEach((id, place) => (p[place] = id === 0 ? 0 : Math.exp(row[id])));
}

function emptyFrames(count) {
  return {
    path: new Int32Array(count),
    confidence: new Float32Array(count),
    blank: new Float32Array(count),
    ids: new Int32Array(count * KEPT), // 0 where there are fewer classes
    p: new Float32Array(count * KEPT),
  };
}

/** Frames of parts, one after the other. */
export function joined(parts) {
  const all = emptyFrames(parts.reduce((total, part) => total + part.path.length, 0));
  let start = 0;
  for (const part of parts) {
    for (const name of ["path", "confidence", "blank"]) all[name].set(part[name], start);
    for (const name of ["ids", "p"]) all[name].set(part[name], start * KEPT);
    start += part.path.length;
  }
  return all;
}

/** Frames from one on. */
export function behind(frames, first) {
  const cut = ([name, values]) => [name, values.slice(first * (values.length / frames.path.length))];
  return frames.path.length ? Object.fromEntries(Object.entries(frames).map(cut)) : frames;
}

/** Runs of a class but the blank: [{id, first, last}], in frames, the last included. */
export function labelsOf(path) {
  const found = [];
  for (let t = 0; t < path.length; t++) {
    if (t > 0 && path[t] === path[t - 1]) {
      if (path[t] !== 0) found.at(-1).last = t;
    } else if (path[t] !== 0) {
      found.push({ id: path[t], first: t, last: t });
    }
  }
  return found;
}

/**
 * Words from the first frame of their first label to the last of their last. A label is as sure as
 * its surest frame, a word as its least sure label.
 *
 * @returns {{text: string, start: number, end: number, confidence: number}[]} in seconds.
 */
export function wordsOf(labels, confidence, seconds, model) {
  const frame = model.frame_samples / model.sample_rate_hz;
  const found = [];
  for (const group of grouped(labels, model.classes)) {
    const text = spelled(group, model);
    if (text === "") continue;
    const start = group[0].first * frame;
    const end = Math.min((group.at(-1).last + 1) * frame, Math.max(seconds, start));
    const sure = ({ first, last }) => Math.max(...confidence.subarray(first, last + 1));
    found.push({ text, start, end, confidence: Math.min(...group.map(sure)) });
  }
  return found;
}

/** Labels of each word. */
export function grouped(labels, classes) {
  const groups = [];
  let open = false;
  for (const label of labels) {
    const { starts, ends } = classes[label.id];
    if (!open || starts) groups.push([]);
    groups.at(-1).push(label);
    open = !ends;
  }
  return groups;
}

function spelled(group, { classes, pronounced }) {
  const texts = group.map((label) => classes[label.id].text);
  if (!pronounced) return normalise(texts.join(""));
  const sounds = texts.join(" ");
  return Object.hasOwn(pronounced, sounds)
    ? pronounced[sounds]
    : `<${texts.map((text) => text.replace(/#$/, "")).join("-")}>`;
}

/** As labels/text.py: lower case, composed characters, straight apostrophes, single spaces. */
export function normalise(text) {
  return text
    .normalize("NFD")
    .replace(/[σς]/g, "Σ")
    .toLowerCase()
    .replace(/i\u0307+/g, "i")
    .replace(/[’‘‛ʼ＇]/g, "'")
    .normalize("NFC")
    .trim()
    .replace(/\s+/g, " ");
}
