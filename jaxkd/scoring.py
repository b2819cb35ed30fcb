"""A split → hypotheses, error rates and blank statistics."""

import dataclasses

import jax
import numpy as np

from jaxkd import mesh as mesh_lib
from jaxkd import metrics
from jaxkd.data import pipeline
from jaxkd.data.plan import PlannedBatch
from jaxkd.data.sources import Source
from jaxkd.decode.greedy import collapse
from jaxkd.labels import Labels, normalise


@dataclasses.dataclass(frozen=True)
class SplitResult:
  """What the models made of a split.

  Attributes:
    figures: model ("student", "teacher") → wer, cer, words, blank_rate.
    kl: mean KL per frame from teacher to student (T = 1, nats); None without teacher.
    hypotheses: model → rows of id, reference, hypothesis.
    broken: (id, reason) of utterances that could not be decoded; they are in no figure.
  """

  figures: dict[str, dict]
  kl: float | None
  hypotheses: dict[str, list[dict]]
  broken: list[tuple[str, str]]

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
  labels: Labels,
  mesh: jax.sharding.Mesh,
  *,
  workers: int = 0,
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
    on_batch: called after every batch.
  """
  index = {name: i for i, name in enumerate(source.ids)}
  rows: dict[str, list[dict]] = {"student": []}
  if teacher_params is not None:
    rows["teacher"] = []
  sums: dict = {}
  broken: list[tuple[str, str]] = []
  shards = mesh_lib.my_shards(mesh)
  for host in pipeline.batches(source, plan, workers=workers, shards=shards):
    out = predict(params, teacher_params, mesh_lib.put_batch(host.batch, mesh))
    broken += host.broken
    for name in rows:
      path = mesh_lib.my_rows(getattr(out, f"{name}_path"))
      blank = jax.device_get(getattr(out, f"{name}_blank"))
      sums[name] = sums.get(name, np.zeros(2)) + [blank.total, blank.weight]
      for row, ids in enumerate(host.ids):
        if ids:
          hypothesis = labels.decode(collapse(path[row], blank_id=labels.blank_id))
          text = source.texts[index[ids[0]]]
          reference = None if text is None else normalise(text)
          rows[name].append({"id": ids[0], "reference": reference, "hypothesis": hypothesis})
    if out.kl is not None:
      kl = jax.device_get(out.kl)
      sums["kl"] = sums.get("kl", np.zeros(2)) + [kl.total, kl.weight]
    on_batch()
  found = mesh_lib.gather([rows, broken])
  broken = [tuple(pair) for _, pairs in found for pair in pairs]
  rows = {
    name: sorted((row for part, _ in found for row in part[name]), key=lambda r: index[r["id"]])
    for name in rows
  }
  figures = {name: _figures(found, sums.get(name, np.zeros(2))) for name, found in rows.items()}
  kl = sums["kl"][0] / max(sums["kl"][1], 1) if "kl" in sums else None
  return SplitResult(figures, None if kl is None else float(kl), rows, broken)


def _figures(rows: list[dict], blank: np.ndarray) -> dict:
  transcribed = [r for r in rows if r["reference"] is not None]
  rates = metrics.error_rates(
    [r["reference"] for r in transcribed], [r["hypothesis"] for r in transcribed]
  )
  return rates | {"blank_rate": round(float(blank[0] / max(blank[1], 1)), 6)}
