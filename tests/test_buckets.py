"""Runs, data, teachers and caches in a bucket, on a server that speaks S3's protocol."""

import errno
import json
import os
import pathlib
import shutil
import signal
import sys
import time

import pytest
from fsspec.registry import _registry

import bucket_server
import corpus
import whole_runs
from jaxkd import buckets, files
from jaxkd.commands import line
from jaxkd.data import audio, cache
from jaxkd.data.corpora import Options
from jaxkd.data.sources import open_source
from jaxkd.errors import TryAgain, UserError
from jaxkd.report import collect
from jaxkd.teacher import sources as teachers
from jaxkd.teacher import stored

s3fs = pytest.importorskip("s3fs")
pytest.importorskip("moto")
RUN, DATA = "s3://bucket/runs/ctc", "s3://bucket/data"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
  """Its driver, with an empty cache on this side."""
  with pytest.MonkeyPatch.context() as patch, bucket_server.started() as environment:
    for name, value in environment.items():
      patch.setenv(name, value)
    patch.setenv("JAXKD_CACHE", str(tmp_path_factory.mktemp("cache")))
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem(use_listings_cache=False)
    system.mkdir("bucket")
    yield system
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def elsewhere(server, monkeypatch, tmp_path):
  """As on another machine: nothing is copied yet."""
  monkeypatch.setenv("JAXKD_CACHE", str(tmp_path / "other"))
  buckets._fetched.clear()
  return tmp_path


@pytest.fixture(scope="module")
def lab(server, tmp_path_factory):
  """A corpus here, and the same in the bucket."""
  folder = tmp_path_factory.mktemp("lab")
  corpus.make(folder)
  for path in folder.rglob("*"):
    if path.is_file():
      server.put_file(str(path), f"bucket/data/{path.relative_to(folder)}")
  return folder


def flags(data: str, workdir: str) -> list[str]:
  splits = {"train": "train", "dev": "dev", "test": "test"}
  given = [f"--config.data.{name}={data}/{split}.jsonl" for name, split in splits.items()]
  every = "--config.checkpoint.every_steps=1"  # compiles what `whole_runs.prepare` does
  return ["--config=ctc:manifest", *corpus.TINY, every, *given, f"--workdir={workdir}"]


def steps_in_bucket(server) -> set[int]:
  """Steps of the checkpoints that the index of the run has."""
  try:
    index = json.loads(server.cat_file(f"{RUN}/{buckets.INDEX}"))["files"]
  except FileNotFoundError:
    return set()
  return {int(name.split("/")[2]) for name in index if name.startswith("checkpoints/last/")}


@pytest.fixture(scope="module")
def finished(server, lab, compiled_once, quick_to_compile):
  """A run that was killed and went on where nothing had been copied, and the same run here."""
  process = whole_runs.start([sys.executable, "-m", "jaxkd", "train", *flags(DATA, RUN)])
  while not any(step >= 2 for step in steps_in_bucket(server)):
    assert process.poll() is None, process.communicate()[1]
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert not server.exists(f"{RUN}/results.json")
  shutil.rmtree(os.environ["JAXKD_CACHE"])
  commands = [["train", *flags(DATA, RUN)], ["train", *flags(str(lab), str(lab / "straight"))]]
  both = f"from jaxkd.commands import line\nfor given in {commands}: line.main(given, log=True)"
  log = whole_runs.finish([sys.executable, "-c", both])
  assert "resumed at epoch 0" in log and "fetching" in log
  return RUN


@pytest.mark.slow
def test_a_killed_run_goes_on_elsewhere_to_the_same_numbers(finished, lab, capfd):
  whole_runs.assert_same(lab / "straight", buckets.here(finished))
  assert line.main(["train", *flags(DATA, RUN)]) == 0  # is finished
  assert f"results: {RUN}/results.json" in capfd.readouterr().out


