"""config.check catches what is wrong before data loads; the paper's values are pinned."""

import pytest
from ml_collections import ConfigDict

from golden_configs import RECIPES, VARIANTS, load
from jaxkd import config as config_lib
from jaxkd import selection
from jaxkd.config import recipes
from jaxkd.errors import UserError


@pytest.mark.parametrize("path", VARIANTS, ids=lambda p: p.stem)
@pytest.mark.parametrize("scale", [0.25, 0.9, 1.0])
def test_every_config_passes_at_every_scale(path, scale):
  config = load(path)
  if config.teacher.source != "none":
    config.kd.scale = scale
  if config.student.name == "huggingface":
    config.student.source = "org/model"
  config_lib.check(config)
  config_lib.check(config_lib.for_teacher(config))


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_config_passes_with_every_recipe(recipe):
  for path in VARIANTS:
    config = load(path, recipe)
    config.data.update(train="a.jsonl", teacher_train="b.jsonl")
    if config.student.name == "huggingface":
      config.student.source = "org/model"
    config_lib.check(config)


def test_every_selection_has_a_config_and_a_function():
  used = {load(path).kd.selection.name for path in VARIANTS}
  assert used == set(config_lib.SELECTIONS)
  for name in config_lib.SELECTIONS:
    assert callable(getattr(selection, name))


def test_label_free_student_does_not_get_the_transcribed_part():
  config = config_lib.base("demo")
  assert config_lib.train_data(config) == "demo:unlabelled"
  config.kd.scale = 0.9
  assert config_lib.train_data(config) == "demo:train"
  config.data.train = "mine.jsonl"
  assert config_lib.train_data(config) == "mine.jsonl"


def test_the_corpus_of_a_recipe_with_a_size_is_its_data():
  assert config_lib.train_data(config_lib.base("digits-medium")) == "digits:unlabelled"


def test_paper_values():
  config = config_lib.base("manifest")
  paper = recipes.training()
  assert paper.lr == (7e-6, 5e-4, 5e-5, 1e-7)
  assert (paper.optimizer, paper.eps, paper.weight_decay) == ("radam", 1e-16, 0.01)
  assert config.kd.temperature == 2.0
  assert config.features.low_hz == 60.0 and config.features.high_hz == 7600.0


def mutate(path: str, value):
  return changed(config_lib.base("demo"), path, value)


def changed(config, path: str, value):
  tree = config.to_dict()  # a dict casts nothing
  block = tree
  *parents, field = path.split(".")
  for parent in parents:
    block = block[parent]
  block[field] = value
  return ConfigDict(tree)


