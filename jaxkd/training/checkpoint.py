"""Orbax checkpoints: the whole training state to resume from, and the best models to average."""

import logging
import pathlib
import time

import jax
import orbax.checkpoint as ocp

from jaxkd import files
from jaxkd.devices import mesh
from jaxkd.errors import UserError
from jaxkd.models import parameters

log = logging.getLogger(__name__)
# A read error of a network's file system passes within that time, or stays.
_PAUSE_SECONDS = 2.0


class _Manager(ocp.CheckpointManager):
  """Orbax's own would ask JAX's preemption service, too, whose one answer `stopping` waits for."""

  def reached_preemption(self, step: int) -> bool:
    del step
    return False


class Checkpoints:
  """`last/`: state and position of the two newest saves. `best/`: parameters of the k best.

  A save becomes visible by a rename, so a killed run leaves whole checkpoints only. What cannot be
  read all the same is moved to `set_aside/` and never deleted.
  """

  def __init__(self, folder: pathlib.Path, *, keep_best: int):
    self._folder = folder.absolute()
    # On CPU a background save would read buffers that the next step reuses.
    in_background = jax.default_backend() != "cpu"
    self._last = _Manager(
      self._folder / "last",
      options=ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=in_background),
    )
    self._set_aside_unscored()
    self._best = _Manager(
      self._folder / "best",
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep_best,
        best_fn=lambda m: m["score"],
        best_mode="min",
        enable_async_checkpointing=in_background,
      ),
    )

  def _set_aside_unscored(self) -> None:
    """Moves best checkpoints away whose score is damaged: Orbax would not open the others."""
    moves = []
    if mesh.is_first():
      for step in sorted(int(p.name) for p in self._folder.glob("best/*") if p.name.isdigit()):
        if why := _damage(self._folder / "best" / str(step) / "metrics" / "metrics"):
          name = f"best checkpoint {step} has no readable score"
          moves.append((name, why, self._move("best", step)))
    _say(mesh.agreed(moves))

  def save(self, step: int, state, position: dict) -> None:
    """Writes the training state and the JSON-able `position`; in the background on accelerators."""
    if step in self._last.all_steps():
      return
    self._last.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), position=ocp.args.JsonSave(position)
      ),
    )

  def save_best(self, step: int, params, score: float) -> None:
    """Offers parameters; they stay while `score` (lower is better) is among the k best.

    Those of a step that is evaluated again are there, or are offered again.
    """
    if step in self._best.all_steps():
      return
    self._best.save(step, args=ocp.args.StandardSave(params), metrics={"score": score})

  def restore(self, like) -> tuple[object, dict] | None:
    """The newest state that every process can read, and its position; None where there is none.

    Later checkpoints are set aside: the damaged ones, and the best ones, which will be made again.

    Args:
      like: a state of the same structure; its shardings are used.

    Raises:
      UserError: checkpoints exist, and none can be read, or they are of another model; nothing is
        set aside then.
    """
    reasons = {}
    for step in mesh.agreed(sorted(self._last.all_steps(), reverse=True)):
      found, reason = self._read(step, like)
      if reason is None:
        self._set_aside_after(step, reasons)
        return found
      reasons[step] = reason
    if reasons:
      why = "; ".join(f"{step}: {reason}" for step, reason in reasons.items())
      raise UserError(
        f"no checkpoint in {self._folder / 'last'} can be read ({why}): if that does not pass, "
        "remove the workdir and start again"
      )
    return None

  def _read(self, step: int, like) -> tuple[tuple[object, dict] | None, str | None]:
    """State and position of a step, or why a process cannot read them; all return the same."""
    folder = self._folder / "last" / str(step)
    for pause in (_PAUSE_SECONDS, None):
      found, problem = _attempt(folder, like)
      problems = [p for p in mesh.gather(problem) if p is not None]
      if not problems:
        return found, None
      del found  # of a process that could read: its memory is needed for the next attempt
      for problem in problems:
        if problem["another_model"]:
          raise UserError(problem["line"])
      if pause is not None:
        time.sleep(pause)
    return None, problems[0]["line"]

  def _set_aside_after(self, step: int, reasons: dict[int, str]) -> None:
    """Moves later checkpoints away, so that none is found again and their steps can be saved."""
    later = [("last", s, f"checkpoint {s} cannot be read", why) for s, why in reasons.items()]
    again = f"training goes on from step {step} and makes it again"
    best = mesh.agreed([s for s in self._best.all_steps() if s > step])
    later += [("best", s, f"best checkpoint {s} is later", again) for s in best]
    if not later:
      return
    moves = []
    if mesh.is_first():
      moves = [(name, why, self._move(what, s)) for what, s, name, why in later]
    _say(mesh.agreed(moves))
    for manager in (self._last, self._best):
      manager.reload()

  def _move(self, what: str, step: int) -> dict:
    """Renames a checkpoint; where it lies now, and the error where that was refused."""
    aside = self._folder / "set_aside"
    names = (f"{what}-{step}{more}" for more in ("", *(f"-{n}" for n in range(2, 1_000_000))))
    to = next(aside / name for name in names if not (aside / name).exists())
    try:
      aside.mkdir(exist_ok=True)
      (self._folder / what / str(step)).rename(to)
    except OSError as error:
      return {"to": str(to), "error": error.strerror}
    return {"to": str(to)}

  def best(self, like) -> list[tuple[int, object]]:
    """(step, parameters) of the k best, best first; those that are damaged are left out.

    Raises:
      UserError: none can be read.
    """
    self._best.wait_until_finished()
    first = self._best.best_step()
    steps = mesh.agreed(sorted(self._best.all_steps(), key=lambda s: (s != first, -s)))
    found = []
    for step in steps:
      params = None
      try:
        params = parameters.read(self._best.directory / str(step) / "default", like)
        problem = None
      except Exception as error:  # Orbax raises many kinds for a damaged file
        problem = parameters.reason(error)
      problems = [p for p in mesh.gather(problem) if p is not None]
      if problems:
        log.warning("best checkpoint %d cannot be read and is left out: %s", step, problems[0])
      else:
        found.append((step, params))
    if steps and not found:
      raise UserError(f"no checkpoint in {self._best.directory} can be read")
    return found

  def wait(self) -> None:
    """For saves under way."""
    for manager in (self._last, self._best):
      manager.wait_until_finished()

  def close(self) -> None:
    """Waits for saves under way."""
    self.wait()
    for manager in (self._last, self._best):
      manager.close()


