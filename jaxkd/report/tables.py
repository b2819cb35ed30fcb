"""Runs → rows: one for all seeds of a config and one for each teacher, with their statistics."""

import collections
import dataclasses
import functools
import itertools
import os
import pathlib

import numpy as np

from jaxkd import buckets, console
from jaxkd.errors import UserError
from jaxkd.inference import error_rates as metrics
from jaxkd.report import collect, command
from jaxkd.report.collect import Run

# Fields with a column of their own, or that name places and not settings.
_COLUMNS = ("seed", "kd.scale", "kd.selection.", "data.", "labels.name", "teacher.source")


@dataclasses.dataclass(frozen=True)
class Model:
  """One trained model and what it made of the splits.

  Attributes:
    run: its own workdir; None for a teacher whose workdir cannot be read or is none.
    hypotheses: split → id → (reference or None, hypothesis).
    figures: split → wer, cer, words, blank_rate, params, …, as in results.json.
  """

  run: Run | None
  hypotheses: dict[str, dict]
  figures: dict[str, dict]


@dataclasses.dataclass(frozen=True)
class Row:
  """Models that differ only in their seed.

  Attributes:
    name: for --baseline; no two rows have the same.
    role: "teacher" or "student".
    models: by seed.
    source: of a teacher: its folder, or its name on a hub.
  """

  name: str
  role: str
  models: list[Model]
  source: str = ""

  @property
  def first(self) -> Run | None:
    return self.models[0].run

  @property
  def runs(self) -> list[Run]:
    return [model.run for model in self.models if model.run is not None]

  @property
  def train(self) -> str | None:
    """Identifies the training data."""
    return self.first and self.first.train

  @property
  def selects(self) -> bool:
    """Whether a selection was at work: frames of the teacher are part of the student's loss."""
    return self.distils and self.first.config.get("kd.loss") != "hypotheses"

  @property
  def distils(self) -> bool:
    """Whether a teacher was at work, in any epoch."""
    if self.role == "teacher":
      return False
    first_scale = list(self.first.config.get("kd.scale_ramp") or ())[:1]
    return max(self.first.results["kd_scale"], *first_scale, 0) > 0

  @property
  def selection(self) -> dict:
    """Fields of the selection, its name included; of N-best targets their number."""
    config = self.first.config if self.role == "student" else {}
    if not self.selects:
      learnt = config.get("kd.loss") == "hypotheses"
      return {"name": "hypotheses", "N": config["kd.hypotheses"]} if learnt else {}
    prefix = "kd.selection."
    return {k.removeprefix(prefix): v for k, v in config.items() if k.startswith(prefix)}

  @functools.cached_property
  def errors(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Split → word errors i[seeds, utterances] and reference words i[utterances], ids sorted."""
    found = {}
    for split in collect.SPLITS:
      counts = [word_counts(m.hypotheses[split]) for m in self.models if split in m.hypotheses]
      same = len(counts) == len(self.models) and len({len(words) for _, words in counts}) == 1
      if same and counts[0][1].sum():
        found[split] = np.stack([errors for errors, _ in counts]), counts[0][1]
    return found

  def rates(self, split: str) -> np.ndarray | None:
    """f64[seeds]: WER of each; None where the split is absent or not transcribed."""
    if split not in self.errors:
      return None
    errors, words = self.errors[split]
    return errors.sum(1) / words.sum()

  def mean(self, split: str, field: str) -> float | None:
    """A figure of results.json, averaged over seeds."""
    found = [m.figures[split].get(field) for m in self.models if split in m.figures]
    return _mean(found)


def word_counts(rows: dict) -> tuple[np.ndarray, np.ndarray]:
  """Errors and words of each transcribed utterance, of id → (reference or None, hypothesis)."""
  kept = [rows[i] for i in sorted(rows) if rows[i][0] is not None]
  return metrics.edit_counts([r for r, _ in kept], [h for _, h in kept])


def _mean(values) -> float | None:
  known = [v for v in values if v is not None]
  return float(np.mean(known)) if known else None


def make_rows(runs: list[Run]) -> list[Row]:
  """Teachers, then students; runs that differ only in their seed share a row."""
  groups: dict[tuple, list[Run]] = {}
  for run in (r for r in runs if r.results["variant"] != "teacher"):
    groups.setdefault(_key(run), []).append(run)
  students = [sorted(found, key=_seed) for found in groups.values()]
  rows = [
    Row(name, "student", [_model(run, run, "student") for run in found])
    for name, found in zip(_names(students), students, strict=True)
  ]
  taken = {row.name for row in rows}
  numbered = itertools.chain(["teacher"], (f"teacher-{i}" for i in itertools.count(2)))
  names = (name for name in numbered if name not in taken)
  return [dataclasses.replace(row, name=next(names)) for row in _teachers(runs)] + rows


def _names(groups: list[list[Run]]) -> list[str]:
  """The variant of each row where it is the only one, else its first workdir's name or path.

  The name is without the seed where that is enough.
  """
  first = [group[0] for group in groups]
  choices = [(r.results["variant"] or r.name, r.series, r.name, str(r.folder)) for r in first]
  counts = collections.Counter(name for row in choices for name in set(row))
  return [next((n for n in row if counts[n] == 1), row[-1]) for row in choices]


def _seed(run: Run) -> int:
  return run.results["seed"]


def _key(run: Run) -> tuple:
  """Equal for runs that differ only in their seed."""
  config = run.config
  if config.get("teacher.source") not in ("train", "none"):
    config = config | {"teacher.source": _teacher_key(run.teacher)}
  fields = sorted((k, str(v)) for k, v in config.items() if k not in ("seed", "data.train"))
  return run.train, run.split_set("dev"), *fields


@functools.cache
def _teacher_key(place: str | None) -> tuple | str | None:
  """What is equal for teachers that differ only in their seed, where the workdir is there."""
  own = _workdir(place) if place else None
  return _key(own) if own else place


def _model(run: Run | None, host: Run, model: str) -> Model:
  """A model whose hypotheses and figures lie in the workdir `host`."""
  splits = [s for s in collect.SPLITS if (s, model) in host.hypotheses]
  return Model(
    run, {s: host.hypotheses[s, model] for s in splits}, {s: host.results[s][model] for s in splits}
  )


def _teachers(runs: list[Run]) -> list[Row]:
  """One row for each teacher of the students and each teacher's workdir, seeds together."""
  own = {os.path.realpath(r.folder): r for r in runs if r.results["variant"] == "teacher"}
  models: dict[str, tuple[Run | None, Model]] = {}
  for host in runs:
    place = host.teacher
    if place and place not in models and any(m == "teacher" for _, m in host.hypotheses):
      run = own.get(place) or _workdir(place)
      models[place] = run, _model(run, host, "teacher")
  models |= {p: (r, _model(r, r, "student")) for p, r in own.items() if p not in models}
  groups: dict = {}
  for place, (run, model) in models.items():
    groups.setdefault(_key(run) if run else place, []).append((place, model))
  return [
    Row("teacher", "teacher", [model for _, model in found], source=found[0][0])
    for found in groups.values()
  ]


def _workdir(place: str) -> Run | None:
  if not os.path.isabs(place):  # a name on a hub, or a folder that is gone
    return None
  in_bucket = buckets.url(pathlib.Path(place)) is not None
  found = collect.read(pathlib.Path(place if in_bucket else os.path.relpath(place)))
  return found if isinstance(found, Run) else None


def repeated(rows: list[Row]) -> list[str]:
  """A line for each row that has a seed more than once."""
  found = []
  for row in rows:
    counts = collections.Counter(map(_seed, row.runs))
    if twice := [seed for seed, count in counts.items() if count > 1]:
      places = ", ".join(str(run.folder) for run in row.runs if _seed(run) in twice)
      found.append(f"{row.name} has a seed more than once, and counts it so: {places}.")
  return found


def disagreements(rows: list[Row]) -> list[str]:
  """A line for each run whose results.json has another WER than its hypotheses."""
  found = []
  for row in rows:
    for split, (errors, words) in row.errors.items():
      for model, rate in zip(row.models, errors.sum(1) / words.sum(), strict=True):
        said = model.figures[split]["wer"]
        if said is not None and abs(said - rate) > 2e-6 and model.run:
          found.append(
            f"{model.run.folder}: {split} WER is {100 * said:.2f} % in results.json and "
            f"{100 * rate:.2f} % by hypotheses/, which counts here."
          )
  return found


def find_baseline(rows: list[Row], name: str | None) -> Row | None:
  """The row that others are compared with.

  Args:
    rows: all.
    name: of a row, or of the workdir of one of its runs; None for CTC alone, else standard. Of
      several, the one whose training data most rows share.

  Raises:
    UserError: no row has this name.
  """
  if name is not None:
    for row in rows:
      if name == row.name or name in (n for run in row.runs for n in (run.name, str(run.folder))):
        return row
    raise UserError(f"--baseline={name}: choose one of {', '.join(row.name for row in rows)}")
  students = [row for row in rows if row.role == "student"]
  shared = collections.Counter(row.train for row in students)
  for matches in (_is_ctc, _is_standard):
    if found := [row for row in students if matches(row)]:
      return max(found, key=lambda row: shared[row.train])
  return None


def _is_ctc(row: Row) -> bool:
  views = (row.first.config.get(f"kd.{name}") for name in ("consistency", "co_teacher"))
  return not row.distils and not any(views)


def _is_standard(row: Row) -> bool:
  return row.selects and row.first.config.get("kd.selection.name") == "all_frames"


def compare(rows: list[Row], baseline: Row | None) -> list[dict]:
  """The figures of every row, teachers first, then by training data and test WER.

  Within the students, those on the baseline's training data come first.

  Returns:
    A dict for each row, its keys the columns of report.csv, and under "row" the row.
  """
  common = baseline or next((r for r in rows if r.role == "student"), rows[0])
  found = []
  varied = _varied(rows)
  with console.progress("statistics", len(rows)) as update:
    for row in rows:
      found.append(_figures(row, baseline, common, varied))
      update()
  wer = lambda f: next((f[k] for k in ("test_wer", "dev_wer") if f[k] is not None), np.inf)
  best = collections.defaultdict(lambda: np.inf)
  for f in found:
    best[f["row"].train] = min(best[f["row"].train], wer(f))
  place = lambda f: (
    f["role"] != "teacher",
    f["role"] != "teacher" and not f["same_train_data"],
    f["role"] != "teacher" and best[f["row"].train],
    wer(f),
  )
  return sorted(found, key=place)


def _varied(rows: list[Row]) -> set[str]:
  """Fields without a column of their own in which a student differs from others and its file."""
  runs = [row.first for row in rows if row.role == "student"]
  given = [{k: str(v) for k, v in command.differences(run).items()} for run in runs]
  fields = {k for found in given for k in found if not k.startswith(_COLUMNS)}
  return {k for k in fields if len({found.get(k) for found in given}) > 1}


def _figures(row: Row, baseline: Row | None, common: Row, varied: set[str]) -> dict:
  run, split = row.first, "test" if "test" in row.errors else "dev"
  results = run.results if run else {}
  train = results.get("train", {})
  selection = row.selection
  commits = list(dict.fromkeys(r.results.get("commit", "unknown") for r in row.runs))
  return {
    "row": row,
    "name": row.name,
    "role": row.role,
    "variant": results["variant"] if row.role == "student" else "teacher",
    "selection": selection.get("name"),
    "parameters": ", ".join(f"{k} = {v}" for k, v in selection.items() if k != "name"),
    "n": selection.get("n"),
    "scale": results["kd_scale"] if row.role == "student" else None,
    "settings": _settings(row, varied),
    "train_data": train.get("name"),
    "train_hours": train.get("hours"),
    "same_train_data": row.train == common.train,
    "labels": run.labels if run else None,
    "seeds": " ".join(str(r.results["seed"]) for r in row.runs),
    "params": row.mean(split, "params"),
    **_rate(row, "dev"),
    **_rate(row, "test"),
    "p": _p_value(row, baseline, split),
    "baseline": baseline.name if baseline else None,
    "cer": row.mean(split, "cer"),
    "blank_rate": row.mean(split, "blank_rate"),
    "selected_rate": _mean([r.results.get("selected_rate") for r in row.runs])
    if row.selects
    else None,
    "wall_seconds": _mean([r.results.get("wall_seconds") for r in row.runs]),
    "commit": " ".join(commits) or None,
    "workdirs": " ".join(buckets.name(r.folder) for r in row.runs) or row.source,
    "command": _commands(row),
  }


def _settings(row: Row, varied: set[str]) -> str:
  if row.role == "teacher" or not varied:
    return ""
  given = command.differences(row.first)
  return ", ".join(f"{k} = {given[k]}" for k in sorted(varied & given.keys()))


def _commands(row: Row) -> str:
  """How the runs of a row were made: the first one's command, and what the others changed."""
  if row.role == "teacher" and not row.first:
    return f"as found: {row.source}"
  if row.role == "teacher" and not command.is_finetuned(row.first):
    return f"trained first by the students' commands: {row.first.folder}"
  first, *others = (command.command(run) for run in row.runs)
  return "\n".join([first, *(command.changed(first, line) for line in others)])


def _rate(row: Row, split: str) -> dict:
  """WER of a split: mean over seeds, their standard deviation, 95 % bootstrap interval."""
  rates = row.rates(split)
  if rates is None:
    return {f"{split}_{k}": None for k in ("wer", "wer_sd", "wer_low", "wer_high")}
  errors, words = row.errors[split]
  low, high = metrics.bootstrap_interval(errors.sum(0), words * len(errors))
  return {
    f"{split}_wer": float(rates.mean()),
    f"{split}_wer_sd": float(rates.std(ddof=1)) if len(rates) > 1 else None,
    f"{split}_wer_low": float(low),
    f"{split}_wer_high": float(high),
  }


def _references(row: Row, split: str) -> dict:
  """Id → reference."""
  return {i: reference for i, (reference, _) in row.models[0].hypotheses[split].items()}


def _p_value(row: Row, baseline: Row | None, split: str) -> float | None:
  """Paired bootstrap over utterances, all seeds of both rows together."""
  if baseline is None or row is baseline or not {split} <= row.errors.keys() & baseline.errors:
    return None
  ours, words = row.errors[split]
  theirs, _ = baseline.errors[split]
  if _references(row, split) != _references(baseline, split):  # dev sets may differ
    return None
  # Both on the scale of as many seeds, in whole errors.
  seeds = len(ours) * len(theirs)
  return float(
    metrics.paired_bootstrap(ours.sum(0) * len(theirs), theirs.sum(0) * len(ours), words * seeds)
  )
