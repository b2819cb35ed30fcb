"""What jaxkd distil holds out where no dev data is given."""

import json
import os
import pathlib

import pytest
import soundfile

from corpus import tone, write_manifest
from jaxkd.commands import distil
from jaxkd.errors import UserError


def entries(path) -> list[tuple]:
  rows = map(json.loads, pathlib.Path(path).read_text().splitlines())
  return [(row["audio_filepath"], row.get("offset", 0)) for row in rows]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> pathlib.Path:
  """Of eight recordings, in the working directory."""
  (tmp_path / "big" / "deep").mkdir(parents=True)
  for number in range(8):
    path = tmp_path / "big" / "deep" / f"{number}.wav"
    soundfile.write(str(path), tone("abc"[: 1 + number % 3]), 16_000)
  monkeypatch.chdir(tmp_path)
  return tmp_path / "big"


@pytest.mark.parametrize("audio", ["big", "{deep},big/", "big,of.jsonl", "of.jsonl,big"])
def test_a_recording_is_on_one_side_by_whatever_names_it_is_given(folder, tmp_path, audio):
  for path in (folder / "deep").iterdir():
    (folder / path.name).symlink_to(path)
  rows = [{"audio_filepath": str(folder / "deep" / f"{n}.wav"), "text": "a"} for n in range(8)]
  write_manifest(tmp_path / "of.jsonl", [{"duration": 0.2} | rows[0], *rows[1:]])
  paths = distil.hold_out(audio.format(deep=folder / "deep"), tmp_path / "run")
  kept, dev = ([os.path.realpath(path) for path, _ in entries(list_)] for list_ in paths)
  assert sorted(kept + dev) == [row["audio_filepath"] for row in rows] and dev


def test_parts_of_a_recording_that_a_folder_has_whole_are_on_its_side(folder, tmp_path):
  rows = [
    {"audio_filepath": f"big/deep/{n}.wav", "offset": 0.05, "duration": 0.1} for n in range(8)
  ]
  write_manifest(tmp_path / "of.jsonl", rows * 2)
  kept, dev = map(entries, distil.hold_out("big,of.jsonl", tmp_path / "run"))
  assert not {path for path, _ in kept} & {path for path, _ in dev} and len(kept + dev) == 24


def test_recordings_that_cannot_be_used_are_not_held_out(folder, tmp_path, monkeypatch):
  hold_out = lambda: list(map(entries, distil.hold_out("big", tmp_path / "run")))
  kept, ((first, _),) = hold_out()
  (folder / "._x.wav").write_bytes(b"Mac OS X")
  assert hold_out() == [kept, [(first, 0)]]
  pathlib.Path(first).write_bytes(b"")
  kept, ((second, _),) = again = hold_out()
  assert (first, 0) in kept and second != first and hold_out() == again
  # However many are drawn, one that can be used is learnt from.
  monkeypatch.setattr(distil, "_HELD_OUT_EVERY", 1)
  *others, last, _ = sorted(path for path, _ in kept + again[1] if path != first)
  for path in others:
    pathlib.Path(path).write_bytes(b"")
  assert len(hold_out()[1]) == 1
  pathlib.Path(last).write_bytes(b"")
  with pytest.raises(UserError, match="has one recording that can be used: give --dev=DATA"):
    distil.hold_out("big", tmp_path / "other")
  assert not (tmp_path / "other").exists()


def test_an_empty_manifest_is_no_single_recording(tmp_path):
  (tmp_path / "empty.jsonl").write_text("\n")
  with pytest.raises(UserError, match=r"empty.jsonl has no rows: it must be audio, or a manifest"):
    distil.hold_out(str(tmp_path / "empty.jsonl"), tmp_path / "run")
