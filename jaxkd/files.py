"""Small files that are read whole, and written whole or not at all."""

import json
import os
import pathlib

from jaxkd.errors import UserError


def write_json(path: pathlib.Path, value) -> None:
  """Writes JSON so that the file is either the old one or the whole new one."""
  temporary = path.with_name(path.name + ".tmp")
  temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
  os.replace(temporary, path)


def write_jsonl(path: pathlib.Path, rows: list[dict]) -> None:
  """Writes one JSON object a line, whole or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(path.name + ".tmp")
  temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
  os.replace(temporary, path)


def read_jsonl(path: pathlib.Path, *, growing: bool = False) -> list:
  """Reads a JSON value a line.

  Args:
    path: of the file.
    growing: a kill may have cut the last line short; that one is left out.

  Raises:
    UserError: absent or damaged.
  """
  try:
    lines = path.read_text().splitlines()
  except (OSError, ValueError) as error:
    raise UserError(f"{path} cannot be read: {error}") from error
  rows = []
  for number, line in enumerate(lines, 1):
    try:
      rows.append(json.loads(line))
    except ValueError as error:
      if growing and number == len(lines):
        break
      raise UserError(f"{path}, line {number}: {error}") from error
  return rows


def read_json(path: pathlib.Path):
  """Reads JSON.

  Raises:
    UserError: absent or damaged.
  """
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise UserError(f"{path} cannot be read: {error}") from error
