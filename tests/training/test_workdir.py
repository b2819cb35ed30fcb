"""A run's folder: who holds it, which runs it may hold, its results, its teacher and its logs."""

import contextlib
import errno
import fcntl
import io
import json
import logging
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import threading

import pytest

import corpus
from jaxkd import config as config_lib
from jaxkd import files, labels
from jaxkd.errors import UserError
from jaxkd.labels import lexicon
from jaxkd.training import workdir

LETTERS = labels.characters("abc ")
DATA = {
  "train": {"name": "t", "fingerprint": "0123"},
  "dev": {"name": "d", "fingerprint": "4567"},
}
# Claims a workdir, says so, and holds it until it is killed.
HOLDER = """
import pathlib, sys, time
from jaxkd import config, labels
from jaxkd.training import workdir
data = {"train": {"fingerprint": "0123"}, "dev": {"fingerprint": "4567"}}
with workdir.claim(pathlib.Path(sys.argv[1]), config.base(), data, labels.characters("abc ")):
  print("held", flush=True)
  sys.stdin.read()
"""


def config(**fields):
  """base(), with fields whose dots are written __."""
  found = config_lib.base()
  found.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
  return found


def claimed(folder, made=None, data=DATA, vocabulary=LETTERS) -> pathlib.Path:
  with workdir.claim(folder, made or config(), data, vocabulary):
    pass
  return folder


def refused(folder, words: str, *args) -> None:
  """A claim is refused with a line that has these words, and changes nothing."""
  before = files_of(folder)
  with pytest.raises(UserError, match=words):
    claimed(folder, *args)
  assert files_of(folder) == before


def files_of(folder) -> dict:
  return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*.*") if p.is_file()}


@pytest.fixture
def folder(tmp_path):
  return claimed(tmp_path / "run")


def finish(folder: pathlib.Path, epochs: int) -> None:
  files.write_json(folder / "results.json", {"epochs": epochs})
  (folder / "checkpoints" / "last" / "10").mkdir(parents=True)


def test_a_claim_says_what_the_folder_is_for(folder):
  stored = files.read_json(folder / "config.json")
  assert stored["schema"] == config_lib.SCHEMA
  assert config_lib.binding(stored) == config_lib.binding(config())
  assert files.read_json(folder / "data.json") == DATA
  assert labels.Vocabulary.load(folder / "labels.json") == LETTERS
  before = files_of(folder)
  claimed(folder)
  assert files_of(folder) == before


def test_paths_and_workers_are_free(folder):
  claimed(folder, config(data__train="/moved/train.jsonl", data__workers=3, mesh__fsdp=2))
  assert files.read_json(folder / "config.json")["data"]["train"] == "/moved/train.jsonl"


def test_a_config_of_an_older_version_is_upgraded(folder):
  path = folder / "config.json"
  old = files.read_json(path)
  del old["schema"], old["mesh"], old["kd"]["loss"], old["kd"]["warmup"]
  old["kd"]["hypotheses"] = 0
  files.write_json(path, old)
  claimed(folder)
  assert files.read_json(path) == config_lib.stored(config())


@pytest.mark.parametrize(
  ("made", "data", "words"),
  [
    (config(kd__temperature=3.0), DATA, r"\(config.kd.temperature was 2.0 and is 3.0\)"),
    (
      config(kd__scale=0.5, seed=2, dtype="bfloat16", student__dropout=0.3),
      DATA,
      r"config.dtype was 'float32' and is 'bfloat16'; config.kd.scale was 1.0 and is 0.5; "
      r"config.seed was 0 and is 2; and 1 more\)",
    ),
    (config(), DATA | {"dev": {"fingerprint": "89ab"}}, "the data of 'dev' has changed"),
    (config(), {"train": DATA["train"]}, "there was data of 'dev' and is none"),
    (config(), DATA | {"test": {"fingerprint": "cdef"}}, "there was no data of 'test' and is some"),
  ],
)
def test_another_run_is_refused_and_another_folder_named(folder, made, data, words):
  folder.with_name("run-2").mkdir()
  words = f"--workdir={folder} holds a run of another config .*{words}.*: --workdir={folder}-3 "
  refused(folder, words + "starts a new one$", made, data)


