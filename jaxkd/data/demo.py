"""The demo corpus: synthetic speech of connected digits in many voices, by eSpeak NG.

Dev and test are spoken by voices of which train and unlabelled have none.
"""

from collections.abc import Iterator

import numpy as np

from jaxkd.data.espeak import ACCENTS, Espeak, Spoken
from jaxkd.data.rows import Row, background

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def _utterances(espeak: Espeak, variants, size: int, seed) -> Iterator[Row]:
  rng = np.random.default_rng(seed)
  for _ in range(size):
    voice = f"{rng.choice(ACCENTS)}+{rng.choice(variants)}"
    words = [str(w) for w in rng.choice(DIGITS, rng.integers(2, 8))]
    commas = rng.random(len(words) - 1) < 0.25
    spoken = words[0] + "".join(
      (", " if comma else " ") + word for word, comma in zip(words[1:], commas, strict=True)
    )
    rate, pitch = int(rng.integers(130, 200)), int(rng.integers(30, 71))
    samples = espeak.speak(spoken, voice, words_per_minute=rate, pitch=pitch)
    ends = [np.zeros(int(s * espeak.rate_hz), np.float32) for s in rng.uniform(0.05, 0.4, 2)]
    samples = np.concatenate([ends[0], samples * 10 ** (rng.uniform(-12, 0) / 20), ends[1]])
    samples += background(rng, len(samples), rng.uniform(-65, -45))
    notes = {"voice": voice, "words_per_minute": rate, "pitch": pitch}
    yield Row(samples, espeak.rate_hz, " ".join(words), notes)


CORPUS = Spoken(
  version="1",
  seed=20250825,
  sizes={"train": 800, "unlabelled": 700, "dev": 60, "test": 140},
  utterances=_utterances,
)
