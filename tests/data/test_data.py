"""Audio files, manifests and folders, whole and broken."""

import json
import pickle

import numpy as np
import pytest
import soundfile

from corpus import tone, write_manifest
from jaxkd.data import audio, sources
from jaxkd.data.corpora import Options
from jaxkd.errors import UserError


def open_source(path) -> sources.Source:
  return sources.open_source(str(path), Options())


def write(path, samples=None, rate_hz: int = 16_000, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  soundfile.write(str(path), tone("a") if samples is None else samples, rate_hz, **options)
  return path


def cosine(a, b) -> float:
  a, b = a.astype(float), b.astype(float)
  return float(a @ b / np.sqrt((a @ a) * (b @ b)))


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg", "mp3"])
def test_every_format_reads_as_the_same_sound(tmp_path, kind):
  wanted = tone("ab", seconds=0.5)
  path = write(tmp_path / f"x.{kind}", wanted)
  found = audio.read(path)
  assert found.dtype == np.float32 and abs(len(found) - 16_000) <= 1600
  assert audio.duration(path) == pytest.approx(len(found) / 16_000, abs=0.01)
  size = min(len(found), 16_000)
  if kind in ("wav", "flac"):
    np.testing.assert_allclose(found, wanted, atol=2**-15)
  elif kind == "ogg":
    assert cosine(found[:size], wanted[:size]) > 0.98
  else:  # mp3 may be shifted by the coder's delay
    assert 0.3 < np.abs(found).max() < 0.8


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 44_100, 96_000])
def test_other_rates_are_resampled(tmp_path, rate_hz):
  found = audio.read(write(tmp_path / "x.wav", tone("b", rate_hz), rate_hz))
  wanted = tone("b")
  assert abs(len(found) - len(wanted)) <= 1
  size = min(len(found), len(wanted))
  assert cosine(found[100 : size - 100], wanted[100 : size - 100]) > 0.999


def test_channels_are_averaged(tmp_path):
  both = np.stack([tone("a"), tone("b")], axis=1)
  found = audio.read(write(tmp_path / "x.wav", both))
  np.testing.assert_allclose(found, both.mean(1), atol=2**-15)


@pytest.mark.parametrize("kind", ["wav", "flac", "ogg"])
def test_segment_is_the_slice(tmp_path, kind):
  path = write(tmp_path / f"x.{kind}", tone("abc"))
  whole = audio.read(path)
  part = audio.read(path, offset_seconds=0.2, duration_seconds=0.2)
  np.testing.assert_allclose(part, whole[3200:6400], atol=2**-15)
  rest = audio.read(path, offset_seconds=0.4)
  np.testing.assert_allclose(rest, whole[6400:], atol=2**-15)


