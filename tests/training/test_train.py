"""Whole runs of tiny models on tones: files, figures, reuse of the teacher, refusals."""

import json
import signal
import threading
import time
from types import SimpleNamespace

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
from jaxkd.training import assembly, workdir
from jaxkd.training import loop as train
from jaxkd.types import WeightedSum

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_to_compile", "compiled_once")]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
  """A folder with the corpus and, in symmetric/ and teacher-*/, a finished run."""
  folder = tmp_path_factory.mktemp("lab")
  corpus.make(folder)
  return folder


def start(lab, variant: str, name: str, *more: str):
  config, folder = overrides.parse(corpus.flags(lab, variant, lab / name, *more))
  return train.run(config, folder), folder


@pytest.fixture(scope="module")
def finished(lab, quick_to_compile, compiled_once):
  return start(lab, "symmetric", "symmetric")


@pytest.fixture(scope="module")
def teacher(lab, finished):
  (folder,) = lab.glob("teacher-*")
  return folder


def jsonl(path) -> list[dict]:
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_results(finished, teacher):
  found, folder = finished
  assert found == json.loads((folder / "results.json").read_text())
  assert (found["variant"], found["recipe"]) == ("symmetric", "manifest")
  assert (found["kd_scale"], found["seed"], found["device"]) == (1.0, 0, "cpu")
  assert found["commit"] and found["wall_seconds"] > 0
  assert found["teacher_workdir"] == f"../{teacher.name}" and found["epochs"] == 2
  assert 0 < found["selected_rate"] <= 1
  for split in ("test", "dev"):
    for model in ("teacher", "student"):
      figures = found[split][model]
      keys = {"wer", "cer", "words", "blank_rate", "blank_runs", "frame_ms", "params"}
      assert set(figures) == keys
      assert figures["words"] == sum(
        len(row["text"].split()) for row in jsonl(folder.parent / f"{split}.jsonl")
      )
      assert 0 <= figures["blank_rate"] <= 1 and figures["params"] > 1000
    assert found[split]["utterances"] == 8 and found[split]["broken"] == []
    offsets, texts = found[split]["spike_offsets"], jsonl(folder.parent / f"{split}.jsonl")
    assert (offsets["utterances"], offsets["left_out"]) == (8, 0)
    assert offsets["labels"] == sum(len(row["text"]) for row in texts)
    assert sum(offsets["histogram"].values()) == offsets["labels"]
  assert found["train"]["utterances"] == 32 and found["train"]["infeasible"] == 0
  teacher_found = json.loads((teacher / "results.json").read_text())
  assert teacher_found["variant"] == "teacher" and teacher_found["selected_rate"] is None
  assert teacher_found["test"]["student"] == found["test"]["teacher"]
  assert "teacher" not in teacher_found["test"]
  assert teacher_found["test"]["spike_offsets"] is None


def test_files_of_a_workdir(finished):
  _, folder = finished
  assert json.loads((folder / "config.json").read_text())["kd"]["selection"]["name"] == "symmetric"
  assert list((folder / "tensorboard").glob("events.out.tfevents.*"))
  for split in ("dev", "test"):
    manifest = jsonl(folder.parent / f"{split}.jsonl")
    for model in ("teacher", "student"):
      rows = jsonl(folder / "hypotheses" / f"{split}.{model}.jsonl")
      assert {r["id"]: r["reference"] for r in rows} == {
        m["audio_filepath"]: m["text"] for m in manifest
      }
      assert all(set(row) == {"id", "reference", "hypothesis"} for row in rows)
  assert not list(folder.rglob("*.tmp"))