@pytest.mark.parametrize(
  ("path", "value", "words"),
  [
    ("kd.scale", 1.5, ["kd.scale", "1.5", "0 to 1"]),
    ("kd.scale", -0.1, ["kd.scale", "-0.1"]),
    ("kd.scale", float("nan"), ["kd.scale", "nan"]),
    ("kd.temperature", 0.0, ["kd.temperature", "0.0"]),
    (
      "kd.selection",
      {"name": "symetric", "n": 2},
      ["symetric", "did you mean 'symmetric'", "trim"],
    ),
    ("kd.selection", {"name": "symmetric"}, ["kd.selection.n", "missing"]),
    ("kd.selection", {"name": "symmetric", "n": -1}, ["kd.selection.n", "-1"]),
    ("kd.selection", {"name": "symmetric", "n": 1.5}, ["kd.selection.n", "1.5", "integer"]),
    ("kd.selection", {"name": "symmetric", "m": 1, "n": 2}, ["kd.selection.m", "its fields: n"]),
    ("kd.selection", {"name": "threshold", "min_label_prob": 2.0}, ["min_label_prob", "0 to 1"]),
    ("kd.selection", {"n": 2}, ["kd.selection.name"]),
    (
      "kd.selection",
      {"name": "trim", "n": 2},
      ["'trim' has no such field", "('symmetric' and 'shuffled' have it)"],
    ),
    ("kd.selection", 5, ["kd.selection is 5", "block"]),
    ("kd.grow_epochs", 2, ["kd.grow_epochs", "all_frames"]),
    (
      "kd.loss",
      "hypothesis",
      ["'hypothesis'", "did you mean 'hypotheses'", "kl, split_kl, guided"],
    ),
    ("kd.hypotheses", 3, ["kd.hypotheses is 3", "10 where no loss reads"]),
    ("labels.size", 100, ["labels.size", "'auto' does not read", "labels.name=sentencepiece"]),
    ("labels.alphabet", "aab", ["labels.alphabet", "each once"]),
    ("student.name", "conformr", ["'conformr'", "did you mean 'conformer'", "huggingface"]),
    (
      "student.name",
      "huggingface",
      [
        "config.student.",
        "'huggingface' has no such field",
        "('conformer' has it)",
      ],
    ),
    ("kd.typo", 1, ["kd.typo", "no such field"]),
    ("dtype", "float16", ["dtype", "float16", "bfloat16"]),
    ("training.optimizer", "sgd", ["training.optimizer", "sgd", "radam"]),
    ("training.lr", (1e-3,), ["training.lr", "four"]),
    ("training.lr", ("a", "b", "c", "d"), ["training.lr", "four numbers above 0"]),
    ("training.lr", (1e-3, 0.0, 1e-3, 1e-4), ["training.lr", "above 0"]),
    ("training.lr", 1e-3, ["training.lr is 0.001", "tuple of four"]),
    ("training.speeds", (0.9, -1.0), ["training.speeds", "0.5 to 2"]),
    ("training.speeds", 1.0, ["training.speeds", "tuple"]),
    ("training.noise_db", ("x", "y"), ["noise_db", "two numbers"]),
    ("training.noise_db", (-10.0, -20.0), ["noise_db", "lower first"]),
    ("training.batch_seconds", True, ["batch_seconds is True", "number"]),
    ("training.epochs", 2**31, ["training.epochs", "2**31"]),
    pytest.param("training.epochs", 10**5000, ["training.epochs", "1 or more"], id="long"),
    ("training.batch_seconds", 10**400, ["batch_seconds", "number"]),
    ("training.spec_augment", 1, ["spec_augment is 1", "True or False"]),
    ("training.lr_parts", (0.5, 0.5, 0.5), ["lr_parts", "add up to 1"]),
    ("training.speeds", (), ["training.speeds"]),
    ("training.noise_db", (-10.0,), ["noise_db"]),
    ("training.epochs", 0, ["training.epochs", "1 or more"]),
    ("training.epochs", "ten", ["training.epochs", "ten", "int"]),
    ("student.width", 65, ["student.width", "65", "multiple"]),
    ("student.conv_kernel", 16, ["conv_kernel", "odd"]),
    ("student.frontend_pool", ((4, 1), (1, 1)), ["frontend_pool"]),
    ("student.frontend_pool", 2, ["frontend_pool is 2", "two tuples of two integers"]),
    ("student.frontend_pool", (2, 2), ["frontend_pool", "two tuples of two integers"]),
    ("student.frontend_pool", ((2, 0), (2, -1)), ["frontend_pool", "from 1 to"]),
    ("student.frontend_channels", (8, 8, 8, -8), ["frontend_channels", "four integers from 1"]),
    ("student.frontend_channels", (8, 8, 8), ["frontend_channels", "four"]),
    ("student", "conformer", ["config.student is 'conformer'", "block"]),
    ("teacher.source", "none", ["kd.scale", "teacher.source"]),
    ("data.train", "", ["data.train"]),
    ("data.teacher_train", "", ["data.teacher_train", "teacher.source"]),
    ("data.dev", None, ["data.dev is None", "text"]),
    ("features.high_hz", 10.0, ["features.high_hz"]),
    ("seed", -1, ["seed", "-1"]),
    ("seed", True, ["seed is True", "integer"]),
    ("profile", "20:10", ["--profile=20:10", "FIRST:LAST"]),
    ("profile", "²:³", ["FIRST:LAST"]),
    ("recipe", "demo-huge", ["'demo-huge'", "demo", "tiny, small, medium, large"]),
  ],
)
def test_wrong_values_get_one_line(path, value, words):
  with pytest.raises(UserError) as error:
    config_lib.check(mutate(path, value))
  line = str(error.value)
  assert "\n" not in line
  for word in words:
    assert word in line


@pytest.mark.parametrize("recipe", ["dmeo", "demo-", "-tiny", "manifest-hgue", "a\nb", 5])
def test_unknown_recipe_lists_data_and_sizes(recipe):
  listed = "demo, pauses, sentences.*tiny, small"
  with pytest.raises(UserError, match=f"unknown recipe .*{listed}") as error:
    config_lib.base(recipe)
  assert "\n" not in str(error.value)


def test_auto_is_refused_where_the_recipe_has_no_corpus():
  config = changed(config_lib.base("manifest"), "data.train", "auto")
  with pytest.raises(UserError, match="data.train is 'auto'.*recipe 'manifest'"):
    config_lib.check(config)
  config_lib.check(config_lib.base("digits-small"))


