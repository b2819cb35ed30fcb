"""Recordings as people have them: levels, channels, headers, names and lengths of all kinds."""

import logging
import os
import pathlib
import struct

import numpy as np
import pytest
import soundfile

from corpus import tone, write_manifest
from jaxkd.data import audio, encoded, manifest, sources
from jaxkd.data.corpora import Options
from jaxkd.data.sources import Limits
from jaxkd.errors import UserError


def open_source(path, limits=sources.NO_LIMITS) -> sources.Source:
  return sources.open_source(str(path), Options(), limits)


def write(path: pathlib.Path, samples=None, rate_hz=16_000, **options) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  soundfile.write(str(path), tone("a") if samples is None else samples, rate_hz, **options)
  return path


@pytest.mark.parametrize(
  ("gain", "subtype"),
  [(4.0, "FLOAT"), (32768.0, "FLOAT"), (1e-6, "FLOAT"), (1e-3, "PCM_24"), (1e-4, "DOUBLE")],
)
def test_samples_are_those_of_the_file(tmp_path, gain, subtype):
  """No level is clipped or rounded to 16 bits: models that normalise hear every one alike."""
  path = write(tmp_path / "x.wav", tone("ab").astype(np.float64) * gain, subtype=subtype)
  wanted = soundfile.read(str(path), dtype="float64")[0]
  found = audio.read(path)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=0)


def test_every_16_bit_value_is_read_exactly(tmp_path):
  values = np.arange(-32768, 32768, dtype=np.int16)
  soundfile.write(str(tmp_path / "x.wav"), values, 16_000)
  np.testing.assert_array_equal(audio.read(tmp_path / "x.wav") * 32768, values)


@pytest.mark.parametrize("rest", [0.0, 0.01])
def test_channels_that_cancel_out_are_not_averaged(tmp_path, rest):
  sound, noise = tone("ab"), np.random.default_rng(0).uniform(-1, 1, 6400).astype(np.float32)
  left, right = sound, -0.9 * sound + rest * noise if rest else -sound
  path = write(tmp_path / "x.wav", np.stack([left, right], 1), subtype="FLOAT")
  np.testing.assert_array_equal(audio.read(path), left)


@pytest.mark.parametrize("channels", [2, 8])
def test_one_speaking_channel_of_many_is_heard(tmp_path, channels):
  samples = np.zeros((3200, channels), np.float32)
  samples[:, 1] = tone("a")
  path = write(tmp_path / "x.wav", samples, subtype="FLOAT")
  np.testing.assert_allclose(audio.read(path), tone("a") / channels, rtol=1e-5, atol=1e-8)


def with_total(path: pathlib.Path, total: int) -> pathlib.Path:
  """A FLAC file whose header says another number of samples (36 bits; 0 is unknown)."""
  data = bytearray(path.read_bytes())
  # "fLaC", a block header of 4 bytes, then STREAMINFO: the number ends its 18th byte.
  (word,) = struct.unpack_from(">Q", data, 18)
  struct.pack_into(">Q", data, 18, word >> 36 << 36 | total)
  path.write_bytes(data)
  return path


@pytest.mark.parametrize("total", [0, 2**36 - 1, 10**9])
def test_flac_of_unknown_or_absurd_length(tmp_path, total):
  noise = np.random.default_rng(0).uniform(-0.5, 0.5, 48_000)
  path = write(tmp_path / "x.flac", noise)
  wanted = audio.read(path)
  with_total(path, total)
  assert audio.duration(path) == 3.0
  np.testing.assert_array_equal(audio.read(path), wanted)
  np.testing.assert_array_equal(audio.read(path, 1.0, 0.5), wanted[16_000:24_000])
  np.testing.assert_array_equal(audio.read(path, 2.5), wanted[40_000:])
  source = open_source(tmp_path)
  assert source.durations.tolist() == [3.0] and len(source.read(0)) == 48_000


def test_mp3_a_little_shorter_than_its_manifest(tmp_path):
  path = write(tmp_path / "x.mp3", tone("abc", seconds=0.5))
  seconds = audio.duration(path)
  assert len(audio.read(path, 0.0, seconds + 0.25)) == round(seconds * 16_000)
  with pytest.raises(audio.BrokenAudio, match="expected"):
    audio.read(path, 0.0, seconds + 0.6)


