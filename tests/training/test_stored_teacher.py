"""Whole runs of tiny models that learn from stored frames: against the teacher itself, resumed."""

import json
import logging
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest

import corpus
from jaxkd.commands import evaluate as evaluate_lib
from jaxkd.commands import line as command_line
from jaxkd.config import overrides
from jaxkd.devices import mesh as mesh_lib
from jaxkd.errors import Interrupted, UserError
from jaxkd.models import kept
from jaxkd.teacher import sources
from jaxkd.training import loop as train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_to_compile", "compiled_once")]
ONE_EPOCH = ["--config.training.epochs=1"]
# Every speed of it is stored; noise would be the student's alone.
SPEEDS = ["--config.training.speeds=0.9,1.1", "--config.training.noise_db=()"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
  folder = tmp_path_factory.mktemp("lab")
  corpus.make(folder)
  return folder


def start(lab, name: str, *more: str, variant: str = "symmetric") -> tuple[dict, pathlib.Path]:
  config, folder = overrides.parse(corpus.flags(lab, variant, lab / name, *SPEEDS, *more))
  return train.run(config, folder), folder


@pytest.fixture(scope="module")
def live(lab, quick_to_compile, compiled_once):
  """A run whose teacher runs."""
  return start(lab, "live")


@pytest.fixture(scope="module")
def teacher(lab, live):
  (folder,) = lab.glob("teacher-*")
  return folder


@pytest.fixture(scope="module")
def cached(lab, live, teacher):
  """The same run with teacher.cache."""
  return start(lab, "cached", f"--config.teacher.source={teacher}", "--config.teacher.cache=True")


@pytest.fixture(scope="module")
def frames(lab, cached):
  """Where these frames are kept; objectives that hear other speeds have others."""
  return min(lab.glob("frames-*"), key=lambda folder: folder.stat().st_ctime_ns)


def rows(folder: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def teach(*args) -> int:
  return command_line.main(["teach", *map(str, args)])


def final_params(folder: pathlib.Path):
  return kept.read(folder).load(mesh_lib.make_mesh()).params


def test_the_figures_are_those_of_the_teacher_itself(live, cached):
  for one, other in zip(rows(live[1]), rows(cached[1]), strict=True):
    assert one.keys() == other.keys()
    for name in one.keys() & {"kd/kl", "loss", "dev/kl", "lr"}:
      assert other[name] == pytest.approx(one[name], rel=5e-3, abs=1e-5), name
    # Of some two hundred frames, one whose best two classes are as good in half precision.
    assert other.get("selected") == pytest.approx(one.get("selected"), abs=0.011)
  found, there = live[0], cached[0]
  assert there["test"]["teacher"] == found["test"]["teacher"]
  assert there["teacher_workdir"] == found["teacher_workdir"]
  assert there["selected_rate"] == pytest.approx(found["selected_rate"], rel=1e-3)


def test_all_classes_in_float32_are_exact(lab, live, teacher):
  data = ",".join(str(lab / f"{split}.jsonl") for split in ("unlabelled", "dev", "test"))
  options = ["--speeds=0.9,1,1.1", "--dtype=float32"]
  assert teach(f"--teacher={teacher}", f"--data={data}", f"--out={lab / 'exact'}", *options) == 0
  _, folder = start(lab, "from-exact", f"--config.teacher.source={lab / 'exact'}")
  for one, other in zip(rows(live[1]), rows(folder), strict=True):
    for name in one.keys() & {"kd/kl", "loss", "grad_norm", "selected", "dev/kl"}:
      assert other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-6), name


@pytest.mark.exhaustive
def test_one_cache_serves_several_runs(lab, cached, frames, teacher, monkeypatch):
  before = {path: path.stat().st_mtime_ns for path in frames.rglob("*.array_record")}
  given = [f"--config.teacher.source={teacher}", "--config.teacher.cache=True"]
  monkeypatch.setattr(kept.Kept, "load", lambda *_: pytest.fail("the teacher ran"))
  start(lab, "other", *given, *ONE_EPOCH, variant="trim")
  assert {path: path.stat().st_mtime_ns for path in frames.rglob("*.array_record")} == before


def test_a_stopped_run_resumes_to_the_same_numbers(lab, cached, frames, monkeypatch):
  evaluate, flag = train._Loop._evaluate_epoch, f"--config.teacher.source={frames}"

  def evaluate_and_stop(loop):
    evaluate(loop)
    signal.raise_signal(signal.SIGINT)

  with monkeypatch.context() as patch, pytest.raises(Interrupted):
    patch.setattr(train._Loop, "_evaluate_epoch", evaluate_and_stop)
    start(lab, "stopped", flag)
  found, folder = start(lab, "stopped", flag)
  assert rows(folder) == rows(cached[1])
  assert found["teacher_workdir"] == f"../{frames.name}"
  jax.tree.map(np.testing.assert_array_equal, final_params(folder), final_params(cached[1]))


def test_the_figures_of_a_run_can_be_asked_for_again(lab, cached, frames):
  _, folder = start(lab, "stopped", f"--config.teacher.source={frames}")
  found = evaluate_lib.evaluate(folder, str(lab / "test.jsonl"))
  assert found["teacher"] == cached[0]["test"]["teacher"]
  with pytest.raises(UserError, match="has nothing of "):
    evaluate_lib.evaluate(folder, str(lab / "train.jsonl"))


@pytest.mark.parametrize(
  ("variant", "flags"),
  [
    pytest.param("hypotheses", [], marks=pytest.mark.exhaustive),
    ("soft", ["--config.training.join_seconds=3.0"]),
  ],
)
def test_other_objectives_learn_from_a_store(lab, teacher, variant, flags, caplog):
  """And no row is of joined utterances, where their teacher would say something else."""
  caplog.set_level(logging.INFO)
  given = [f"--config.teacher.source={teacher}", "--config.teacher.cache=True", *flags, *ONE_EPOCH]
  found, folder = start(lab, variant, *given, variant=variant)
  assert found["train"]["skipped_updates"] == 0 and rows(folder)[0]["loss"] > 0
  assert ("each row is one utterance" in caplog.text) == bool(flags)


@pytest.mark.parametrize(
  ("family", "options"),
  [
    pytest.param("hubert", [], marks=pytest.mark.exhaustive),
    ("parakeet", ["--pool=1", "--top=8"]),  # 80 ms, which are heard twice
  ],
)
def test_foundation_models_are_stored_and_learnt_from(lab, family, options):
  hf_models = pytest.importorskip("hf_models")
  if family == "parakeet":
    hf_models.make_parakeet(lab / family)
  else:
    hf_models.make(lab / family, family, "layer", symbols=hf_models.DIGITS)
  store = lab / f"frames-of-{family}"
  data = f"--data={lab / 'unlabelled.jsonl'}"
  assert (
    teach(f"--teacher={lab / family}", data, f"--out={store}", "--speeds=0.9,1.1", *options) == 0
  )
  given = [f"--config.teacher.source={store}", *ONE_EPOCH]
  found, folder = start(lab, f"of-{family}", *given)
  assert rows(folder)[0]["kd/kl"] >= 0 and found["test"]["student"]["frame_ms"] == 40
  assert found["train"]["skipped_updates"] == 0
  assert "teacher" not in found["test"]  # dev and test data are not in it


@pytest.mark.exhaustive
def test_a_student_of_longer_frames_learns_from_some_of_the_teachers(lab, teacher):
  student = ("name=fastconformer", "subsampling=8", "subsampling_channels=4")
  features = ["--config.features.kind=nemo", "--config.features.normalise=none"]
  longer = [f"--config.teacher.source={teacher}", *features]
  longer += [f"--config.student.{field}" for field in student]
  with pytest.raises(UserError, match="every 40 ms and the student every 80 ms: .*cache=True"):
    start(lab, "longer", *longer, *ONE_EPOCH)
  found, folder = start(lab, "longer", *longer, *ONE_EPOCH, "--config.teacher.cache=True")
  assert found["test"]["student"]["frame_ms"] == 80 and rows(folder)[0]["kd/kl"] > 0
  assert found["test"]["teacher"]["words"] > 0


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (["--config.kd.temperature=3.0"], "temperature is 3, and .* was written for 2"),
    (["--config.training.speeds=0.9,1.2"], "lacks 32 of .* at speed 1.2"),
    (["--config.data.train={lab}/train.jsonl"], "lacks 32 of .*train.jsonl"),
    (["--config.kd.warmup=1"], "kd.warmup asks for encodings"),
  ],
)
def test_what_a_store_cannot_give_is_one_line(lab, frames, flags, words):
  given = [flag.format(lab=lab) for flag in flags]
  with pytest.raises(UserError, match=words) as error:
    start(lab, "refused", f"--config.teacher.source={frames}", *given)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("args", "words"),
  [
    (["--data=x", "--out=y"], "--teacher is missing"),
    (["--teacher={frames}", "--data={lab}/dev.jsonl", "--out={lab}/y"], "is a store already"),
    (["--teacher=x", "--data=y", "--out=z", "--speeds=fast"], "--speeds: .*not fast"),
    (["--teacher=x", "--data=y", "--out=z", "--temperature=0"], "--temperature: .* not 0"),
    (["--teacher={lab}/none", "--data=y", "--out=z"], "no such folder"),
    (["--teacher={teacher}", "--data={lab}/dev.jsonl", "--out={lab}/dev.jsonl"], "is a file"),
    (["--teacher={teacher}", "--data={lab}/dev.jsonl", "--out={frames}", "--top=3"], "settings"),
    (["--verify={lab}"], "cannot be read"),
    (["--verify={frames}", "--teacher={teacher}"], "together or neither"),
    (["--verify={frames}", "--out=x"], "and no --out"),
  ],
)
def test_wrong_arguments_are_one_line(lab, frames, teacher, args, words):
  given = [arg.format(lab=lab, frames=frames, teacher=teacher) for arg in args]
  with pytest.raises(UserError, match=words) as error:
    teach(*given)
  assert "\n" not in str(error.value)


