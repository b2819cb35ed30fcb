"""Seconds of audio a core decodes in a second, by codec; from files, and from shards.

  python benchmarks/decoding.py
  python benchmarks/decoding.py --audio=FOLDER --threads 1 2 4 8

Without --audio utterances of 12 s are made: speech-like noise whose level and colour change 4 times
a second. Each is packed as `jaxkd shard` does it, and read by the threads that a run has. Printed
is audio a core-second, of this process's CPU time, and audio a second of the clock.
"""

import argparse
import io
import pathlib
import tempfile
import time

import numpy as np
import soundfile

from jaxkd.data import decoding, packing, sources
from jaxkd.data.corpora import Options

CODECS = {
  "FLAC": ("FLAC", "PCM_16", 16_000),
  "WAV": ("WAV", "PCM_16", 16_000),
  "Opus": ("OGG", "OPUS", 16_000),
  "Opus, 48 kHz": ("OGG", "OPUS", 48_000),
  "Vorbis": ("OGG", "VORBIS", 16_000),
  "MP3": ("MP3", "MPEG_LAYER_III", 16_000),
  "MP3, 48 kHz": ("MP3", "MPEG_LAYER_III", 48_000),
}
SECONDS = 12.0


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--audio", default="", help="a folder; without, audio is made")
  parser.add_argument("--utterances", type=int, default=100)
  parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
  parser.add_argument("--rounds", type=int, default=3)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    for codec, (form, subtype, rate) in CODECS.items() if not args.audio else [("", ("", "", 0))]:
      here = pathlib.Path(args.audio) if args.audio else folder / codec
      if not args.audio:
        make(here, args.utterances, form, subtype, rate)
      opened = sources.open_source(str(here), Options())
      packing.write(opened, folder / f"{codec}.packed", longest=40.0)
      packed = sources.open_source(str(folder / f"{codec}.packed"), Options())
      for kind, source in (("files", opened), ("shards", packed)):
        for threads in args.threads:
          print(
            f"{codec or args.audio}, {kind}, {threads} threads: {measure(source, threads, args)}"
          )


def make(folder: pathlib.Path, count: int, form: str, subtype: str, rate: int) -> None:
  """Utterances in one codec."""
  folder.mkdir()
  rng = np.random.default_rng(0)
  suffix = {"OGG": "ogg", "MP3": "mp3"}.get(form, form.lower())
  for number in range(count):
    file = io.BytesIO()
    soundfile.write(file, noise(rng, rate), rate, format=form, subtype=subtype)
    (folder / f"{number:04}.{suffix}").write_bytes(file.getvalue())


def noise(rng, rate: int) -> np.ndarray:
  """f32[S] of noise in syllables."""
  parts = []
  for _ in range(int(4 * SECONDS)):
    white = rng.standard_normal(rate // 4 + 64, dtype=np.float32)
    smooth = np.convolve(white, np.hanning(rng.integers(4, 64)), "same")[: rate // 4]
    parts.append(smooth / np.abs(smooth).max() * 10 ** rng.uniform(-2.5, -0.3))
  return np.concatenate(parts).astype(np.float32)


def measure(source: sources.Source, threads: int, args) -> str:
  """The medians of some rounds over all utterances."""
  source._kept = None  # a small source would be kept in memory
  decoding._threads.cache_clear()
  decoding.audio.cores = lambda: threads
  core, clock = [], []
  for _ in range(args.rounds):
    before, started = time.process_time(), time.perf_counter()
    decoding.decoded(source, [(i, 1.0) for i in range(len(source))])
    core.append(time.process_time() - before)
    clock.append(time.perf_counter() - started)
  audio = source.durations.sum()
  return (
    f"{audio / np.median(core):,.0f} s a core-second, {audio / np.median(clock):,.0f} s a second"
  )


if __name__ == "__main__":
  main()
