// From packets of samples to words while a person speaks: what `jaxkd transcribe --stream` does.

import { framesOf, joined, labelsOf, wordsOf } from "./recogniser.js";

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
    this.frames = joined([]);
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

  /** Those that have been heard, as wordsOf gives them; the last one may go on. */
  words() {
    const { path, confidence } = this.frames;
    const seconds = (path.length * this.model.frame_samples) / this.model.sample_rate_hz;
    return wordsOf(labelsOf(path), confidence, seconds, this.model);
  }
}

function appended(first, second) {
  const both = new Float32Array(first.length + second.length);
  both.set(first);
  both.set(second, first.length);
  return both;
}
