"""A split → hypotheses, error rates and blank statistics."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import losses
from jaxkd.data.plan import Shape
from jaxkd.data.sources import Source
from jaxkd.devices import mesh as mesh_lib
from jaxkd.devices import sharding
from jaxkd.inference import alignment, error_rates
from jaxkd.inference.frames import Remembered, Spoken, frames, no_numbers
from jaxkd.inference.search.greedy import best_path, collapse
from jaxkd.labels import UnknownSymbol, Vocabulary, normalise
from jaxkd.masks import same_frames
from jaxkd.models.acoustic import LONGEST_SECONDS, AcousticModel
from jaxkd.teacher.stored import Stored
from jaxkd.types import FrameOutput, WeightedSum


@dataclasses.dataclass(frozen=True)
class SplitResult:
  """What the models made of a split.

  Attributes:
    figures: model ("student", "teacher") → wer, cer, words, blank_rate.
    kl: mean KL per frame from teacher to student (T = 1, nats); None without teacher.
    hypotheses: model → rows of id, reference, hypothesis.
    broken: (id, reason) of utterances that could not be decoded; they are in no figure.
    blank_runs: model → number of runs of 0, 1, 2, … blanks between labels (see `error_rates`).
    frame_ms: milliseconds of a frame.
    spike_offsets: how much later than the teacher's the student's labels come; None where that was
      not asked for, there is no teacher, or no label.
  """

  figures: dict[str, dict]
  kl: float | None
  hypotheses: dict[str, list[dict]]
  broken: list[tuple[str, str]]
  blank_runs: dict[str, list[int]]
  frame_ms: float
  spike_offsets: dict | None

  @property
  def score(self) -> float:
    """Lower is better: WER (ties broken by CER), or KL where nothing is transcribed."""
    student = self.figures["student"]
    if student["wer"] is None:
      return float("inf") if self.kl is None else self.kl
    return student["wer"] + 1e-7 * student["cer"]  # WERs are given to 1e-6


def evaluate(
  student: AcousticModel,
  teacher: AcousticModel | Remembered | Stored | None,
  source: Source,
  devices: jax.sharding.Mesh,
  *,
  shapes: tuple[Shape, ...] | None = None,
  spikes: bool = False,
  description: str = "",
) -> SplitResult:
  """Decodes every utterance of a source greedily.

  Args:
    student: the model that is judged.
    teacher: of the same classes and frames, or None.
    source: the split.
    devices: mesh.
    shapes: of the batches; None for `frames.evaluation_shapes` of this source.
    spikes: whether labels are aligned to both models' frames and compared in time: those of the
      transcript, or of the teacher's hypothesis where the classes cannot write it or there is none.
    description: beside the progress bar.
  """
  models = {"student": student} | ({} if teacher is None else {"teacher": teacher})
  found = _Gathered(source, student, list(models))
  said = frames(models, source, devices, shapes=shapes, description=description)
  for spoken in said:
    found.add(spoken, devices, spikes)
  return found.result()


class _Gathered:
  """What has been heard of a source so far, by this process."""

  def __init__(self, source: Source, model: AcousticModel, names: list[str]):
    self.source, self.vocabulary, self.names = source, model.vocabulary, names
    self.frame_ms = model.frame_ms
    self.longest = error_rates.longest_run(model.frame_ms)
    self.index = {name: i for i, name in enumerate(source.ids)}
    self.rows: dict[str, list[dict]] = {name: [] for name in names}
    self.runs = {name: np.zeros(self.longest + 1, np.int64) for name in names}
    self.sums = {name: np.zeros(2) for name in [*names, "kl"]}
    self.offsets: list[alignment.SpikeOffsets] = []
    self.broken: list[tuple[str, str]] = []

  def add(self, spoken: Spoken, devices: jax.sharding.Mesh, spikes: bool) -> None:
    """Hypotheses and figures of a batch."""
    blank_id = self.vocabulary.blank_id
    self.broken += spoken.host.broken
    utterances = [self.index[ids[0]] if ids else None for ids in spoken.host.ids]
    paths = {}
    for name in self.names:
      path, blank = _best_path(spoken.outputs[name], blank_id, devices)
      paths[name] = mesh_lib.my_rows(path)
      self.sums[name] += _pair(blank)
      for utterance, row in zip(utterances, paths[name], strict=True):
        if utterance is not None:
          self.rows[name].append(self._row(utterance, row))
          self.runs[name] += error_rates.blank_runs(row, blank_id=blank_id, longest=self.longest)
    if "teacher" not in paths:
      return
    both = spoken.outputs["teacher"], spoken.outputs["student"]
    self.sums["kl"] += _pair(_kl(*both, devices))
    if spikes:
      texts = [None if u is None else self.source.texts[u] for u in utterances]
      rows = zip(texts, paths["teacher"], strict=True)
      targets = [_target(*row, self.vocabulary) for row in rows]
      if both[0].mask.shape[1] * self.frame_ms <= 1000 * LONGEST_SECONDS:
        self.offsets.append(_offsets(both, targets, blank_id, devices))
      else:  # memory for an alignment grows with the square of the length
        self.offsets.append(_not_aligned(both[0].mask, devices))

  def _row(self, utterance: int, path: np.ndarray) -> dict:
    text = self.source.texts[utterance]
    try:
      labels = collapse(path, blank_id=self.vocabulary.blank_id)
    except ValueError as error:
      raise no_numbers(self.source.ids[utterance]) from error
    return {
      "id": self.source.ids[utterance],
      "reference": None if text is None else normalise(text),
      "hypothesis": self.vocabulary.decode(labels),
    }

  def result(self) -> SplitResult:
    """What all processes have gathered of the split."""
    mine = [self.rows, self.broken, {name: x.tolist() for name, x in self.runs.items()}]
    gathered = mesh_lib.gather(mine)
    order = lambda row: self.index[row["id"]]
    rows = {
      name: sorted((row for part in gathered for row in part[0][name]), key=order)
      for name in self.names
    }
    kl = self.sums["kl"]
    return SplitResult(
      figures={name: _figures(rows[name], self.sums[name]) for name in self.names},
      kl=float(kl[0] / max(kl[1], 1)) if "teacher" in self.names else None,
      hypotheses=rows,
      broken=[tuple(pair) for part in gathered for pair in part[1]],
      blank_runs={
        name: np.sum([part[2][name] for part in gathered], 0).tolist() for name in self.names
      },
      frame_ms=self.frame_ms,
      spike_offsets=_spike_figures(self.offsets),
    )


@functools.partial(jax.jit, static_argnums=(1, 2))
def _best_path(out: FrameOutput, blank_id: int, devices) -> tuple[jax.Array, WeightedSum]:
  """i32[B, T], blank in padding; and frames that are called blank over real frames."""
  path = best_path(out.logits, out.mask, blank_id=blank_id)
  blank = ((path == blank_id) & out.mask).sum(dtype=jnp.float32)
  found = WeightedSum(blank, out.mask.sum(dtype=jnp.float32))
  return (
    jax.lax.with_sharding_constraint(path, sharding.split_rows(devices)),
    jax.lax.with_sharding_constraint(found, sharding.replicated(devices)),
  )


@functools.partial(jax.jit, static_argnums=2)
def _kl(teacher: FrameOutput, student: FrameOutput, devices) -> WeightedSum:
  """KL (T = 1) from teacher to student over all frames that are real in both."""
  teacher, student = same_frames(teacher, student)
  found = losses.kd_kl(student.logits, teacher.logits, student.mask, temperature=1.0)
  return jax.lax.with_sharding_constraint(found, sharding.replicated(devices))


def _pair(found) -> np.ndarray:
  """f64[2] of a WeightedSum."""
  found = jax.device_get(found)
  return np.array([found.total, found.weight], np.float64)


def _target(text: str | None, path: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
  """Labels of a text, or of the teacher's path where there is none that the classes can write."""
  if text is not None:
    with contextlib.suppress(UnknownSymbol):
      return vocabulary.encode(text)
  return collapse(path, blank_id=vocabulary.blank_id)


