// Sound as the model hears it: one channel at 16 kHz. Files are decoded, the microphone recorded.

const RATE_HZ = 16000;
const SHORTEST_SECONDS = 0.05;
const CANCELLED = 0.1; // of the power that unrelated channels have together: below, they cancel out

/**
 * One channel of a file or a recording.
 *
 * @param {Blob} blob
 * @param {string} name for the error.
 * @returns {Promise<Float32Array>}
 */
export async function decoded(blob, name) {
  const context = new OfflineAudioContext(1, 1, RATE_HZ); // it resamples what it decodes
  let buffer;
  try {
    buffer = await context.decodeAudioData(await blob.arrayBuffer());
  } catch {
    throw new Error(`This browser cannot decode ${name}: try WAV, FLAC, MP3 or M4A.`);
  }
  const channels = Array.from({ length: buffer.numberOfChannels }, (_, i) => buffer.getChannelData(i));
  const samples = oneChannel(channels);
  if (samples.length < SHORTEST_SECONDS * RATE_HZ) throw new Error(`${name} is too short.`);
  if (samples.every((value) => value === 0)) throw new Error(`${name} is silent.`);
  return samples;
}

/** The mean of channels, or the loudest where they cancel out in it. */
function oneChannel(channels) {
  if (channels.length === 1) return channels[0];
  const share = 1 / channels.length;
  const mean = new Float32Array(channels[0].length);
  for (const channel of channels) channel.forEach((value, i) => (mean[i] += share * value));
  const powers = channels.map(power);
  const unrelated = powers.reduce((a, b) => a + b) * share ** 2;
  return power(mean) < CANCELLED * unrelated ? channels[powers.indexOf(Math.max(...powers))] : mean;
}

function power(samples) {
  let sum = 0;
  for (const value of samples) sum += value * value;
  return sum;
}

/** The microphone, from `start` to `stop`; `follow` gives what it hears at once. */
export class Microphone {
  /** Asks for the microphone and begins to record. */
  async start() {
    if (!navigator.mediaDevices) {
      throw new Error("Browsers give the microphone to pages at https: or at localhost only.");
    }
    const audio = { echoCancellation: false, noiseSuppression: false };
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({ audio });
    } catch (error) {
      throw new Error(REASONS[error.name] ?? `The microphone cannot be used: ${error.message}`);
    }
    const parts = [];
    this.parts = parts;
    this.recorder = new MediaRecorder(this.stream);
    this.recorder.ondataavailable = ({ data }) => parts.push(data);
    this.recorder.start();
  }

  /**
   * Calls `told` with each packet of samples, at the model's rate, until the end.
   *
   * @returns {Promise<boolean>} whether this browser can: some do not resample a microphone.
   */
  async follow(told) {
    this.context = null;
    try {
      this.context = new AudioContext({ sampleRate: RATE_HZ });
      await this.context.audioWorklet.addModule(new URL("packets.js", import.meta.url));
      const one = { channelCount: 1, channelCountMode: "explicit" };
      const node = new AudioWorkletNode(this.context, "packets", one);
      node.port.onmessage = ({ data }) => told(data);
      this.context.createMediaStreamSource(this.stream).connect(node);
      node.connect(this.context.destination); // it plays nothing, but else may not run
      return true;
    } catch {
      await this.context?.close();
      this.context = null;
      return false;
    }
  }

  /** Ends it. @returns {Promise<Blob>} what was recorded. */
  async stop() {
    const { stream, context, recorder, parts } = this; // another may start meanwhile
    this.context = null;
    await context?.close();
    const stopped = new Promise((resolve) => (recorder.onstop = resolve));
    if (recorder.state !== "inactive") recorder.stop();
    else recorder.onstop();
    await stopped;
    for (const track of stream.getTracks()) track.stop();
    return new Blob(parts, { type: recorder.mimeType });
  }
}

const REASONS = {
  NotAllowedError: "The microphone was not allowed: allow it for this page in the browser's settings.",
  NotFoundError: "There is no microphone.",
  NotReadableError: "The microphone is in use by another program.",
};