def test_opus(tmp_path):
  path = write(tmp_path / "x.opus", tone("ab", seconds=0.5), format="OGG", subtype="OPUS")
  assert audio.duration(path) == pytest.approx(1.0, abs=0.02)
  assert open_source(tmp_path).ids == ["x.opus"]


def test_folders_behind_links_are_read_once(tmp_path, caplog):
  write(tmp_path / "disk" / "deep" / "b.wav")
  write(tmp_path / "here" / "a.wav")
  for link, to in (("one", "disk"), ("two", "disk"), ("loop", "here"), ("gone", "nowhere")):
    os.symlink(tmp_path / to, tmp_path / "here" / link)
  assert open_source(tmp_path / "here").ids == ["a.wav", "one/deep/b.wav"]


def test_recordings_that_are_not_read_are_counted_by_kind(tmp_path, caplog):
  write(tmp_path / "a.wav")
  for name in ("b.m4a", "c.M4A", "d.sph", "notes.txt"):
    (tmp_path / name).write_bytes(b"x")
  assert open_source(tmp_path).ids == ["a.wav"]
  assert "not read: 2 .m4a, 1 .sph: make FLAC of these, with ffmpeg -i x.m4a x.flac" in caplog.text
  (tmp_path / "a.wav").unlink()
  with pytest.raises(UserError, match=r"no audio in this folder.*; 2 .m4a, 1 .sph there.*ffmpeg"):
    open_source(tmp_path)


def test_names_of_all_kinds(tmp_path):
  """What results name can be written; what a name stands for is read."""
  folder = os.fsencode(tmp_path / "x")
  write(tmp_path / "x" / "part\u2028one.wav")
  (tmp_path / "x" / "part\u2028one.wav").rename(tmp_path / "x" / "a\u2028b.wav")
  write(tmp_path / "c.wav", tone("b"))
  os.rename(os.fsencode(tmp_path / "c.wav"), folder + b"/caf\xe9.wav")
  source = open_source(tmp_path / "x")
  assert source.ids == ["a\u2028b.wav", "caf\\xe9.wav"]
  assert "".join(source.ids).encode("utf-8")
  np.testing.assert_allclose(source.read(1), tone("b"), atol=2**-15)


@pytest.mark.parametrize("name", ["a" * 300 + ".wav", "\ud83d.wav", "x\0.wav", "\udce9.wav"])
def test_names_that_no_file_has(tmp_path, name):
  write(tmp_path / "x.wav")
  for more in ({}, {"duration": 0.2}):
    rows = [{"audio_filepath": name} | more, {"audio_filepath": "x.wav"}]
    source = open_source(write_manifest(tmp_path / "m.jsonl", rows))
    assert source.ids == ["x.wav"]
    ((unique, reason),) = source.skipped
    assert reason == "no such file" and unique.encode("utf-8")


def test_half_a_character_in_a_text_leaves_its_utterance_out(tmp_path):
  write(tmp_path / "x.wav")
  rows = [{"audio_filepath": "x.wav", "text": text} for text in ("\ud800 a", "a")]
  source = open_source(write_manifest(tmp_path / "m.jsonl", rows))
  assert source.texts == ["a"] and "lone surrogate" in source.skipped[0][1]


def test_long_recordings_are_heard_in_pieces_where_nothing_is_transcribed(tmp_path, caplog):
  caplog.set_level(logging.INFO)
  long = np.random.default_rng(0).uniform(-0.5, 0.5, 45_000).astype(np.float32)
  write(tmp_path / "a" / "long.wav", long, subtype="FLOAT")
  write(tmp_path / "a" / "short.wav")
  source = open_source(tmp_path / "a", Limits(0.1, 1.0))
  assert source.ids == ["long.wav@0.00s", "long.wav@0.94s", "long.wav@1.88s", "short.wav"]
  np.testing.assert_allclose(source.durations, [0.9375] * 3 + [0.2])
  np.testing.assert_array_equal(np.concatenate([source.read(i) for i in range(3)]), long)
  assert "1 of 2 recordings are longer than config.data.max_seconds, 1 s" in caplog.text


