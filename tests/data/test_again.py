"""The same recording under several names, in several lists or behind links: it counts once."""

import io
import json
import os
import pathlib
import shutil
import tarfile

import numpy as np
import pytest
import soundfile

from corpus import tone, write_manifest
from jaxkd.commands import line
from jaxkd.data import manifest, sources, tars
from jaxkd.data.corpora import Options
from jaxkd.errors import UserError


def open_source(*specs) -> sources.Source:
  return sources.open_source(",".join(map(str, specs)), Options())


def write(path: pathlib.Path, letters: str = "a", **options) -> pathlib.Path:
  path.parent.mkdir(parents=True, exist_ok=True)
  soundfile.write(str(path), tone(letters), 16_000, **options)
  return path


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
  """Of two recordings, one of them in a folder of its own."""
  write(tmp_path / "rec" / "a.wav", "ab")
  write(tmp_path / "rec" / "deep" / "b.wav", "abc")
  return tmp_path / "rec"


def listed(path: pathlib.Path, *rows: dict) -> pathlib.Path:
  """A manifest of the recordings of `folder`: of the first where no row says another."""
  return write_manifest(path, [{"audio_filepath": "rec/a.wav", "duration": 0.4} | r for r in rows])


def test_the_same_in_two_manifests_counts_once(folder, tmp_path, caplog):
  rows = [{"text": "x"}, {"text": "y", "offset": 0.1, "duration": 0.2}]
  one, two = listed(tmp_path / "one.jsonl", *rows), listed(tmp_path / "two.jsonl", *rows)
  alone = open_source(one)
  assert not caplog.text
  both = open_source(one, two)
  assert both.ids == alone.ids == ["rec/a.wav", "rec/a.wav#2"] and both.skipped == []
  assert both.fingerprint() == alone.fingerprint() and both.stamp(1) == alone.stamp(1)
  np.testing.assert_array_equal(both.read(1), alone.read(1))
  told = "the same part of the same recording is there already: 2 utterances, rec/a.wav the first"
  assert caplog.text.count("\n") == 1 and told in caplog.text


def test_data_that_is_named_twice_counts_once(folder, tmp_path, caplog, monkeypatch):
  monkeypatch.chdir(tmp_path)
  os.symlink(folder, tmp_path / "link")
  assert open_source("rec", folder, "rec/", "link").ids == ["a.wav", "deep/b.wav"]
  assert "name the same data as one before: 3 of its names" in caplog.text
  assert line.main(["shard", "rec,rec", "--out=packed"]) == 0
  assert list(open_source("packed", tmp_path / "packed").ids) == ["a.wav", "deep/b.wav"]


def test_a_folder_and_one_in_it(folder, caplog):
  assert open_source(folder, folder / "deep").ids == ["a.wav", "deep/b.wav"]
  assert "left out, as the same part" in caplog.text and "1 utterance, b.wav" in caplog.text


def test_links_to_recordings_of_the_same_folder_count_once(folder, tmp_path, caplog):
  os.symlink("b.wav", folder / "deep" / "c.wav")
  os.symlink(write(tmp_path / "elsewhere.wav"), folder / "d.wav")
  assert open_source(folder).ids == ["a.wav", "d.wav", "deep/b.wav"]
  assert "1 utterance, deep/c.wav the first" in caplog.text


@pytest.mark.parametrize("first", [True, False])
def test_of_a_folder_and_a_manifest_of_it_the_transcripts_stay(folder, tmp_path, first):
  one = listed(tmp_path / "one.jsonl", {"text": "x", "duration": 0.41})
  source = open_source(*((one, folder) if first else (folder, one)))
  assert sorted(zip(source.ids, source.texts, strict=True)) == [
    *[("deep/b.wav", None), ("rec/a.wav", "x")]
  ]
  part = listed(tmp_path / "part.jsonl", {"duration": 0.2})
  assert len(open_source(folder, part)) == 3


def test_other_transcripts_are_kept_and_said(folder, tmp_path, caplog):
  one, two = (listed(tmp_path / f"{text}.jsonl", {"text": text}) for text in "xy")
  source = open_source(one, two)
  assert source.ids == ["rec/a.wav", "rec/a.wav#2"] and source.texts == ["x", "y"]
  assert "another transcript of the same part of the same recording" in caplog.text


