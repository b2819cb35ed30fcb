// What the browser's thread for sound runs: it gathers samples and gives them to the page.

const SIZE = 1600; // a tenth of a second

class Packets extends AudioWorkletProcessor {
  packet = new Float32Array(SIZE);
  count = 0;

  process([[channel]]) {
    for (const sample of channel ?? []) {
      this.packet[this.count++] = sample;
      if (this.count < SIZE) continue;
      this.port.postMessage(this.packet, [this.packet.buffer]);
      this.packet = new Float32Array(SIZE);
      this.count = 0;
    }
    return true;
  }
}

registerProcessor("packets", Packets);
