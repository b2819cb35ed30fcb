"""Epoch → global batches of a few fixed shapes. Every process computes the same plan."""

from typing import NamedTuple

import numpy as np

from jaxkd.types import SAMPLE_RATE_HZ

# Resampling rounds, and so do the durations in manifests.
_SLACK = SAMPLE_RATE_HZ // 100
# Rows of joined utterances are made this much longer where that saves a second shape.
_STRETCH = 1.25


class Shape(NamedTuple):
  """Size of a global batch.

  Attributes:
    rows: B.
    samples: S.
    labels: U.
  """

  rows: int
  samples: int
  labels: int

  @property
  def seconds(self) -> float:
    """Of audio in a row, padding included."""
    return self.samples / SAMPLE_RATE_HZ


class PlannedBatch(NamedTuple):
  """What goes into a global batch.

  Attributes:
    shape: its size.
    rows: for each row, indices of the utterances that are joined in it; () is filler.
    speeds: the speed factor of each of them.
  """

  shape: Shape
  rows: tuple[tuple[int, ...], ...]
  speeds: tuple[tuple[float, ...], ...]


def samples_of(durations: np.ndarray, speeds, grid: int = 1) -> np.ndarray:
  """i64: samples that are set aside for utterances of so many seconds at speed factors.

  Args:
    durations: f64[...], seconds.
    speeds: factors.
    grid: what they are a multiple of.
  """
  samples = np.ceil(durations * SAMPLE_RATE_HZ / speeds).astype(np.int64) + _SLACK
  return -(-samples // grid) * grid


def shapes(
  durations: np.ndarray,
  *,
  batch_seconds: float,
  buckets: int,
  frame_samples: int,
  join_seconds: float = 0.0,
  labels_per_second: float = 0.0,
  speeds: tuple[float, ...] = (1.0,),
  grid: int = 1,
) -> tuple[Shape, ...]:
  """The shapes of all batches, shortest first.

  Args:
    durations: f64[utterances], seconds.
    batch_seconds: of audio in a batch, padding included; at least one row is made.
    buckets: at most so many shapes, at lengths that waste the least padding.
    frame_samples: audio samples in an output frame; batches are as long as whole frames.
    join_seconds: > 0 for one shape of joined utterances up to about this length, and others, if
      any, for utterances that are longer.
    labels_per_second: most labels in a second of an utterance; 0 where none are read.
    speeds: factors that an utterance may be played at.
    grid: samples; utterances of a row begin at multiples of it.
  """
  units = np.concatenate([samples_of(durations, speed, grid) for speed in speeds])
  lengths: list[int] = []
  if join_seconds:
    joined = int(join_seconds * SAMPLE_RATE_HZ)
    if units.max() <= _STRETCH * joined:
      joined = max(joined, int(units.max()))
    lengths, units, buckets = [joined], units[units > joined], max(buckets - 1, 1)
  if len(units):
    lengths += _lengths(units, buckets)
  return tuple(
    _shape(
      -(-n // frame_samples) * frame_samples,
      batch_seconds,
      labels_per_second * max(speeds),
      frame_samples,
    )
    for n in sorted(set(lengths))
  )


def _shape(
  samples: int, batch_seconds: float, labels_per_second: float, frame_samples: int
) -> Shape:
  seconds = samples / SAMPLE_RATE_HZ
  rows = max(1, int(batch_seconds / seconds))
  # More labels than frames have no CTC path: they need no room.
  labels = min(int(np.ceil(labels_per_second * seconds)), samples // frame_samples)
  return Shape(rows, samples, labels)


def _lengths(units: np.ndarray, buckets: int) -> list[int]:
  """At most `buckets` lengths, the largest unit among them, of the least total padding."""
  edges = np.unique(np.quantile(units, np.linspace(0, 1, 129), method="higher"))
  count = np.searchsorted(np.sort(units), edges, side="right")
  # cost[i, j]: samples needed by the units in (edges[i - 1], edges[j]] when padded to edges[j].
  below = np.concatenate([[0], count])[:-1]
  cost = (count[None, :] - below[:, None]) * edges[None, :].astype(np.float64)
  cost[np.tril_indices(len(edges), -1)] = np.inf
  best, back = cost[0], []
  for _ in range(min(buckets, len(edges)) - 1):
    # Either one bucket more that ends at j and starts after i, or as before.
    split = np.concatenate([[np.inf], best[:-1]])[:, None] + cost
    start = split.argmin(0)
    back.append(np.where(split.min(0) < best, start, 0))
    best = np.minimum(best, split.min(0))
  found, end = [], len(edges) - 1
  for starts in reversed(back):
    found.append(int(edges[end]))
    if starts[end] == 0:
      return found[::-1]
    end = starts[end] - 1
  return [int(edges[end]), *found[::-1]]


def epoch_plan(
  durations: np.ndarray,
  shapes: tuple[Shape, ...],
  *,
  seed: int,
  epoch: int,
  speeds: tuple[float, ...] = (1.0,),
  join: bool = False,
  apart: np.ndarray | None = None,
  grid: int = 1,
) -> list[PlannedBatch]:
  """Every utterance once, in random order, company and speed.

  A batch that does not fill up is filled with empty rows.

  Args:
    durations: f64[utterances], seconds.
    shapes: of `shapes`, made for the same durations, speeds and joining.
    seed, epoch: the plan depends on nothing else.
    speeds: factors to draw from.
    join: utterances are joined into rows of the shortest shape.
    apart: bool[utterances]; those with True are not joined with the others. None for all alike.
    grid: samples; utterances of a row begin at multiples of it.
  """
  rng = np.random.default_rng([seed, epoch])
  drawn = rng.choice(np.array(speeds), len(durations))
  lengths = samples_of(durations, drawn, grid)
  order = rng.permutation(len(durations))
  capacity = shapes[0].samples if join else 0
  if apart is None or not capacity:
    rows = _join(order, lengths, capacity)
  else:
    kinds = (order[~apart[order]], order[apart[order]])
    rows = [row for kind in kinds for row in _join(kind, lengths, capacity)]
    rows = [rows[i] for i in rng.permutation(len(rows))]
  return _batches(rows, lengths, drawn, shapes, rng)


def _join(order, lengths: np.ndarray, capacity: int) -> list[tuple[int, ...]]:
  """Utterances packed into rows: each into the fullest row that still has room for it."""
  rows: list[list[int]] = []
  room = np.zeros(len(order), np.int64)
  for utterance in order:
    length = lengths[utterance]
    free = np.where(room[: len(rows)] >= length, room[: len(rows)], np.iinfo(np.int64).max)
    if len(rows) and room[chosen := int(free.argmin())] >= length:
      rows[chosen].append(int(utterance))
      room[chosen] -= length
    else:
      room[len(rows)] = max(0, capacity - length)
      rows.append([int(utterance)])
  return [tuple(row) for row in rows]


def evaluation_plan(
  durations: np.ndarray, shapes: tuple[Shape, ...], speed: float = 1.0
) -> list[PlannedBatch]:
  """Every utterance once, alone in its row, by length.

  Args:
    durations: f64[utterances], seconds.
    shapes: of `shapes`, made for the same durations and speed.
    speed: factor that all of them are played at.
  """
  lengths = samples_of(durations, speed)
  rows = [(int(i),) for i in np.argsort(lengths, kind="stable")]
  return _batches(rows, lengths, np.full(len(durations), speed), shapes, None)


def _batches(rows, lengths, drawn, shapes, rng) -> list[PlannedBatch]:
  """Rows of utterances into batches of the smallest shape that holds them."""
  sizes = np.array([lengths[list(row)].sum() for row in rows])
  bucket = np.searchsorted([s.samples for s in shapes], sizes)
  batches, waiting = [], []
  for number, shape in enumerate(shapes):
    waiting += [row for row, b in zip(rows, bucket, strict=True) if b == number]
    last = number == len(shapes) - 1
    full = len(waiting) if last else len(waiting) // shape.rows * shape.rows
    for start in range(0, full, shape.rows):
      batches.append(_planned(waiting[start : min(start + shape.rows, full)], shape, drawn))
    # What does not fill a batch goes into a longer shape.
    waiting = waiting[full:]
  if rng is not None:
    batches = [batches[i] for i in rng.permutation(len(batches))]
  return batches


def _planned(rows, shape: Shape, drawn) -> PlannedBatch:
  rows = [*rows, *([()] * (shape.rows - len(rows)))]
  return PlannedBatch(
    shape, tuple(rows), tuple(tuple(float(drawn[i]) for i in row) for row in rows)
  )


def padding_rate(planned: list[PlannedBatch], durations: np.ndarray) -> float:
  """Share of the samples in an epoch's batches that are padding."""
  real, room = np.sum([seconds_of(batch, durations) for batch in planned], 0)
  return 1 - float(real / room)


def seconds_of(batch: PlannedBatch, durations: np.ndarray) -> tuple[float, float]:
  """Seconds of real audio in a batch, and with padding."""
  real = sum(
    float((durations[list(row)] / speeds).sum())
    for row, speeds in zip(batch.rows, batch.speeds, strict=True)
    if row
  )
  return real, batch.shape.rows * batch.shape.seconds