def test_metrics_log(finished):
  found, folder = finished
  rows = jsonl(folder / "metrics.jsonl")
  steps = [row["step"] for row in rows]
  assert steps == sorted(steps) and {row["epoch"] for row in rows} == {0, 1}
  trained = [row for row in rows if "loss" in row]
  assert all({"kd/kl", "selected", "blank", "grad_norm", "lr"} <= set(row) for row in trained)
  assert all("ctc" not in row for row in trained)
  dev = [row for row in rows if "dev/wer" in row]
  assert len(dev) == 2 and dev[0]["dev/kl"] > 0
  assert set(found["checkpoint_steps"]) <= {row["step"] for row in dev}


def test_finished_run_only_returns(lab, finished, monkeypatch):
  monkeypatch.setattr(assembly, "prepare", lambda *args: pytest.fail("trained again"))
  files = {p: p.stat().st_mtime for p in lab.rglob("hypotheses/*")}
  assert start(lab, "symmetric", "symmetric", "--config.data.workers=3")[0] == finished[0]
  assert {p: p.stat().st_mtime for p in lab.rglob("hypotheses/*")} == files


@pytest.mark.parametrize(
  ("variant", "flag", "words"),
  [
    ("symmetric", "--config.kd.temperature=3.0", "config.kd.temperature was 2.0 and is 3.0"),
    ("trim", "--config.seed=0", "config.kd.selection.n(ame)? was"),
    ("symmetric", "--config.data.test=", "there was data of 'test' and is none"),
  ],
)
def test_workdir_of_another_config_is_refused(lab, finished, variant, flag, words):
  before = (lab / "symmetric" / "config.json").read_text()
  with pytest.raises(UserError, match=f"--workdir=.*{words}"):
    start(lab, variant, "symmetric", flag)
  assert (lab / "symmetric" / "config.json").read_text() == before


def test_workdir_of_other_data_is_refused(lab, finished):
  path = lab / "dev.jsonl"
  whole = path.read_text()
  path.write_text("".join(whole.splitlines(keepends=True)[1:]))
  try:
    with pytest.raises(UserError, match="--workdir=.*the data of 'dev' has changed"):
      start(lab, "symmetric", "symmetric")
  finally:
    path.write_text(whole)


def test_workdir_in_use_is_refused(lab, finished):
  config, folder = overrides.parse(corpus.flags(lab, "symmetric", lab / "symmetric"))
  plan = assembly.plan_run(config, folder)
  claim = workdir.claim(folder, config, plan.facts(), plan.vocabulary)
  with claim, pytest.raises(UserError, match="in use by another"):
    train.run(config, folder)


def test_shared_teacher_is_waited_for(lab, finished, teacher):
  config, folder = overrides.parse(corpus.flags(lab, "standard", lab / "standard"))
  plan = assembly.plan_run(config, folder).teacher
  held, released = threading.Event(), []

  def hold():
    with workdir.claim(teacher, plan.config, plan.facts(), plan.vocabulary):
      held.set()
      time.sleep(0.5)
      released.append(time.monotonic())

  holder = threading.Thread(target=hold)
  holder.start()
  held.wait()
  train.carry_out(plan, wait=True)
  assert released and time.monotonic() >= released[0]
  holder.join()


def test_damaged_results_are_one_line(lab, finished):
  path = lab / "symmetric" / "results.json"
  whole = path.read_text()
  path.write_text(whole[:50])
  try:
    with pytest.raises(UserError, match=r"results\.json cannot be read"):
      start(lab, "symmetric", "symmetric")
  finally:
    path.write_text(whole)


@pytest.mark.parametrize("split", ["test", "dev"])
def test_evaluate_gives_the_figures_of_the_run(lab, finished, split):
  found = evaluate_lib.evaluate(lab / "symmetric", str(lab / f"{split}.jsonl"))
  wanted = finished[0][split]
  assert found.keys() == wanted.keys()
  assert found["kl"] == pytest.approx(wanted["kl"], abs=2e-6)
  for model in ("teacher", "student"):
    assert found[model] == wanted[model]


def test_evaluate_prints_json_alone(lab, finished, capsys):
  line = ["evaluate", f"--workdir={lab / 'symmetric'}", f"--data={lab / 'test.jsonl'}"]
  assert command_line.main(line) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["student"] == finished[0]["test"]["student"]


