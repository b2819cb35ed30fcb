"""Planned batches → arrays: decoded utterances joined, noise, padding. Grain does the waiting."""

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import grain
import numpy as np

from jaxkd.data import decoding
from jaxkd.data.audio import BrokenAudio
from jaxkd.data.plan import PlannedBatch
from jaxkd.data.sources import Source
from jaxkd.data.texts import Spelling
from jaxkd.devices.mesh import padded_rows
from jaxkd.types import HYPOTHESES, TRANSCRIPTS, Batch, StoredFrames, batch_like

_AHEAD = 4  # batches that are prepared at a time, by threads that wait for their utterances


class Targets(Protocol):
  """Label sequences that stand for utterances without a transcript."""

  def draw(self, utterances: list[int], rng: np.random.Generator) -> np.ndarray | None:
    """i32[U] of utterances that are joined; None where one of them has no sequence."""


class Teaching(Protocol):
  """A stored teacher: what it says of utterances, and where that goes in a batch.

  Attributes:
    frame_samples: audio samples in a frame.
    slots: numbers of a frame.
    needs: parts of a batch that it fills.
  """

  frame_samples: int
  slots: int
  needs: frozenset[str]

  def frames(self, utterance: str, speed: float, audio: np.ndarray):
    """Frames of an utterance by its id, as it is played; UserError where it is not known."""

  def put(self, frames, into: StoredFrames, row: int) -> None:
    """Writes them into a row's arrays."""


class HostBatch(NamedTuple):
  """This process's rows of a global batch.

  Attributes:
    batch: NumPy arrays.
    ids: for each row, the utterances in it.
    broken: (id, reason) of utterances that were left out.
  """

  batch: Batch
  ids: tuple[tuple[str, ...], ...]
  broken: list[tuple[str, str]]


def batches(
  source: Source,
  planned: Sequence[PlannedBatch],
  *,
  spelling: Spelling | None = None,
  hypotheses: Targets | None = None,
  taught: Teaching | None = None,
  seed: int = 0,
  epoch: int = 0,
  noise_db: tuple[float, float] | None = None,
  start: int = 0,
  shards: tuple[tuple[int, ...], int] = ((0,), 1),
) -> Iterator[HostBatch]:
  """The planned batches in their order, prepared ahead in the background.

  Args:
    source: of the utterances.
    planned: all batches of an epoch.
    spelling: of transcripts; None for no labels. A row of utterances without has none.
    hypotheses: of all utterances, drawn into `Batch.hypothesis`; None for none.
    taught: frames of all utterances, for `Batch.taught`, of each alone and without noise, where no
      row has more than one; None for none.
    seed, epoch: with the batch's number they fix noise and draws.
    noise_db: (low, high), white noise relative to a row's peak; None for none.
    start: first batch.
    shards: which of how many equal parts of the rows are wanted (`mesh.my_shards`); rows are filled
      up so that the parts are equal.
  """
  if start >= len(planned):
    return iter(())
  make = functools.partial(
    _host_batch,
    planned=planned,
    source=source,
    spelling=spelling,
    hypotheses=hypotheses,
    taught=taught,
    seed=(seed, epoch),
    noise_db=noise_db,
    shards=shards,
  )
  dataset = grain.MapDataset.range(start, len(planned)).map(make)
  options = grain.ReadOptions(num_threads=_AHEAD, prefetch_buffer_size=_AHEAD)
  return iter(dataset.to_iter_dataset(options))


def _host_batch(
  number, *, planned, source, spelling, hypotheses, taught, seed, noise_db, shards
) -> HostBatch:
  planned = planned[number]
  wanted, count = shards
  rows, samples, label_room = planned.shape
  size = padded_rows(rows, count) // count
  mine = [row for shard in wanted for row in range(shard * size, (shard + 1) * size)]
  given = {TRANSCRIPTS: spelling, HYPOTHESES: hypotheses}
  needs = [need for need, found in given.items() if found is not None]
  sizes = dict(rows=len(mine), samples=samples, labels=label_room)
  if taught is not None:
    needs += taught.needs
    sizes |= dict(frames=samples // taught.frame_samples, slots=taught.slots)
  batch = batch_like(np.zeros, needs, **sizes)
  names, broken = [], []
  heard = _heard(source, planned, [row for row in mine if row < rows])
  for place, row in enumerate(mine):
    if row >= rows:
      names.append(())
      continue
    used, speeds, parts, lost = heard[row]
    broken += lost
    names.append(tuple(source.ids[u] for u in used))
    if not used:
      continue
    if taught is not None:
      (name,), (speed,), (part,) = names[-1], speeds, parts
      taught.put(taught.frames(name, speed, part), batch.taught, place)
    # As alone in its row, where features are of peak-normalised audio.
    if len(parts) > 1:
      parts = [_peak_normalised(part) for part in parts]
    joined = np.concatenate(parts)[:samples]
    if noise_db is not None:
      joined = _with_noise(joined, noise_db, np.random.default_rng([*seed, number, row]))
    batch.audio[place, : len(joined)] = joined
    batch.audio_len[place] = len(joined)
    if spelling is not None:
      texts = [source.texts[u] for u in used]
      if None in texts:  # and so all of them
        batch.label_len[place] = -1
      else:
        _put(spelling(texts), batch.labels, batch.label_len, place)
    if hypotheses is not None:
      drawn = hypotheses.draw(used, np.random.default_rng([*seed, number, row, 1]))
      if drawn is None:
        batch.hypothesis_len[place] = -1
      else:
        _put(drawn, batch.hypothesis, batch.hypothesis_len, place)
  return HostBatch(batch, tuple(names), broken)


class _Heard(NamedTuple):
  """What is heard of a row.

  Attributes:
    used: its utterances that can be decoded.
    speeds: theirs.
    parts: their samples at these.
    broken: (id, reason) of the others.
  """

  used: list[int]
  speeds: list[float]
  parts: list[np.ndarray]
  broken: list[tuple[str, str]]


def _heard(source: Source, planned: PlannedBatch, rows: list[int]):
  """Row number → what is heard of it; all their utterances are decoded side by side."""
  of_row = {row: list(zip(planned.rows[row], planned.speeds[row], strict=True)) for row in rows}
  samples = iter(decoding.decoded(source, [one for row in rows for one in of_row[row]]))
  found = {}
  for row in rows:
    found[row] = _Heard([], [], [], [])
    for utterance, speed in of_row[row]:
      part = next(samples)
      if isinstance(part, BrokenAudio):
        found[row].broken.append((source.ids[utterance], str(part)))
        continue
      found[row].used.append(utterance)
      found[row].speeds.append(speed)
      found[row].parts.append(part)
  return found


def _put(labels: np.ndarray, into: np.ndarray, lengths: np.ndarray, row: int) -> None:
  """What has no room could not have a CTC path either; its length says so."""
  room = into.shape[1]
  into[row, : len(labels)] = labels[:room]
  lengths[row] = len(labels)


def _peak_normalised(samples: np.ndarray) -> np.ndarray:
  return samples * np.float32(0.5 / np.abs(samples).max())


def _with_noise(samples: np.ndarray, db: tuple[float, float], rng) -> np.ndarray:
  level = np.float32(np.abs(samples).max() * 10 ** (rng.uniform(*db) / 20))
  return samples + level * rng.standard_normal(len(samples), dtype=np.float32)
