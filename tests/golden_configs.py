"""Dumps of every variant with every recipe, so that a changed default shows in the diff.

python -m tests.golden_configs
"""

import importlib.util
import json
import pathlib

from jaxkd import config as config_lib

ROOT = pathlib.Path(__file__).parents[1]
VARIANTS = sorted(ROOT.glob("configs/*.py"))
FOLDER = ROOT / "tests" / "golden" / "configs"
RENEW = "python -m tests.golden_configs"
RECIPES = tuple(f"{data}-{size}" for data in config_lib.DATA for size in config_lib.SIZES)
# What jaxkd before sizes and schema numbers gave, and what its first version did for demo.
RECORDED = {
  row["name"]: row["config"]
  for row in map(json.loads, (FOLDER / "schema0.jsonl").read_text().splitlines())
}


def load(path: pathlib.Path, recipe: str = "demo"):
  """The config that a variant's file gives for a recipe."""
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(recipe)


def dump(recipe: str) -> str:
  """All fields of base(recipe), then of each variant those that differ, - where one is gone."""
  base = _lines(config_lib.base(recipe))
  text = [f"{name} = {value}" for name, value in base.items()]
  for path in VARIANTS:
    found = _lines(load(path, recipe))
    text += ["", f"[{path.stem}]"]
    text += [f"{name} = {value}" for name, value in found.items() if base.get(name) != value]
    text += [f"- {name}" for name in base if name not in found]
  return "\n".join(text) + "\n"


def _lines(config) -> dict[str, str]:
  return {name: repr(value) for name, value in sorted(config_lib.flat(config).items())}


def main() -> None:
  """Writes all dumps anew."""
  for path in FOLDER.glob("*.txt"):
    path.unlink()
  for recipe in RECIPES:
    (FOLDER / f"{recipe}.txt").write_text(dump(recipe))


if __name__ == "__main__":
  main()
