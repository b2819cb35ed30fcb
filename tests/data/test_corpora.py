"""Corpora that are made once: what is in them, and what happens where it cannot be made."""

import collections
import errno
import gzip
import json
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from jaxkd.data import cache, corpora, demo, digits, espeak, pauses, prompts, sentences, sources
from jaxkd.data.corpora import Options
from jaxkd.errors import UserError


@pytest.fixture(autouse=True)
def cached(tmp_path, monkeypatch):
  monkeypatch.setenv("JAXKD_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


def rows(corpus: str, split: str, options: Options) -> list[dict]:
  path = corpora.manifest(corpus, split, options)
  return [json.loads(line) for line in path.read_text().splitlines()]


# --- the cache


def test_cache_folder(monkeypatch, tmp_path):
  assert cache.folder() == tmp_path / "cache"
  monkeypatch.delenv("JAXKD_CACHE")
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  assert cache.folder() == tmp_path / "jaxkd"


def test_made_once():
  calls = []

  def make(folder):
    calls.append(folder)
    (folder / "x").write_text("whole")

  assert (cache.made("c", make) / "x").read_text() == "whole"
  assert cache.made("c", make).name == "c" and len(calls) == 1


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt()])
def test_failed_making_leaves_nothing(cached, error):
  def make(folder):
    (folder / "x").write_text("half")
    raise error

  with pytest.raises(type(error)):
    cache.made("c", make)
  assert [p.name for p in cached.iterdir()] == [".c.lock"]
  assert (cache.made("c", lambda folder: (folder / "y").touch()) / "y").exists()


def test_left_over_of_a_killed_process_is_not_taken_for_the_corpus(cached):
  (cached / ".c.77.unfinished").mkdir(parents=True)
  (cached / ".c.77.unfinished" / "old").touch()
  found = cache.made("c", lambda folder: (folder / "new").touch())
  assert [p.name for p in found.iterdir()] == ["new"]


@pytest.mark.parametrize(
  ("number", "words"),
  [
    (errno.ENOSPC, "no space left for .*JAXKD_CACHE"),
    (errno.EDQUOT, "no space left"),
    (errno.EACCES, "cannot be written"),
  ],
)
def test_no_space_is_one_line(cached, number, words):
  def make(folder):
    raise OSError(number, "as the kernel says")

  with pytest.raises(UserError, match=words):
    cache.made("c", make)
  assert [p.name for p in cached.iterdir()] == [".c.lock"]


def test_cache_that_is_a_file(monkeypatch, tmp_path):
  (tmp_path / "file").touch()
  monkeypatch.setenv("JAXKD_CACHE", str(tmp_path / "file"))
  with pytest.raises(UserError, match="JAXKD_CACHE"):
    cache.made("c", lambda folder: None)


# --- digits

SPEAKERS = ("anna", "ben", "cleo", "dan")


def pitch(digit: int, speaker: str, index: int) -> float:
  """Of a recording: no two have the same."""
  return 200 + 15 * digit + 160 * SPEAKERS.index(speaker) + 0.25 * index


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
  """Tones in place of the Free Spoken Digit Dataset: four speakers, three digits."""
  folder = tmp_path_factory.mktemp("fsdd")
  seconds = np.arange(800) / 8000
  for digit in (0, 4, 9):
    for speaker in SPEAKERS:
      for index in range(50):
        tone = 0.5 * np.sin(2 * np.pi * pitch(digit, speaker, index) * seconds)
        soundfile.write(str(folder / f"{digit}_{speaker}_{index}.wav"), tone, 8000)
  return folder


def used(root, split_by: str) -> dict[str, collections.Counter]:
  """Split → how often each recording is in it."""
  found = {}
  wanted, read = None, soundfile.read

  def spy(path, **options):
    wanted[path.rsplit("/", 1)[-1]] += 1
    return read(path, **options)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(digits.soundfile, "read", spy)
    for split, strings in digits.splits(str(root), split_by).items():
      wanted = found[split] = collections.Counter()
      collections.deque(strings, maxlen=0)
  return found


@pytest.mark.parametrize("split_by", ["index", "speaker"])
def test_no_recording_is_in_two_splits(recordings, split_by):
  found = used(recordings, split_by)
  assert set(found) == set(corpora.SPLITS) and all(found.values())
  assert sum(map(len, found.values())) == len(set().union(*found.values()))
  for split, counts in found.items():
    assert set(counts.values()) == {3 if split in ("train", "unlabelled") else 1}


def test_split_by_index_has_every_recording_and_speaker(recordings):
  found = used(recordings, "index")
  assert sum(map(len, found.values())) == len(list(recordings.glob("*.wav")))
  for names in found.values():
    assert {name.split("_")[1] for name in names} == set(SPEAKERS)


def test_split_by_speaker_tests_on_a_speaker_never_heard(recordings):
  heard = {k: {n.split("_")[1] for n in v} for k, v in used(recordings, "speaker").items()}
  assert heard["train"] == heard["unlabelled"] == {"anna", "ben"}
  assert (heard["dev"], heard["test"]) == ({"cleo"}, {"dan"})


