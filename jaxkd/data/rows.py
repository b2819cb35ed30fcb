"""What the makers of corpora give: utterances with their audio."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Row:
  """One utterance that was made.

  Attributes:
    samples: f32[S] in [-1, 1].
    rate_hz: of the samples.
    text: transcript.
    notes: further fields of the manifest, as JSON-able values.
  """

  samples: np.ndarray
  rate_hz: int
  text: str
  notes: dict = dataclasses.field(default_factory=dict)


def background(rng: np.random.Generator, samples: int, db: float) -> np.ndarray:
  """f32[samples] of white noise, `db` relative to full scale."""
  return 10 ** (db / 20) * rng.standard_normal(samples, dtype=np.float32)
