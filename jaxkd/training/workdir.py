"""The folder of a run: who may use it, what it was started with, and the files it ends in."""

import contextlib
import fcntl
import json
import logging
import pathlib
import subprocess

from ml_collections import ConfigDict
from tensorboardX import SummaryWriter

from jaxkd import files
from jaxkd.errors import UserError

log = logging.getLogger(__name__)
_ARCHIVED = "$Format:%H$"  # see .gitattributes beside this file
# Fields that change nothing about the result.
_FREE_FIELDS = (
  *("data.workers", "mesh.fsdp", "profile", "training.remat", "teacher.training.remat"),
  "labels.lexicon",  # what is in it counts: see blueprint.check_workdir
)


@contextlib.contextmanager
def claim(workdir: pathlib.Path, config: ConfigDict, data: dict, *, wait: bool = False):
  """Holds a workdir for one process and one config.

  Args:
    workdir: made if absent.
    config: of the run.
    data: split → facts (name, utterances, fingerprint, …), as JSON-able values.
    wait: for another process that holds it, instead of raising.

  Raises:
    UserError: another process holds it, or it belongs to another config or to other data.
  """
  written = json.loads(json.dumps(config.to_dict()))
  _compare(workdir / "config.json", binding(written), workdir)
  _compare(workdir / "data.json", {k: v["fingerprint"] for k, v in data.items()}, workdir)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    lock = (workdir / ".lock").open("w")
  except OSError as error:
    raise UserError(f"--workdir={workdir} cannot be made: {error.strerror}") from error
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      if not wait:
        raise UserError(f"--workdir={workdir} is in use by another process") from None
      log.info("waiting for another process that works in %s", workdir)
      fcntl.flock(lock, fcntl.LOCK_EX)
    files.write_json(workdir / "config.json", written)
    files.write_json(workdir / "data.json", data)
    yield


def _compare(path: pathlib.Path, now: dict, workdir: pathlib.Path) -> None:
  if not path.exists():
    return
  before = files.read_json(path)
  if path.name == "config.json":
    before = binding(before)
  else:
    before = {k: v["fingerprint"] for k, v in before.items()}
  for field in sorted(before.keys() | now.keys()):
    if before.get(field) != now.get(field):
      what = (
        f"config.{field} was {before.get(field)!r} and is {now.get(field)!r}"
        if path.name == "config.json"
        else f"the data of '{field}' has changed"
      )
      raise UserError(
        f"--workdir={workdir} holds a run of another config ({what}): "
        "choose another --workdir or remove this one"
      )


def binding(config: dict) -> dict:
  """Dotted name → value of the fields that the result depends on."""
  return {k: v for k, v in _flat(config).items() if k not in _FREE_FIELDS}


def _flat(tree: dict, prefix: str = "") -> dict:
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      flat |= _flat(value, f"{prefix}{key}.")
    else:
      flat[prefix + key] = value
  return flat


def commit() -> str:
  """Short hash of the source's git commit, "-dirty" with uncommitted changes; else "unknown".

  Source from `git archive`, as on clusters, has no repository: git wrote the hash into this file.
  """
  if not _ARCHIVED.startswith("$"):
    return _ARCHIVED[:10]
  try:
    found = subprocess.run(
      ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"],
      cwd=pathlib.Path(__file__).parent,
      capture_output=True,
      text=True,
      timeout=10,
    )
  except (OSError, subprocess.TimeoutExpired):
    return "unknown"
  return found.stdout.strip() or "unknown"


class MetricsLog:
  """Rows by step in two files and TensorBoard, continued from a step without gaps or doubles.

  `metrics.jsonl` holds what the run computes, the same each time it runs; `speed.jsonl` how fast.
  """

  def __init__(self, workdir: pathlib.Path, *, step: int, writes: bool = True):
    """Drops rows after `step`; with `writes` False nothing is touched or written."""
    self._files = {}
    if not writes:
      return
    for name in ("metrics", "speed"):
      path = workdir / f"{name}.jsonl"
      rows = path.read_text().splitlines(keepends=True) if path.exists() else []
      # A kill may cut the last line short.
      kept = [r for r in rows if r.endswith("\n") and json.loads(r)["step"] <= step]
      path.write_text("".join(kept))
      self._files[name] = path.open("a")
    self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

  def write(self, row: dict, file: str = "metrics") -> None:
    """Adds one row to a file; it holds "step", and its numbers go to TensorBoard."""
    if not self._files:
      return
    self._files[file].write(json.dumps(row) + "\n")
    self._files[file].flush()
    for name, value in row.items():
      if name not in ("step", "epoch") and isinstance(value, (int, float)):
        self._board.add_scalar(name, value, row["step"])

  def close(self) -> None:
    """Ends the files."""
    if self._files:
      self._board.close()
    for file in self._files.values():
      file.close()
