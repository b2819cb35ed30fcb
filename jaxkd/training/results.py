"""What a run ends in: results.json, hypotheses and the table."""

import pathlib

import jax
from rich.table import Table

from jaxkd import buckets, console, files, workdirs
from jaxkd import config as config_lib
from jaxkd.devices import mesh
from jaxkd.inference import finished, scoring
from jaxkd.models import registry
from jaxkd.models.acoustic import parameter_count
from jaxkd.training import workdir
from jaxkd.training.run import Run


def write(run: Run, position, evaluated: dict[str, scoring.SplitResult], steps: list[int]) -> dict:
  """Writes hypotheses and results.json of a finished training and returns the latter.

  Args:
    run: that is finished.
    position: `loop.Position` at its end.
    evaluated: split → result of the final model.
    steps: of the checkpoints in the final model.
  """
  params = {"student": parameter_count(registry.as_kept(run.blueprint.like))}
  if run.teacher:
    params["teacher"] = run.teacher.parameter_count
  source, train = run.teacher_source, run.data.train
  found = run.facts | {
    "schema": config_lib.SCHEMA,
    "commit": workdir.commit(),
    "device": jax.default_backend(),
    "wall_seconds": round(position.wall_seconds, 1),
    # Of an ensemble, several with commas.
    "teacher_workdir": finished.beside(source, run.workdir) if source else None,
    "epochs": run.epochs,
    "checkpoint_steps": steps,
    "selected_rate": _rounded(position.selected_rate),
    "train": {
      "name": train.name,
      "utterances": len(train),
      "hours": round(float(train.durations.sum()) / 3600, 4),
      "broken": len(train.skipped) + len(position.broken),
      "infeasible": position.infeasible_rows,
      "skipped_updates": position.skipped,
    },
  }
  for split, result in evaluated.items():
    found[split] = split_figures(result, getattr(run.data, split), params)
    if mesh.is_first():
      for model, rows in result.hypotheses.items():
        files.write_jsonl(run.workdir / "hypotheses" / f"{split}.{model}.jsonl", rows)
  if mesh.is_first():
    # What a search found was of the model before, where the run went on for more epochs.
    for path in run.workdir.glob(f"{pathlib.Path(workdirs.SEARCHED).stem}*.json"):
      path.unlink()
    files.write_json(run.workdir / workdirs.RESULTS, found)
  return found


def split_figures(result: scoring.SplitResult, source, params: dict[str, int]) -> dict:
  """A split's block of results.json: model → figures, and what was left out."""
  block = {
    name: figures
    | {
      "params": params[name],
      "frame_ms": result.frame_ms,
      "blank_runs": result.blank_runs[name],
    }
    for name, figures in result.figures.items()
  }
  broken = [*source.skipped, *result.broken]
  return dict(sorted(block.items(), reverse=True)) | {
    "name": source.name,
    "utterances": len(source) - len(result.broken),
    "kl": _rounded(result.kl),
    "spike_offsets": result.spike_offsets,
    "broken": [{"id": i, "reason": r} for i, r in broken],
  }


def _rounded(x):
  return None if x is None else round(x, 6)


def show(found: dict, folder: pathlib.Path) -> None:
  """Prints the table of a results.json on standard output."""
  split = "test" if "test" in found else "dev"
  title = f"{found['variant']} · {found['recipe']} · seed {found['seed']} · {found['commit']}"
  table = Table(title=title, title_justify="left")
  for heading in ("", "parameters", "WER %", "CER %", "blank rate"):
    table.add_column(heading, justify="left" if not heading else "right")
  for model in ("teacher", "student"):
    if model in found.get(split, {}):
      row = found[split][model]
      table.add_row(
        model,
        f"{row['params']:,}",
        console.percent(row["wer"]),
        console.percent(row["cer"]),
        f"{row['blank_rate']:.3f}",
      )
  console.out.print(table)
  train = found["train"]
  facts = [
    f"{split}: {found[split]['utterances']} utterances, {len(found[split]['broken'])} broken"
    if split in found
    else "no test data",
    f"train: {train['utterances']} utterances ({60 * train['hours']:.1f} min), "
    f"{train['broken']} broken, {train['infeasible']} infeasible",
  ]
  if found["selected_rate"] is not None:
    facts.append(f"selected frames: {100 * found['selected_rate']:.1f} %")
  if (spikes := found.get(split, {}).get("spike_offsets")) is not None:
    facts.append(
      f"student's labels: {100 * spikes['share_0']:.1f} % in the teacher's frame, "
      f"{100 * spikes['share_1']:.1f} % one off; on average {spikes['mean']:+.2f} frames"
    )
  facts += [
    f"wall time: {found['wall_seconds']:.0f} s on {found['device']}" + _teacher_time(found, folder),
    f"results: {buckets.name(folder / workdirs.RESULTS)}",
  ]
  for fact in facts:
    console.out.print(fact, highlight=False, markup=False, soft_wrap=True)


def _teacher_time(found: dict, folder: pathlib.Path) -> str:
  if not found["teacher_workdir"]:
    return ""
  path = folder / found["teacher_workdir"] / workdirs.RESULTS
  if not path.exists():
    return ""
  return f", and {files.read_json(path)['wall_seconds']:.0f} s for the teacher"
