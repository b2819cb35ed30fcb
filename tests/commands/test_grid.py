"""A grid: its cells and their names, one teacher for all, a second call, a run that fails."""

import fnmatch
import json
import shlex
from types import SimpleNamespace

import jax
import pytest

import corpus
from jaxkd.commands import line as command_line
from jaxkd.config import grids, overrides
from jaxkd.errors import TRY_AGAIN, TryAgain, UserError
from jaxkd.training import grid

GRIDS = corpus.ROOT / "configs" / "grids"
GRID = "def get_grid(recipe):\n  return dict(seeds=(0,), scales={}, variants={})"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
  monkeypatch.chdir(corpus.ROOT)


@pytest.mark.parametrize("name", ["paper", "small"])
@pytest.mark.parametrize("recipe", ["demo", "librispeech"])
def test_every_cell_of_the_grids_is_a_run(name, recipe):
  found = grids.load(GRIDS / f"{name}.py", recipe)
  cells = grids.cells_of(found, recipe, (), "")
  assert len({cell.name for cell in cells}) == len(cells) > 5
  for cell in cells:
    config = overrides.parse(["jaxkd.main", *cell.arguments])[0]
    assert config.to_json() == cell.config.to_json()
    assert (config.kd.scale == 0) == (config.variant == "ctc")
    free = config.recipe == "demo" and config.kd.scale == 1
    assert ("unlabelled" in cell.name) == free


def test_paper_grid_is_the_papers():
  cells = grids.cells_of(grids.load(GRIDS / "paper.py", "tedlium"), "tedlium", (), "")
  # standard, elimination with and without prior, trim; n 1 to 5; 2 thresholds; 3 ratios.
  assert len(cells) == 3 * (1 + 3 * (4 + 5 + 2 + 3))
  symmetric = [cell.config.kd.selection for cell in cells if "symmetric" in cell.name]
  assert {selection.n for selection in symmetric} == {1, 2, 3, 4, 5}
  assert {cell.config.seed for cell in cells} == {0, 1, 2}
  more = grids.load(GRIDS / "paper.py", "librispeech")["variants"]
  assert more["symmetric"]["kd.selection.n"] == (1, 2, 3, 4, 5, 6)


def test_audio_without_transcripts_goes_to_runs_that_need_none():
  settings = dict(scales=(0.25, 1.0), seeds=(0,), variants=dict(ctc={}, symmetric={}))
  flags = ("--config.data.train=t/train.jsonl", "--config.data.teacher_train=t/train.jsonl")
  cells = grids.cells_of(settings, "manifest", flags, "u/audio.jsonl")
  assert [(c.name, c.config.data.train) for c in cells] == [
    ("ctc-train-s0", "t/train.jsonl"),
    ("symmetric-scale0.25-train-s0", "t/train.jsonl"),
    ("symmetric-scale1.0-audio-s0", "u/audio.jsonl"),
  ]
  same = grids.cells_of(settings, "manifest", flags, "")
  assert same[:2] == cells[:2] and same[2].name == "symmetric-scale1.0-train-s0"


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("x = 1", "get_grid"),
    ("def get_grid(recipe):\n  return dict(scales=())", "must return a dict of scales, seeds"),
    ("def get_grid(recipe:", "SyntaxError"),
    (GRID.format(0.5, {}), "scales is 0.5; it must be a tuple or list"),
    (GRID.format((1.0,), {"keep": {"seed": 2}}), "keep: seed is 2; it must be a tuple or list"),
    (GRID.format((1.0,), ["keep"]), "variants is .'keep'.; it must be a dict"),
    (GRID.format((1.0,), {"keep": 3}), "variants: keep has 3; it must be a dict"),
    (GRID.format((1.0,), {"keep": {"kd.loss": "kl"}}), "keep: kd.loss is 'kl'; it must be a tuple"),
    (GRID.format((1.0,), 5), "TypeError"),
    (GRID.format((), {}), "scales is .*; it must have one value or more"),
    (GRID.format((1.0,), {}).replace("(0,)", "()"), "seeds is .*; it must have one value or more"),
  ],
)
@pytest.mark.parametrize("name", ["mine.py", "README.md"])
def test_wrong_grids_are_one_line(tmp_path, text, words, name):
  path = tmp_path / name
  path.write_text(text)
  with pytest.raises(UserError, match=words) as caught:
    grids.load(path, "demo")
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("variants", "words"),
  [
    (
      {"symetric": {}},
      "symetric: no such file or variant .*'symmetric'.*; variants: .*ctc",
    ),
    ({"symmetric": {"kd.selection.m": (1,)}}, "kd.selection.m"),
    ({"symmetric": {"kd.selection.n": (-1,)}}, "kd.selection.n is -1"),
  ],
)
def test_wrong_cells_are_one_line(variants, words):
  settings = dict(scales=(1.0,), seeds=(0,), variants=variants)
  with pytest.raises(UserError, match=words):
    grids.cells_of(settings, "demo", (), "")