def test_digits_rows(recordings):
  options = Options(root=str(recordings))
  for split in corpora.SPLITS:
    found = rows("digits", split, options)
    assert all(("text" in row) == (split != "unlabelled") for row in found)
    for row in found:
      assert 0.1 < row["duration"] < 6 * 0.1 + 7 * 0.35
      words = row.get("text", "zero four").split()
      assert 1 <= len(words) <= 6 and set(words) <= {"zero", "four", "nine"}
  source = sources.open_source("digits:test", options)
  assert len(source) == len(rows("digits", "test", options)) and source.skipped == []
  assert sum(len(t.split()) for t in source.texts) == 10 * 3 * len(SPEAKERS)
  assert len(source.read(0)) == pytest.approx(source.durations[0] * 16_000, abs=2)


def test_digits_are_the_same_when_made_again(recordings, cached, monkeypatch):
  options = Options(root=str(recordings))
  first = corpora.manifest("digits", "train", options).parent
  monkeypatch.setenv("JAXKD_CACHE", str(cached / "other"))
  second = corpora.manifest("digits", "train", options).parent
  names = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
  assert len(names) > 100
  assert names == sorted(p.relative_to(second) for p in second.rglob("*") if p.is_file())
  for name in names:
    assert (first / name).read_bytes() == (second / name).read_bytes()


def test_second_opening_makes_nothing(recordings, monkeypatch):
  options = Options(root=str(recordings))
  path = corpora.manifest("digits", "dev", options)
  monkeypatch.setattr(corpora, "_write", lambda *args: pytest.fail("made again"))
  assert corpora.manifest("digits", "dev", options) == path
  other = Options(root=str(recordings), split_by="speaker")
  with pytest.raises(pytest.fail.Exception):
    corpora.manifest("digits", "dev", other)


def test_recordings_that_have_changed_make_another_corpus(tmp_path):
  prompt_packages(tmp_path)
  path = tmp_path / "asterisk" / "sounds" / "en" / "1_ann_0.wav"
  keys = []
  for value in (0.1, 0.2):  # files of one size
    soundfile.write(str(path), value * np.ones(800), 8000)
    keys.append((digits.key(str(path.parent), "index"), prompts.key(str(tmp_path))))
  assert len({key for key, _ in keys}) == len({key for _, key in keys}) == 2


def test_digits_without_recordings(tmp_path):
  (tmp_path / "empty").mkdir()
  for root in (tmp_path / "absent", tmp_path / "empty"):
    with pytest.raises(UserError, match="config.data.root is .*free-spoken-digit-dataset") as error:
      sources.open_source("digits:test", Options(root=str(root)))
    assert "\n" not in str(error.value)


def test_split_by_speaker_needs_three(tmp_path):
  for speaker in ("anna", "ben"):
    soundfile.write(str(tmp_path / f"1_{speaker}_0.wav"), np.ones(800), 8000)
  with pytest.raises(UserError, match="split_by.*anna, ben"):
    corpora.manifest("digits", "test", Options(root=str(tmp_path), split_by="speaker"))


def test_unknown_split_lists_the_splits():
  with pytest.raises(UserError, match="demo:tset.*train, unlabelled, dev, test"):
    corpora.manifest("demo", "tset", Options())


# --- prompts


@pytest.mark.parametrize(
  ("text", "words"),
  [
    (" Please try again.", "please try again"),
    ("Press 1, then 2!", "press one then two"),
    ("You're welcome", "you're welcome"),
    ("'quoted' words", "quoted words"),
    ("<second> [this is a beep] half", "second half"),
    ("(silence)", None),
    ("[this is a simple tone]", None),
    ("", None),
    ("extension 42", None),  # forty-two, or four two?
    ("café", None),
    ("well-known", "well known"),
    ("a - b", "a b"),
    ("  UPPER   case  ", "upper case"),
  ],
)
def test_spoken(text, words):
  assert prompts.spoken(text) == words