@pytest.mark.slow
def test_a_finished_run_is_evaluated_and_read(finished, elsewhere, capfd):
  buckets._fetched.clear()
  command = ["evaluate", f"--workdir={RUN}", f"--data={DATA}/test.jsonl"]
  assert line.main(command) == 0
  found = json.loads(capfd.readouterr().out)
  copy = buckets.place(RUN)
  assert found["student"]["wer"] == files.read_json(copy / "results.json")["test"]["student"]["wer"]
  assert not (copy / "checkpoints/last").exists()  # only training reads it
  run = collect.read(copy)
  assert isinstance(run, collect.Run) and len(run.metrics) == 4


@pytest.mark.slow
def test_a_teacher_and_its_stored_frames_in_a_bucket(finished, elsewhere, server):
  shared, frames = "s3://bucket/shared", "s3://bucket/frames"
  assert line.main(["convert", RUN, shared]) == 0
  assert (
    line.main(["teach", f"--teacher={RUN}", f"--data={DATA}/dev.jsonl", f"--out={frames}"]) == 0
  )
  shutil.rmtree(os.environ["JAXKD_CACHE"])
  buckets._fetched.clear()
  run, folder, store = (teachers.find(n, pool=1, dtype="float32") for n in (RUN, shared, frames))
  assert run.source == RUN and folder.source == shared
  assert run.vocabulary == folder.vocabulary == store.vocabulary
  assert store.store.header["complete"]["utterances"] == 8 and not stored.damaged(store.store)


@pytest.mark.exhaustive
def test_a_run_whose_teacher_and_its_frames_are_made_in_the_bucket(lab, elsewhere, server, capfd):
  """By the two commands that people use, and found again where nothing is copied."""
  data = [f"--config.data.{split}={DATA}/{split}.jsonl" for split in ("dev", "test")]
  data += [f"--config.data.teacher_train={DATA}/train.jsonl"]
  data += [f"--config.data.train={DATA}/unlabelled.jsonl"]
  cached = ["--config.teacher.cache=True"]
  run = "--workdir=s3://bucket/made/run"
  given = ["train", "--config=symmetric:manifest", *corpus.TINY, *data, *cached, run]
  whole_runs.finish([sys.executable, "-m", "jaxkd", *given])
  names = {name.split("/")[0].split("-")[0] for name in buckets.listed("s3://bucket/made")}
  assert names == {"run", "teacher", "frames"}
  shutil.rmtree(os.environ["JAXKD_CACHE"])
  log = whole_runs.finish([sys.executable, "-m", "jaxkd", *given])
  assert "s3://bucket/made/run is finished" in log
  assert line.main(["evaluate", run, f"--data={DATA}/test.jsonl"]) == 0
  assert set(json.loads(capfd.readouterr().out)) >= {"teacher", "student"}
  given = ["distil", "--teacher=s3://bucket/made/run", f"--audio={DATA}/audio", "--size=tiny"]
  given += ["--out=s3://bucket/made/distilled", *corpus.TINY]
  whole_runs.finish([sys.executable, "-m", "jaxkd", *given])
  assert server.exists("bucket/made/distilled/results.json")
  assert line.main(["report", "s3://bucket/made/*", "--out=s3://bucket/report"]) == 0
  assert "s3://bucket/made/run" in buckets.read("s3://bucket/report/report.md").read().decode()


def test_data_in_a_bucket_is_the_same_data(lab, elsewhere):
  here, there = (open_source(f"{data}/dev.jsonl", Options()) for data in (lab, DATA))
  assert here.fingerprint() == there.fingerprint()
  assert all((here.read(i) == there.read(i)).all() for i in range(len(here)))
  folder = open_source(f"{DATA}/audio", Options())
  assert len(folder) == 80 and folder.ids == open_source(str(lab / "audio"), Options()).ids
  (recording,) = open_source(f"{DATA}/audio/dev-00.flac", Options()).ids
  assert recording == "dev-00.flac"
  with pytest.raises(audio.BrokenAudio, match="no such file"):
    audio.read(f"{DATA}/audio/absent.flac")


def test_manifests_name_objects_in_buckets(lab, elsewhere):
  rows = [{"audio_filepath": f"{DATA}/audio/dev-00.flac"}]
  path = corpus.write_manifest(elsewhere / "local.jsonl", rows)
  assert len(open_source(str(path), Options()).read(0))