def test_a_student_does_not_go_on_under_a_teacher_that_has_changed(folder):
  taught = lambda digits: DATA | {"teacher": {"name": "t", "fingerprint": digits}}
  claimed(folder, data=taught("cdef"))  # older versions did not say which
  claimed(folder, data=taught("cdef"))
  refused(folder, "the teacher has changed", config(), taught("0123"))


def test_the_same_teacher_may_have_another_name(tmp_path):
  taught = lambda digits: DATA | {"teacher": {"name": "t", "fingerprint": digits}}
  here, moved = config(teacher__source="runs/t"), config(teacher__source="/moved/runs/t")
  folder = claimed(tmp_path / "run", here, taught("cdef"))
  claimed(folder, moved, taught("cdef"))
  refused(folder, "teacher.source was .*; the teacher has changed", here, taught("0123"))
  unknown = claimed(tmp_path / "unknown", here)
  refused(unknown, r"config.teacher.source was 'runs/t' and is '/moved/runs/t'", moved)


def test_a_finished_run_that_was_begun_for_more_epochs_is_finished(folder):
  epochs = config().training.epochs
  finish(folder, epochs)
  claimed(folder, config(training__epochs=100 * epochs))
  refused(folder, "training.epochs was", config(training__epochs=epochs - 1))
  claimed(folder)
  assert files.read_json(folder / "config.json")["training"]["epochs"] == epochs
  claimed(folder, config(training__epochs=2 * epochs))


def test_a_state_of_a_schema_that_had_the_same_arrays_is_resumed(folder):
  path = folder / "config.json"
  files.write_json(path, files.read_json(path) | {"schema": config_lib.SCHEMA - 1})
  (folder / "checkpoints" / "last" / "40").mkdir(parents=True)
  claimed(folder)
  assert files.read_json(path)["schema"] == config_lib.SCHEMA


def test_fields_of_another_selection_are_absent(folder):
  made = config()
  with made.unlocked():
    made.kd.selection = {"name": "symmetric", "n": 2}
  refused(folder, "config.kd.selection.n was absent and is 2", made)


@pytest.mark.parametrize(
  ("made", "vocabulary", "fits"),
  [
    (config(kd__scale=0.5), LETTERS, True),
    (config(student__dropout=0.4), LETTERS, True),
    (config(student__width=4 * config().student.heads), LETTERS, False),
    (config(features__mels=64), LETTERS, False),
    (config(), labels.characters("abcd "), False),
  ],
)
def test_what_fits_a_finished_run_may_begin_with_its_parameters(folder, made, vocabulary, fits):
  refused(folder, "starts a new one$", made, DATA, vocabulary)
  finish(folder, config().training.epochs)
  begin = f", and with --config.student.init={folder} it begins with the parameters of this one$"
  refused(folder, f"starts a new one{begin if fits else '$'}", made, DATA, vocabulary)


def test_other_pronunciations_are_refused(tmp_path):
  def spoken(text: str) -> labels.Vocabulary:
    path = tmp_path / "lexicon.txt"
    path.write_text(text)
    return labels.phonemes(lexicon.read(path))

  folder = claimed(tmp_path / "run", vocabulary=spoken("low\tL OW\n"))
  words = "it has other classes or pronunciations, config.labels"
  refused(folder, words, config(), DATA, spoken("low\tOW L\n"))