def test_evaluate_of_audio_without_transcripts(lab, finished):
  found = evaluate_lib.evaluate(lab / "symmetric", str(lab / "audio"))
  assert found["utterances"] == 80
  assert found["student"]["wer"] is found["student"]["cer"] is None
  assert found["student"]["words"] == 0 and found["kl"] > 0


def test_evaluate_on_other_devices_than_it_was_trained_on(lab, finished):
  """Eight devices, and a run whose parameters were split over sixteen."""
  found, folder = finished
  path = folder / "config.json"
  text = path.read_text()
  path.write_text(json.dumps(json.loads(text) | {"mesh": {"fsdp": 16}}))
  try:
    evaluated = evaluate_lib.evaluate(folder, str(lab / "test.jsonl"))
  finally:
    path.write_text(text)
  assert evaluated["teacher"] == found["test"]["teacher"]


def test_evaluate_counts_what_is_broken(lab, finished, tmp_path):
  rows = jsonl(lab / "test.jsonl")
  rows = [r | {"audio_filepath": str(lab / r["audio_filepath"])} for r in rows]
  (tmp_path / "bad.wav").write_text("not audio")
  rows.append({"audio_filepath": "gone.wav", "duration": 1.0, "text": "a"})
  rows.append({"audio_filepath": "bad.wav", "duration": 1.0, "text": "a a a"})
  path = corpus.write_manifest(tmp_path / "test.jsonl", rows)
  found = evaluate_lib.evaluate(lab / "symmetric", str(path))
  assert [b["id"] for b in found["broken"]] == ["gone.wav", "bad.wav"]
  assert found["utterances"] == 8
  assert found["student"] == finished[0]["test"]["student"]


def test_references_are_normalised_as_training_texts_are(lab, finished, tmp_path):
  rows = jsonl(lab / "test.jsonl")
  changes = lambda r: {
    "audio_filepath": str(lab / r["audio_filepath"]),
    "text": f" {r['text'].upper()}  ",
  }
  path = corpus.write_manifest(tmp_path / "test.jsonl", [r | changes(r) for r in rows])
  found = evaluate_lib.evaluate(lab / "symmetric", str(path))
  assert found["student"] == finished[0]["test"]["student"]


def test_other_variant_has_the_same_teacher(lab, teacher):
  """With CTC, transcripts and neither dev nor test: the last checkpoints are averaged."""
  before = (teacher / "results.json").stat().st_mtime
  more = ["--config.kd.scale=0.9", f"--config.data.train={lab / 'train.jsonl'}"]
  found, folder = start(lab, "keep", "keep", *more)
  assert found["teacher_workdir"] == f"../{teacher.name}" and found["kd_scale"] == 0.9
  assert (teacher / "results.json").stat().st_mtime == before
  assert len(list(lab.glob("teacher-*"))) == 1
  assert any({"ctc", "kd/kl"} <= row.keys() for row in jsonl(folder / "metrics.jsonl"))


def test_given_teacher_dev_without_transcripts_and_broken_audio(lab, teacher, tmp_path):
  """The best student is the one that is nearest to the teacher; broken utterances are counted."""
  rows = jsonl(lab / "unlabelled.jsonl")
  rows = [r | {"audio_filepath": str(lab / r["audio_filepath"])} for r in rows]
  (tmp_path / "bad.wav").write_text("not audio")
  rows[7] |= {"audio_filepath": "bad.wav"}  # found when it is decoded
  rows[9] |= {"audio_filepath": "gone.wav"}  # found when the manifest is opened
  train_path = corpus.write_manifest(tmp_path / "train.jsonl", rows)
  found, folder = start(
    lab,
    "symmetric",
    "by-kl",
    f"--config.teacher.source={teacher}",
    "--config.data.teacher_train=",
    f"--config.data.train={train_path}",
    f"--config.data.dev={lab / 'unlabelled.jsonl'}",
    "--config.training.average=1",
  )
  assert found["train"]["broken"] == 2 and found["train"]["utterances"] == 31
  assert found["dev"]["student"]["wer"] is None and found["dev"]["kl"] > 0
  dev = [row for row in jsonl(folder / "metrics.jsonl") if "dev/kl" in row]
  assert len(dev) == 2 and all("dev/wer" not in row for row in dev)
  assert found["checkpoint_steps"] == [min(dev, key=lambda row: row["dev/kl"])["step"]]
  assert len(list(lab.glob("teacher-*"))) == 1