def test_utterances_beyond_the_limits_are_left_out(tmp_path, caplog):
  for name, letters in (("long", "abcabc"), ("short", "a"), ("right", "ab")):
    write(tmp_path / f"{name}.wav", tone(letters))
  rows = [{"audio_filepath": f"{n}.wav", "text": "a"} for n in ("long", "right", "short")]
  source = open_source(write_manifest(tmp_path / "m.jsonl", rows), Limits(0.3, 1.0))
  assert source.ids == ["right.wav"]
  assert dict(source.skipped) == {
    "long.wav": "1.20 s is longer than config.data.max_seconds, 1",
    "short.wav": "0.20 s is shorter than config.data.min_seconds, 0.3",
  }
  told = "2 of 3 utterances are left out: long.wav: 1.20 s is longer than config.data.max_seconds"
  assert told in caplog.text and "and 1 other reason)" in caplog.text


def test_parts_of_one_recording_in_several_manifests_have_names_of_their_own(tmp_path):
  write(tmp_path / "x.wav", tone("abc"))
  part = lambda start: {"audio_filepath": "x.wav", "offset": start, "duration": 0.2}
  first = write_manifest(tmp_path / "a.jsonl", [part(0.0), part(0.2)])
  second = write_manifest(tmp_path / "b.jsonl", [part(0.4)])
  assert open_source(f"{first},{second}").ids == ["x.wav", "x.wav#2", "x.wav#3"]
  assert manifest.numbered(["x", "x", "x#2", "x#2"]) == ["x", "x#2", "x#2#2", "x#2#3"]


@pytest.mark.parametrize(
  ("form", "name"), [("WAV", "x.wav"), ("AIFF", "x.aiff"), ("WAV", "X.WAVE")]
)
def test_file_that_is_cut_short_is_as_long_as_its_header_says(tmp_path, form, name):
  path = write(tmp_path / name, tone("abcab"), format=form)
  path.write_bytes(path.read_bytes()[:5000])
  assert audio.duration(path) == pytest.approx(1.0, abs=0.01)
  write(tmp_path / "whole.wav")
  source = open_source(tmp_path)
  assert len(source) == 2
  with pytest.raises(audio.BrokenAudio, match=r"holds 0.15 s of the 1.00 s expected"):
    source.read(source.ids.index(name))


@pytest.mark.parametrize(
  ("row", "words"),
  [
    ('{"audio_filepath": "x.wav", "duration": 1' + "0" * 400 + "}", '"duration" is 1000'),
    ("[" * 100_000, "not JSON"),
    ('{"audio_filepath": "https://x.org/a.wav"}', "https://x.org/a.wav: only local paths"),
    ('{"audio_filepath": "s3:///a.wav", "duration": 1}', "no bucket in it"),
  ],
)
def test_rows_that_no_manifest_has(tmp_path, row, words):
  (tmp_path / "m.jsonl").write_text(f"\n{row}\n")
  with pytest.raises(UserError, match=f"m.jsonl:2: .*{words}"):
    open_source(tmp_path / "m.jsonl")


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFFFFF])
def test_wav_of_a_pipe(tmp_path, size):
  path = write(tmp_path / "x.wav", tone("abc"))
  data = bytearray(path.read_bytes())
  struct.pack_into("<I", data, 40, size)
  path.write_bytes(data)
  assert audio.duration(path) == pytest.approx(0.6)
  assert len(audio.read(path)) == 9600


def test_mpeg_layer_2_and_aifc_are_read(tmp_path):
  frame = bytes([0xFF, 0xFD, 0x48, 0xC0]) + bytes(284)  # of silence: 64 kbit/s, 32 kHz, mono
  (tmp_path / "x.mp2").write_bytes(frame * 50)
  assert audio.duration(tmp_path / "x.mp2") == pytest.approx(1.8)
  write(tmp_path / "x.aifc", format="AIFF")
  (tmp_path / "film.wmv").write_bytes(b"x")
  assert open_source(tmp_path).ids == ["x.aifc", "x.mp2"]


@pytest.mark.parametrize("spec", ["", " ", ",", " , "])
def test_a_name_of_nothing_is_not_the_current_folder(spec):
  with pytest.raises(UserError, match="it must be the name of a file, a folder or a corpus"):
    open_source(spec)