def test_what_no_index_has_is_not_there(server, elsewhere):
  url = "s3://bucket/half"
  folder = buckets.place(url)
  buckets.fetch(folder, mine=True)
  files.write_text(folder / "checkpoints/last/1/state", "whole")
  files.write_text(folder / "metrics.jsonl", "{}\n")
  buckets.publish(folder, exact=True)
  server.pipe_file(f"{url}/checkpoints/last/2/state", b"cut")  # and killed
  assert contents(buckets.fetch(folder, mine=True)) == ["checkpoints/last/1/state", "metrics.jsonl"]
  (folder / "checkpoints/last/1/state").unlink()
  files.write_text(folder / "checkpoints/last/3/state", "next")
  buckets.publish(folder, exact=True)
  there = [name for name in buckets.listed(url) if name != buckets.INDEX]
  assert there == contents(folder) == ["checkpoints/last/3/state", "metrics.jsonl"]


def test_a_final_model_is_replaced_whole_or_is_not_there(server, elsewhere, monkeypatch):
  url = "s3://bucket/replaced"
  folder = buckets.place(url)
  for name in ("a", "b"):
    files.write_text(folder / f"checkpoints/final/{name}", "old")
  buckets.publish(folder, exact=True)
  for name in ("a", "b"):
    files.write_text(folder / f"checkpoints/final/{name}", "new")

  put = server.put_file

  def killed(sources, targets):
    put(sources[0], targets[0])
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(server, "put", killed)
    with pytest.raises(KeyboardInterrupt):
      buckets.publish(folder, exact=True)
  assert contents(buckets.fetch(folder, mine=True)) == []


def contents(folder: pathlib.Path) -> list[str]:
  return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_folder_that_is_worked_in_stays_as_it_is(server, elsewhere):
  folder = buckets.place("s3://bucket/busy")
  files.write_text(folder / "newer.txt", "not yet in the bucket")
  with files.locked(folder / ".lock"):
    assert (buckets.fetch(folder) / "newer.txt").exists()
  buckets._fetched.clear()
  assert not (buckets.fetch(folder) / "newer.txt").exists()


def test_a_cache_in_a_bucket_is_made_once(server, elsewhere, monkeypatch):
  monkeypatch.setenv("JAXKD_CACHE", "s3://bucket/cache")
  for home in ("one", "two"):
    monkeypatch.setenv("XDG_CACHE_HOME", str(elsewhere / home))
    buckets._fetched.clear()
    made = []
    found = cache.made("thing", lambda folder, made=made: made.append(write_thing(folder)))
    assert (found / "text").read_text() == "made" and len(made) == (home == "one")


def write_thing(folder: pathlib.Path) -> None:
  files.write_text(folder / "text", "made")


def test_google_buckets_do_the_same(elsewhere, monkeypatch):
  pytest.importorskip("gcp_storage_emulator")
  with bucket_server.googles("bucket") as environment:
    for name, value in environment.items():
      monkeypatch.setenv(name, value)
    url = "gs://bucket/run"
    folder = buckets.output(url)
    files.write_text(folder / "a/b.txt", "text")
    buckets.publish_outputs()
    shutil.rmtree(os.environ["JAXKD_CACHE"])
    buckets._fetched.clear()
    assert (buckets.here(url) / "a/b.txt").read_text() == "text"
    assert buckets.read(f"{url}/a/b.txt").read() == b"text"
    assert buckets.exists(url) == "folder" and buckets.exists(f"{url}/a/b.txt") == "object"
    assert not buckets.exists(f"{url}/a/c.txt") and buckets.listed(url) == ["a/b.txt"]
    assert buckets.folders(buckets.place("gs://bucket"), "r") == [folder]
    with pytest.raises(UserError, match="gs://nobody/run: there is no bucket 'nobody'"):
      buckets.here("gs://nobody/run")
    with pytest.raises(UserError, match="gs://nobody/run: there is no bucket 'nobody'"):
      buckets.check_writable(buckets.place("gs://nobody/run"))


def error_of(*arguments: str) -> str:
  with pytest.raises(UserError) as caught:
    line.main(list(arguments))
  assert "\n" not in str(caught.value)
  return str(caught.value)


