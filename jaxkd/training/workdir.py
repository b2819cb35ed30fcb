"""The folder of a run: who may use it, what it was started with, and the files it ends in."""

import contextlib
import json
import logging
import pathlib
import subprocess
import tempfile

from ml_collections import ConfigDict
from tensorboardX import SummaryWriter

from jaxkd import buckets, files, workdirs
from jaxkd import config as config_lib
from jaxkd.errors import UserError
from jaxkd.labels import Vocabulary

log = logging.getLogger(__name__)
_ARCHIVED = "$Format:%H$"  # see .gitattributes beside this file
_SHOWN = 3  # differences in a message
_NAMED_SUMS = 1  # the first schema whose training states are those of today


def check_usable(folder: pathlib.Path) -> None:
  """Tries whether a workdir can be made and written to, and leaves nothing behind.

  Raises:
    UserError: it cannot.
  """
  buckets.check_writable(folder)
  absent = [part for part in (folder, *folder.parents) if not part.exists()]
  _make(folder)
  try:
    tempfile.TemporaryFile(dir=folder).close()
  except OSError as error:
    raise _unwritable(folder, error) from error
  with contextlib.suppress(OSError):  # another process has begun to use it
    for part in absent:
      part.rmdir()


def _make(folder: pathlib.Path) -> None:
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f"--workdir={folder} cannot be made: {error.strerror}") from error


def _unwritable(folder: pathlib.Path, error: OSError) -> UserError:
  return UserError(f"--workdir={folder} cannot be written: {error.strerror}")


@contextlib.contextmanager
def claim(
  folder: pathlib.Path,
  config: ConfigDict,
  data: dict,
  vocabulary: Vocabulary,
  *,
  wait: bool = False,
):
  """Holds a workdir for one process and one run, which may be continued for more epochs.

  Args:
    folder: made if absent.
    config: of the run.
    data: split, or "teacher" → facts (name, fingerprint, …), as JSON-able values.
    vocabulary: the classes of the model.
    wait: for another process that holds it, instead of raising.

  Raises:
    UserError: another process holds it, it cannot be written, or it holds another run: of another
      config, other data or other classes. The line says which command can.
  """
  with _locked(folder, wait):
    buckets.fetch(folder, mine=True)
    try:
      longer = _check_same_run(folder, config, data, vocabulary)
      files.write_json(folder / workdirs.CONFIG, config_lib.stored(config))
      files.write_json(folder / workdirs.DATA, data)
      vocabulary.save(folder / workdirs.LABELS)
    except OSError as error:
      raise _unwritable(folder, error) from error
    if longer:
      log.info("%s", longer)
    yield
    buckets.publish(folder, exact=True)


def finished(folder: pathlib.Path, epochs: int) -> dict | None:
  """What results.json holds where the run is finished for so many epochs; else None.

  A run that is continued for more epochs keeps its old results until it has new ones.

  Raises:
    UserError: a damaged results.json.
  """
  path = folder / workdirs.RESULTS
  if not path.exists():
    return None
  found = files.read_json(path, kind=dict)
  done = found.get("epochs", epochs)  # older results do not say
  if isinstance(done, bool) or not isinstance(done, int):
    raise UserError(f"{path} cannot be read: its epochs are {done!r}")
  return found if done >= epochs else None


def find_teacher(
  beside: pathlib.Path, recipe: str, binding: dict, fingerprints: dict[str, str]
) -> pathlib.Path | None:
  """The workdir of a teacher that was made as this one would be, by this version or an older one.

  Args:
    beside: a student's workdir; teachers lie in folders `teacher-*` next to it.
    recipe: of the teacher.
    binding: `config.binding` of the teacher's own run.
    fingerprints: of its data by split, and of its vocabulary as "labels".

  Returns:
    A finished one where there are several; None where there is none.
  """
  for folder in buckets.folders(beside.parent, f"teacher-{recipe}-"):
    buckets.fetch(folder)
  found = [
    folder
    for folder in sorted(beside.parent.glob(f"teacher-{recipe}-*"))
    if _is_made_so(folder, binding, fingerprints)
  ]
  return min(found, key=lambda f: not workdirs.is_finished(f), default=None)