def test_a_pipe_is_no_recording(tmp_path):
  write(tmp_path / "x.wav")
  os.mkfifo(tmp_path / "pipe.wav")
  found = open_source(str(tmp_path))
  assert found.ids == ["x.wav"]
  assert "no file, but a folder, a pipe or a device" in dict(found.skipped)["pipe.wav"]


def test_of_long_recordings_some_seconds_are_tried(tmp_path, monkeypatch):
  write(tmp_path / "x.flac", np.tile(tone("abc"), 200))
  with monkeypatch.context() as patch:
    patch.setattr(audio, "read", lambda *_: pytest.fail("it was read as a whole"))
    (seconds,) = open_source(str(tmp_path)).durations
  assert seconds > 60


@pytest.mark.parametrize("offset", [0.0, 2.5])
def test_pieces_of_a_file_that_does_not_know_its_length(tmp_path, offset):
  """FLAC of a pipe: 36 bits of its header are 0."""
  path = tmp_path / "x.flac"
  whole = np.tile(tone("abc"), 12)
  write(path, whole)
  data = bytearray(path.read_bytes())
  data[21] &= 0xF0
  data[22:26] = bytes(4)
  path.write_bytes(data)
  seconds = len(whole) / 16_000 - offset
  given = list(encoded.pieces(str(path), offset, seconds, 2.0))
  again = np.concatenate([audio.read(part) for *_, part in given])
  np.testing.assert_array_equal(again, audio.read(str(path), offset, seconds))
  assert len(given) > 1


def test_several_sources_with_commas(tmp_path):
  write(tmp_path / "x.wav")
  write(tmp_path / "more" / "x.wav", tone("b"))
  rows = [{"audio_filepath": "x.wav", "text": "a"}]
  listed = write_manifest(tmp_path / "m.jsonl", rows)
  source = open_source(f"{listed}, {tmp_path / 'more'}")
  assert source.ids == ["x.wav", "x.wav#2"] and source.texts == ["a", None]
  np.testing.assert_allclose(source.read(1), tone("b"), atol=2**-15)
  os.rename(listed, tmp_path / "a,b.jsonl")
  assert open_source(tmp_path / "a,b.jsonl").ids == ["x.wav"]
  with pytest.raises(UserError, match="gone.jsonl: no such file"):
    open_source(f"{tmp_path / 'a,b.jsonl'}x,gone.jsonl".replace("a,b.jsonlx", "more"))


@pytest.mark.parametrize(
  ("form", "subtype"), [("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"), ("OGG", "OPUS")]
)
def test_parts_of_lossy_files_are_what_the_whole_has_there(tmp_path, form, subtype):
  seconds = np.arange(16_000 * 6) / 16_000
  chirp = 0.3 * np.sin(2 * np.pi * (200 + 300 * seconds) * seconds) * np.sin(7 * seconds)
  path = tmp_path / "x"
  soundfile.write(str(path), chirp, 16_000, format=form, subtype=subtype)
  whole = audio.read(path)
  for offset in (0.03, 0.4, 1.5, 3.21, 5.1, 5.6):
    part = audio.read(path, offset, 0.3)
    begin = round(offset * 16_000)
    np.testing.assert_allclose(part, whole[begin : begin + len(part)], rtol=0, atol=1e-6)


@pytest.mark.parametrize("peak", [0.3, 3e-5, 3e-6])
def test_parts_of_floats_are_packed_as_they_are(tmp_path, peak):
  samples = (peak * np.sin(np.arange(32_000) / 9)).astype(np.float32)
  soundfile.write(str(tmp_path / "x.wav"), samples, 16_000, subtype="FLOAT")
  part = audio.read(encoded.part(str(tmp_path / "x.wav"), 0.1, 0.5))
  np.testing.assert_array_equal(part, samples[1600:9600])


def test_an_offset_beyond_all_numbers_is_broken_audio(tmp_path):
  path = write(tmp_path / "x.wav", tone("abc"))
  for use in (audio.read, encoded.part):
    with pytest.raises(audio.BrokenAudio):
      audio.read(use(path, 1e308, 1.0))