def _offsets(
  outputs: tuple[FrameOutput, FrameOutput], targets: list[np.ndarray], blank_id: int, devices
) -> alignment.SpikeOffsets:
  """Offsets in a batch, from labels of this process's rows; one program a batch shape."""
  # More labels than frames have no path: they need no room.
  ids = np.zeros((len(targets), outputs[0].mask.shape[1]), np.int32)
  for row, target in zip(ids, targets, strict=True):
    row[: len(target)] = target[: len(row)]
  where = sharding.split_rows(devices)
  lengths = np.array([len(target) for target in targets], np.int32)
  ids, lengths = (jax.make_array_from_process_local_data(where, x) for x in (ids, lengths))
  return jax.device_get(_compare(blank_id, devices, *outputs, ids, lengths))


@functools.partial(jax.jit, static_argnums=1)
def _count_rows(mask: jax.Array, devices) -> jax.Array:
  """i32[], rows with a real frame, on every device."""
  count = mask.any(-1).sum(dtype=jnp.int32)
  return jax.lax.with_sharding_constraint(count, sharding.replicated(devices))


def _not_aligned(mask: jax.Array, devices) -> alignment.SpikeOffsets:
  """Offsets of a batch of which nothing is compared."""
  nothing = np.zeros(2 * alignment.REACH + 1, np.int32)
  left_out = np.int32(jax.device_get(_count_rows(mask, devices)))
  return alignment.SpikeOffsets(nothing, np.int32(0), np.int32(0), left_out)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compare(blank_id: int, devices, teacher, student, labels, label_len) -> alignment.SpikeOffsets:
  """`alignment.spike_offsets` of two outputs, the sums on every device."""
  teacher, student = same_frames(teacher, student)
  frames = teacher.mask.sum(-1)
  found = alignment.spike_offsets(
    teacher.logits, student.logits, frames, labels, label_len, blank_id=blank_id
  )
  return jax.lax.with_sharding_constraint(found, sharding.replicated(devices))


def _spike_figures(batches: list[alignment.SpikeOffsets]) -> dict | None:
  """The block of results.json; None where no label was aligned."""
  if not batches:
    return None
  found = alignment.SpikeOffsets(*(np.sum(x, 0) for x in zip(*batches, strict=True)))
  labels, middle = int(found.histogram.sum()), alignment.REACH
  if not labels:
    return None
  share = lambda counts: round(float(counts.sum()) / labels, 6)
  near = found.histogram[[middle - 1, middle + 1]]
  return {
    "utterances": int(found.utterances),
    "left_out": int(found.left_out),
    "labels": labels,
    "share_0": share(found.histogram[middle]),
    "share_1": share(near),
    "share_more": share(np.delete(found.histogram, [middle - 1, middle, middle + 1])),
    "mean": round(int(found.total) / labels, 6),
    "histogram": {str(i - middle): int(count) for i, count in enumerate(found.histogram)},
  }


def _figures(rows: list[dict], blank: np.ndarray) -> dict:
  transcribed = [r for r in rows if r["reference"] is not None]
  rates = error_rates.error_rates(
    [r["reference"] for r in transcribed], [r["hypothesis"] for r in transcribed]
  )
  return rates | {"blank_rate": round(float(blank[0] / max(blank[1], 1)), 6)}