def _is_made_so(folder: pathlib.Path, binding: dict, fingerprints: dict[str, str]) -> bool:
  """Whether a workdir has this config, data and vocabulary; damaged ones have not."""
  try:
    if _binding(folder / workdirs.CONFIG) != binding:
      return False
    there = _fingerprints(folder / workdirs.DATA)
    there["labels"] = Vocabulary.load(folder / workdirs.LABELS).fingerprint()
    return there == fingerprints
  except UserError:
    return False


def _binding(path: pathlib.Path) -> dict:
  try:
    return config_lib.binding(files.read_json(path, kind=dict))
  except UserError as error:
    name = f"{path}: " if str(path) not in str(error) else ""
    raise UserError(f"{name}{error}") from error


def _fingerprints(path: pathlib.Path) -> dict[str, str]:
  """Split → fingerprint of a data.json."""
  try:
    return {split: facts["fingerprint"] for split, facts in files.read_json(path, dict).items()}
  except (KeyError, TypeError) as error:
    raise UserError(f"{path} cannot be read: a split has no fingerprint") from error


def _check_same_run(
  folder: pathlib.Path, config: ConfigDict, data: dict, vocabulary: Vocabulary
) -> str | None:
  """What to say of a run that goes on for more epochs than it was started with, or None.

  Raises:
    UserError: the workdir holds another run.
  """
  if not (folder / workdirs.CONFIG).exists():
    return None
  stored = files.read_json(folder / workdirs.CONFIG, kind=dict)
  before, now = _binding(folder / workdirs.CONFIG), config_lib.binding(config)
  name = "training.epochs"
  was, wanted = before[name], now[name]
  if stored.get("schema", 0) < _NAMED_SUMS and finished(folder, wanted) is None:
    _check_nothing_to_resume(folder)
  there = _fingerprints(folder / workdirs.DATA) if (folder / workdirs.DATA).exists() else {}
  # What was begun for more epochs and left is still finished for those that it has.
  if wanted > was or (finished(folder, wanted) or {}).get("epochs") == wanted:
    before |= {name: wanted}
  if "teacher" in there and there["teacher"] == data.get("teacher", {}).get("fingerprint"):
    before["teacher.source"] = now["teacher.source"]  # the same one, by another name
  differences = [
    f"config.{name} was {_shown(before, name)} and is {_shown(now, name)}"
    for name in sorted(before.keys() | now.keys())
    if before.get(name) != now.get(name)
  ]
  if there:
    differences += _other_data(there, data)
  path = folder / workdirs.LABELS
  same_classes = not path.exists() or Vocabulary.load(path) == vocabulary
  if not same_classes:
    differences.append("it has other classes or pronunciations, config.labels")
  fits = same_classes and _model(before) == _model(now)
  if differences:
    more = len(differences) - _SHOWN
    what = "; ".join(differences[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
    raise UserError(
      f"--workdir={folder} holds a run of another config ({what}): {_way_out(folder, fits)}"
    )
  return _longer(folder, was, wanted) if wanted > was else None


def _check_nothing_to_resume(folder: pathlib.Path) -> None:
  """A training state of an older version has other arrays: sums of terms that had no names.

  Raises:
    UserError: there is one.
  """
  if saved := workdirs.saved_steps(folder):
    raise UserError(
      f"--workdir={folder} holds a run that an older version of jaxkd stopped at step {saved[-1]}, "
      f"and this one cannot resume it: finish it with that version, or {_way_out(folder, False)}"
    )


def _shown(fields: dict, name: str) -> str:
  return repr(fields[name]) if name in fields else "absent"


def _other_data(before: dict[str, str], data: dict) -> list[str]:
  """A line for every split that has changed, come or gone, and for another teacher."""
  now = {split: facts["fingerprint"] for split, facts in data.items()}
  teachers, lines = {before.pop("teacher", None), now.pop("teacher", None)} - {None}, []
  if len(teachers) > 1:  # older versions do not say
    lines.append("the teacher has changed")
  for split in sorted(before.keys() | now.keys()):
    if split not in now:
      lines.append(f"there was data of '{split}' and is none")
    elif split not in before:
      lines.append(f"there was no data of '{split}' and is some")
    elif before[split] != now[split]:
      lines.append(f"the data of '{split}' has changed")
  return lines


def _model(fields: dict) -> dict:
  """What the shapes of a model's parameters depend on."""
  others = ("student.init", "student.dropout", "student.freeze_conv")
  blocks = ("student.", "features.")
  return {k: v for k, v in fields.items() if k.startswith(blocks) and k not in others}


def _way_out(folder: pathlib.Path, fits: bool) -> str:
  """The flags of a command that can do what this workdir cannot."""
  number = 2
  while (other := folder.with_name(f"{folder.name}-{number}")).exists():
    number += 1
  line = f"--workdir={other} starts a new one"
  if fits and workdirs.is_finished(folder):
    line += f", and with --config.student.init={folder} it begins with the parameters of this one"
  return line


def _longer(folder: pathlib.Path, was: int, wanted: int) -> str:
  rate = f"with the learning rate of a run of {wanted} epochs"
  if not workdirs.is_finished(folder):
    return f"{wanted} epochs instead of {was}: goes on {rate}"
  if not workdirs.saved_steps(folder):
    raise UserError(
      f"--workdir={folder} cannot go on from epoch {was} to {wanted}, since its checkpoints are "
      f"gone: {_way_out(folder, fits=True)}"
    )
  return f"{wanted} epochs instead of {was}: goes on from epoch {was} {rate}"


@contextlib.contextmanager
def _locked(folder: pathlib.Path, wait: bool):
  """Holds the lock of a workdir, which is made."""
  _make(folder)
  waits = f"waiting for another process that works in {folder}" if wait else ""
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(files.locked(folder / ".lock", waits=waits))
    except files.Held as error:
      raise UserError(f"--workdir={folder} is in use by another process") from error
    except OSError as error:
      raise _unwritable(folder, error) from error
    yield


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

  def __init__(
    self, workdir: pathlib.Path, *, step: int, writes: bool = True, evaluated: bool = True
  ):
    """Drops rows after `step`; with `writes` False nothing is touched or written.

    `evaluated` False drops the figures on dev of that step, too: it is evaluated again.

    Raises:
      UserError: a damaged line, other than a last one that a kill cut short.
    """
    self._files = {}
    if not writes:
      return
    for name in ("metrics", "speed"):
      path = workdir / f"{name}.jsonl"
      files.write_bytes(path, _rows_up_to(path, step, evaluated))
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

  def flush(self) -> None:
    """Leaves nothing to be written."""
    if self._files:  # those of rows never do
      self._board.flush()

  def close(self) -> None:
    """Ends the files."""
    if self._files:
      self._board.close()
    for file in self._files.values():
      file.close()


def _rows_up_to(path: pathlib.Path, step: int, evaluated: bool) -> bytes:
  """The lines of a file of rows whose step is not after `step`; see `MetricsLog`."""
  lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
  kept = []
  for number, line in enumerate(lines, 1):
    try:
      row = json.loads(line)
      again = row["step"] == step and not evaluated and any(k.startswith("dev/") for k in row)
      if row["step"] <= step and not again:
        kept.append(line + b"\n")
    except (ValueError, KeyError, TypeError) as error:
      raise UserError(f"{path}, line {number} is damaged: remove that line") from error
  return b"".join(kept)
