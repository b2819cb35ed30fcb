"""Imports point to earlier rooms only, and what others import is where it was."""

import ast
import importlib
import pathlib

import pytest

import jaxkd

PACKAGE = pathlib.Path(jaxkd.__file__).parent
# In the order of the flow; rooms of one line may use each other where a comment says so.
ROOMS = (
  ("types",),
  ("arguments", "logits", "placement"),
  ("masks", "errors"),
  ("files",),
  ("buckets",),
  ("workdirs",),
  ("console",),
  ("losses",),
  ("selection",),
  ("config",),
  ("labels",),
  ("devices",),
  ("data",),
  ("models",),
  ("teacher",),
  ("inference",),
  ("training",),
  ("export",),
  ("report",),
  ("commands",),
  ("main", "__main__"),
)
ORDER = {room: number for number, line in enumerate(ROOMS) for room in line}


def room_of(module: str) -> str | None:
  """The room of a module of ours, such as "models" of "jaxkd.models.layers"; None for others."""
  parts = module.split(".")
  return parts[1] if parts[0] == "jaxkd" and len(parts) > 1 else None


def imports(path: pathlib.Path):
  """(line, module) of everything of ours that a file imports, inside functions too."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from ((node.lineno, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}:{node.lineno}: a relative import"
      if node.module == "jaxkd":
        yield from ((node.lineno, f"jaxkd.{alias.name}") for alias in node.names)
      else:
        yield node.lineno, node.module


def wrong_ways(package: pathlib.Path) -> list[str]:
  """A line for each import that points to a later room, or to a neighbour in the same line."""
  found = []
  for path in sorted(package.rglob("*.py")):
    here = path.relative_to(package).parts[0].removesuffix(".py")
    if here == "__init__":
      here = "main"  # what `import jaxkd` offers may come from anywhere
    for line, module in imports(path):
      there = room_of(module)
      if there is None or there == here:
        continue
      if there not in ORDER:
        found.append(f"{path}:{line}: {module} is in no room")
      elif ORDER[there] >= ORDER[here]:
        found.append(f"{path}:{line}: {here} imports {module}, of a later room")
  return found


def test_every_file_is_in_a_room():
  there = {p.name.removesuffix(".py") for p in PACKAGE.iterdir() if not p.name.startswith("__")}
  there -= {p.name for p in PACKAGE.iterdir() if p.is_dir() and not list(p.glob("*.py"))}
  assert there <= set(ORDER)


def test_imports_point_to_earlier_rooms():
  wrong = wrong_ways(PACKAGE)
  assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
  ("place", "line", "reason"),
  [
    ("models/layers.py", "from jaxkd.training import step", "models imports jaxkd.training"),
    ("labels/text.py", "from jaxkd import teacher", "labels imports jaxkd.teacher"),
    ("data/plan.py", "def f():\n  import jaxkd.models.layers", "data imports jaxkd.models.layers"),
    ("errors.py", "from jaxkd import masks", "errors imports jaxkd.masks"),
    ("main.py", "from jaxkd import cellar", "jaxkd.cellar is in no room"),
  ],
)
def test_the_walk_finds_wrong_ways(tmp_path, place, line, reason):
  path = tmp_path / place
  path.parent.mkdir(exist_ok=True)
  path.write_text(f"{line}\n")
  (found,) = wrong_ways(tmp_path)
  assert f"{path}:{line.count(chr(10)) + 1}: {reason}" in found


@pytest.mark.parametrize("name", ["losses", "selection", "types", "teacher", "main"])
def test_public_imports(name):
  importlib.import_module(f"jaxkd.{name}")


def test_public_names():
  from jaxkd import losses, selection, teacher
  from jaxkd.types import WeightedSum

  patterns = "all_frames nonblank trim keep symmetric threshold random_blanks soft"
  assert all(callable(getattr(selection, name)) for name in patterns.split())
  for name in ("kd_kl", "ctc_loss", "ctc_is_feasible"):
    assert callable(getattr(losses, name))
  assert callable(teacher.from_huggingface) and hasattr(WeightedSum, "mean")
