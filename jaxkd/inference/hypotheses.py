"""The teacher's best transcripts of a source: found once, kept as JSON lines, drawn as targets.

Hilmes et al. 2025 sum CTC over the N best, weighted by their probabilities. Here one of them is
drawn each time an utterance comes up: the expectation is the same sum, at the cost of one target.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from jaxkd import files
from jaxkd.data.sources import Source
from jaxkd.devices import mesh, sharding
from jaxkd.errors import UserError
from jaxkd.inference.frames import frames, no_numbers
from jaxkd.inference.search.prefix import prefix_beam
from jaxkd.labels import Vocabulary
from jaxkd.models.acoustic import AcousticModel
from jaxkd.teacher.stored import Stored

# States of the search for each hypothesis that is kept.
_BEAM = 4


@dataclasses.dataclass(frozen=True)
class Hypotheses:
  """N-best lists of the utterances of a source.

  Attributes:
    labels: for each utterance, its hypotheses, i32[U] each; none where it could not be read.
    weights: for each utterance, f64[N], their probabilities, which add up to 1.
    between: i32[], what stands between two utterances that are joined: the space, if there is one.
  """

  labels: tuple[tuple[np.ndarray, ...], ...]
  weights: tuple[np.ndarray, ...]
  between: np.ndarray

  def draw(self, utterances: Sequence[int], rng: np.random.Generator) -> np.ndarray | None:
    """i32[U]: one hypothesis of each utterance, joined; None where one of them has none."""
    if not all(self.labels[u] for u in utterances):
      return None
    parts = []
    for u in utterances:
      if parts:
        parts.append(self.between)
      parts.append(self.labels[u][rng.choice(len(self.weights[u]), p=self.weights[u])])
    return np.concatenate(parts)

  def longest(self) -> np.ndarray:
    """i64[utterances]: labels of the longest hypothesis."""
    return np.array([max(map(len, nbest), default=0) for nbest in self.labels])


def find(
  teacher: AcousticModel | Stored,
  source: Source,
  path: pathlib.Path,
  devices: jax.sharding.Mesh,
  *,
  count: int,
) -> Hypotheses:
  """The N-best lists in a file, which is made first where it is not there.

  Args:
    teacher: frozen.
    source: of the utterances.
    path: of the JSON lines: id, and nbest with labels, text and weight of each.
    devices: mesh.
    count: N.

  Raises:
    UserError: the file is damaged or of other utterances.
  """
  if not mesh.agreed(path.exists()):
    rows = _search(teacher, source, devices, count)
    if mesh.is_first():
      files.write_jsonl(path, rows)
    mesh.wait_for_all(f"{path} is written")
  return _read(path, source, teacher.vocabulary)


def _search(teacher: AcousticModel | Stored, source: Source, devices, count: int) -> list[dict]:
  """Rows of the file, in the source's order."""

  @functools.partial(jax.jit, out_shardings=sharding.split_rows(devices))
  def search(out):
    beam = _BEAM * count
    found = prefix_beam(out.logits, out.mask, blank_id=teacher.blank_id, beam=beam)
    return jax.tree.map(lambda x: x[:, :count], found)

  nbest = {}
  said = frames({"teacher": teacher}, source, devices, description="the teacher's hypotheses")
  for spoken in said:
    found = search(spoken.outputs["teacher"])
    for ids, *row in zip(spoken.host.ids, *map(mesh.my_rows, found), strict=True):
      if ids:
        nbest[ids[0]] = _row(ids[0], teacher.vocabulary, *row)
  nbest = {k: v for part in mesh.gather(nbest) for k, v in part.items()}
  return [{"id": name, "nbest": nbest.get(name, [])} for name in source.ids]


def _row(utterance: str, vocabulary: Vocabulary, sequences, lengths, log_p) -> list[dict]:
  """i32[N, L], i32[N], f32[N], best first → labels, text and weight of each."""
  if np.isnan(log_p[0]):
    raise no_numbers(utterance)
  real = np.isfinite(log_p)
  weights = np.exp(log_p[real] - log_p[0])
  weights = weights.astype(np.float64) / weights.sum()
  found = [sequence[:length].tolist() for sequence, length in zip(sequences, lengths, strict=True)]
  return [
    {"labels": ids, "text": vocabulary.decode(ids), "weight": float(weight)}
    for ids, weight in zip(found, weights, strict=False)
  ]


def _read(path: pathlib.Path, source: Source, vocabulary: Vocabulary) -> Hypotheses:
  try:
    rows = files.read_jsonl(path)
    if [row["id"] for row in rows] != list(source.ids):
      raise ValueError("other utterances than the training data's")
    weights = [np.array([h["weight"] for h in row["nbest"]], np.float64) for row in rows]
    sequences = tuple(tuple(np.array(h["labels"], np.int32) for h in row["nbest"]) for row in rows)
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(f"{path} does not hold N-best lists: {error}; remove it") from error
  between = np.array(vocabulary.space_ids(), np.int32)
  return Hypotheses(sequences, tuple(w / w.sum() for w in weights), between)
