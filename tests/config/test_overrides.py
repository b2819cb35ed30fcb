"""Command lines and the configs that they mean; a mistake in one is one line with the cure."""

import pytest

import corpus
from jaxkd import config as config_lib
from jaxkd.config import overrides
from jaxkd.errors import UserError


def parse(*arguments: str):
  return overrides.parse(["jaxkd.main", *arguments])


def test_defaults_and_overrides(monkeypatch):
  monkeypatch.chdir(corpus.ROOT)
  config, folder = parse("--config=configs/keep.py", "--config.kd.scale=0.25", "--config.seed=3")
  assert (config.variant, config.recipe, str(folder)) == ("keep", "demo", "runs/keep-demo")
  assert (config.kd.scale, config.seed) == (0.25, 3)
  config, folder = parse("--config=configs/keep.py:prompts", "--workdir=elsewhere")
  assert (config.recipe, str(folder)) == ("prompts", "elsewhere")


def test_variants_have_names_in_any_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for given in ("symmetric:prompts", f"{corpus.ROOT}/configs/symmetric.py:prompts"):
    config, folder = parse(f"--config={given}", "--config.kd.selection.n=4")
    assert (config.variant, config.recipe) == ("symmetric", "prompts")
    assert config.kd.selection.n == 4 and str(folder) == "runs/symmetric-prompts"
  assert "symmetric" in overrides.variants()
  assert overrides.grids() == ["evidence", "losses", "paper", "small"]
  assert overrides.find_grid("small") == corpus.ROOT / "configs" / "grids" / "small.py"


def test_a_name_wins_over_a_file_without_suffix_or_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  text = (
    "from jaxkd import config\n\ndef get_config(recipe='demo'):\n  return config.base(recipe)\n"
  )
  for name in ("trim", "mine", "trim.py"):
    (tmp_path / name).write_text(text)
  assert parse("--config=trim")[0].kd.selection.name == "trim"
  for given in ("./trim", "trim.py", "mine", str(tmp_path / "trim")):
    assert parse(f"--config={given}")[0].kd.selection == config_lib.base().kd.selection
  (tmp_path / "small").write_text("")
  assert overrides.find_grid("small") == corpus.ROOT / "configs" / "grids" / "small.py"


def test_configs_lie_in_an_installed_package_or_beside_it(tmp_path, monkeypatch):
  module = tmp_path / "jaxkd" / "config" / "overrides.py"
  monkeypatch.setattr(overrides, "__file__", str(module))
  assert overrides.configs_folder() == tmp_path / "configs"
  (tmp_path / "jaxkd" / "configs").mkdir(parents=True)
  assert overrides.configs_folder() == tmp_path / "jaxkd" / "configs"


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--config=configs/symetric.py"], ["configs/symetric.py", "no such file", "'symmetric'"]),
    (
      ["--config=symetric:demo"],
      ["--config=symetric", "did you mean 'symmetric'", "variants: consistency, ctc"],
    ),
    (["--config=grids/small"], ["--config=grids/small: no such file or variant"]),
    (["--config="], ["no such file or variant"]),
    (["--config=configs/symmetric.py:dmeo"], ["unknown recipe 'dmeo'", "demo", "manifest"]),
    (["--workdir=x"], ["--config=VARIANT", "missing", "symmetric:demo"]),
    (["--config=configs/keep.py", "--wrkdir=x"], ["wrkdir"]),
    (["--config=configs/keep.py", "more"], ["'more' is not a flag"]),
    (
      ["--config=configs/keep.py", "--config.kd.scael=0.5"],
      ["config.kd.scael: no such field", "did you mean 'scale'", "temperature"],
    ),
    (
      ["--config=keep", "--config.kd.scale=0.5", "--config.trainig.epochs=1"],
      ["config.trainig: no such field", "did you mean 'training'"],
    ),
    (
      ["--config=configs/keep.py", "--config.kd.selection.n=1"],
      ["config.kd.selection.n: 'keep' has no such field", "before, after"],
    ),
    (["--config=keep", "--config.kd.scale=half"], ["kd.scale is 'half': it must be a number from"]),
    (
      ["--config=keep", "--config.seed=1", "--config.training.epochs=1e3"],
      ["config.training.epochs is '1e3': it must be an integer, 1 or more"],
    ),
    (["--config=keep", "--config.training.remat=maybe"], ["'maybe': it must be True or False"]),
    (
      ["--config=symmetric", "--config.kd.selection=keep"],
      ["kd.selection is 'keep': it is a block", "--config.kd.selection.name=keep: ", "symmetric"],
    ),
    (["--config=symmetric", "--config.kd.selection=kep"], ["--config.kd.selection.name=KIND: "]),
    (["--config=symmetric", "--config.kd=a"], ["--config.kd.FIELD=VALUE of ", "scale"]),
    (["--config=configs/keep.py", "--config.kd.scale=2"], ["kd.scale", "2", "0 to 1"]),
    (["--config=configs/keep.py", "--config.training.epochs=1.5"], ["1.5"]),
    (["--config=configs/standard.py", "--config.kd.grow_epochs=2"], ["kd.grow_epochs"]),
    (["--config=configs/keep.py:manifest"], ["data.train"]),
    (
      ["--config=keep", "--config.kd.scale.bar=1"],
      ["config.kd.scale.bar: no such field: config.kd.scale is no block, but a number from 0 to 1"],
    ),
    (["--config=keep", "--config.student.name.x=1"], ["no block, but one of conformer, fast"]),
    (["--config=keep", "--config.kd.selection.after.x=1"], ["no block, but an integer, 0 or"]),
    (["--config=keep", "--config.training.lr[0]=1e-3"], ["config.training.lr[0]: no such field"]),
    (["--config=keep", "--config.kd..scale=1"], ["config.kd.: no such field; fields of config.kd"]),
    (["--config=keep", "--config.=1"], ["config.: no such field; fields of config: checkpoint"]),
    (["--config=keep", "--config.variant=foo"], ["given as --config=foo"]),
    (["--config=keep", "-config.variant"], ["given as --config=VARIANT"]),
    (
      ["--config=keep:demo", "--config.recipe=sentences"],
      ["--config.recipe=sentences: give it as --config=keep:sentences", "--recipe=sentences"],
    ),
    (
      ["--config=keep", "--config.data.dev", "--config.seed=1"],
      ["--config.data.dev needs a value, as in --config.data.dev=VALUE"],
    ),
    (["--config=keep", "-config.kd.scale", "--workdir=x"], ["--config.kd.scale=VALUE"]),
    (["--config=keep", "--config.seed"], ["--config.seed needs a value"]),
    (["--config=keep", "--config.kd", "--config.seed=1"], ["config.kd is '': it is a block"]),
  ],
)
def test_wrong_command_lines(monkeypatch, arguments, words):
  monkeypatch.chdir(corpus.ROOT)
  with pytest.raises(UserError) as error:
    parse(*arguments)
  line = str(error.value)
  assert "\n" not in line
  for word in words:
    assert word in line


