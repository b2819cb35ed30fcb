"""A split → hypotheses, error rates and blank statistics."""

import contextlib
import dataclasses
import functools

import jax
import numpy as np

from jaxkd.data import pipeline
from jaxkd.data.plan import PlannedBatch
from jaxkd.data.sources import Source
from jaxkd.devices import mesh as mesh_lib
from jaxkd.devices import sharding
from jaxkd.inference import alignment as align
from jaxkd.inference import error_rates as metrics
from jaxkd.inference.search.greedy import collapse
from jaxkd.labels import UnknownSymbol, Vocabulary, normalise


@dataclasses.dataclass(frozen=True)
class SplitResult:
  """What the models made of a split.

  Attributes:
    figures: model ("student", "teacher") → wer, cer, words, blank_rate.
    kl: mean KL per frame from teacher to student (T = 1, nats); None without teacher.
    hypotheses: model → rows of id, reference, hypothesis.
    broken: (id, reason) of utterances that could not be decoded; they are in no figure.
    blank_runs: model → number of runs of 0, 1, 2, … blanks between labels (`metrics.blank_runs`).
    spike_offsets: how much later than the teacher's the student's labels come; None where that was
      not asked for, there is no teacher, or no label.
  """

  figures: dict[str, dict]
  kl: float | None
  hypotheses: dict[str, list[dict]]
  broken: list[tuple[str, str]]
  blank_runs: dict[str, list[int]]
  spike_offsets: dict | None

  @property
  def score(self) -> float:
    """Lower is better: WER (ties broken by CER), or KL where nothing is transcribed."""
    student = self.figures["student"]
    if student["wer"] is None:
      return float("inf") if self.kl is None else self.kl
    return student["wer"] + 1e-3 * student["cer"]


def evaluate(
  predict,
  params,
  teacher_params,
  source: Source,
  plan: list[PlannedBatch],
  labels: Vocabulary,
  mesh: jax.sharding.Mesh,
  *,
  workers: int = 0,
  spikes: bool = False,
  on_batch=lambda: None,
) -> SplitResult:
  """Decodes every utterance of a source greedily.

  Args:
    predict: `step.make_eval_step`'s function.
    params: of the student.
    teacher_params: of the teacher, or None.
    source: the split.
    plan: its batches, one utterance a row (`plan.evaluation_plan`).
    labels: classes of both models.
    mesh: devices.
    workers: processes that decode audio.
    spikes: whether labels are aligned to both models' frames and compared in time: those of the
      transcript, or of the teacher's hypothesis where the classes cannot write it or there is none.
    on_batch: called after every batch.
  """
  index = {name: i for i, name in enumerate(source.ids)}
  models = ["student"] if teacher_params is None else ["student", "teacher"]
  rows: dict[str, list[dict]] = {name: [] for name in models}
  runs = {name: np.zeros(metrics.LONGEST_RUN + 1, np.int64) for name in models}
  sums = {name: np.zeros(2) for name in [*models, "kl"]}
  offsets: list[align.SpikeOffsets] = []
  broken: list[tuple[str, str]] = []
  shards = mesh_lib.my_shards(mesh)
  for host in pipeline.batches(source, plan, workers=workers, shards=shards):
    out = predict(params, teacher_params, mesh_lib.put_batch(host.batch, mesh))
    broken += host.broken
    found = [index[ids[0]] if ids else None for ids in host.ids]
    paths = {name: mesh_lib.my_rows(getattr(out, f"{name}_path")) for name in models}
    for name in models:
      sums[name] += _pair(getattr(out, f"{name}_blank"))
      for utterance, path in zip(found, paths[name], strict=True):
        if utterance is not None:
          rows[name].append(_row(source, utterance, path, labels))
          runs[name] += metrics.blank_runs(path, blank_id=labels.blank_id)
    if out.kl is not None:
      sums["kl"] += _pair(out.kl)
      if spikes:
        texts = [None if u is None else source.texts[u] for u in found]
        targets = [_target(*row, labels) for row in zip(texts, paths["teacher"], strict=True)]
        offsets.append(_offsets(out, targets, labels.blank_id, mesh))
    on_batch()
  gathered = mesh_lib.gather([rows, broken, {name: x.tolist() for name, x in runs.items()}])
  rows = {
    name: sorted((row for part in gathered for row in part[0][name]), key=lambda r: index[r["id"]])
    for name in models
  }
  return SplitResult(
    figures={name: _figures(rows[name], sums[name]) for name in models},
    kl=None if teacher_params is None else float(sums["kl"][0] / max(sums["kl"][1], 1)),
    hypotheses=rows,
    broken=[tuple(pair) for part in gathered for pair in part[1]],
    blank_runs={name: np.sum([part[2][name] for part in gathered], 0).tolist() for name in models},
    spike_offsets=_spike_figures(offsets),
  )


def _pair(found) -> np.ndarray:
  """f64[2] of a WeightedSum."""
  found = jax.device_get(found)
  return np.array([found.total, found.weight], np.float64)


def _row(source: Source, utterance: int, path: np.ndarray, labels: Vocabulary) -> dict:
  text = source.texts[utterance]
  return {
    "id": source.ids[utterance],
    "reference": None if text is None else normalise(text),
    "hypothesis": labels.decode(collapse(path, blank_id=labels.blank_id)),
  }


def _target(text: str | None, path: np.ndarray, labels: Vocabulary) -> np.ndarray:
  """Labels of a text, or of the teacher's path where there is none that the classes can write."""
  if text is not None:
    with contextlib.suppress(UnknownSymbol):
      return labels.encode(text)
  return collapse(path, blank_id=labels.blank_id)


def _offsets(out, targets: list[np.ndarray], blank_id: int, mesh) -> align.SpikeOffsets:
  """Of a batch, from labels of this process's rows; one program for each batch shape."""
  # More labels than frames have no path: they need no room.
  ids = np.zeros((len(targets), out.aligned[0].mask.shape[1]), np.int32)
  for row, target in zip(ids, targets, strict=True):
    row[: len(target)] = target[: len(row)]
  where = sharding.split_rows(mesh)
  lengths = np.array([len(target) for target in targets], np.int32)
  ids, lengths = (jax.make_array_from_process_local_data(where, x) for x in (ids, lengths))
  return jax.device_get(_compare(blank_id, mesh, *out.aligned, ids, lengths))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compare(blank_id: int, mesh, teacher, student, labels, label_len) -> align.SpikeOffsets:
  """`align.spike_offsets` of outputs that are cut to the same frames, the sums on every device."""
  frames = teacher.mask.sum(-1)
  found = align.spike_offsets(
    teacher.logits, student.logits, frames, labels, label_len, blank_id=blank_id
  )
  return jax.lax.with_sharding_constraint(found, sharding.replicated(mesh))


def _spike_figures(batches: list[align.SpikeOffsets]) -> dict | None:
  """The block of results.json; None where no label was aligned."""
  if not batches:
    return None
  found = align.SpikeOffsets(*(np.sum(x, 0) for x in zip(*batches, strict=True)))
  labels, middle = int(found.histogram.sum()), align.REACH
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
  rates = metrics.error_rates(
    [r["reference"] for r in transcribed], [r["hypothesis"] for r in transcribed]
  )
  return rates | {"blank_rate": round(float(blank[0] / max(blank[1], 1)), 6)}
