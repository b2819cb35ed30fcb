"""A Hugging Face model from its folder to a student: fine-tuned, kept, exported, distilled from."""

import json
import pathlib
import signal

import jax
import numpy as np
import pytest
from flax import nnx

import corpus
import hf_models
from jaxkd import teacher as teacher_lib
from jaxkd.commands import evaluate as evaluate_lib
from jaxkd.commands import line as command_line
from jaxkd.config import overrides
from jaxkd.data import audio
from jaxkd.devices import mesh as mesh_lib
from jaxkd.errors import Interrupted, UserError
from jaxkd.labels import characters
from jaxkd.models import kept, registry
from jaxkd.training import assembly
from jaxkd.training import loop as train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_to_compile", "compiled_once")]
TONES = ("<pad>", "<s>", "</s>", "<unk>", "|", "A", "B", "C")
FINETUNE = [
  "--config.training.epochs=2",
  "--config.training.batch_seconds=6",
  "--config.training.buckets=1",
  "--config.training.accumulate=2",
  "--config.training.lr=(1e-4, 1e-3, 1e-4, 1e-6)",
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
  folder = tmp_path_factory.mktemp("lab")
  corpus.make(folder)
  hf_models.make(folder / "pretrained", "hubert", "layer", head=False, mask_time_length=2)
  hf_models.make(folder / "finetuned", "wav2vec2", "layer", symbols=TONES, mask_time_length=2)
  return folder


def finetune_flags(lab, name: str, *more: str) -> list[str]:
  return [
    "jaxkd.main",
    f"--config={corpus.ROOT / 'configs' / 'teacher.py'}:manifest",
    f"--workdir={lab / name}",
    f"--config.student.source={lab / 'pretrained'}",
    *(f"--config.data.{split}={lab / split}.jsonl" for split in ("train", "dev", "test")),
    *FINETUNE,
    *more,
  ]


def start(arguments: list[str]):
  config, folder = overrides.parse(arguments)
  return train.run(config, folder), folder


def distil(lab, variant: str, name: str, source: pathlib.Path, *more: str):
  given = f"--config.teacher.source={source}"
  return start(corpus.flags(lab, variant, lab / name, given, *more))


def logits(model, lab, name: str):
  samples = audio.read(lab / name)
  out = model(samples[None], np.array([len(samples)], np.int32))
  return np.asarray(out.logits)[0]


def metrics(folder) -> list[dict]:
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def params(folder):
  return kept.read(folder).load(mesh_lib.make_mesh()).params


@pytest.fixture(scope="module")
def teacher(lab, quick_to_compile, compiled_once):
  return start(finetune_flags(lab, "teacher", "--config.student.freeze_conv=True"))


def test_finetuned_model_is_a_workdir_with_its_prior(lab, teacher):
  found, folder = teacher
  assert found["variant"] == "teacher" and found["test"]["student"]["wer"] >= 0
  prior = np.array(json.loads((folder / "log_prior.json").read_text()))
  assert prior.shape == (29,)
  np.testing.assert_allclose(np.exp(prior).sum(), 1, atol=1e-4)
  assert all(np.isfinite(row["ctc"]) for row in metrics(folder) if "ctc" in row)


def test_frozen_convolutions_stay_and_the_rest_moves(lab, teacher):
  now = dict(nnx.to_flat_state(params(teacher[1])))
  config = overrides.parse(finetune_flags(lab, "teacher"))[0]
  model = registry.architecture(config.student, config.features, dtype=config.dtype)
  first = model.first_params(characters("ab"))(jax.random.key(0))
  # Softmax does not see the keys' bias: its gradient is rounding.
  unseen = ("layers", "key", "bias")
  for path, before in dict(nnx.to_flat_state(first)).items():
    if path[0] == "conv":
      np.testing.assert_array_equal(now[path][...], before[...], str(path))
    elif path[0] != "head" and path != unseen:
      assert np.abs(now[path][...] - before[...]).max() > 1e-7, path


def test_student_learns_from_a_finetuned_workdir(lab, teacher):
  found, folder = distil(lab, "elimination_prior", "student", teacher[1])
  assert found["test"]["teacher"] == teacher[0]["test"]["student"]
  assert found["test"]["student"]["params"] < found["test"]["teacher"]["params"]
  assert not (folder / "teacher_log_prior.json").exists()  # its own is taken
  evaluated = evaluate_lib.evaluate(folder, str(lab / "test.jsonl"))
  assert evaluated["student"] == found["test"]["student"]
  assert evaluated["teacher"] == found["test"]["teacher"]


def test_exported_model_says_the_same(lab, teacher):
  name = "audio/test-00.flac"
  assert command_line.main(["convert", str(teacher[1])]) == 0
  folder = teacher[1] / "huggingface"
  ours = kept.read(teacher[1]).load(mesh_lib.make_mesh())
  again = teacher_lib.from_huggingface(folder, pool=2)
  np.testing.assert_allclose(logits(again, lab, name), logits(ours, lab, name), atol=1e-5)
  assert again.labels[again.blank_id] == ours.labels[ours.blank_id]
  card = (folder / "README.md").read_text()
  assert "library_name: transformers" in card and "a hubert, layers: 3, width: 32" in card
  assert "2 of its own frames, pooled" in card and "Objective: CTC on transcripts." in card
  theirs = hf_models.transformers.AutoModelForCTC.from_pretrained(folder).eval()
  samples = audio.read(lab / name)[None].astype(np.float32)
  unpooled = teacher_lib.from_huggingface(folder)
  expected = hf_models.call(theirs, hf_models.normalised(samples, [samples.shape[1]])).logits
  np.testing.assert_allclose(logits(unpooled, lab, name), expected[0], atol=1e-4)


def test_folder_teaches_in_its_own_vocabulary(lab):
  mixed = ["--config.kd.scale=0.5", f"--config.data.train={lab / 'train.jsonl'}"]
  found, folder = distil(lab, "elimination_prior", "of-a-folder", lab / "finetuned", *mixed)
  labels = json.loads((folder / "labels.json").read_text())
  assert labels["symbols"] == list(TONES) and labels["blank_id"] == 0
  assert found["teacher_workdir"] == "../finetuned"
  assert len(json.loads((folder / "teacher_log_prior.json").read_text())) == len(TONES)
  assert any(row.get("ctc", 0) > 0 for row in metrics(folder))
  assert found["train"]["infeasible"] == 0
  hypotheses = (folder / "hypotheses" / "test.teacher.jsonl").read_text()
  assert "<" not in hypotheses and "|" not in hypotheses
  evaluated = evaluate_lib.evaluate(folder, str(lab / "test.jsonl"))
  assert evaluated["teacher"] == found["test"]["teacher"]


def vocabulary(flags: list[str]):
  return assembly.plan_run(*overrides.parse(flags)).vocabulary


def test_finetuned_folder_keeps_its_vocabulary(lab):
  source = f"--config.student.source={lab / 'finetuned'}"
  labels = vocabulary(finetune_flags(lab, "again", source))
  assert labels.symbols == TONES and labels.encode("a b").tolist() == [5, 4, 6]
  fresh = vocabulary(finetune_flags(lab, "again"))
  assert fresh.symbols[-1] == "<blank>"


def test_stopped_finetuning_resumes_to_the_same_numbers(lab, teacher, monkeypatch):
  frozen = "--config.student.freeze_conv=True"
  step, calls = train._Loop._leave_if_asked, []

  def stop_in_an_update(self):
    calls.append(0)
    if len(calls) == 4:  # the first is of compiling, then one a batch: two are one update
      self.stop = signal.SIGTERM
    step(self)

  with monkeypatch.context() as patch:
    patch.setattr(train._Loop, "_leave_if_asked", stop_in_an_update)
    with pytest.raises(Interrupted):
      start(finetune_flags(lab, "stopped", frozen))
  found, folder = start(finetune_flags(lab, "stopped", frozen))
  assert found["test"] == teacher[0]["test"]
  jax.tree.map(np.testing.assert_array_equal, params(folder), params(teacher[1]))


@pytest.mark.parametrize(
  ("flag", "words"),
  [
    (
      "--config.teacher.pool=1",
      "teacher has a frame every 20 ms .* every 40 ms.*teacher.pool",
    ),
    ("--config.teacher.source={lab}/pretrained", "no CTC head .*configs/teacher.py"),
    ("--config.teacher.source={lab}", "neither the workdir of a finished run .* nor a model"),
    ("--config.teacher.source={lab}/nowhere", "no such folder"),
    ("--config.kd.scale=0.5", "no utterance has a transcript"),
  ],
)
def test_teachers_that_cannot_teach(lab, flag, words):
  with pytest.raises(UserError, match=words) as caught:
    distil(lab, "symmetric", "refused", lab / "finetuned", flag.format(lab=lab))
  assert "\n" not in str(caught.value) and not (lab / "refused").exists()


@pytest.mark.parametrize(
  ("flag", "words"),
  [
    ("--config.student.source=", "student.source is ''"),
    ("--config.student.pool=0", "student.pool is 0"),
    ("--config.training.spec_augment=True", "training.spec_augment is True: it must be False"),
    ("--config.training.accumulate=0", "training.accumulate is 0"),
    ("--config.student.source={lab}/nowhere", "nowhere: no such folder"),
    ("--config.student.name=whisper", "student.name is 'whisper'.*huggingface"),
  ],
)
def test_finetuning_mistakes(lab, flag, words):
  with pytest.raises(UserError, match=words) as caught:
    start(finetune_flags(lab, "refused", flag.format(lab=lab)))
  assert "\n" not in str(caught.value) and not (lab / "refused").exists()