def _damage(path: pathlib.Path) -> str | None:
  """Why a JSON file cannot be read, twice; None where it can."""
  for pause in (_PAUSE_SECONDS, None):
    try:
      files.read_json(path, kind=dict)
    except UserError as error:
      if pause is None:
        return str(error)
      time.sleep(pause)
  return None


def _say(moves: list) -> None:
  """Warns of what was set aside, (what it was, why, `_move`'s answer) each.

  Raises:
    UserError: one could not be moved.
  """
  for name, why, move in moves:
    if "error" in move:
      raise UserError(f"{name} and cannot be set aside in {move['to']}: {move['error']} ({why})")
    log.warning("%s and is set aside in %s: %s", name, move["to"], why)


def _attempt(folder: pathlib.Path, like) -> tuple[tuple[object, dict] | None, dict | None]:
  """State and position, or what this process's problem is; no process waits for another."""
  try:
    parameters.check_same_arrays(folder / "state", like)
    state = parameters.read(folder / "state", like)
    return (state, ocp.JsonCheckpointHandler().restore(folder / "position")), None
  except UserError as error:
    return None, {"another_model": True, "line": str(error)}
  except Exception as error:  # Orbax raises many kinds for a damaged file
    return None, {"another_model": False, "line": parameters.reason(error)}