@pytest.mark.parametrize(
  ("variant", "flags"),
  [
    ("hypotheses", ["--config.kd.hypotheses=3"]),
    ("pseudo_labels", ["--config.kd.hypotheses=1"]),
    pytest.param(
      "warmup",
      ["--config.kd.warmup=1", "--config.teacher.source={teacher}"],
      marks=pytest.mark.exhaustive,
    ),
    ("soft", ["--config.teacher.source={teacher},{teacher}"]),
    pytest.param("soft_ctc", [], marks=pytest.mark.exhaustive),
    pytest.param(
      "intermediate",
      ["--config.student.layers=2", "--config.student.inner_layers=(1,)"],
      marks=pytest.mark.exhaustive,
    ),
    pytest.param("split_occupancy", ["--config.kd.delays=(0,1)"], marks=pytest.mark.exhaustive),
  ],
)
def test_variants_that_are_more_than_a_selection(lab, teacher, variant, flags):
  """None reads transcripts, and what only training needs is not kept."""
  flags = [flag.format(teacher=teacher) for flag in flags]
  found, folder = start(lab, variant, variant, *flags)
  rows = [row for row in jsonl(folder / "metrics.jsonl") if "loss" in row]
  terms = {"hypotheses": "hypotheses", "soft_ctc": "kd/soft_ctc", "split_occupancy": "kd/split_kl"}
  term = terms.get(variant, "kd/kl")
  of_ctc = variant == "pseudo_labels"
  assert all(np.isfinite(row["loss"]) and ("ctc" in row) == of_ctc for row in rows)
  assert all((term in row) != ("kd/cosine" in row) for row in rows) and term in rows[-1]
  heard = ("hypotheses", "soft_ctc", "pseudo_labels")
  assert (folder / "nbest.jsonl").exists() == (variant in heard)
  if variant == "warmup":
    assert rows[0]["selected"] == 1 and max(row["selected"] for row in rows[1:]) < 1
    assert rows[0]["kd/cosine"] <= 2
  params = kept.read(folder).load(mesh_lib.make_mesh()).params
  assert found["test"]["student"]["params"] == sum(x.size for x in jax.tree.leaves(params))
  again = evaluate_lib.evaluate(folder, str(lab / "test.jsonl"))
  assert again["student"] == found["test"]["student"]
  assert again["teacher"] == found["test"]["teacher"]
  assert len(list(lab.glob("teacher-*"))) == 1


@pytest.mark.parametrize(
  ("variant", "terms"),
  [
    ("self_distillation", {"kd/kl", "ctc", "selected"}),
    pytest.param("consistency", {"ctc", "consistency"}, marks=pytest.mark.exhaustive),
  ],
)
def test_variants_without_a_teacher(lab, variant, terms):
  found, folder = start(lab, variant, variant, f"--config.data.train={lab / 'train.jsonl'}")
  rows = [row for row in jsonl(folder / "metrics.jsonl") if "loss" in row]
  assert all(terms <= row.keys() for row in rows[1:]) and np.isfinite(rows[-1]["loss"])
  assert "teacher" not in found["test"] and found["test"]["student"]["words"] > 0
  again = evaluate_lib.evaluate(folder, str(lab / "test.jsonl"))
  assert again["student"] == found["test"]["student"]


