"""LibriSpeech and TED-LIUM as TFDS prepares them."""

import json
import os
import pathlib
import pickle
import re
import resource
import socket
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

import tfds_corpus
from corpus import make_split, tone
from jaxkd import labels as labels_lib
from jaxkd.data import audio, cache, decoding, pipeline, plan, sources, tfds
from jaxkd.data.corpora import Options
from jaxkd.data.texts import Spelling
from jaxkd.errors import UserError
from tfds_corpus import prepare, row


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp("tfds")
  tfds_corpus.make(folder)
  return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXKD_CACHE", str(tmp_path / "cache"))


def open_source(spec: str, root: pathlib.Path) -> sources.Source:
  return sources.open_source(spec, Options(root=str(root)))


def samples(seconds: float = 0.2) -> np.ndarray:
  return np.round(tone("a", seconds=seconds) * 32767).astype(np.int16)


@pytest.mark.parametrize(
  ("corpus", "split"), [("librispeech", "train_clean100"), ("tedlium", "validation")]
)
def test_what_comes_out_is_what_went_in(root, corpus, split):
  source = open_source(f"{corpus}:{split}", root)
  wanted = {r["id"]: r for r in tfds_corpus.rows(corpus, split)}
  assert sorted(source.ids) == sorted(wanted) and source.skipped == []
  assert source.name == f"{corpus}:{split}" and source.durations.dtype == np.float64
  for index, name in enumerate(source.ids):
    found = source.read(index)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found * 32768, wanted[name]["speech"])
    assert source.durations[index] == len(found) / 16_000
    assert source.texts[index] == wanted[name]["text"]


def test_every_16_bit_value_is_kept():
  values = np.arange(-32768, 32768)
  for kind in (np.int16, np.int32, np.int64):
    np.testing.assert_array_equal(tfds.as_float(values.astype(kind)) * 32768, values)


def test_float_audio_at_another_rate(tmp_path):
  wave = tone("b", rate_hz=8000)
  prepare(tmp_path, "tedlium", {"test": [row("x", wave)]}, sample_rate=8000, dtype=np.float32)
  source = open_source("tedlium:test", tmp_path)
  np.testing.assert_array_equal(source.read(0), audio.as_model_hears(wave, 8000))
  assert len(source.read(0)) == 3200 and source.durations[0] == 0.2


def test_splits_are_added_and_cut(root):
  whole = open_source("librispeech:train_clean100", root)
  other = open_source("librispeech:dev_other", root)
  both = open_source("librispeech:train_clean100 + dev_other", root)
  assert both.ids == whole.ids + other.ids and both.texts == whole.texts + other.texts
  np.testing.assert_array_equal(both.read(24), other.read(0))
  part = open_source("librispeech:train_clean100[6:-2]", root)
  assert part.ids == whole.ids[6:22]
  for index in range(16):
    np.testing.assert_array_equal(part.read(index), whole.read(6 + index))
  everything = open_source("librispeech:all", root)
  assert len(everything) == sum(tfds_corpus.SIZES["librispeech"].values())


def test_ids_differ_where_parts_overlap(root):
  source = open_source("tedlium:test[:2]+test[1:3]", root)
  first, second, again, third = source.ids
  assert again == f"{second}#2" and len({first, second, third}) == 3
  np.testing.assert_array_equal(source.read(1), source.read(2))


def test_a_split_is_gone_through_once(root, monkeypatch):
  first = open_source("librispeech:dev_clean", root)
  monkeypatch.setattr(tfds, "_write_index", lambda *_: pytest.fail("read again"))
  second = open_source("librispeech:dev_clean", root)
  assert (second.ids, second.texts) == (first.ids, first.texts)
  np.testing.assert_array_equal(second.durations, first.durations)
  np.testing.assert_array_equal(second.read(3), first.read(3))


def test_corpus_that_was_prepared_again_has_a_new_index(tmp_path):
  for letter in "AB":
    prepare(tmp_path / letter, "librispeech", {"dev_clean": [row("x", samples(), letter)]})
    assert open_source("librispeech:dev_clean", tmp_path / letter).texts == [letter]


def test_nothing_goes_over_the_network(root, monkeypatch):
  def connect(*_):
    raise AssertionError("a connection")

  monkeypatch.setattr(socket.socket, "connect", connect)
  monkeypatch.setattr(socket, "getaddrinfo", connect)
  assert len(open_source("librispeech:test_clean", root)) == 6
  with pytest.raises(UserError):
    open_source("librispeech:test_clean", root / "librispeech")