def test_flags_of_truth_values_need_none_and_values_may_follow():
  given = ("--config.teacher.cache", "--noconfig.training.remat", "--config.kd.scale", "0.5")
  config = parse("--config=keep", *given, "--config.training.clip_norm", "2")[0]
  assert config.teacher.cache and not config.training.remat
  assert (config.kd.scale, config.training.clip_norm) == (0.5, 2)


def test_a_field_that_the_file_made_up_is_the_files_mistake(tmp_path):
  path = tmp_path / "mine.py"
  path.write_text(
    "from jaxkd import config\n\ndef get_config(recipe='demo'):\n  made = config.base(recipe)\n"
    "  with made.unlocked():\n    made.kd.own = 1\n  return made\n"
  )
  with pytest.raises(UserError, match="config.kd.own: no such field"):
    parse(f"--config={path}", "--config.kd.own=a")


@pytest.mark.parametrize(
  ("flags", "wanted"),
  [
    (["name=trim"], {"name": "trim"}),
    (["name=symmetric"], {"name": "symmetric", "n": 2}),
    (["name=threshold", "min_label_prob=0.5"], {"name": "threshold", "min_label_prob": 0.5}),
    (["min_label_prob=0.5", "name=threshold"], None),
    (["name=keep", "after=2"], {"name": "keep", "before": 1, "after": 2}),
    (["name=nonblank", "prior_scale=0.3"], {"name": "nonblank", "prior_scale": 0.3}),
    (["name=trim", "name=soft"], {"name": "soft"}),
    (["name=trim", "name=symmetric", "n=3"], {"name": "symmetric", "n": 3}),
  ],
)
def test_another_kind_brings_its_own_fields(flags, wanted):
  given = [f"--config.kd.selection.{flag}" for flag in flags]
  found = parse("--config=symmetric:demo", *given)[0].kd.selection
  wanted = wanted or {"name": "threshold", "min_label_prob": 0.5}
  assert dict(found) == wanted


def test_another_kind_of_model():
  flags = ("--config.student.name=huggingface", "--config.student.source=some/model")
  student = parse("--config=symmetric:demo", *flags, "--config.training.spec_augment=False")[
    0
  ].student
  assert dict(student) == {
    "name": "huggingface",
    "source": "some/model",
    "pool": 2,
    "dropout": 0.2,
    "freeze_conv": False,
    "init": "",
  }
  with pytest.raises(UserError, match="student.name is 'huggingfce'.*did you mean 'huggingface'"):
    parse("--config=symmetric:demo", "--config.student.name=huggingfce")


def test_optional_fields_of_a_kind_can_be_set():
  found = parse("--config=soft:demo", "--config.kd.selection.min_weight=0.25")[0]
  assert found.kd.selection.min_weight == 0.25


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("def get_config(:\n", "line 1"),
    ("import nothing_of_this_name\n", "nothing_of_this_name"),
    ("def get_config(recipe='demo'):\n  return 5\n", "get_config must return"),
  ],
)
def test_broken_config_files(tmp_path, text, words):
  path = tmp_path / "mine.py"
  path.write_text(text)
  with pytest.raises(UserError, match=words) as error:
    parse(f"--config={path}")
  assert "\n" not in str(error.value)