def test_more_epochs_continue_and_fewer_are_refused(folder, caplog):
  caplog.set_level(logging.INFO)
  was = config().training.epochs
  claimed(folder, config(training__epochs=was + 2))
  assert f"{was + 2} epochs instead of {was}: goes on with the learning rate" in caplog.text
  finish(folder, was + 2)
  claimed(folder, config(training__epochs=was + 5))
  assert (
    f"{was + 5} epochs instead of {was + 2}: goes on from epoch {was + 2} with the learning rate "
    f"of a run of {was + 5} epochs" in caplog.text
  )
  assert files.read_json(folder / "config.json")["training"]["epochs"] == was + 5
  # Not finished for so many; the old results stay.
  assert workdir.finished(folder, was + 5) is None
  assert workdir.finished(folder, was + 2) == {"epochs": was + 2}
  words = f"config.training.epochs was {was + 5} and is {was}.*: --workdir={folder}-2 starts"
  refused(folder, words, config())
  other = config(training__epochs=was + 9, seed=1)
  refused(folder, r"another config \(config.seed was 0 and is 1\)", other)


def test_a_finished_run_without_checkpoints_is_not_trained_anew(folder):
  finish(folder, config().training.epochs)
  (folder / "checkpoints" / "last" / "10").rmdir()
  words = f"its checkpoints are gone: --workdir={folder}-2 .*--config.student.init={folder} "
  refused(folder, words, config(training__epochs=100))


@pytest.mark.parametrize(
  ("name", "text", "words"),
  [
    ("config.json", '{"model_type": "hubert"}', r"run/config\.json: it is no config of jaxkd"),
    ("config.json", '{"recipe": ', r"run/config\.json cannot be read: "),
    ("data.json", '{"train": {}}', r"run/data\.json cannot be read: a split has no fingerprint"),
    ("labels.json", "{}", r"run/labels\.json does not hold the classes"),
  ],
)
def test_damaged_files_are_named(folder, name, text, words):
  (folder / name).write_text(text)
  refused(folder, words)


@pytest.mark.parametrize(
  ("text", "epochs", "wanted"),
  [
    ('{"epochs": 4}', 4, {"epochs": 4}),
    ('{"epochs": 4}', 3, {"epochs": 4}),
    ('{"epochs": 4}', 5, None),
    ('{"seed": 1}', 5, {"seed": 1}),
    (None, 1, None),
  ],
)
def test_finished(tmp_path, text, epochs, wanted):
  if text is not None:
    (tmp_path / "results.json").write_text(text)
  assert workdir.finished(tmp_path, epochs) == wanted


@pytest.mark.parametrize("text", ['{"epochs": 4', "[]", '{"epochs": "four"}'])
def test_damaged_results_are_no_results(tmp_path, text):
  (tmp_path / "results.json").write_text(text)
  with pytest.raises(UserError, match=r"results\.json (cannot be read|must hold)"):
    workdir.finished(tmp_path, 4)


@contextlib.contextmanager
def held_by_another(folder):
  """The process that holds a workdir."""
  line = [sys.executable, "-c", HOLDER, str(folder)]
  pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
  process = subprocess.Popen(line, cwd=corpus.ROOT, **pipes)
  try:
    assert process.stdout.readline() == b"held\n"
    yield process
  finally:
    process.kill()
    process.communicate()


@pytest.fixture
def waits(monkeypatch):
  """Set when somebody waits for a lock."""
  flock, event = fcntl.flock, threading.Event()

  def said(lock, operation):
    if not operation & fcntl.LOCK_NB:
      event.set()
    flock(lock, operation)

  monkeypatch.setattr(fcntl, "flock", said)
  return event


def claim_when_free(folder, said: list) -> None:
  """Appends "claimed", or why it is not."""
  try:
    with workdir.claim(folder, config(), DATA, LETTERS, wait=True):
      said.append("claimed")
  except UserError as error:
    said.append(str(error))


def test_held_by_another_process_until_it_is_killed(folder, waits):
  said = []
  with held_by_another(folder) as process:
    # What the holder may still write is not judged.
    refused(folder, f"--workdir={folder} is in use by another process", config(seed=1))
    waiter = threading.Thread(target=claim_when_free, args=[folder, said])
    waiter.start()
    assert waits.wait(60) and not said
    process.kill()
    waiter.join()
  assert said == ["claimed"]