BROKEN = {
  "one sample": (lambda p: write(p, np.ones(1)), "too short"),
  "no sample": (lambda p: write(p, np.zeros(0)), "too short"),
  "empty file": (lambda p: p.write_bytes(b""), "not readable as audio"),
  "text": (lambda p: p.write_text("RIFF is what I say"), "not readable as audio"),
  "cut header": (lambda p: p.write_bytes(write(p).read_bytes()[:20]), "not readable as audio"),
  "silent": (lambda p: write(p, np.zeros(8000)), "silent"),
  "not numbers": (lambda p: write(p, tone("a") * np.nan, subtype="FLOAT"), "not numbers"),
  "absent": (lambda p: None, "no such file"),
  "folder": (lambda p: p.mkdir(), "not readable as audio"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_audio_says_why(tmp_path, case):
  make, words = BROKEN[case]
  path = tmp_path / "x.wav"
  make(path)
  with pytest.raises(audio.BrokenAudio, match=words) as error:
    audio.read(path)
  assert "\n" not in str(error.value)


def test_file_that_ends_too_early(tmp_path):
  path = write(tmp_path / "x.wav", tone("a", seconds=1.0))
  with pytest.raises(audio.BrokenAudio, match=r"holds 1\.00 s of the 3\.00 s"):
    audio.read(path, duration_seconds=3.0)
  with pytest.raises(audio.BrokenAudio, match=r"holds 0\.00 s"):
    audio.read(path, offset_seconds=5.0, duration_seconds=1.0)
  # Durations in manifests are rounded.
  assert len(audio.read(path, duration_seconds=1.04)) == 16_000


def rows_of(tmp_path, *changes: dict) -> list[dict]:
  write(tmp_path / "x.wav")
  return [{"audio_filepath": "x.wav", "duration": 0.2, "text": "a"} | c for c in changes]


def test_manifest(tmp_path, monkeypatch):
  write(tmp_path / "deep" / "y.flac", tone("ab"))
  rows = rows_of(tmp_path, {}, {"audio_filepath": "deep/y.flac", "duration": None, "text": None})
  path = write_manifest(tmp_path / "m.jsonl", rows)
  path.write_text("\n\n" + path.read_text().replace("\n", "\n \n"))
  monkeypatch.chdir("/")
  source = open_source(path)
  assert source.ids == ["x.wav", "deep/y.flac"] and len(source) == 2
  assert source.texts == ["a", None] and source.skipped == []
  np.testing.assert_allclose(source.durations, [0.2, 0.4])
  assert len(source.read(1)) == 6400


@pytest.mark.parametrize("prefix", ["\ufeff", ""])
def test_manifest_from_other_systems(tmp_path, prefix):
  (row,) = rows_of(tmp_path, {"text": "a\u2028b\x85"})
  line = json.dumps(row, ensure_ascii=False)
  (tmp_path / "m.jsonl").write_bytes((prefix + line + "\r\n" + line + "\r\n").encode())
  assert open_source(tmp_path / "m.jsonl").texts == [row["text"]] * 2


@pytest.mark.parametrize("name", ["~x.wav", "ü ä.wav"])
def test_odd_file_names(tmp_path, name):
  write(tmp_path / name)
  assert open_source(write_manifest(tmp_path / "m.jsonl", [{"audio_filepath": name}])).ids == [name]


def test_absolute_path_in_manifest(tmp_path):
  path = write(tmp_path / "a" / "x.wav")
  (tmp_path / "b").mkdir()
  manifest = write_manifest(tmp_path / "b" / "m.jsonl", [{"audio_filepath": str(path)}])
  assert len(open_source(manifest)) == 1


def test_same_file_twice_has_two_ids(tmp_path):
  rows = rows_of(tmp_path, {"offset": 0.0, "duration": 0.1}, {"offset": 0.1, "duration": 0.1}, {})
  source = open_source(write_manifest(tmp_path / "m.jsonl", rows))
  assert source.ids == ["x.wav", "x.wav#2", "x.wav#3"]
  whole = source.read(2)
  np.testing.assert_array_equal(source.read(1), whole[1600:])


@pytest.mark.parametrize(
  ("line", "words"),
  [
    ('{"audio_filepath": "x.wav"', ["m.jsonl:2", "not JSON"]),
    ('["x.wav"]', ["m.jsonl:2", "audio_filepath"]),
    ('{"text": "a"}', ["m.jsonl:2", "audio_filepath"]),
    ('{"audio_filepath": 3}', ["m.jsonl:2", "audio_filepath"]),
    ('{"audio_filepath": "x.wav", "duration": "0.2"}', ["m.jsonl:2", '"duration"', "'0.2'"]),
    ('{"audio_filepath": "x.wav", "duration": -1}', ["m.jsonl:2", '"duration"', "-1"]),
    ('{"audio_filepath": "x.wav", "duration": NaN}', ["m.jsonl:2", '"duration"', "nan"]),
    ('{"audio_filepath": "x.wav", "duration": true}', ["m.jsonl:2", '"duration"', "True"]),
    ('{"audio_filepath": "x.wav", "offset": [1]}', ["m.jsonl:2", '"offset"', "[1]"]),
    ('{"audio_filepath": "x.wav", "text": 7}', ["m.jsonl:2", '"text"', "7"]),
    ('{"audio_filepath": "x.wav", "text": ["a"]}', ["m.jsonl:2", '"text"']),
  ],
)
def test_malformed_row_is_named_by_file_and_line(tmp_path, line, words):
  path = write_manifest(tmp_path / "m.jsonl", rows_of(tmp_path, {}))
  path.write_text(path.read_text() + line + "\n")
  with pytest.raises(UserError) as error:
    open_source(path)
  assert "\n" not in str(error.value)
  for word in words:
    assert word in str(error.value)


def test_files_that_are_not_there_are_left_out_and_counted(tmp_path):
  (tmp_path / "text.wav").write_text("not audio")
  rows = rows_of(
    tmp_path,
    {"audio_filepath": "gone.wav"},
    {},
    {"audio_filepath": "text.wav", "duration": None},
    {"duration": 0.01},
  )
  source = open_source(write_manifest(tmp_path / "m.jsonl", rows))
  assert source.ids == ["x.wav"]
  reasons = dict(source.skipped)
  assert list(reasons) == ["gone.wav", "text.wav", "x.wav#2"]
  assert reasons["gone.wav"] == "no such file"
  assert "not readable" in reasons["text.wav"] and "too short" in reasons["x.wav#2"]


def test_all_broken_is_an_error_with_the_first_reason(tmp_path):
  write(tmp_path / "quiet.wav", np.zeros(8000))
  quiet = {"audio_filepath": "quiet.wav", "duration": 0.5}
  path = write_manifest(tmp_path / "m.jsonl", [quiet, quiet])
  with pytest.raises(UserError, match="no utterance can be decoded.*quiet.wav: silent"):
    open_source(path)
  path = write_manifest(tmp_path / "m.jsonl", [{"audio_filepath": "gone.wav"}])
  with pytest.raises(UserError, match="no usable utterance.*gone.wav: no such file"):
    open_source(path)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_empty_manifest(tmp_path, content):
  (tmp_path / "m.jsonl").write_text(content)
  with pytest.raises(UserError, match="m.jsonl: no usable utterance"):
    open_source(tmp_path / "m.jsonl")


def test_manifest_that_is_not_utf_8(tmp_path):
  (tmp_path / "m.jsonl").write_bytes(b'{"audio_filepath": "\xff.wav"}\n')
  with pytest.raises(UserError, match=r"m\.jsonl cannot be read as a manifest.*utf-8") as error:
    open_source(tmp_path / "m.jsonl")
  assert "\n" not in str(error.value)


def test_recording_is_a_source_of_one_utterance(tmp_path):
  source = open_source(write(tmp_path / "x.wav", tone("ab")))
  assert (source.ids, source.texts, source.durations.tolist()) == (["x.wav"], [None], [0.4])
  (tmp_path / "x.m4a").write_bytes(b"\0\0\0 ftypM4A ")
  with pytest.raises(UserError, match=r"x.m4a: .m4a is not read: .*ffmpeg"):
    open_source(tmp_path / "x.m4a")


def test_folder_is_searched_to_its_bottom(tmp_path):
  for name in ("b.WAV", "a/deep/x.flac", "a/y.Ogg"):
    write(tmp_path / name, format=name.split(".")[1].upper())
  (tmp_path / "notes.txt").write_text("a")
  (tmp_path / "broken.wav").write_text("a")
  source = open_source(tmp_path)
  assert source.ids == ["a/deep/x.flac", "a/y.Ogg", "b.WAV"]
  assert source.texts == [None] * 3
  assert [name for name, _ in source.skipped] == ["broken.wav"]


def test_folder_without_audio(tmp_path):
  (tmp_path / "notes.txt").write_text("a")
  with pytest.raises(UserError, match=r"no audio in this folder \(\.wav, "):
    open_source(tmp_path)


def test_unknown_path_says_what_data_may_be(tmp_path):
  with pytest.raises(UserError, match="no such file or folder.*manifest.*folder.*demo:SPLIT"):
    open_source(tmp_path / "absent.jsonl")


def test_decoded_audio_of_small_sources_is_kept(tmp_path):
  source = open_source(write_manifest(tmp_path / "m.jsonl", rows_of(tmp_path, {})))
  first = source.read(0)
  in_a_worker = pickle.loads(pickle.dumps(source))
  in_a_worker.read(0)
  (tmp_path / "x.wav").unlink()
  np.testing.assert_array_equal(source.read(0), first)
  with pytest.raises(audio.BrokenAudio):  # workers, which never let go of a source, keep nothing
    in_a_worker.read(0)


def test_duration_in_milliseconds_does_not_size_the_batches(tmp_path):
  for name in "ab":
    write(tmp_path / f"{name}.wav")
  rows = [
    {"audio_filepath": "a.wav", "duration": 200},
    {"audio_filepath": "b.wav", "duration": 0.2},
  ]
  source = open_source(write_manifest(tmp_path / "m.jsonl", rows))
  assert source.ids == ["b.wav"]
  assert source.skipped == [("a.wav", "is shorter than the 200 s that the manifest says")]


@pytest.mark.parametrize(
  ("spec", "root", "words"),
  [
    ("demo:tset", "", ["config.data.dev is 'demo:tset'", "did you mean 'test'", "unlabelled"]),
    ("digits:nosplit", "there", ["config.data.dev is 'digits:nosplit'", "digits: and one of"]),
    ("digits:test", "", ["config.data.root is ''", "free-spoken-digit-dataset"]),
    ("prompts:", "", ["config.data.dev is 'prompts:'", "train, unlabelled, dev, test"]),
    ("tedlium:", "", ["config.data.dev is 'tedlium:'", "a split"]),
  ],
)
def test_names_that_no_corpus_has_are_known_before_anything_is_opened(spec, root, words):
  with pytest.raises(UserError) as error:
    sources.check_spec("data.dev", spec, Options(root=root))
  line = str(error.value)
  assert "\n" not in line and all(word in line for word in words), line


@pytest.mark.parametrize(
  "spec", ["", "a.jsonl", "demo", "demo:train", "tedlium:train[:10%]", "x:y", "digits:dev"]
)
def test_other_names_may_be_right(spec):
  sources.check_spec("data.dev", spec, Options(root="recordings"))
