"""The one exception a user's mistake may raise."""


class UserError(Exception):
  """A mistake in what the user gave: one line with the field, the value, the choices and the fix.

  `main` and the other commands print it after "error: " and exit with status 2; nothing else is
  printed and nothing half-written is left behind.
  """
