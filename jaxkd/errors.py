"""What may end a command other than success: a user's mistake, what may pass, or a signal."""

from collections.abc import Iterable

# sysexits.h calls it EX_TEMPFAIL.
TRY_AGAIN = 75


class UserError(Exception):
  """A mistake in what the user gave: one line with the field, the value, the choices and the fix.

  `main` and the other commands print it after "error: " and exit with status 2; nothing else is
  printed and nothing half-written is left behind.
  """


class TryAgain(UserError):
  """No mistake of the user's: what may be gone when the same command is given again.

  Peers that are late, a worker process that died, a hub that is not reached. One line, and status
  `TRY_AGAIN`, on which launchers give the command once more.
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
