"""jaxkd teach by its command line, of a teacher that nothing was trained for."""

import argparse
import json
import os
import shutil

import numpy as np
import pytest
import soundfile

import corpus
import drawn_run
from jaxkd.commands import line
from jaxkd.commands import teach as command
from jaxkd.config import overrides
from jaxkd.data.corpora import Options
from jaxkd.data.sources import Limits, open_source
from jaxkd.errors import UserError
from jaxkd.inference import teaching
from jaxkd.teacher import stored

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
  folder = tmp_path_factory.mktemp("lab")
  config, _ = overrides.parse(
    corpus.flags(folder, "symmetric", folder / "run", "--config.labels.alphabet= abc")
  )
  drawn_run.save(folder / "run", config, {"teacher_workdir": None})
  for split in ("one", "other"):
    (folder / split).mkdir()
    for number in range(3):
      letters = "abc"[number] + ("ab" if split == "one" else "ba")
      soundfile.write(str(folder / split / f"clip{number}.wav"), corpus.tone(letters), 16_000)
  return folder


def teach(lab, *args) -> int:
  return line.main(["teach", f"--teacher={lab / 'run'}", *map(str, args)])


def test_another_recording_of_a_name_is_seen(lab, tmp_path, caplog):
  one, other, out = lab / "one", lab / "other", tmp_path / "store"
  assert teach(lab, f"--data={one},{other}", f"--out={out}") == 0
  assert "3 utterances of" in caplog.text and "such as clip0.wav#2: only a training" in caplog.text
  found = stored.find(str(out))
  assert ("clip0.wav#2", 1.0) in found.positions
  both, mine, theirs = (
    open_source(spec, Options()) for spec in (f"{one},{other}", str(one), str(other))
  )
  for source in (both, mine):
    found.check(source, (1.0,), 2.0)
    assert found.has(source)
  assert not found.has(theirs)
  with pytest.raises(UserError, match=r"other audio than clip0.wav at speed 1 .* new --out"):
    found.check(theirs, (1.0,), 2.0)
  with pytest.raises(UserError, match=r"other audio than clip2.wav at speed 1"):
    found.frames("clip2.wav", 1.0, theirs.read(2))
  with pytest.raises(UserError, match=r"has clip0.wav at speed 1 of other audio than .*other has"):
    teach(lab, f"--data={other}", f"--out={out}")
  with pytest.raises(UserError, match="other audio than clip0.wav"):
    teach(lab, f"--data={other}", f"--verify={out}")
  assert teach(lab, f"--data={one}", f"--verify={out}") == 0


def test_a_store_that_does_not_say_what_was_heard_is_read(lab, tmp_path):
  out = tmp_path / "store"
  assert teach(lab, f"--data={lab / 'one'}", f"--out={out}") == 0
  (path,) = out.glob("shards/*.json")
  facts = json.loads(path.read_text())
  assert all(len(row) == 5 for row in facts["records"])
  facts["records"] = [row[:4] for row in facts["records"]]
  path.write_text(json.dumps(facts))
  found = stored.find(str(out))
  assert stored.damaged(found.store) == []
  found.check(open_source(str(lab / "other"), Options()), (1.0,), 2.0)


def test_a_large_difference_is_an_error(lab, tmp_path, monkeypatch, capsys):
  out = tmp_path / "store"
  assert teach(lab, f"--data={lab / 'one'}", f"--out={out}") == 0
  monkeypatch.setattr(teaching, "_difference", lambda *_: 0.21)
  with pytest.raises(UserError, match=r"differs by 0.210, of which .* explain 0.2: ") as error:
    teach(lab, f"--data={lab / 'one'}", f"--verify={out}")
  assert "\n" not in str(error.value)


def test_a_store_goes_on_by_another_spelling_of_its_teacher(lab, tmp_path, monkeypatch):
  monkeypatch.chdir(lab)
  for spelling in ("run", "run/", lab / "run"):
    args = ["teach", f"--teacher={spelling}", "--data=one", f"--out={tmp_path / 'store'}"]
    assert line.main(args) == 0


def test_recordings_are_cut_as_training_cuts_them(lab, tmp_path):
  soundfile.write(str(tmp_path / "long.wav"), np.tile(corpus.tone("abc"), 84), 16_000)  # 50 s
  out = tmp_path / "store"
  assert teach(lab, f"--data={tmp_path / 'long.wav'}", f"--out={out}") == 0
  found = stored.find(str(out))
  opened = lambda seconds: open_source(
    str(tmp_path / "long.wav"), Options(), Limits(max_seconds=seconds)
  )
  found.check(opened(40.0), (1.0,), 2.0)
  for seconds in (20.0, 60.0):
    with pytest.raises(UserError, match="other pieces of that recording: config.data.max_seconds"):
      found.check(opened(seconds), (1.0,), 2.0)
  with pytest.raises(UserError, match="--speeds adds them"):
    found.check(opened(40.0), (1.1,), 2.0)


