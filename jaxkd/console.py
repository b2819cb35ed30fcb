"""What a person sees: log and progress on standard error, tables on standard output."""

import contextlib
import logging

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  SpinnerColumn,
  TextColumn,
  TimeElapsedColumn,
  TimeRemainingColumn,
)

err = Console(stderr=True)
out = Console()
_quiet = False


def start_logging() -> None:
  """One line a message on standard error; libraries speak up only with warnings."""
  if err.is_terminal:
    handler: logging.Handler = RichHandler(console=err, show_path=False, show_level=False)
    layout = ("%(message)s", "[%X]")
  else:  # a file has no width to wrap and pad to
    handler = logging.StreamHandler()
    layout = ("%(asctime)s %(message)s", "[%H:%M:%S]")
  handler.setFormatter(logging.Formatter(*layout))
  logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
  logging.getLogger("jaxkd").setLevel(logging.INFO)
  # Orbax and absl report every save below this level, and what they also raise at ERROR.
  for name in ("absl", "asyncio", "orbax"):
    logging.getLogger(name).setLevel(logging.CRITICAL)


def be_quiet() -> None:
  """From here on only warnings are shown: of several processes one speaks."""
  global _quiet
  _quiet = True
  logging.getLogger("jaxkd").setLevel(logging.WARNING)


def percent(rate: float | None) -> str:
  """A rate as it stands in tables."""
  return "–" if rate is None else f"{100 * rate:.1f}"


@contextlib.contextmanager
def progress(description: str, total: int, *, done: int = 0):
  """A bar on standard error; yields update(steps=1, **notes).

  Args:
    description: what is going on.
    total: steps to do.
    done: steps done already.
  """
  bar = Progress(
    SpinnerColumn(),
    TextColumn("{task.description}"),
    BarColumn(bar_width=24),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TimeRemainingColumn(),
    TextColumn("{task.fields[notes]}"),
    console=err,
    transient=True,
    disable=_quiet or not err.is_terminal,
  )
  with bar:
    task = bar.add_task(description, total=total, completed=done, notes="")

    def update(steps: int = 1, **notes) -> None:
      text = "  ".join(f"{k} {v}" for k, v in notes.items())
      bar.update(task, advance=steps, **({"notes": text} if notes else {}))

    yield update