def test_a_waiter_compares_after_it_has_the_lock(folder, waits):
  """The holder makes the folder that of another run while the other waits."""
  said = []
  with held_by_another(folder) as process:
    waiter = threading.Thread(target=claim_when_free, args=[folder, said])
    waiter.start()
    assert waits.wait(60)
    files.write_json(folder / "config.json", config_lib.stored(config(seed=7)))
    process.kill()
    waiter.join()
  assert len(said) == 1 and "config.seed was 7 and is 0" in said[0]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog, number):
  monkeypatch.setattr(fcntl, "flock", lambda *_: fail(number))
  claimed(tmp_path / "run")
  assert caplog.text.count("its file system has no locks") == 1
  assert (tmp_path / "run" / "config.json").exists()


def test_other_errors_of_a_lock_are_said(tmp_path, monkeypatch):
  monkeypatch.setattr(fcntl, "flock", lambda *_: fail(errno.EIO))
  with pytest.raises(UserError, match="run cannot be written: Input/output error"):
    claimed(tmp_path / "run")


def fail(number: int):
  raise OSError(number, os.strerror(number))


def test_a_folder_that_cannot_be_used_is_one_line(tmp_path, monkeypatch):
  (tmp_path / "file").write_text("")
  for place in ("file", "file/run"):
    with pytest.raises(UserError, match=f"--workdir={tmp_path / place} cannot be made: "):
      workdir.check_usable(tmp_path / place)
  workdir.check_usable(tmp_path / "deep" / "run")
  assert [p.name for p in tmp_path.iterdir()] == ["file"]
  # Permissions do not hold for root, who may run this.
  monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: fail(errno.EROFS))
  with pytest.raises(UserError, match="run cannot be written: Read-only file system"):
    workdir.check_usable(tmp_path / "deep" / "run")


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
  monkeypatch.setattr(os, "fsync", lambda _: fail(errno.ENOSPC))
  with pytest.raises(UserError, match="run cannot be written: No space left on device"):
    claimed(tmp_path / "run")


class TestFindTeacher:
  """Siblings of a student's workdir."""

  binding = config_lib.binding(config())
  fingerprints = {"train": "0123", "dev": "4567", "labels": LETTERS.fingerprint()}

  def find(self, lab, **other):
    asked = {"binding": self.binding, "fingerprints": self.fingerprints} | other
    return workdir.find_teacher(lab / "student", "demo", **asked)

  def test_the_one_of_these_is_found(self, tmp_path):
    assert self.find(tmp_path) is None
    claimed(tmp_path / "teacher-demo-0", config(seed=1))
    claimed(tmp_path / "teacher-demo-1", data=DATA | {"train": {"fingerprint": "other"}})
    claimed(tmp_path / "teacher-demo-2", vocabulary=labels.characters("abcd "))
    claimed(tmp_path / "teacher-demo-3", data={"train": DATA["train"]})
    claimed(tmp_path / "teacher-demo-4")
    claimed(tmp_path / "teacher-demo-5")
    assert self.find(tmp_path).name == "teacher-demo-4"
    files.write_json(tmp_path / "teacher-demo-5" / "results.json", {})
    assert self.find(tmp_path).name == "teacher-demo-5"
    assert self.find(tmp_path, binding=self.binding | {"seed": 2}) is None
    assert self.find(tmp_path, fingerprints=self.fingerprints | {"dev": "other"}) is None

  def test_one_of_an_older_version_is_found(self, tmp_path):
    path = claimed(tmp_path / "teacher-demo-0") / "config.json"
    old = files.read_json(path)
    del old["schema"], old["mesh"], old["profile"], old["training"]["remat"], old["kd"]["loss"]
    old["kd"]["hypotheses"] = 0
    files.write_json(path, old)
    assert self.find(tmp_path).name == "teacher-demo-0"

  @pytest.mark.parametrize("name", ["config.json", "data.json", "labels.json"])
  def test_damaged_ones_are_none(self, tmp_path, name):
    folder = claimed(tmp_path / "teacher-demo-0")
    assert self.find(tmp_path) == folder
    (folder / name).write_bytes((folder / name).read_bytes()[:20])
    assert self.find(tmp_path) is None