def test_what_is_too_long_is_lacking_and_not_unheard(lab, tmp_path):
  soundfile.write(str(tmp_path / "long.wav"), np.tile(corpus.tone("abc"), 4), 16_000)  # 2.4 s
  soundfile.write(str(tmp_path / "short.wav"), corpus.tone("abc"), 16_000)
  rows = [{"audio_filepath": f"{name}.wav", "text": "a b"} for name in ("long", "short")]
  data = corpus.write_manifest(tmp_path / "data.jsonl", rows)
  out = tmp_path / "store"
  assert teach(lab, f"--data={data}", f"--out={out}", "--max_seconds=2") == 0
  found, source = stored.find(str(out)), open_source(str(data), Options())
  assert not found.has(source)
  with pytest.raises(UserError, match="lacks 1 of .*left out, since 2.40 s is longer than .*--max"):
    found.check(source, (1.0,), 2.0)
  assert teach(lab, f"--data={data}", f"--out={out}") == 0
  found = stored.find(str(out))
  assert found.has(source) and found.left_out == {}


def test_what_can_be_read_by_now_is_lacking(lab, tmp_path):
  for name in ("late", "sound"):
    soundfile.write(str(tmp_path / f"{name}.wav"), corpus.tone("abc"), 16_000)
  whole = (tmp_path / "late.wav").read_bytes()
  rows = [{"audio_filepath": f"{name}.wav", "duration": 0.6} for name in ("late", "sound")]
  data, out = corpus.write_manifest(tmp_path / "data.jsonl", rows), tmp_path / "store"
  (tmp_path / "late.wav").write_bytes(b"no recording")
  assert teach(lab, f"--data={data}", f"--out={out}") == 0
  source, found = open_source(str(data), Options()), stored.find(str(out))
  found.check(source, (1.0,), 2.0)
  assert found.has(source) and list(found.left_out) == ["late.wav"]
  (tmp_path / "late.wav").write_bytes(whole)
  source = open_source(str(data), Options())
  assert not found.has(source)
  with pytest.raises(UserError, match=r"such as late.wav: it can be read now \(.* then\): jaxkd"):
    found.check(source, (1.0,), 2.0)
  assert teach(lab, f"--data={data}", f"--out={out}") == 0
  found = stored.find(str(out))
  assert found.has(source) and found.left_out == {}


def test_a_shard_that_was_cut_is_heard_again(lab, tmp_path):
  out = tmp_path / "store"
  assert teach(lab, f"--data={lab / 'one'}", f"--out={out}") == 0
  (path,) = out.glob("shards/*.array_record")
  whole = path.read_bytes()
  path.write_bytes(whole[:100])
  assert teach(lab, f"--data={lab / 'one'}", f"--out={out}") == 0
  assert path.stat().st_size == len(whole) and stored.damaged(stored.find(str(out)).store) == []


def test_a_corpus_has_a_root(lab, tmp_path):
  with pytest.raises(UserError, match=f"{tmp_path}"):
    teach(lab, "--data=digits:train", f"--root={tmp_path}", f"--out={tmp_path / 'store'}")


def test_what_would_be_ignored_is_refused(lab, tmp_path):
  with pytest.raises(UserError, match="--pool=4: the frames of .*run are as it was trained"):
    teach(lab, f"--data={lab / 'one'}", f"--out={tmp_path / 'store'}", "--pool=4")
  with pytest.raises(UserError, match="--arithmetic=bfloat16: the numbers of .*run are as it was"):
    teach(lab, f"--data={lab / 'one'}", f"--out={tmp_path / 'store'}", "--arithmetic=bfloat16")
  two = f"--teacher={lab / 'run'},{lab / 'run'}"
  for flag in ("--pool=4", "--arithmetic=bfloat16"):
    with pytest.raises(UserError, match=f"{flag}: the .*run,.*run are as it was trained"):
      line.main(["teach", two, f"--data={lab / 'one'}", f"--out={tmp_path / 'store'}", flag])
  assert not (tmp_path / "store").exists()


def test_a_run_is_no_place_for_a_store(lab, tmp_path):
  run = shutil.copytree(lab / "run", tmp_path / "run")
  there = sorted(run.rglob("*"))
  with pytest.raises(UserError, match=f"^--out={run}: it holds something else .config.json"):
    teach(lab, f"--data={lab / 'one'}", f"--out={run}")
  assert sorted(run.rglob("*")) == there


def test_a_name_that_is_no_utf_8_is_refused(lab, tmp_path):
  out = os.fsdecode(os.fsencode(tmp_path) + b"/p\xe9")
  with pytest.raises(UserError, match=r"^--out=.*/p\\xe9: its name must be UTF-8"):
    teach(lab, f"--data={lab / 'one'}", f"--out={out}")
  assert not os.path.exists(out)


def test_flags_of_hugging_face_models_are_theirs_in_an_ensemble_too(tmp_path):
  hf_models = pytest.importorskip("hf_models")
  for seed in range(2):
    hf_models.make(tmp_path / str(seed), "wav2vec2", "layer", seed=seed)
  parser = argparse.ArgumentParser()
  command.add_arguments(parser)
  for names in (tmp_path / "0", f"{tmp_path / '0'},{tmp_path / '1'}"):
    args = parser.parse_args([f"--teacher={names}", "--pool=4", "--arithmetic=bfloat16"])
    assert command._teacher(args).frame_samples == 4 * 320
