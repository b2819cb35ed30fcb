"""What is installed: the package with the variants and grids inside, and the command."""

import importlib.util
import os
import subprocess
import sys
import tomllib
import zipfile

import pytest

import corpus


def test_the_wheel_takes_configs_along():
  project = tomllib.loads((corpus.ROOT / "pyproject.toml").read_text())
  wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
  assert set(wheel["only-include"]) == {"jaxkd", "configs"}
  assert wheel["sources"] == {"configs": "jaxkd/configs"}
  module, name = project["project"]["scripts"]["jaxkd"].split(":")
  assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.skipif(importlib.util.find_spec("hatchling") is None, reason="needs hatchling")
def test_an_installed_wheel_finds_variants_by_name(tmp_path):
  build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
  subprocess.run(build, cwd=corpus.ROOT, check=True, capture_output=True)
  (wheel,) = tmp_path.glob("*.whl")
  with zipfile.ZipFile(wheel) as archive:
    names = archive.namelist()
    archive.extractall(tmp_path / "site")
  for path in (corpus.ROOT / "configs").rglob("*.py"):
    assert f"jaxkd/{path.relative_to(corpus.ROOT)}" in names
  for path in (corpus.ROOT / "jaxkd/export/page").iterdir():
    assert str(path.relative_to(corpus.ROOT)) in names
  assert not [name for name in names if not name.startswith(("jaxkd/", "jaxkd-"))]
  there = tmp_path / "elsewhere"
  there.mkdir()
  environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
  run = lambda *given: subprocess.run(
    [sys.executable, "-m", "jaxkd", *given],
    capture_output=True,
    text=True,
    cwd=there,
    env=environment,
  )
  wrong = run("train", "--config=symmetric:demo", "--config.kd.nope=1")
  assert wrong.returncode == 2 and wrong.stderr.startswith("error: config.kd.nope: no such field")
  assert wrong.stderr.count("\n") == 1
  grid = run("grid", "small", "--dry_run")
  assert grid.returncode == 0 and grid.stdout.count("--config=symmetric:demo") == 6, grid.stderr
