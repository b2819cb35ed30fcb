// The picture of what the model says over time. Only the part that can be seen is drawn, so a
// recording of an hour costs no more than one of a minute.

import { KEPT } from "./recogniser.js";

const [TOP, PLOT, AXIS, WORDS] = [22, 150, 22, 26]; // heights in CSS pixels, from above
const HEIGHT = TOP + PLOT + AXIS + WORDS;
const SEEN = 0.02; // probabilities below are not drawn
const FONT = "13px system-ui, sans-serif";
const TICKS_SECONDS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300];
const TICK_PIXELS = 70; // apart, at least

export class Posteriors {
  /**
   * @param {HTMLElement} box that scrolls, with a canvas, and an element that is given its length.
   * @param {HTMLMediaElement} player whose place is marked.
   * @param {HTMLInputElement} zoom the logarithm of pixels a frame.
   */
  constructor(box, player, zoom) {
    this.box = box;
    this.canvas = box.querySelector("canvas");
    this.length = box.querySelector(".length");
    this.player = player;
    this.zoom = zoom;
    this.found = null;
    this.waits = false;
    for (const event of ["timeupdate", "seeked", "play"]) {
      player.addEventListener(event, () => this.follow());
    }
    box.addEventListener("scroll", () => this.later());
    zoom.addEventListener("input", () => this.resize());
    new ResizeObserver(() => this.resize()).observe(box);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.later());
  }

  /** Draws what was found; see recogniser.js. */
  show(found, model) {
    this.found = found;
    this.model = model;
    this.frameSeconds = model.frame_samples / model.sample_rate_hz;
    const words = found.words.map((word) => word.text).join(" ");
    this.canvas.setAttribute("aria-label", `Probabilities over time of: ${words}`);
    this.box.scrollLeft = 0;
    this.resize();
  }

  get step() {
    return 2 ** Number(this.zoom.value); // pixels a frame
  }

  /** x of a time in the canvas. */
  x(seconds) {
    return (seconds / this.frameSeconds) * this.step - this.box.scrollLeft;
  }

  resize() {
    if (!this.found) return;
    const ratio = devicePixelRatio;
    this.width = this.box.clientWidth;
    this.canvas.width = Math.round(this.width * ratio);
    this.canvas.height = HEIGHT * ratio;
    this.canvas.style.width = `${this.width}px`;
    this.canvas.style.height = `${HEIGHT}px`;
    this.length.style.width = `${this.found.frames.path.length * this.step}px`;
    this.later();
  }

  /** Keeps the place that is played in sight. */
  follow() {
    if (!this.found) return;
    const x = this.x(this.player.currentTime);
    if (x < 0 || x > this.width) this.box.scrollLeft += x - this.width / 4;
    this.later();
  }

  /** Draws once before the next picture of the screen, however often it is asked for. */
  later() {
    if (this.waits || !this.found) return;
    this.waits = true;
    requestAnimationFrame(() => {
      this.waits = false;
      this.draw();
      if (!this.player.paused) this.follow();
    });
  }

  draw() {
    const g = this.canvas.getContext("2d");
    g.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    g.clearRect(0, 0, this.width, HEIGHT);
    g.font = FONT;
    const style = getComputedStyle(this.box);
    this.colour = (name) => style.getPropertyValue(`--${name}`);
    const count = this.found.frames.path.length;
    const from = Math.max(0, Math.floor(this.box.scrollLeft / this.step) - 1);
    const to = Math.min(count, from + Math.ceil(this.width / this.step) + 3);
    this.drawAxis(g, from, to);
    this.drawCurves(g, from, to);
    this.drawSymbols(g, from, to);
    this.drawWords(g);
    this.drawPlace(g);
  }

  drawAxis(g, from, to) {
    const second = this.step / this.frameSeconds;
    const apart = TICKS_SECONDS.find((tick) => tick * second > TICK_PIXELS) ?? 600;
    g.fillStyle = this.colour("faint");
    g.strokeStyle = this.colour("line");
    g.textAlign = "center";
    g.textBaseline = "middle";
    for (let n = Math.ceil((from * this.frameSeconds) / apart); n * apart <= to * this.frameSeconds; n++) {
      const x = this.x(n * apart);
      g.beginPath();
      g.moveTo(x, TOP);
      g.lineTo(x, TOP + PLOT);
      g.stroke();
      g.fillText(`${Number((n * apart).toFixed(1))} s`, Math.max(x, 12), TOP + PLOT + AXIS / 2);
    }
  }

  /** A filled curve of each class over frames `from` to `to`. */
  drawCurves(g, from, to) {
    const { blank, ids, p } = this.found.frames;
    const curves = new Map([[0, blank.subarray(from, to)]]);
    for (let place = from * KEPT; place < to * KEPT; place++) {
      if (p[place] < SEEN) continue;
      if (!curves.has(ids[place])) curves.set(ids[place], new Float32Array(to - from));
      curves.get(ids[place])[Math.floor(place / KEPT) - from] = p[place];
    }
    for (const [id, values] of curves) this.drawCurve(g, from, values, this.colourOf(id));
  }

  drawCurve(g, from, values, colour) {
    const bottom = TOP + PLOT;
    const x = (n) => this.x((from + n + 0.5) * this.frameSeconds);
    g.beginPath();
    g.moveTo(x(0), bottom);
    values.forEach((value, n) => g.lineTo(x(n), bottom - value * PLOT));
    g.lineTo(x(values.length - 1), bottom);
    g.fillStyle = g.strokeStyle = colour;
    g.globalAlpha = 0.18;
    g.fill();
    g.globalAlpha = 1;
    g.lineWidth = 1.5;
    g.stroke();
    g.lineWidth = 1;
  }

  /** The blank's grey, or a colour that is the class's own. */
  colourOf(id) {
    if (id === 0) return this.colour("faint");
    return `hsl(${(id * 137.5) % 360} 65% ${this.colour("lightness")})`;
  }

  /** The class of each run of the best path, above it, where there is room. */
  drawSymbols(g, from, to) {
    g.textAlign = "center";
    g.textBaseline = "middle";
    let free = -Infinity;
    for (const { id, first, last } of this.found.labels) {
      if (last < from || first >= to) continue;
      const text = this.model.classes[id].text || "␣";
      const x = this.x(((first + last + 1) / 2) * this.frameSeconds);
      const half = g.measureText(text).width / 2 + 1;
      if (x - half < free) continue;
      g.fillStyle = this.colourOf(id);
      g.fillText(text, x, TOP / 2);
      free = x + half;
    }
  }

  /** Each word from its start to its end; its text may go on to the next one's start. */
  drawWords(g) {
    const y = TOP + PLOT + AXIS;
    const { words } = this.found;
    g.textAlign = "left";
    words.forEach(({ text, start, end }, n) => {
      const [left, right] = [this.x(start), this.x(end)];
      const next = n + 1 < words.length ? this.x(words[n + 1].start) : Infinity;
      if (next < 0 || left > this.width) return;
      g.fillStyle = this.colour("word");
      g.beginPath();
      g.roundRect(left, y, Math.max(right - left - 1, 2), WORDS - 2, 4);
      g.fill();
      const from = Math.max(left, 0);
      g.save();
      g.beginPath();
      g.rect(from, y, Math.min(next, this.width) - from, WORDS);
      g.clip();
      g.fillStyle = this.colour("ink");
      g.fillText(text, from + 4, y + WORDS / 2);
      g.restore();
    });
  }

  /** Where the player is. */
  drawPlace(g) {
    if (this.player.paused && this.player.currentTime === 0) return;
    g.fillStyle = this.colour("accent");
    g.fillRect(this.x(this.player.currentTime) - 1, 0, 2, HEIGHT);
  }
}