def test_source_is_pickled_without_its_audio(root, tmp_path):
  manifest = make_split(tmp_path, "dev", 4)
  for source in (
    open_source("librispeech:train_clean100", root),
    sources.open_source(str(manifest), Options()),
  ):
    read = [source.read(i) for i in range(len(source))]
    sent = pickle.dumps(source)
    assert len(sent) < sum(s.nbytes for s in read) / 4
    copy = pickle.loads(sent)
    assert (copy.name, copy.ids, copy.texts) == (source.name, source.ids, source.texts)
    for index, wanted in enumerate(read):
      np.testing.assert_array_equal(copy.read(index), wanted)
      np.testing.assert_array_equal(source.read(index), wanted)


@pytest.mark.slow
def test_worker_processes_read_the_same(root, monkeypatch):
  source = open_source("librispeech:test_other", root)
  labels = labels_lib.characters(" abc")
  planned = [plan.PlannedBatch(plan.Shape(2, 40_000, 16), ((0, 1), (2,)), ((1.0, 1.0), (1.0,)))]
  (here,) = pipeline.batches(source, planned, spelling=Spelling(labels))
  monkeypatch.setattr(decoding, "_workers", 1)
  (there,) = pipeline.batches(source, planned, spelling=Spelling(labels))
  assert there.ids == here.ids and there.broken == []
  for ours, theirs in zip(here.batch, there.batch, strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_broken_recordings_are_left_out_and_counted(tmp_path):
  rows = [
    row("good", samples()),
    row("empty", np.zeros(0, np.int64)),
    row("short", samples()[:700]),
    row("silent", np.zeros(8000, np.int64)),
    row("loud", samples().astype(np.int64) * 256),
    row("unscored", np.zeros(0, np.int64), "ignore_time_segment_in_scoring"),
    row("unknown", samples(), "<unk>"),
  ]
  prepare(tmp_path, "tedlium", {"train": rows})
  source = open_source("tedlium:train", tmp_path)
  assert source.ids == ["good"]
  assert dict(source.skipped) == {
    "empty": "empty or too short (0 samples)",
    "short": "empty or too short (700 samples)",
    "silent": "silent: every sample is 0",
    "loud": "samples of more than 16 bits",
  }


def test_samples_that_are_not_numbers(tmp_path):
  rows = [row("x", tone("a") * np.float32(np.nan)), row("y", tone("a"))]
  prepare(tmp_path, "librispeech", {"dev_clean": rows}, dtype=np.float32)
  source = open_source("librispeech:dev_clean", tmp_path)
  assert source.ids == ["y"] and source.skipped == [("x", "samples that are not numbers")]


def files_of(root: pathlib.Path) -> list[pathlib.Path]:
  return sorted(root.rglob("*array_record*"))


def test_damaged_file(tmp_path):
  prepare(tmp_path, "librispeech", {"dev_clean": [row("x", samples(2.0))]})
  sent = pickle.dumps(open_source("librispeech:dev_clean", tmp_path))
  (file,) = files_of(tmp_path)
  file.write_bytes(file.read_bytes()[:1000])
  with pytest.raises(audio.BrokenAudio, match="not readable"):
    pickle.loads(sent).read(0)
  kept = os.listdir(cache.folder())
  assert "prepare it again" in error_of("librispeech:dev_clean", tmp_path)
  assert [f for f in os.listdir(cache.folder()) if f not in kept and f[0] != "."] == []
  file.unlink()
  message = error_of("librispeech:dev_clean", tmp_path)
  assert str(file) in message and "No such file" in message


def error_of(spec: str, root: pathlib.Path) -> str:
  with pytest.raises(UserError) as error:
    open_source(spec, root)
  assert "\n" not in str(error.value)
  return str(error.value)


@pytest.mark.parametrize(
  "split",
  ["train", "", "train_clean100[", "dev_clean[:200]", "all[:3]", "dev_clean[3]", "dev_clean[:0]"]
  + [
    "dev_clean[90%:10%]",
    "dev_clean[:200%]",
    "dev_clean+",
    "dev_clean[a:b]",
  ],
)
def test_wrong_split(root, split):
  message = error_of(f"librispeech:{split}", root)
  assert message.startswith(f"librispeech:{split}: ")
  assert "train_clean100 (24 examples), " in message and "dev_clean (6 examples)" in message


@pytest.mark.parametrize(
  ("corpus", "name"), [("librispeech", "librispeech/default"), ("tedlium", "tedlium/release2")]
)
def test_corpus_that_is_not_prepared(tmp_path, corpus, name):
  message = error_of(f"{corpus}:train", tmp_path / "absent")
  assert f"{corpus} is not prepared in {tmp_path / 'absent'} (config.data.root)" in message
  command = re.search(r'python -c "(.*)"', message).group(1)
  # The command is a call of TFDS as it is.
  compile(command, "command", "exec")
  assert f"tfds.builder('{name}', data_dir='{tmp_path / 'absent'}'," in command
  assert command.endswith("file_format='array_record').download_and_prepare()")


def test_corpus_in_files_without_random_access(tmp_path):
  prepare(tmp_path, "librispeech", {"dev_clean": [row("x", samples())]}, file_format="tfrecord")
  message = error_of("librispeech:dev_clean", tmp_path)
  assert "tfrecord, which has no random access: prepare it as array_record" in message


def test_without_tensorflow(root, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorflow", None)
  assert "pip install 'jaxkd[tfds]'" in error_of("librispeech:dev_clean", root)


def test_tensorflow_sees_no_accelerator(root, monkeypatch):
  import tensorflow

  hidden = []
  monkeypatch.setattr(
    tensorflow.config, "set_visible_devices", lambda devices, kind: hidden.append((devices, kind))
  )
  open_source("librispeech:dev_clean", root)
  assert ([], "GPU") in hidden and ([], "TPU") in hidden
  monkeypatch.undo()
  open_source("librispeech:dev_clean", root)
  assert tensorflow.config.get_visible_devices("GPU") == []


@pytest.mark.slow
def test_tensorflow_is_imported_only_for_these_corpora():
  code = (
    "import sys, jaxkd.training.assembly; "
    "assert not {'tensorflow', 'tensorflow_datasets'} & set(sys.modules), 'imported'"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_memory_stays_flat(tmp_path, monkeypatch):
  rng = np.random.default_rng(0)
  rows = [row(str(i), rng.integers(-999, 999, 128_000, np.int16)) for i in range(32)]
  prepare(tmp_path, "librispeech", {"train_clean100": rows}, files=2)
  monkeypatch.setattr(sources, "_KEEP_SECONDS", 1.0)
  everything = sum(r["speech"].nbytes for r in rows)
  del rows
  tracemalloc.start()
  try:
    source = open_source("librispeech:train_clean100", tmp_path)
    assert tracemalloc.get_traced_memory()[1] < everything / 2
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(2):
      for index in range(len(source)):
        assert len(source.read(index)) == 128_000
    after, peak = tracemalloc.get_traced_memory()
    assert after - before < 100_000 and peak < everything / 2
  finally:
    tracemalloc.stop()
  first = resident_bytes()  # what C++ holds is in no Python count
  for _ in range(4):
    for index in range(len(source)):
      source.read(index)
  assert resident_bytes() - first < everything


def resident_bytes() -> int:
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  return pages * resource.getpagesize()


@pytest.mark.parametrize(
  ("limits", "wanted"),
  [((100, 1000), (104, 1000)), ((100, 102), (102, 102)), ((100, -1), (104, -1)), ((-1, -1), None)],
)
def test_limit_of_open_files_has_room_for_all(monkeypatch, limits, wanted):
  set_to = []
  monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
  monkeypatch.setattr(resource, "setrlimit", lambda _, new: set_to.append(new))
  tfds._allow_open_files(4)
  assert set_to == ([] if wanted is None else [wanted])


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("it 's what we don 't know", "it's what we don't know"),
    ("i 'm sure they 'd say we 'll or you 've", "i'm sure they'd say we'll or you've"),
    ("the students ' books at four o 'clock", "the students' books at four o'clock"),
    ("give 'em more 'cause i said so", "give 'em more 'cause i said so"),
    ("so <unk> went {NOISE} home [laughter] {UH}", "so went home"),
    ("the(2) <sil> a(3) thing(2) 's name", "the a thing's name"),
    ("that <unk> 's idea", "that idea"),
    ("(applause) thanks", "thanks"),
    ("<unk> {SMACK}", ""),
    ("ignore_time_segment_in_scoring", ""),
    ("", ""),
  ],
)
def test_transcripts_of_tedlium(text, words):
  assert tfds.tedlium_words(text) == words


def test_index_has_the_transcript_as_it_is(tmp_path):
  prepare(tmp_path, "tedlium", {"test": [row("x", samples(), "it 's <unk>")]})
  source = open_source("tedlium:test", tmp_path)
  assert source.texts == ["it's"]
  (index,) = cache.folder().glob("tfds-tedlium-*/*.jsonl")
  entry = {"id": "x", "text": "it 's <unk>", "duration": 0.2}
  assert [json.loads(line) for line in index.read_text().splitlines()] == [entry]
