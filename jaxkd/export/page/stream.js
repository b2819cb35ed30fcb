// From packets of samples to words while a person speaks: what `jaxkd transcribe --stream` does.

import { behind, framesOf, grouped, joined, labelsOf, wordsOf } from "./recogniser.js";

const PAUSE_SECONDS = 0.8; // a word ends where so long nothing follows, even if no other begins

export class Stream {
  /**
   * @param {object} model as model.json says, with `stream`.
   * @param {(piece: Float32Array, states: object | null) =>
   *   Promise<{logProbs: Float32Array, count: number, states: object}>} hear
   *   gives log p of the frames of one chunk, and what the next one is heard with.
   */
  constructor(model, hear) {
    this.model = model;
    this.hear = hear;
    this.states = null;
    this.waiting = new Float32Array(0); // samples that a later chunk reads
    this.begun = false;
    this.frames = joined([]); // that words may come of which are not final
    this.first = 0; // number of the first of them
  }

  /** Hears what has come, of any size. @returns {Promise<boolean>} whether there are new frames. */
  async push(samples) {
    const { piece_samples: piece, shift_samples: shift, lead_samples: lead } = this.model.stream;
    this.waiting = appended(this.waiting, samples);
    if (!this.begun) {
      if (this.waiting.length < lead) return false;
      this.waiting = appended(this.waiting.slice(0, lead).reverse(), this.waiting);
      this.begun = true;
    }
    const before = this.frames.path.length;
    while (this.waiting.length >= piece) {
      const { logProbs, count, states } = await this.hear(this.waiting.slice(0, piece), this.states);
      const found = framesOf(logProbs, this.model.classes.length, 0, count);
      this.frames = joined([this.frames, found]);
      this.states = states;
      this.waiting = this.waiting.subarray(shift);
    }
    return this.frames.path.length > before;
  }

  /**
   * Words as wordsOf gives them: those that have become final, whose frames are forgotten, and the
   * last one, which may go on.
   *
   * @returns {{final: object[], open: object[]}}
   */
  words() {
    const { path, confidence } = this.frames;
    const frame = this.model.frame_samples / this.model.sample_rate_hz;
    const labels = labelsOf(path);
    const after = path.length - 1 - (labels.at(-1)?.last ?? -Infinity);
    const group = after * frame >= PAUSE_SECONDS ? [] : grouped(labels, this.model.classes).at(-1);
    const begin = this.first * frame;
    const later = (word) => ({ ...word, start: begin + word.start, end: begin + word.end });
    const words = (found) => wordsOf(found, confidence, Infinity, this.model).map(later);
    const final = words(labels.slice(0, labels.length - group.length));
    const open = words(group);
    const kept = group.length ? group[0].first : path.length;
    this.frames = behind(this.frames, kept);
    this.first += kept;
    return { final, open };
  }
}

function appended(first, second) {
  const both = new Float32Array(first.length + second.length);
  both.set(first);
  both.set(second, first.length);
  return both;
}