def test_stop_between_epochs(lab, teacher, finished, monkeypatch):
  """A signal that comes while dev is evaluated is heeded before the next epoch."""
  evaluate = train._Loop._evaluate_epoch

  def evaluate_and_stop(loop):
    evaluate(loop)
    signal.raise_signal(signal.SIGINT)

  flag = f"--config.teacher.source={teacher}"
  with monkeypatch.context() as patch, pytest.raises(Interrupted):
    patch.setattr(train._Loop, "_evaluate_epoch", evaluate_and_stop)
    start(lab, "symmetric", "stopped", flag)
  assert {row["epoch"] for row in jsonl(lab / "stopped" / "metrics.jsonl")} == {0}
  found, folder = start(lab, "symmetric", "stopped", flag)
  assert jsonl(folder / "metrics.jsonl") == jsonl(lab / "symmetric" / "metrics.jsonl")
  assert (found["test"], found["dev"]) == (finished[0]["test"], finished[0]["dev"])
  models = [kept.read(lab / n).load(mesh_lib.make_mesh()) for n in ("stopped", "symmetric")]
  jax.tree.map(np.testing.assert_array_equal, *(model.params for model in models))


def test_a_stop_in_the_last_evaluation_is_heeded():
  left = []
  loop = SimpleNamespace(
    run_=SimpleNamespace(epochs=3),
    position=SimpleNamespace(epoch=3, to_evaluate=True),
    _evaluate_epoch=lambda: left.append("evaluated"),
    _leave_if_asked=lambda: left.append("asked"),
  )
  train._Loop._train(loop)
  assert left == ["evaluated", "asked"]


def skipped_over(windows) -> int | None:
  """The log line, counted from 1, at which (skipped, of) updates of each end a run."""
  ids = [f"u{i}" for i in range(4)]
  planned = [SimpleNamespace(rows=[[i]]) for i in range(4)]
  loop = SimpleNamespace(
    bad=(0, 0),
    state=SimpleNamespace(last_skipped=0),
    position=SimpleNamespace(skipped=0, batch=4),
    run_=SimpleNamespace(data=SimpleNamespace(train=SimpleNamespace(ids=ids))),
  )
  for number, (count, of) in enumerate(windows, 1):
    step = 4 * number
    loop.state.last_skipped = step - 1
    try:
      train._Loop._stop_if_hopeless(loop, WeightedSum(count, of), planned, step)
    except UserError:
      return number
  return None


def test_short_epochs_without_numbers_end_the_run_too():
  assert skipped_over([(4, 4)] * 5) == 2
  assert skipped_over([(3, 4)] * 5) == 2
  assert skipped_over([(4, 4), (0, 4)] * 5) is None
  assert skipped_over([(1, 4)] * 20) is None
  assert skipped_over([(13, 25)]) == 1


def test_more_batches_an_update_than_there_are_is_one_line(lab):
  words = "config.training.accumulate is 1000: it must be at most [0-9]+, the batches of this run"
  with pytest.raises(UserError, match=words):
    start(
      lab,
      "ctc",
      "accumulated",
      f"--config.data.train={lab / 'train.jsonl'}",
      "--config.training.accumulate=1000",
    )


@pytest.mark.parametrize(
  ("minutes", "processes", "logs", "saves"),
  [
    (1.0, 1, False, True),
    (3.0, 1, True, False),
    (0.0, 1, True, False),
    (1.0, 2, False, False),  # they do not wait for their devices for that
    (1.0, 2, True, True),
  ],
)
def test_saves_by_time(monkeypatch, minutes, processes, logs, saves):
  monkeypatch.setattr(jax, "process_count", lambda: processes)
  monkeypatch.setattr(train.mesh_lib, "agreed", lambda value: value)
  run = SimpleNamespace(save_every_minutes=minutes)
  loop = SimpleNamespace(run_=run, saved=time.monotonic() - 120)
  assert train._Loop._is_time_to_save(loop, logs) == saves