@pytest.mark.parametrize(
  ("path", "value"),
  [
    ("kd.warmup", 1),
    ("kd.start_epoch", 2),
    ("kd.stop_epoch", 4),
    ("kd.normalization", "labels"),
    ("kd.temperature", 1.0),
  ],
)
def test_hypotheses_read_no_field_of_frames(path, value):
  config = mutate("kd.loss", "hypotheses")
  config_lib.check(changed(config, "kd.hypotheses", 4))
  words = f"{path} is .*'hypotheses' does not read: set config.kd.loss=kl( or .*)?, or leave it at"
  with pytest.raises(UserError, match=words):
    config_lib.check(changed(config, path, value))


def test_hypotheses_select_no_frames():
  config = changed(mutate("kd.loss", "hypotheses"), "kd.selection", {"name": "trim"})
  with pytest.raises(UserError, match="kd.selection.name is 'trim'.*kd.loss=hypotheses"):
    config_lib.check(config)


@pytest.mark.parametrize(
  ("path", "value", "words"),
  [
    ("kd.hypotheses", 3, ""),
    ("kd.loss", "soft_ctc", ""),
    ("kd.scale_ramp", (1.0, 3), ""),
    ("kd.scale", 0.0, "kd.ctc is 'hypotheses'.*kd.loss=hypotheses"),
    ("kd.loss", "hypotheses", "kd.ctc is 'hypotheses'.*the same CTC"),
    ("kd.normalization", "labels", "kd.ctc is 'hypotheses'.*kd.normalization=labels"),
    ("teacher.source", "average", "kd.ctc is 'hypotheses'.*student's own past"),
  ],
)
def test_ctc_on_the_teachers_transcripts_asks_for_a_teacher_and_is_there_once(path, value, words):
  config = changed(mutate("kd.scale", 0.25), "kd.ctc", "hypotheses")
  config_lib.check(config)
  assert not config_lib.reads_transcripts(config.kd) and config_lib.reads_hypotheses(config.kd)
  config = changed(config, path, value)
  if not words:
    return config_lib.check(config)
  with pytest.raises(UserError, match=words):
    config_lib.check(config)


def test_pre_trained_students_need_a_source_and_no_masks():
  config = changed(config_lib.base("demo"), "student", recipes.huggingface())
  with pytest.raises(UserError, match="config.student.source is ''"):
    config_lib.check(config)
  config = changed(config, "student.source", "org/model")
  config = changed(config, "training.spec_augment", True)
  with pytest.raises(UserError, match="config.training.spec_augment is True.*False"):
    config_lib.check(config)


def test_missing_field():
  config = config_lib.base("demo")
  with config.unlocked():
    del config.kd["temperature"]
  with pytest.raises(UserError, match="config.kd.temperature is missing, a number from 0.001"):
    config_lib.check(config)


@pytest.mark.parametrize("name", ["warmup", "start_epoch"])
def test_what_begins_after_the_last_epoch_is_refused(name):
  config = changed(config_lib.base("demo"), "training.epochs", 2)
  config_lib.check(changed(config, f"kd.{name}", 1))
  for epoch in (2, 3):
    words = f"config.kd.{name} is {epoch}: it must be below config.training.epochs, 2"
    with pytest.raises(UserError, match=words):
      config_lib.check(changed(config, f"kd.{name}", epoch))


@pytest.mark.parametrize(("name", "value"), [("softness", 0.5), ("delay_of", "row")])
def test_one_delay_leaves_no_choice(name, value):
  config = mutate(f"kd.{name}", value)
  config_lib.check(changed(config, "kd.delays", (0, 1)))
  with pytest.raises(UserError, match=f"kd.{name} is .*: it must be .* where config.kd.delays"):
    config_lib.check(changed(config, "kd.delays", (0,)))


@pytest.mark.parametrize("name", ["spec_augment_from_epoch", "time_mask_frames", "freq_mask_bins"])
@pytest.mark.parametrize("path", ["training", "teacher.training"])
def test_settings_of_masks_need_masks(path, name):
  config = changed(config_lib.base("demo"), f"{path}.{name}", 7)
  config_lib.check(changed(config, f"{path}.spec_augment", True))
  with pytest.raises(UserError, match=f"config.{path}.{name} is 7: .*{path}.spec_augment is False"):
    config_lib.check(changed(config, f"{path}.spec_augment", False))


@pytest.mark.parametrize("recipe", config_lib.RECIPES)
def test_masks_can_be_taken_from_what_a_recipe_trains(recipe):
  config = config_lib.base(recipe)
  for split in ("train", "teacher_train"):
    config = changed(config, f"data.{split}", config.data[split] or "a.jsonl")
  for path in ("training", "teacher.training"):
    config = changed(config, f"{path}.spec_augment", False)
  config_lib.check(config)
  config_lib.check(config_lib.for_teacher(config))