def prompt_packages(root) -> None:
  names = [f"say-{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(60)]
  sounds = root / "asterisk" / "sounds" / "en"
  for name in [*names, "deep/say-it", "tone"]:
    (sounds / name).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(str(sounds / f"{name}.wav"), 0.1 * np.ones(1600), 8000)
  texts = root / "doc" / "asterisk-core-sounds-en" / "core-sounds-en.txt.gz"
  texts.parent.mkdir(parents=True)
  lines = [
    "; a comment: not a prompt",
    "",
    "no colon here",
    "tone: [a tone]",
    "absent: not there",
    "deep/say-it: It is 5 o'clock.",
    *(f"{n}: Say {n[4:]}." for n in names),
  ]
  texts.write_bytes(gzip.compress("\n".join(lines).encode()))


def test_prompts(tmp_path):
  prompt_packages(tmp_path / "usr")
  options = Options(root=str(tmp_path / "usr"))
  found = {split: rows("prompts", split, options) for split in corpora.SPLITS}
  names = [row["prompt"] for split in found.values() for row in split]
  assert len(names) == len(set(names)) == 61
  assert all(found.values())
  for split in ("train", "dev", "test"):
    for row in found[split]:
      assert row["text"] in (f"say {row['prompt'][4:]}", "it is five o'clock")
  assert all("text" not in row for row in found["unlabelled"])


def test_prompts_that_are_not_installed_say_what_to_install(tmp_path):
  with pytest.raises(UserError, match="apt-get install asterisk-core-sounds-en-wav") as error:
    sources.open_source("prompts:test", Options(root=str(tmp_path)))
  assert "\n" not in str(error.value)


# --- demo


def shrink(monkeypatch, corpus, sizes):
  """`corpus` with so many utterances in each split."""
  for split, size in sizes.items():
    monkeypatch.setitem(corpus.sizes, split, size)


@pytest.fixture
def small_demo(monkeypatch):
  pytest.importorskip("espeakng_loader")
  shrink(monkeypatch, demo.CORPUS, {"train": 12, "unlabelled": 12, "dev": 5, "test": 5})


def test_demo(small_demo):
  found = {split: rows("demo", split, Options()) for split in corpora.SPLITS}
  assert {k: len(v) for k, v in found.items()} == demo.CORPUS.sizes
  variants = {k: {re.search(r"\+\w+", row["voice"])[0] for row in v} for k, v in found.items()}
  assert not variants["train"] & (variants["dev"] | variants["test"])
  assert not variants["dev"] & variants["test"]
  for row in found["train"]:
    assert set(row["text"].split()) <= set(demo.DIGITS) and 2 <= len(row["text"].split()) <= 7
  source = sources.open_source("demo:dev", Options())
  assert all(0.5 < d < 8 for d in source.durations)
  samples = [source.read(i) for i in range(len(source))]
  assert all(np.abs(s).max() > 0.03 for s in samples)


def test_demo_is_the_same_in_every_process(small_demo):
  code = (
    "import hashlib; from jaxkd.data import demo, espeak; "
    "rows = demo._utterances(espeak.Espeak(), espeak.HEARD, 12, 1); "
    "print(hashlib.sha256(b''.join(r.samples.tobytes() for r in rows)).hexdigest())"
  )
  found = set()
  for _ in range(2):
    found.add(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    time.sleep(1.1)  # eSpeak NG's own seed is the second
  assert len(found) == 1


def test_sentences(monkeypatch):
  pytest.importorskip("espeakng_loader")
  sizes = {"train": 6, "unlabelled": 2, "dev": 2, "test": 2}
  shrink(monkeypatch, sentences.CORPUS, sizes)
  found = {split: rows("sentences", split, Options()) for split in corpora.SPLITS}
  assert {k: len(v) for k, v in found.items()} == sizes
  assert all(5 <= len(row["text"].split()) <= 15 for row in found["train"] + found["test"])
  source = sources.open_source("sentences:train", Options())
  samples = [source.read(i) for i in range(len(source))]
  assert all(2.5 < len(s) / 16_000 < 14 and 0.05 < np.abs(s).max() <= 1 for s in samples)
  for s in samples:  # pauses are quieter than speech, and noisy
    loud = np.sort([np.sqrt((p**2).mean()) for p in np.array_split(s, len(s) // 800)])
    assert 8 < 20 * np.log10(loud[-1] / loud[len(loud) // 10]) < 45 and loud[0] > 0


def test_pauses(monkeypatch):
  pytest.importorskip("espeakng_loader")
  sizes = {"train": 6, "unlabelled": 2, "dev": 2, "test": 2}
  shrink(monkeypatch, pauses.CORPUS, sizes)
  found = {split: rows("pauses", split, Options()) for split in corpora.SPLITS}
  assert {k: len(v) for k, v in found.items()} == sizes
  for row in found["train"]:
    assert set(row["text"].split()) <= set(demo.DIGITS) and 2 <= len(row["text"].split()) <= 6
  source = sources.open_source("pauses:train", Options())
  silent = []
  for i in range(len(source)):
    samples = source.read(i)
    loud = [np.sqrt((p**2).mean()) for p in np.array_split(samples, len(samples) // 320)]
    silent.append((np.array(loud) < 0.1 * max(loud)).mean())
  assert np.median(silent) > 0.6  # of a quiet voice the noise is loud


def test_demo_voices_of_dev_and_test_are_not_trained_on():
  everything = [*espeak.HEARD, *(v for split in espeak.UNHEARD.values() for v in split)]
  assert len(everything) == len(set(everything))
  assert set(espeak.UNHEARD) == {"dev", "test"}


def test_demo_without_espeak(monkeypatch):
  monkeypatch.setitem(sys.modules, "espeakng_loader", None)
  with pytest.raises(UserError, match=r"pip install 'jaxkd\[demo\]'"):
    corpora.manifest("demo", "train", Options())
