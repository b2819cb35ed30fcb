"""Epoch → global batches of a few fixed shapes. Every process computes the same plan."""

import dataclasses
import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxkd.types import SAMPLE_RATE_HZ

# Resampling rounds, and so do the durations in manifests.
_SLACK = SAMPLE_RATE_HZ // 100
_BLOCK = 512
# More another batch than this, and its rows are filled up instead.
_OTHER_ROWS = 0.2
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
    """Seconds of audio in a row, padding included."""
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


def samples_of(durations: np.ndarray, speeds) -> np.ndarray:
  """i64: samples that are set aside for utterances of so many seconds at speed factors.

  Args:
    durations: f64[...], seconds.
    speeds: factors.
  """
  return np.ceil(durations * SAMPLE_RATE_HZ / speeds).astype(np.int64) + _SLACK


def shapes(
  durations: np.ndarray,
  *,
  batch_seconds: float,
  buckets: int,
  frame_samples: int,
  join_seconds: float = 0.0,
  labels_per_second: float = 0.0,
  speeds: tuple[float, ...] = (1.0,),
  multiple: int = 1,
  strict: bool = False,
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
    multiple: the number of rows is the nearest multiple of this, where that makes a batch larger or
      smaller by a fifth at most.
    strict: it is the largest multiple within `batch_seconds`, and at least one, in any case.
  """
  units = np.concatenate([samples_of(durations, speed) for speed in speeds])
  lengths: list[int] = []
  if join_seconds:
    joined = int(join_seconds * SAMPLE_RATE_HZ)
    if units.max() <= _STRETCH * joined:
      joined = max(joined, int(units.max()))
    lengths, units, buckets = [joined], units[units > joined], max(buckets - 1, 1)
  if len(units):
    lengths += _lengths(units, buckets)
  found = []
  for n in sorted(set(lengths)):
    samples = -(-n // frame_samples) * frame_samples
    rows = _row_count(batch_seconds / (samples / SAMPLE_RATE_HZ), multiple, strict)
    found.append(_shape(rows, samples, labels_per_second * max(speeds), frame_samples))
  return tuple(found)


def _row_count(room: float, multiple: int, strict: bool) -> int:
  """Rows of a batch that has room for so many; see `shapes`."""
  if strict:
    return max(1, int(room / multiple)) * multiple
  rows = max(1, int(room))
  near = round(rows / multiple) * multiple
  return near if near and abs(near - rows) <= _OTHER_ROWS * rows else rows


def _shape(rows: int, samples: int, labels_per_second: float, frame_samples: int) -> Shape:
  seconds = samples / SAMPLE_RATE_HZ
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
) -> "Plan":
  """Every utterance once, in random order, company and speed.

  A batch that does not fill up is filled with empty rows.

  Args:
    durations: f64[utterances], seconds.
    shapes: of `shapes`, made for the same durations, speeds and joining.
    seed, epoch: the plan depends on nothing else.
    speeds: factors to draw from.
    join: utterances are joined into rows of the shortest shape.
    apart: bool[utterances]; those with True are not joined with the others. None for all alike.
  """
  rng = np.random.default_rng([seed, epoch])
  drawn = rng.choice(np.array(speeds), len(durations))
  lengths = samples_of(durations, drawn)
  order = rng.permutation(len(durations))
  capacity = shapes[0].samples if join else 0
  if apart is None or not capacity:
    rows = _join(order, lengths, capacity)
  else:
    kinds = (order[~apart[order]], order[apart[order]])
    rows = _Rows.of(_join(kind, lengths, capacity) for kind in kinds)
    rows = rows.take(rng.permutation(len(rows)))
  return _planned(rows, lengths, drawn, shapes, rng)


@dataclasses.dataclass(frozen=True)
class _Rows:
  """Utterances in rows.

  Attributes:
    utterances: i64[utterances], row after row.
    starts: i64[rows + 1], where each row begins in it.
  """

  utterances: np.ndarray
  starts: np.ndarray

  @classmethod
  def of(cls, parts) -> "_Rows":
    """The rows of several, one after the other."""
    parts = list(parts)
    counts = np.concatenate([np.diff(part.starts) for part in parts])
    return cls(np.concatenate([part.utterances for part in parts]), _starts(counts))

  def __len__(self) -> int:
    return len(self.starts) - 1

  def take(self, chosen: np.ndarray) -> "_Rows":
    """Some of the rows, in this order."""
    counts = np.diff(self.starts)[chosen]
    within = np.arange(counts.sum()) - np.repeat(_starts(counts)[:-1], counts)
    return _Rows(self.utterances[np.repeat(self.starts[chosen], counts) + within], _starts(counts))

  def sums(self, values: np.ndarray) -> np.ndarray:
    """For each row, the sum of `values` over its utterances."""
    total = np.concatenate([[0], np.cumsum(values[self.utterances])])
    return total[self.starts[1:]] - total[self.starts[:-1]]


def _starts(counts: np.ndarray) -> np.ndarray:
  return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _join(order: np.ndarray, lengths: np.ndarray, capacity: int) -> _Rows:
  """Utterances packed into rows: each into the fullest row that still has room for it.

  Of equally full rows the first is meant. An utterance costs the same however many rows there are.
  """
  if not capacity:
    return _Rows(order, np.arange(len(order) + 1))
  rooms, row_of, count = _Rooms(capacity), [], 0
  for length in lengths[order].tolist():
    room, row = rooms.take(length)
    if row is None:
      room, row, count = capacity, count, count + 1
    row_of.append(row)
    rooms.put(room - length, row)
  rows = np.array(row_of, np.int64)
  by_row = np.argsort(rows, kind="stable")
  return _Rows(order[by_row], _starts(np.bincount(rows, minlength=count)))


class _Rooms:
  """Rows by the room that they have: bits say which rooms there are, in blocks of _BLOCK."""

  def __init__(self, capacity: int):
    self.rows: dict[int, list[int]] = {}
    self.blocks = [0] * (capacity // _BLOCK + 1)
    self.some = 0  # which blocks have any

  def take(self, least: int) -> tuple[int, int | None]:
    """(room, row) of the fullest row that has room for so many samples; (0, None) for none."""
    block, offset = divmod(least, _BLOCK)
    bits = self.blocks[block] >> offset if block < len(self.blocks) else 0
    if bits:
      room = least + _lowest(bits)
    else:
      above = self.some >> (block + 1)
      if not above:
        return 0, None
      block += 1 + _lowest(above)
      room = block * _BLOCK + _lowest(self.blocks[block])
    rows = self.rows[room]
    row = heapq.heappop(rows)
    if not rows:
      del self.rows[room]
      self.blocks[block] ^= 1 << (room - block * _BLOCK)
      if not self.blocks[block]:
        self.some ^= 1 << block
    return room, row

  def put(self, room: int, row: int) -> None:
    """Adds a row; one without room is full."""
    if room <= 0:
      return
    if room in self.rows:
      heapq.heappush(self.rows[room], row)
      return
    self.rows[room] = [row]
    block, offset = divmod(room, _BLOCK)
    self.blocks[block] |= 1 << offset
    self.some |= 1 << block


def _lowest(bits: int) -> int:
  """Number of the lowest bit that is set."""
  return (bits & -bits).bit_length() - 1


def evaluation_plan(durations: np.ndarray, shapes: tuple[Shape, ...], speed: float = 1.0) -> "Plan":
  """Every utterance once, alone in its row, by length.

  Args:
    durations: f64[utterances], seconds.
    shapes: of `shapes`, made for `durations / speed` and others.
    speed: factor that all of them are played at.
  """
  lengths = samples_of(durations / speed, 1.0)  # as `shapes` rounds them
  order = np.argsort(lengths, kind="stable")
  rows = _Rows(order, np.arange(len(order) + 1))
  return _planned(rows, lengths, np.full(len(durations), speed), shapes, None)


def _planned(rows: _Rows, lengths, drawn, shapes, rng) -> "Plan":
  """Rows of utterances into batches of the smallest shape that holds them."""
  needed = rows.sums(lengths)
  bucket = np.searchsorted([s.samples for s in shapes], needed)
  if (bucket == len(shapes)).any():
    raise ValueError(f"a row of {needed.max()} samples fits no shape: {shapes[-1:]} is the longest")
  batches, waiting = [], np.zeros(0, np.int64)
  for number, shape in enumerate(shapes):
    waiting = np.concatenate([waiting, np.flatnonzero(bucket == number)])
    last = number == len(shapes) - 1
    full = len(waiting) if last else len(waiting) // shape.rows * shape.rows
    ends = range(0, full, shape.rows)
    batches += [(shape, waiting[start : min(start + shape.rows, full)]) for start in ends]
    # What does not fill a batch goes into a longer shape.
    waiting = waiting[full:]
  if rng is not None:
    batches = [batches[i] for i in rng.permutation(len(batches))]
  return Plan(batches, rows, drawn)


class Plan(Sequence[PlannedBatch]):
  """The batches of an epoch; each is written out when it is asked for."""

  def __init__(self, batches: list[tuple[Shape, np.ndarray]], rows: _Rows, drawn: np.ndarray):
    """Takes the shape and the numbers of the rows of each batch, the rows, and all speeds."""
    self._batches, self._rows, self._drawn = batches, rows, drawn

  def __len__(self) -> int:
    return len(self._batches)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return Plan(self._batches[index], self._rows, self._drawn)
    shape, numbers = self._batches[index]
    starts = self._rows.starts
    parts = [self._rows.utterances[starts[row] : starts[row + 1]] for row in numbers]
    filler = ((),) * (shape.rows - len(parts))
    return PlannedBatch(
      shape,
      (*(tuple(part.tolist()) for part in parts), *filler),
      (*(tuple(self._drawn[part].tolist()) for part in parts), *filler),
    )

  def of(self, utterances: np.ndarray) -> "Plan":
    """The same plan of other utterances: number i stands for `utterances[i]`."""
    rows = _Rows(utterances[self._rows.utterances], self._rows.starts)
    drawn = np.ones(int(utterances.max(initial=-1)) + 1)
    drawn[utterances] = self._drawn
    return Plan(self._batches, rows, drawn)

  def padding_rate(self, durations: np.ndarray) -> float:
    """Share of the samples in the batches that are padding."""
    if not self._batches:
      return 0.0
    numbers = np.concatenate([rows for _, rows in self._batches])
    real = float(self._rows.sums(durations / self._drawn)[numbers].sum())
    room = sum(shape.rows * shape.seconds for shape, _ in self._batches)
    return 1 - real / room


def seconds_of(batch: PlannedBatch, durations: np.ndarray) -> float:
  """Seconds of audio in a batch, without padding."""
  return sum(
    float((durations[list(row)] / speeds).sum())
    for row, speeds in zip(batch.rows, batch.speeds, strict=True)
    if row
  )
