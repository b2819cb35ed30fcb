"""What may end a command other than success: a user's mistake, or a signal."""

from collections.abc import Iterable


class UserError(Exception):
  """A mistake in what the user gave: one line with the field, the value, the choices and the fix.

  `main` and the other commands print it after "error: " and exit with status 2; nothing else is
  printed and nothing half-written is left behind.
  """


class Interrupted(Exception):
  """A signal ended a run after its state was saved.

  Attributes:
    signum: SIGINT or SIGTERM.
  """

  def __init__(self, signum: int):
    super().__init__(f"signal {signum}")
    self.signum = signum


def did_you_mean(given: str, choices: Iterable[str]) -> str:
  """Text in brackets that names the choice that was probably meant, else ""."""
  import difflib  # not when the module is: errors are known before all else

  near = difflib.get_close_matches(given, choices, n=1)
  return f" (did you mean '{near[0]}'?)" if near else ""