def test_runs_of_one_name_are_refused():
  for values in (("a/train.jsonl", "b/train.jsonl"), ("a/train.jsonl", "a/train.jsonl")):
    settings = dict(scales=(1.0,), seeds=(0,), variants=[("symmetric", {"data.train": values})])
    flags = ("--config.data.teacher_train=t.jsonl", "--config.data.train=t.jsonl")
    with pytest.raises(UserError, match="two runs .* the workdir symmetric-scale1.0-train-s0 [(]"):
      grids.cells_of(settings, "manifest", flags, "")


def test_a_path_among_the_values_makes_no_folders():
  settings = dict(scales=(1.0,), seeds=(0,), variants={"keep": {"teacher.source": ("runs/a",)}})
  (cell,) = grids.cells_of(settings, "demo", (), "")
  assert cell.name == "keep-sourceruns-a-scale1.0-unlabelled-s0"


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="--folder=.*file/runs cannot be made: Not a directory"):
    grid.train_all([], tmp_path / "file" / "runs")


class Trained:
  """What a grid trains, without training: (workdir, seed of its teacher, teacher.source)."""

  def __init__(self, patch, fails=lambda name, count: None):
    self.runs, self.waits, self.fails = [], [], fails
    patch.setattr(grid.assembly, "plan_run", self.plan_run)
    patch.setattr(grid.loop, "carry_out", self.carry_out)

  def plan_run(self, config, folder, opened):
    teacher = SimpleNamespace(folder=folder.parent / f"teacher-{config.seed}", teacher=None)
    return SimpleNamespace(folder=folder, teacher=teacher, config=config)

  def carry_out(self, plan, wait=False):
    self.runs.append(plan.folder.name)
    self.waits.append(wait)
    if error := self.fails(plan.folder.name, self.runs.count(plan.folder.name)):
      raise error
    return {"wall_seconds": 1.0}


def cells_of_two_seeds():
  settings = dict(scales=(1.0,), seeds=(0, 1), variants={"standard": {}})
  return grids.cells_of(settings, "demo", (), "")


def test_some_seeds_have_the_teacher_of_the_whole_grid(tmp_path, monkeypatch):
  trained = Trained(monkeypatch)
  second = cells_of_two_seeds()[1:]
  assert grid.train_all(second, tmp_path, teacher_seed=0) == {}
  assert trained.runs == ["teacher-0", second[0].name] and trained.waits == [True, False]
  trained.runs.clear()
  grid.train_all(second, tmp_path)
  assert trained.runs == ["teacher-1", second[0].name]


def test_what_may_pass_is_tried_again_and_the_others_go_on(tmp_path, monkeypatch):
  first, second = (cell.name for cell in cells_of_two_seeds())
  no_memory = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GB\nmore")
  errors = {(first, 1): TryAgain("a worker died"), (second, 1): no_memory}
  trained = Trained(monkeypatch, lambda *run: errors.get(run))
  failed = grid.train_all(cells_of_two_seeds(), tmp_path, teacher_seed=0)
  assert trained.runs == ["teacher-0", first, first, second]
  assert list(failed) == [second] and str(failed[second]).endswith("RESOURCE_EXHAUSTED: 9 GB")
  errors[first, 2] = errors[first, 3] = errors[first, 4] = TryAgain("a worker died")
  failed = grid.train_all(cells_of_two_seeds(), tmp_path, teacher_seed=0)
  assert isinstance(failed[first], TryAgain) and second not in failed


@pytest.mark.parametrize(
  ("error", "status"), [(TryAgain("no hub"), TRY_AGAIN), (UserError("no data"), 1)]
)
def test_where_no_run_finishes_the_status_says_why(tmp_path, monkeypatch, error, status):
  Trained(monkeypatch, lambda name, count: error)
  path = tmp_path / "mine.py"
  path.write_text(GRID.format((1.0,), {"standard": {}}))
  given = [str(path), "--recipe=demo", "--config.teacher.source=t", f"--folder={tmp_path / 'runs'}"]
  assert command_line.main(["grid", *given]) == status


@pytest.mark.parametrize("claims", ["[5]", "[None]", "[dict(txt='x', a='a', b='b')]"])
def test_claims_are_read_before_anything_is_trained(tmp_path, monkeypatch, claims):
  trained = Trained(monkeypatch)
  path = tmp_path / "mine.py"
  path.write_text(GRID.format((1.0,), {"standard": {}}).replace("dict(", f"dict(claims={claims}, "))
  with pytest.raises(UserError, match="a claim of the grid is") as caught:
    command_line.main(["grid", str(path), f"--folder={tmp_path / 'runs'}"])
  assert "\n" not in str(caught.value) and trained.runs == []