def test_a_manifest_may_repeat_its_rows(folder, tmp_path, caplog):
  one = listed(tmp_path / "one.jsonl", {}, {}, {}, {"offset": 0.01})
  assert len(open_source(one)) == 4
  assert "there again in one manifest, where each of them counts: 2 utterances" in caplog.text
  assert len(open_source(listed(tmp_path / "two.jsonl", {}), one)) == 2


def test_paths_of_buckets_and_names_that_no_file_has_are_as_they_are_given(tmp_path, monkeypatch):
  behind = manifest.behind_links()
  monkeypatch.chdir(tmp_path)
  for path in ("gs://x/../a.wav", "x\0/a.wav", "\ud83d/a.wav"):
    assert behind(path) == path
  assert behind("a.wav") == behind("./a.wav") == str(tmp_path.resolve() / "a.wav")


def test_what_macos_keeps_beside_a_recording_is_none(folder, tmp_path, caplog):
  for path in (folder / "._a.wav", folder / "deep" / "._x.tar"):
    path.write_bytes(b"Mac OS X        ")
  source = open_source(folder)
  assert source.ids == ["a.wav", "deep/b.wav"] and source.skipped == [] and not caplog.text


def tar(path: pathlib.Path, *names: str) -> pathlib.Path:
  """A tar file of files with a recording each."""
  path.parent.mkdir(parents=True, exist_ok=True)
  file = io.BytesIO()
  soundfile.write(file, tone("a"), 16_000, format="FLAC")
  with tarfile.open(path, "w") as opened:
    for name in names:
      member = tarfile.TarInfo(name)
      member.size = len(file.getvalue())
      opened.addfile(member, io.BytesIO(file.getvalue()))
  return path


def indexed(folder: pathlib.Path) -> sources.Source:
  assert line.main(["shard", str(folder), f"--out={folder.parent / 'index'}"]) == 0
  return open_source(folder.parent / "index")


def test_links_to_tar_files_of_the_same_folder_count_once(tmp_path, caplog):
  there = tar(tmp_path / "t" / "x.tar", "u0.flac", "._u0.flac", "._u0.txt")
  os.symlink("x.tar", tmp_path / "t" / "latest.tar")
  os.symlink(tar(tmp_path / "y" / "y.tar", "u1.flac"), tmp_path / "t" / "y.tar")
  assert tars.found(tmp_path / "t") == [there, tmp_path / "t" / "y.tar"]
  found = indexed(tmp_path / "t")
  assert list(found.ids) == ["u0", "u1"] and found.skipped == []
  assert caplog.text.count("left out, as links to tar files") == 1 and "latest.tar" in caplog.text


def test_two_manifests_of_tar_files_that_say_the_same(tmp_path, caplog):
  tar(tmp_path / "t" / "audio_0.tar", "u0.flac", "u1.flac", "u2.flac")
  row = lambda i, **more: {"audio_filepath": f"u{i}.flac", "shard_id": 0, "text": "a"} | more
  one, two = tmp_path / "t" / "tarred_audio_manifest.json", tmp_path / "t" / "x_backup.json"
  write_manifest(one, [row(0), row(1), row(1)])
  indexed(tmp_path / "t")
  names = sorted((tmp_path / "index" / "shards").iterdir())
  # A copy changes nothing, the names of lists included; other rows count.
  write_manifest(two, [row(1, offset=0.0), row(0)])
  assert list(indexed(tmp_path / "t").ids) == ["u0.flac", "u1.flac", "u1.flac#2"]
  assert sorted((tmp_path / "index" / "shards").iterdir()) == names
  assert "there already: 2 utterances, u1.flac the first" in caplog.text
  assert "there again in one manifest, where each of them counts: 1 utterance" in caplog.text
  shutil.rmtree(tmp_path / "index")
  write_manifest(two, [row(1), row(2)])
  assert list(indexed(tmp_path / "t").ids) == ["u0.flac", "u1.flac", "u1.flac#2", "u2.flac"]
  write_manifest(two, [row(1, text="b")])
  words = f"{one} and {two.name} have different transcripts of u1.flac: .* move one"
  with pytest.raises(UserError, match=words) as error:
    indexed(tmp_path / "t")
  assert "\n" not in str(error.value) and json.loads(one.read_text().split("\n")[0])["text"] == "a"