def test_a_store_is_verified(lab, frames, teacher, capfd):
  args = [f"--verify={frames}", f"--teacher={teacher}", f"--data={lab / 'dev.jsonl'}"]
  assert teach(*args) == 0
  found = json.loads(capfd.readouterr().out)
  assert found["heard_again"] == 8 and found["largest_difference"] < 2e-3
  assert found["utterances"] == 32 + 8 + 8 and found["records"] == 64 + 16
  shard = next(frames.rglob("*.array_record"))
  data = bytearray(shard.read_bytes())
  data[100] ^= 0xFF
  shard.write_bytes(bytes(data))
  with pytest.raises(UserError, match="1 problems; the first: .*other bytes"):
    teach(f"--verify={frames}")


def test_another_teacher_does_not_go_on_in_a_store(lab, teacher, tmp_path):
  moved = shutil.copytree(teacher, tmp_path / "moved")
  assert sources.fingerprint(str(moved)) == sources.fingerprint(str(teacher))
  args = [f"--teacher={moved}", f"--data={lab / 'dev.jsonl'}", f"--out={tmp_path / 'store'}"]
  assert teach(*args) == 0
  results = moved / "results.json"
  results.write_text(results.read_text().replace('"seed": 0', '"seed": 1'))
  with pytest.raises(UserError, match=r"other settings \(fingerprint\)"):
    teach(*args)