def rows_of(folder) -> list[dict]:
  return files.read_jsonl(folder / "metrics.jsonl")


def logged(folder, *steps: int, after: int = 0) -> None:
  metrics = workdir.MetricsLog(folder, step=after)
  for step in steps:
    metrics.write({"step": step, "loss": 1 / step})
    metrics.write({"step": step, "rate": 2.0}, "speed")
  metrics.close()


def test_a_log_goes_on_after_a_step(tmp_path):
  logged(tmp_path, 1, 2, 3)
  logged(tmp_path, 3, 4, after=2)
  assert [row["step"] for row in rows_of(tmp_path)] == [1, 2, 3, 4]
  assert [row["step"] for row in files.read_jsonl(tmp_path / "speed.jsonl")] == [1, 2, 3, 4]


def test_a_log_that_was_cut_anywhere_goes_on(tmp_path):
  logged(tmp_path, 1, 2, 3)
  whole = (tmp_path / "metrics.jsonl").read_bytes()
  for length in range(len(whole) + 1):
    (tmp_path / "metrics.jsonl").write_bytes(whole[:length])
    workdir.MetricsLog(tmp_path, step=3).close()
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2, 3][: whole[:length].count(b"\n")]


@pytest.mark.parametrize("line", [b'{"step": 2, "lo', b"\0\0\0", b"[2]", b'{"loss": 1}'])
def test_a_damaged_line_of_a_log_is_named(tmp_path, line):
  logged(tmp_path, 1, 2, 3)
  path = tmp_path / "metrics.jsonl"
  rows = path.read_bytes().split(b"\n")
  damaged = b"\n".join([rows[0], line, *rows[2:]])
  path.write_bytes(damaged)
  with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 is damaged: remove that line"):
    workdir.MetricsLog(tmp_path, step=1)
  assert path.read_bytes() == damaged


def test_a_kill_while_a_log_is_shortened_leaves_all_of_it(tmp_path, monkeypatch):
  logged(tmp_path, 1, 2, 3)
  whole = (tmp_path / "metrics.jsonl").read_bytes()
  monkeypatch.setattr(os, "replace", lambda *_: fail(errno.EINTR))
  with pytest.raises(InterruptedError):
    workdir.MetricsLog(tmp_path, step=1)
  assert (tmp_path / "metrics.jsonl").read_bytes() == whole


def git(*arguments: str) -> bytes:
  line = ["git", *arguments]
  return subprocess.run(line, cwd=corpus.ROOT, capture_output=True, check=True).stdout


def test_commit_is_known_in_an_archive_too(tmp_path):
  packed = git("archive", "HEAD", "jaxkd")
  with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
    archive.extractall(tmp_path, filter="data")
  ask = [sys.executable, "-c", "from jaxkd.training import workdir; print(workdir.commit())"]
  found = subprocess.run(ask, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
  head = git("rev-parse", "HEAD").decode()[:10]
  assert found.strip() == head
  assert workdir.commit() in (head, f"{head}-dirty")


def test_a_state_of_an_older_version_is_one_line(tmp_path):
  claimed(tmp_path / "run")
  path = tmp_path / "run" / "config.json"
  before = {k: v for k, v in json.loads(path.read_text()).items() if k != "schema"}
  path.write_text(json.dumps(before))
  claimed(tmp_path / "run")  # nothing was saved
  path.write_text(json.dumps(before))
  (tmp_path / "run" / "checkpoints" / "last" / "40").mkdir(parents=True)
  words = r"an older version of jaxkd stopped at step 40.*--workdir=.*run-2 starts a new one"
  with pytest.raises(UserError, match=words):
    claimed(tmp_path / "run")
  assert "schema" not in json.loads(path.read_text())
  files.write_json(tmp_path / "run" / "results.json", {})
  claimed(tmp_path / "run")
