"""What a person sees: log and progress on standard error, tables on standard output."""

import contextlib
import logging
from collections.abc import Mapping

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  ProgressColumn,
  SpinnerColumn,
  TextColumn,
)
from rich.text import Text

from jaxkd import buckets

# Names of files may look like rich's markup, or its emoji.
err = Console(stderr=True, markup=False, emoji=False)
out = Console(markup=False, emoji=False)
_quiet = False


def start_logging() -> None:
  """One line a message on standard error; libraries speak up only with warnings."""
  if err.is_terminal:
    handler: logging.Handler = RichHandler(console=err, show_path=False, show_level=False)
    layout = ("%(message)s", "[%X]")
  else:  # a file has no width to wrap and pad to
    handler = logging.StreamHandler()
    layout = ("%(asctime)s %(message)s", "[%H:%M:%S]")
  handler.setFormatter(_Formatter(*layout))
  logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
  logging.getLogger("jaxkd").setLevel(logging.INFO)
  # Orbax and absl report every save below this level, and what they also raise at ERROR.
  for name in ("absl", "asyncio", "orbax"):
    logging.getLogger(name).setLevel(logging.CRITICAL)


class _Formatter(logging.Formatter):
  """What lies in buckets is called by its name there."""

  def format(self, record: logging.LogRecord) -> str:
    return buckets.shown(super().format(record))


def be_quiet() -> None:
  """From here on only warnings are shown: of several processes one speaks."""
  global _quiet
  _quiet = True
  logging.getLogger("jaxkd").setLevel(logging.WARNING)


def percent(rate: float | None) -> str:
  """A rate as it stands in tables."""
  return "–" if rate is None else f"{100 * rate:.1f}"


class _Times(ProgressColumn):
  """Time that has passed, and that is left."""

  def render(self, task) -> Text:
    left = "" if task.time_remaining is None else f", {_clock(task.time_remaining)} left"
    return Text(f"{_clock(task.elapsed or 0)}{left}")


def _clock(seconds: float) -> str:
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


_NARROW = 100  # columns; below, there is no room for a bar beside the figures
_TIMES = len("1:00:00, 1:00:00 left")


@contextlib.contextmanager
def progress(description: str, total: int, *, done: int = 0):
  """A line on standard error; yields update(steps=1, **notes).

  Notes that do not fit into the terminal's width are left out, the last ones first.

  Args:
    description: what is going on.
    total: steps to do.
    done: steps done already.
  """
  bar = () if err.width < _NARROW else (BarColumn(bar_width=24),)
  progress_ = Progress(
    SpinnerColumn(),
    TextColumn("{task.description}", markup=False),
    *bar,
    MofNCompleteColumn(),
    _Times(),
    TextColumn("{task.fields[notes]}", markup=False),
    console=err,
    transient=True,
    disable=_quiet or not err.is_terminal,
  )
  taken = len(description) + 2 * len(str(total)) + _TIMES + (26 if bar else 0) + 9
  with progress_:
    task = progress_.add_task(description, total=total, completed=done, notes="")

    def update(steps: int = 1, **notes) -> None:
      found = fitting(notes, err.width - taken)
      progress_.update(task, advance=steps, **({"notes": found} if found else {}))

    yield update


def fitting(notes: Mapping[str, str], width: int) -> str:
  """Names and values in one line, as many of them as a width has room for."""
  text = ""
  for name, value in notes.items():
    longer = f"{text}  {name} {value}" if text else f"{name} {value}"
    if len(longer) > width:
      break
    text = longer
  return text
