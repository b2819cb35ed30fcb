"""The full-size recipes on small TFDS corpora, their models shrunk by flags."""

import json

import pytest

import corpus
from jaxkd.config import overrides, recipes
from jaxkd.data import tfds
from jaxkd.training import assembly
from jaxkd.training import loop as train

hf_models = pytest.importorskip("hf_models")
tfds_corpus = pytest.importorskip("tfds_corpus")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_to_compile", "compiled_once")]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
  folder = tmp_path_factory.mktemp("lab")
  tfds_corpus.make(folder / "tfds")
  hf_models.make(folder / "hubert", "hubert", "layer", head=False, mask_time_length=2)
  return folder


def shrunk(lab, variant: str, recipe: str, *more: str) -> list[str]:
  """A command line of the recipe; later flags win."""
  return [
    "jaxkd.main",
    f"--config={corpus.ROOT / 'configs' / variant}.py:{recipe}",
    f"--workdir={lab / recipe / variant}",
    f"--config.data.root={lab / 'tfds'}",
    f"--config.teacher.model.source={lab / 'hubert'}",
    *(f"--config.student.{field}" for field in ("layers=1", "width=16", "heads=2")),
    "--config.student.frontend_channels=(4, 4, 4, 4)",
    *(
      f"--config.{training}.{field}"
      for training in ("training", "teacher.training")
      for field in ("epochs=1", "buckets=1")
    ),
    *more,
  ]


# recipe -> seconds in a batch, and flags that choose the transcribed and the untranscribed part
RUNS = {
  "tedlium": (6, []),
  "librispeech": (
    12,
    [
      "--config.data.teacher_train=librispeech:train_clean100",
      "--config.data.train=librispeech:train_clean360+train_other500[:50%]",
      "--config.data.test=librispeech:test_clean+test_other",
    ],
  ),
}
UTTERANCES = {
  "tedlium": {"train": 24, "teacher_train": 24, "dev": 6, "test": 6},
  "librispeech": {"train": 18, "teacher_train": 24, "dev": 6, "test": 12},
}


def asked(lab, recipe: str):
  """Config and workdir."""
  seconds, parts = RUNS[recipe]
  sizes = [f"--config.{t}.batch_seconds={seconds}" for t in ("training", "teacher.training")]
  more = (*sizes, *parts, "--config.teacher.training.accumulate=1")
  return overrides.parse(shrunk(lab, "symmetric", recipe, *more))


@pytest.mark.parametrize("recipe", tfds.TFDS_CORPORA)
def test_splits_are_opened_and_models_planned(lab, recipe, monkeypatch):
  monkeypatch.setenv("JAXKD_CACHE", str(lab / "cache"))
  made = assembly.plan_run(*asked(lab, recipe))
  assert {name: f["utterances"] for name, f in made.facts().items()} == UTTERANCES[recipe]
  assert made.config.dtype == made.teacher.config.dtype == "bfloat16"
  assert made.teacher.architecture.description["config"]["model_type"] == "hubert"


def test_teacher_and_student_take_two_steps(lab, monkeypatch):
  """Of LibriSpeech; TED-LIUM's run differs in names and numbers alone."""
  monkeypatch.setenv("JAXKD_CACHE", str(lab / "cache"))
  config, folder = asked(lab, "librispeech")
  found = train.run(config, folder)
  assert {"teacher", "student"} <= set(found["test"])
  teacher = folder / found["teacher_workdir"]
  for run in (folder, teacher):
    last = (run / "metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["step"] >= 2
  assert (teacher / "huggingface.json").exists() and (teacher / "log_prior.json").exists()


@pytest.mark.parametrize("recipe", tfds.TFDS_CORPORA)
@pytest.mark.parametrize("variant", ["symmetric", "teacher", "ctc", "standard"])
def test_full_size_recipes_pass_the_check(recipe, variant):
  config, _ = overrides.parse(
    ["jaxkd.main", f"--config={corpus.ROOT / 'configs' / variant}.py:{recipe}"]
  )
  model = config.teacher.model
  assert (model.name, model.source, model.pool) == ("huggingface", "facebook/hubert-large-ll60k", 2)
  if variant != "teacher":
    assert (config.student.layers, config.student.heads) == (12, 8)
    assert config.student.width == {"librispeech": 512, "tedlium": 384}[recipe]
    assert config.training.batch_seconds == {"librispeech": 300.0, "tedlium": 180.0}[recipe]


def test_finetuning_is_the_papers():
  block = recipes.finetuning()
  assert (block.epochs, block.batch_seconds, block.accumulate) == (10, 120.0, 3)
  assert (block.optimizer, block.average, block.spec_augment) == ("radam", 4, False)
  assert recipes.huggingface().dropout == 0.2