def test_only_some():
  cells = grids.cells_of(grids.load(GRIDS / "small.py", "demo"), "demo", (), "")
  assert grids.chosen(cells, "") == cells
  names = [cell.name for cell in grids.chosen(cells, "ctc,symmetric-n2")]
  assert names == [
    "ctc-train-s0",
    "symmetric-n2-scale0.25-train-s0",
    "symmetric-n2-scale1.0-unlabelled-s0",
  ]
  matched = [cell.name for cell in grids.chosen(cells, "*-n2-*1.0-*-s0,ctc")]
  assert matched == ["ctc-train-s0", "symmetric-n2-scale1.0-unlabelled-s0"]
  assert [cell.name for cell in grids.chosen(cells, " ctc, ")] == ["ctc-train-s0"]
  with pytest.raises(UserError, match="--only=,: no name in it"):
    grids.chosen(cells, ",")
  with pytest.raises(
    UserError, match="no run's name begins with or fits 'symetric'; the runs: ctc-tr"
  ):
    grids.chosen(cells, "ctc,symetric")


def test_dry_run_prints_commands_and_runs_nothing(tmp_path, capsys):
  arguments = ["grid", str(GRIDS / "small.py"), "--dry_run", f"--folder={tmp_path / 'runs'}"]
  assert command_line.main(arguments) == 0
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 13 and not (tmp_path / "runs").exists()
  for line in lines:
    arguments = shlex.split(line.removeprefix(f"{command_line.pasted()} train "))
    config, folder = overrides.parse(["", *arguments])
    assert folder.parent == tmp_path / "runs" and folder.name.startswith(config.variant)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_to_compile", "compiled_once")
def test_a_grid_ends_in_its_report_and_goes_on_where_it_was(tmp_path, capsys):
  """Two seeds beside one teacher; a run that fails is named, and the others and the report stay."""
  corpus.make(tmp_path)
  file = tmp_path / "tiny.py"
  settings = dict(scales=(1.0,), seeds=(0, 1), variants=dict(symmetric={}))
  file.write_text(f"def get_grid(recipe):\n  return {settings!r}\n")
  folder = tmp_path / "runs"
  flags = corpus.flags(tmp_path, "symmetric", folder)[3:]
  given = ["grid", str(file), "--recipe=manifest", f"--folder={folder}", *flags]
  assert command_line.main(given) == 0
  results = {p.parent.name: json.loads(p.read_text()) for p in folder.glob("*/results.json")}
  (teacher,) = (name for name in results if name.startswith("teacher-manifest-"))
  students = ["symmetric-scale1.0-unlabelled-s0", "symmetric-scale1.0-unlabelled-s1"]
  assert sorted(results) == [*students, teacher]
  assert {results[name]["teacher_workdir"] for name in students} == {f"../{teacher}"}
  assert "symmetric" in (folder / "report" / "report.md").read_text()
  # A second call computes nothing again.
  (folder / students[1] / "results.json").write_text("{")
  before = (folder / students[0] / "results.json").stat().st_mtime_ns
  assert command_line.main(given) == 1
  assert (folder / students[0] / "results.json").stat().st_mtime_ns == before
  assert "failed" in capsys.readouterr().err


@pytest.mark.parametrize("grid", ["evidence", "losses"])
@pytest.mark.parametrize("recipe", ["digits", "sentences"])
def test_grids_with_claims(grid, recipe):
  """Their claims are of runs that there are, and each seed has its own teacher."""
  found = grids.load(GRIDS / f"{grid}.py", recipe)
  assert found["teachers"] == "each"
  cells = grids.cells_of(found, recipe, (), "")
  names = {cell.name.removesuffix("-s0") for cell in cells if cell.config.seed == 0}
  assert 3 * len(names) == len(cells)
  for claim in found["claims"]:
    for pattern in (claim["a"], claim["b"]):
      assert fnmatch.filter(names, pattern), pattern


def test_the_grid_of_evidence():
  """Twice the audio, as many updates; what both grids have is one run."""
  found = grids.cells_of(grids.load(GRIDS / "evidence.py", "sentences"), "sentences", (), "")
  own = {cell.name: cell.arguments for cell in found}
  assert "symmetric-epochs7-scale1.0-train+unlabelled-s0" in own
  other = grids.cells_of(grids.load(GRIDS / "losses.py", "sentences"), "sentences", (), "")
  shared = {cell.name: cell.arguments for cell in other if cell.name in own}
  assert {"ctc-train-s0", "symmetric-n2-scale0.25-train-s0"} < shared.keys()
  assert all(own[name] == arguments for name, arguments in shared.items())