@pytest.mark.parametrize("dev", ["", "unlabelled.jsonl"])
def test_nothing_to_choose_by(lab, dev):
  """The last one is taken."""
  found, folder = start(
    lab,
    "ctc",
    f"blind-{len(dev)}",
    f"--config.data.train={lab / 'train.jsonl'}",
    f"--config.data.dev={lab / dev if dev else ''}",
    "--config.data.test=",
    "--config.training.average=1",
  )
  assert "test" not in found and ("dev" in found) == bool(dev)
  assert found["checkpoint_steps"] == [max(r["step"] for r in jsonl(folder / "metrics.jsonl"))]


def test_updates_without_numbers_end_the_run_with_what_was_in_them(lab, teacher):
  """After one step of 1e30 no loss is finite; every epoch ends in a log line."""
  flags = [f"--config.teacher.source={teacher}", "--config.training.lr=(1e30, 1e30, 1e30, 1e30)"]
  words = r"updates were no finite numbers, the last of them in step 5 with .*unlabelled-\d\d.flac"
  with pytest.raises(UserError, match=words) as caught:
    start(lab, "symmetric", "hopeless", *flags, "--config.training.clip_norm=0.0")
  assert "\n" not in str(caught.value)


def test_final_parameters_are_whole(finished):
  _, folder = finished
  params = kept.read(folder).load(mesh_lib.make_mesh()).params
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
  assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(params))


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (["--config.kd.scale=0.9"], "no utterance has a transcript .*unlabelled-00.flac"),
    (["--config.data.teacher_train={lab}/unlabelled.jsonl"], "no utterance has a transcript"),
    (["--config.labels.alphabet= ab"], "'c', which is no class"),
    (
      ["--config.teacher.source={lab}/nowhere"],
      "no such folder; it must be the workdir of a finished run",
    ),
    (
      ["--config.teacher.source={teacher}", "--config.kd.scale=0.9"],
      "no utterance has a transcript",
    ),
    (["--config.data.dev={lab}/nowhere.jsonl"], "nowhere.jsonl: no such file"),
  ],
)
def test_mistakes_leave_no_workdir(lab, teacher, flags, words):
  flags = [flag.format(lab=lab, teacher=teacher) for flag in flags]
  with pytest.raises(UserError, match=words):
    start(lab, "symmetric", "refused", *flags)
  assert not (lab / "refused").exists() and len(list(lab.glob("teacher-*"))) == 1


def test_training_starts_from_another_runs_parameters(lab, teacher, finished):
  """With a learning rate of next to nothing they stay; of a warm-up's projection there is none."""
  flags = [f"--config.teacher.source={teacher}", "--config.training.epochs=2"]
  flags += [f"--config.student.init={lab / 'symmetric'}", "--config.kd.warmup=1"]
  start(lab, "warmup", "begun", *flags, "--config.training.lr=(1e-12, 1e-12, 1e-12, 1e-12)")
  models = [kept.read(lab / n).load(mesh_lib.make_mesh()).params for n in ("begun", "symmetric")]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-8), *models)


@pytest.mark.parametrize(
  ("init", "flags", "words"),
  [
    ("absent", [], "absent is not the workdir of a finished run"),
    ("symmetric", ["--config.student.width=24"], "of another model: .* of shape"),
    (
      "symmetric",
      ["--config.labels.name=characters", "--config.labels.alphabet=abc "],
      "whose classes are not this run's|have other classes",
    ),
  ],
)
def test_parameters_that_cannot_be_started_from(lab, teacher, finished, init, flags, words):
  given = [f"--config.teacher.source={teacher}", f"--config.student.init={lab / init}", *flags]
  with pytest.raises(UserError, match=words) as caught:
    start(lab, "symmetric", "refused", *given)
  assert "\n" not in str(caught.value) and not (lab / "refused").exists()
