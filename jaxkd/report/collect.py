"""Folders → runs that are finished, and what is left out and why."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterable

from ml_collections import ConfigDict

from jaxkd import buckets, files, workdirs
from jaxkd import config as config_lib
from jaxkd.errors import UserError

SPLITS = ("dev", "test")
MODELS = ("teacher", "student")
_SHOWN = 4  # names in a message


@dataclasses.dataclass(frozen=True)
class Run:
  """A finished workdir.

  Attributes:
    folder: as the user gave it.
    config: dotted name → value of the fields that the result depends on.
    results: of results.json.
    train: identifies the training data, whatever its path was.
    labels: kind of the classes, such as characters.
    hypotheses: (split, model) → id → (reference or None, hypothesis), in the split's order.
    metrics: rows of metrics.jsonl, with the present names of terms.
    search: of search.json, or None.
  """

  folder: pathlib.Path
  config: dict
  results: dict
  train: str
  labels: str
  hypotheses: dict[tuple[str, str], dict[str, tuple[str | None, str]]]
  metrics: list[dict]
  search: dict | None

  @property
  def name(self) -> str:
    return self.folder.resolve().name

  @property
  def series(self) -> str:
    """Its name without the seed that a grid puts at the end."""
    return self.name.removesuffix(f"-s{self.results['seed']}")

  @property
  def teacher(self) -> str | None:
    """Absolute folder of the teacher, or its name on a hub; several with commas; None for none."""
    found = self.results.get("teacher_workdir")
    if not found:
      return None
    return ",".join(self._resolved(name) for name in found.split(","))

  def _resolved(self, name: str) -> str:
    beside = buckets.here(name) if buckets.is_url(name) else buckets.fetch(self.folder / name)
    return os.path.realpath(beside) if beside.is_dir() else name

  def split_set(self, split: str) -> frozenset | None:
    """Ids and references of a split; None where the run has none."""
    rows = self.hypotheses.get((split, "student"))
    return rows and frozenset((i, reference) for i, (reference, _) in rows.items())


@dataclasses.dataclass(frozen=True)
class LeftOut:
  """A folder that is in no row of the table, and why."""

  folder: pathlib.Path
  reason: str


def read(folder: pathlib.Path) -> Run | LeftOut:
  """A finished run's workdir, or why it is none."""
  if not folder.is_dir():
    return LeftOut(folder, "not a folder" if folder.exists() else "no such folder")
  if not (folder / workdirs.CONFIG).exists():
    return LeftOut(folder, "not a workdir: no config.json")
  try:
    config = files.read_json(folder / workdirs.CONFIG)
    if not isinstance(config, dict) or not {"recipe", "kd", "seed"} <= config.keys():
      return LeftOut(folder, "not a workdir: its config.json is another program's")
    if not workdirs.is_finished(folder):
      return LeftOut(folder, _unfinished(folder, config))
    found = _finished(folder, reproducing(config))
    wanted = found.config["training.epochs"]
    if found.results.get("epochs", wanted) < wanted:  # it goes on from there
      return LeftOut(folder, _unfinished(folder, config))
    return found
  except UserError as error:
    return LeftOut(folder, f"unreadable: {error}")


def _finished(folder: pathlib.Path, config: dict) -> Run:
  results = files.read_json(folder / workdirs.RESULTS, kind=dict)
  hypotheses = {}
  for split in (s for s in SPLITS if s in results):
    for model in (m for m in MODELS if m in results[split]):
      rows = files.read_jsonl(folder / "hypotheses" / f"{split}.{model}.jsonl")
      try:
        hypotheses[split, model] = {r["id"]: (r["reference"], r["hypothesis"]) for r in rows}
        results[split][model] = {"wer": None, "cer": None} | results[split][model]
      except (KeyError, TypeError) as error:
        raise UserError(f"hypotheses/{split}.{model}.jsonl: a row lacks {error}") from error
  if not {"variant", "seed", "train"} <= results.keys():
    raise UserError("results.json lacks variant, seed or train")
  beside = (workdirs.DATA, workdirs.LABELS, workdirs.SEARCHED)
  data, labels, searched = (_optional(folder / name) for name in beside)
  return Run(
    folder,
    config,
    results,
    (data or {}).get("train", {}).get("fingerprint")
    or json.dumps(results["train"], sort_keys=True),
    (labels or {}).get("kind", "characters"),
    hypotheses,
    [_with_named_terms(row, config) for row in _metrics(folder)],
    searched,
  )


def reproducing(config: ConfigDict | dict) -> dict:
  """Dotted name → value of the fields that the result depends on, and where its data lay."""
  bound = config_lib.binding(config)
  is_data = lambda name: name.startswith("data.") and name != "data.workers"
  return {k: v for k, v in config_lib.flat(config).items() if k in bound or is_data(k)}


def _optional(path: pathlib.Path) -> dict | None:
  return files.read_json(path, kind=dict) if path.exists() else None


def _metrics(folder: pathlib.Path) -> list[dict]:
  path = folder / workdirs.METRICS
  return files.read_jsonl(path, growing=True) if path.exists() else []


def _with_named_terms(row: dict, config: dict) -> dict:
  """A row of metrics.jsonl; older ones call every distillation loss kd, a warm-up's too."""
  name = "hypotheses" if config["kd.loss"] == "hypotheses" else f"kd/{config['kd.loss']}"
  return {name if key == "kd" else key: value for key, value in row.items()}


def _unfinished(folder: pathlib.Path, config: dict) -> str:
  """How far a run has come."""
  rows = _metrics(folder)
  last = rows[-1] if rows else {}
  step = max([*workdirs.saved_steps(folder), last.get("step", 0)])
  epochs = config.get("training", {}).get("epochs", "?")
  if not step:
    return "unfinished: no update logged or saved yet"
  where = f", in epoch {last['epoch'] + 1} of {epochs}" if "epoch" in last else ""
  return f"unfinished: step {step}{where}; the same command goes on"


def check_same_test(runs: Iterable[Run]) -> None:
  """Refuses runs whose error rates are of different utterances.

  Raises:
    UserError: names the sets and the runs that have each.
  """
  groups: dict[frozenset, list[Run]] = {}
  for run in runs:
    if found := run.split_set("test"):
      groups.setdefault(found, []).append(run)
  if len(groups) < 2:
    return
  sets = [_set_name(found, members) for found, members in groups.items()]
  raise UserError(
    "these runs have different test sets, and their error rates do not compare: "
    + "; ".join(sets)
    + ": give the runs of one set"
  )


def _set_name(found: frozenset, members: list[Run]) -> str:
  words = sum(len((reference or "").split()) for _, reference in found)
  name = members[0].results["test"].get("name", "test")
  return f"{name} ({len(found)} utterances, {words} words): {names(members)}"


def names(runs: list[Run]) -> str:
  """The folders of runs, the first few by name."""
  more = f" and {len(runs) - _SHOWN} more" if len(runs) > _SHOWN else ""
  return ", ".join(str(run.folder) for run in runs[:_SHOWN]) + more
