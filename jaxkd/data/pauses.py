"""The demo's digits with silence around every word: most frames are blank, as where people think.

Dev and test are spoken by voices of which train and unlabelled have none.
"""

from collections.abc import Iterator

import numpy as np

from jaxkd.data.demo import DIGITS
from jaxkd.data.espeak import Espeak, Spoken, drawn_speaker
from jaxkd.data.rows import Row, background

# Seconds between words and at both ends.
_PAUSE, _ENDS = (0.3, 1.3), (0.4, 1.2)


def _utterances(espeak: Espeak, variants, size: int, seed) -> Iterator[Row]:
  rng = np.random.default_rng(seed)
  for _ in range(size):
    speaker = drawn_speaker(rng, variants, (130, 200))
    words = [str(w) for w in rng.choice(DIGITS, rng.integers(2, 7))]
    silence = lambda low, high: np.zeros(int(rng.uniform(low, high) * espeak.rate_hz), np.float32)
    pieces = [silence(*_ENDS)]
    for word in words:
      pieces += [espeak.speak(word, **speaker), silence(*_PAUSE)]
    samples = np.concatenate([*pieces[:-1], silence(*_ENDS)]) * 10 ** (rng.uniform(-12, 0) / 20)
    samples += background(rng, len(samples), rng.uniform(-65, -45))
    yield Row(samples.astype(np.float32), espeak.rate_hz, " ".join(words), speaker)


CORPUS = Spoken(
  version="1",
  seed=20261127,
  sizes={"train": 800, "unlabelled": 700, "dev": 60, "test": 300},
  utterances=_utterances,
)