def test_absent_buckets_and_objects_are_one_line(lab, elsewhere):
  train = ["train", "--config=ctc:manifest", f"--config.data.train={DATA}/train.jsonl"]
  assert "s3://nobody/run: there is no bucket 'nobody'" in error_of(
    *train, "--workdir=s3://nobody/run"
  )
  train[-1] = "--config.data.train=s3://nobody/train.jsonl"
  assert "there is no bucket 'nobody'" in error_of(*train, "--workdir=s3://bucket/none")
  train[-1] = f"--config.data.train={DATA}/absent.jsonl"
  assert f"{DATA}/absent.jsonl: no such object" in error_of(*train, "--workdir=s3://bucket/none")
  told = error_of("evaluate", "--workdir=s3://bucket/none", f"--data={DATA}/dev.jsonl")
  assert told.startswith("s3://bucket/none is not the workdir of a finished run")
  teacher = f"--config.teacher.source={DATA}"
  told = error_of(
    "train", "--config=trim:manifest", teacher, f"--config.data.train={DATA}/dev.jsonl"
  )
  assert f"{DATA} is neither the workdir of a finished run" in told


def test_a_missing_driver_is_one_line(elsewhere, monkeypatch):
  monkeypatch.setitem(sys.modules, "gcsfs", None)
  monkeypatch.delitem(_registry, "gs", raising=False)
  buckets._driver.cache_clear()
  assert error_of("transcribe", "gs://bucket/run", "a.wav") == (
    "gs://bucket/run: its driver is not there: pip install 'jaxkd[gs]'"
  )


def test_what_names_other_files_is_uploaded_behind_them(server, elsewhere, monkeypatch):
  folder = buckets.place("s3://bucket/order")
  for name in ("shards/0.array_record", "shards/0.json", "store.json", "list.jsonl"):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("{}")
  system, uploads = buckets._system("s3://bucket"), []
  put = system.put
  told = lambda here, there: uploads.append(there) or put(here, there)
  monkeypatch.setattr(system, "put", told)
  buckets.publish(folder)
  below = "s3://bucket/order"
  assert uploads == [
    [f"{below}/shards/0.array_record"],
    [f"{below}/list.jsonl", f"{below}/shards/0.json", f"{below}/store.json"],
  ]


def test_markers_of_folders_are_no_objects(server, elsewhere):
  for name in ("marked/", "marked/sub/"):
    server.pipe_file(f"bucket/{name}", b"")
  server.pipe_file("bucket/marked/sub/file.txt", b"text")
  folder = buckets.here("s3://bucket/marked")
  assert (folder / "sub" / "file.txt").read_text() == "text"
  assert buckets.listed("s3://bucket/marked") == ["sub/file.txt"]


class ReadTimeoutError(Exception):
  """As of botocore and urllib3."""


@pytest.mark.parametrize(
  ("error", "kind"),
  [
    (ReadTimeoutError("slow"), TryAgain),
    (OSError(errno.EBUSY, "Please reduce your request rate."), TryAgain),
    (ConnectionResetError("gone"), TryAgain),
    (ValueError("no such key"), UserError),
  ],
)
def test_what_passes_by_itself_is_told_apart(error, kind):
  with pytest.raises(UserError, match="^s3://bucket/x: ") as caught, buckets._told("s3://bucket/x"):
    raise error
  assert type(caught.value) is kind


def test_denied_access_is_one_line(server, elsewhere):
  bucket_server.let_in(0)
  try:
    told = error_of("evaluate", f"--workdir={RUN}", "--data=x.jsonl")
  finally:
    bucket_server.let_in(float("inf"))
  assert told.startswith(f"{RUN}: these credentials may not do that in the bucket 'bucket'")


def test_a_server_that_is_not_reached_is_one_line(elsewhere, monkeypatch):
  monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
  monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
  monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
  s3fs.S3FileSystem.clear_instance_cache()
  try:
    with pytest.raises(TryAgain, match=f"^{RUN}: the server cannot be reached"):
      line.main(["evaluate", f"--workdir={RUN}", "--data=x.jsonl"])
  finally:
    s3fs.S3FileSystem.clear_instance_cache()
