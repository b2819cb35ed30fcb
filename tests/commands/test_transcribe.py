"""jaxkd transcribe and distil as commands."""

import errno
import io
import json
import logging
import os
import pathlib
import re
import shutil
import sys
import tempfile
import types

import numpy as np
import pytest
import soundfile

import corpus
import drawn_run
import jaxkd
import jaxkd.inference.finished
from jaxkd import console
from jaxkd.commands import distil, evaluate, train, transcribe
from jaxkd.commands import line as command_line
from jaxkd.config import overrides
from jaxkd.errors import UserError
from jaxkd.models.acoustic import AcousticModel

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
  folder = tmp_path_factory.mktemp("lab")
  corpus.make(folder)
  flags = corpus.flags(folder, "symmetric", folder / "run", "--config.labels.alphabet= abc")
  config, _ = overrides.parse(flags)
  drawn_run.save(folder / "run", config, {"teacher_workdir": None})
  for stream in ("--config.features.kind=sherpa", "--config.features.normalise=none"):
    flags.append(stream)
  chunks = ["--config.student.chunk_frames=(4,)", "--config.student.left_frames=(9,)"]
  config, _ = overrides.parse([*flags, *chunks])
  drawn_run.save(folder / "streaming", config, {"teacher_workdir": None})
  return folder


@pytest.fixture
def said(lab) -> dict[str, str]:
  """Name → text, by the library."""
  paths = sorted((lab / "audio").glob("test-*.flac"))
  found = jaxkd.load(lab / "run").transcribe(paths)
  return {path.name: transcript.text for path, transcript in zip(paths, found, strict=True)}


def test_a_folder_and_files(lab, said, capfd, tmp_path):
  for name in said:
    (tmp_path / name).symlink_to(lab / "audio" / name)
  first = lab / "audio" / "test-00.flac"
  assert command_line.main(["transcribe", str(lab / "run"), str(tmp_path), str(first)]) == 0
  out, err = capfd.readouterr()
  rows = dict(line.split("\t") for line in out.splitlines())
  assert rows.pop(str(first)) == said["test-00.flac"]
  assert {name.rsplit("/", 1)[1]: text for name, text in rows.items()} == said
  assert "times real time" in err


@pytest.mark.parametrize("raw", [False, True])
def test_standard_input(lab, said, capfd, monkeypatch, raw):
  path = lab / "audio" / "test-01.flac"
  data = path.read_bytes()
  if raw:
    data = soundfile.read(path, dtype="int16")[0].tobytes()
  monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))
  assert command_line.main(["transcribe", str(lab / "run"), "-"]) == 0
  assert capfd.readouterr().out == said["test-01.flac"] + "\n"


def test_standard_input_of_other_files_is_no_raw_audio(lab, monkeypatch):
  for data in (b"\0\0\0\x20ftypM4A " + bytes(9999), b"fLaC" + bytes(9999)):
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))
    with pytest.raises(UserError, match="standard input begins as .* ffmpeg -i FILE -f s16le"):
      command_line.main(["transcribe", str(lab / "run"), "-"])


@pytest.mark.parametrize("flags", [[], ["--stream=160ms"]])
def test_text_is_no_raw_audio(lab, monkeypatch, flags, capfd):
  text = b"what somebody has piped here by mistake\r\n" * 99
  stream = types.SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(text)))
  monkeypatch.setattr(sys, "stdin", stream)
  given = ["transcribe", str(lab / "streaming"), "-", *flags]
  if flags:
    assert command_line.main(given) == 1
    told = capfd.readouterr().err
  else:
    with pytest.raises(UserError) as error:
      command_line.main(given)
    told = str(error.value)
  assert "is text and no audio: pipe raw samples, with ffmpeg -i FILE" in told


@pytest.fixture
def talks(lab, tmp_path):
  """Recordings whose files' names, or their stems, are the same."""
  found = tmp_path / "T"
  for n, name in enumerate(("a/talk.wav", "a/talk.flac", "b/talk.wav", "a/other.wav")):
    (found / name).parent.mkdir(parents=True, exist_ok=True)
    samples, rate = soundfile.read(lab / "audio" / f"test-0{n % 2}.flac")
    soundfile.write(found / name, samples, rate)
  return found


def test_each_recording_has_its_own_transcript(lab, talks, said, tmp_path):
  given = ["transcribe", str(lab / "run"), str(talks), "--format=txt", f"--out={tmp_path / 'o'}"]
  names = ["a/other.txt", "a/talk.flac.txt", "a/talk.wav.txt", "b/talk.txt"]
  for _ in range(2):  # the same command again works
    assert command_line.main(given) == 0
    paths = sorted((tmp_path / "o").rglob("*.txt"))
    assert [str(path.relative_to(tmp_path / "o")) for path in paths] == names
  texts = [f"{said[f'test-0{n}.flac']}\n" for n in (1, 1, 0, 0)]
  assert [path.read_text() for path in paths] == texts


def test_what_a_user_wrote_is_not_overwritten(lab, talks, said, capfd):
  (talks / "b" / "talk.txt").write_text("what was really said")
  given = ["transcribe", str(lab / "run"), str(talks), "--format=txt"]
  assert command_line.main(given) == 1
  assert (talks / "b" / "talk.txt").read_text() == "what was really said"
  assert (talks / "a" / "other.txt").exists()
  err = capfd.readouterr().err
  assert "1 of 4 transcripts are there" in err and "1 of 4 transcripts not written" in err
  assert f"{talks / 'b' / 'talk.txt'} says something else and is left as it is" in err
  assert command_line.main([*given, "--overwrite"]) == 0
  assert (talks / "b" / "talk.txt").read_text() == said["test-00.flac"] + "\n"


def test_json_of_standard_input_is_the_same_again(lab, monkeypatch, tmp_path):
  data = (lab / "audio" / "test-01.flac").read_bytes()
  for _ in range(2):
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))
    given = ["transcribe", str(lab / "run"), "-", "--format=json", f"--out={tmp_path}"]
    assert command_line.main(given) == 0
  assert json.loads((tmp_path / "stdin.json").read_text())["audio"] == "stdin"


def test_two_recordings_with_one_file_are_refused_before_a_model_is_loaded(lab, talks, tmp_path):
  two = [str(talks / "a" / "talk.wav"), str(talks / "b" / "talk.wav")]
  with pytest.raises(UserError, match="would both be written to .*/talk.srt: give the folder"):
    command_line.main(["transcribe", str(lab), *two, "--format=srt", f"--out={tmp_path}"])


def test_json_of_another_spelling_of_the_path_is_the_same(lab, talks, monkeypatch, capfd):
  monkeypatch.chdir(talks)
  given = ["transcribe", str(lab / "run"), "--format=json"]
  for path in ("a/talk.wav", "./b/../a/talk.wav", str(talks / "a" / "talk.wav")):
    assert command_line.main([*given, path]) == 0
  there = talks / "a" / "talk.json"
  assert json.loads(there.read_text())["audio"] == "a/talk.wav"
  for other in (there.read_text().replace('"text"', '"said"', 1), "[]", "{", "[" * 100_000):
    there.write_text(other)
    assert command_line.main([*given, "a/talk.wav"]) == 1
    assert there.read_text() == other
  assert "talk.json says something else" in capfd.readouterr().err


def test_what_cannot_be_written_does_not_stop_the_others(lab, talks, capfd, tmp_path):
  out = tmp_path / "o"
  (out / "b" / "talk.txt").mkdir(parents=True)
  (talks / "a" / "other.wav").rename(talks / "a" / f"{'x' * 250}.wav")
  given = ["transcribe", str(lab / "run"), str(talks), "--format=json", f"--out={out}"]
  assert command_line.main(given) == 1  # 250 letters, and .json
  assert f"{'x' * 250}.json cannot be written: File name too long" in capfd.readouterr().err
  given[3] = "--format=txt"  # where a folder is called so
  for flags in ([], ["--overwrite"]):
    assert command_line.main([*given, *flags]) == 1
    assert len(list((out / "a").glob("*.txt"))) == 2
    err = capfd.readouterr().err
    assert f"{out / 'b' / 'talk.txt'} cannot be written: Is a directory" in err
    assert "2 of 4 transcripts not written" in err


def test_a_full_disk_ends_it(lab, talks, monkeypatch):
  heard = []

  def fail(path, text):
    heard.append(path)
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(jaxkd.files, "write_text", fail)
  with pytest.raises(UserError, match="cannot be written: No space left on device; --out=DIR"):
    command_line.main(["transcribe", str(lab / "run"), str(talks), "--format=txt"])
  assert len(heard) == 1


def test_out_is_tried_before_a_model_is_loaded(lab, talks, tmp_path):
  (tmp_path / "file").touch()
  for out, told in ("file", "it is a file"), ("file/o", "it is a"), ("x" * 300, "name too long"):
    given = [str(lab), str(talks), "--format=txt", f"--out={tmp_path / 'new' / '..' / out}"]
    with pytest.raises(UserError, match=f"must be a folder that can be written to: .*{told}"):
      command_line.main(["transcribe", *given])
  with pytest.raises(UserError, match="neither the workdir of a finished run"):
    given = [str(lab), str(talks), "--format=txt", f"--out={tmp_path / 'new' / 'o'}"]
    command_line.main(["transcribe", *given])
  assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
  ("inputs", "names"),
  [
    (["a/talk.wav", "a/other.wav"], ["talk", "other"]),
    (["a/talk.wav", "b/talk.wav", "a/other.wav"], ["a/talk", "b/talk", "other"]),
    (["a", "b"], ["other", "a/talk.flac", "a/talk.wav", "b/talk"]),
    (["b/talk.wav", "-", "a/other.wav"], ["talk", "stdin", "other"]),
    (["a/talk.wav", "./b/../a/talk.wav"], ["talk", "talk"]),
  ],
)
def test_no_two_recordings_have_one_name_in_a_ctm(talks, monkeypatch, tmp_path, inputs, names):
  monkeypatch.chdir(talks)
  data = types.SimpleNamespace(buffer=io.BytesIO(bytes(range(256))))
  monkeypatch.setattr(sys, "stdin", data)
  assert transcribe._ctm_names(transcribe._recordings(inputs, str(tmp_path))) == names


def test_ctms_can_be_joined(lab, talks, tmp_path):
  given = ["transcribe", str(lab / "run"), str(talks), "--format=ctm", f"--out={tmp_path / 'o'}"]
  assert command_line.main(given) == 0
  lines = "".join(path.read_text() for path in (tmp_path / "o").rglob("*.ctm")).splitlines()
  assert {line.split()[0] for line in lines} == {"other", "a/talk.flac", "a/talk.wav", "b/talk"}


def test_names_that_are_no_utf_8_are_printable(lab, said, monkeypatch, tmp_path):
  path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.flac")
  shutil.copy(lab / "audio" / "test-00.flac", path)
  strict = io.TextIOWrapper(io.BytesIO(), "utf-8", "strict", write_through=True)
  monkeypatch.setattr(console, "out", console.Console(file=strict))
  other = str(lab / "audio" / "test-01.flac")
  assert command_line.main(["transcribe", str(lab / "run"), path, other]) == 0
  first = strict.buffer.getvalue().decode().splitlines()[0]
  assert first == f"{tmp_path}/caf\\xe9.flac\t{said['test-00.flac']}"
  assert command_line.main(["transcribe", str(lab / "run"), path, "--format=json"]) == 0
  assert json.loads((tmp_path / os.path.basename(path[:-4] + "json")).read_text())["text"]


def test_words_of_a_stream(lab, capfd, monkeypatch, tmp_path):
  paths = [str(lab / "audio" / f"test-0{n}.flac") for n in (0, 1)]
  given = ["transcribe", str(lab / "streaming"), "--stream=160ms"]
  (tmp_path / "x.wav").write_text("no sound")
  assert command_line.main([*given, *paths, str(tmp_path / "x.wav")]) == 1
  out, err = capfd.readouterr()
  assert "x.wav: not readable as audio" in err and "will suffer" not in err
  first, second, broken = re.split(r"^/.*\n", out, flags=re.MULTILINE)[1:]
  assert not broken
  rows = [line.split("\t") for line in second.splitlines()]
  assert rows and all(0 <= float(start) < float(end) for start, end, _ in rows)
  audio = soundfile.read(paths[1], dtype="int16")[0]
  stream = types.SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(audio.tobytes())))
  monkeypatch.setattr(sys, "stdin", stream)
  assert command_line.main([*given, "-"]) == 0
  assert capfd.readouterr().out == second


def test_figures_of_a_stream_are_of_chunks(lab, monkeypatch):
  heard = []
  real = AcousticModel.__call__
  spied = lambda self, *audio: heard.append(self.chunks) or real(self, *audio)
  monkeypatch.setattr(AcousticModel, "__call__", spied)
  found = evaluate.evaluate(lab / "streaming", str(lab / "test.jsonl"), stream=80)
  assert set(heard) == {(2, 9)} and 0 <= found["student"]["blank_rate"] <= 1


def test_one_broken_file_does_not_stop_the_others(lab, said, capfd, tmp_path):
  (tmp_path / "x.wav").write_text("no sound")
  good = [str(lab / "audio" / f"test-0{n}.flac") for n in (0, 1)]
  given = [str(lab / "run"), good[0], str(tmp_path / "x.wav"), good[1]]
  assert command_line.main(["transcribe", *given, "--format=json", f"--out={tmp_path / 'o'}"]) == 1
  err = capfd.readouterr().err
  assert f"{tmp_path / 'x.wav'}: not readable as audio" in err
  assert "1 of 3 recordings could not be used" in err
  for n in (0, 1):
    found = json.loads((tmp_path / "o" / f"test-0{n}.json").read_text())
    assert found["text"] == said[f"test-0{n}.flac"]
    assert all(0 <= w["start"] < w["end"] <= found["seconds"] + 0.04 for w in found["words"])


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (["{lab}/gone", "{lab}/audio"], "gone'?: no such folder"),
    (["{lab}/audio", "{lab}/audio"], "neither the workdir of a finished run"),
    (["{lab}/run", "{lab}/run"], "no audio in this folder"),
    (["{lab}/run", "{lab}/x.m4a"], "x.m4a: .m4a is not read: make FLAC"),
    (["{lab}/run", "{lab}/audio", "--model=teacher"], "has no teacher"),
    (["{lab}/run", "{lab}/audio", "--format=doc"], "--format: invalid choice: 'doc'"),
    (["{lab}/run", "{lab}/audio", "--out=x"], "--out is for files: say which with --format"),
    (["{lab}/run", "{lab}/audio", "--overwrite"], "--overwrite is for files: say which"),
    (["{lab}/run", "{lab}/audio", "--phrases=gone.txt"], "gone.txt cannot be read"),
    (["{lab}/run", "{lab}/audio", "--lm=gone.arpa"], "gone.arpa cannot be read"),
    (["{lab}/run", "{lab}/audio", "--lm=a", "--phrases=b"], "leave out --lexicon and --lm"),
    (["{lab}/run", "{lab}/audio", "--boost=3"], "--boost is of phrases: say which with --phrases"),
    (
      ["{lab}/run", "{lab}/audio", "--lexicon=a", "--lm_weight=0"],
      "of a language model: say which",
    ),
    (["{lab}/run", "{lab}/audio", "--lexicon=a", "--beam=1"], "the best path, without --lexicon"),
    (["{lab}/run", "{lab}/audio", "--phrases=a", "--beam=1"], "the best path, without --phrases"),
    (["{lab}/run", "-", "{lab}/audio", "-"], "- is given more than once"),
    (["{lab}/streaming", "-", "-", "--stream=40ms"], "- is given more than once"),
    (["{lab}/run"], "missing: INPUT"),
    (["{lab}/run", "-", "--stream=320"], "'320'; give milliseconds, such as 320ms"),
    (["{lab}/run", "-", "--stream=0ms"], "'0ms'; it must be longer"),
    (["{lab}/run", "-", "--stream=320ms"], "run cannot hear streams: features.kind is logmel"),
    (["{lab}/streaming", "-", "--stream=30ms"], "must be a multiple of a frame, 40 ms"),
    (["{lab}/streaming", "-", "--stream=40ms", "--format=srt"], "--format needs what comes later"),
    (["{lab}/streaming", "-", "--stream=40ms", "--beam=8"], "--beam needs what comes later"),
    (["{lab}/streaming", "-", "--stream=40ms", "--boost=0"], "--boost needs what comes later"),
    (["{lab}/streaming", "-", "--stream=40ms", "--lm_weight=2"], "--lm_weight needs what comes"),
  ],
)
def test_mistakes_are_one_line(lab, flags, words):
  with pytest.raises(UserError, match=words) as error:
    command_line.main(["transcribe", *(flag.format(lab=lab) for flag in flags)])
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("file", "content", "words"),
  [
    ("results.json", "[]", "results.json must hold a JSON object"),
    ("config.json", "5", "config.json must hold a JSON object"),
    ("config.json", "{}", "config.json: it is no config of jaxkd"),
    ("labels.json", "7", "labels.json does not hold the classes"),
    ("checkpoints/final", None, "final is not there: copy the whole workdir"),
  ],
)
def test_damaged_workdirs_are_one_line(lab, tmp_path, file, content, words):
  folder = shutil.copytree(lab / "run", tmp_path / "run")
  if content is None:
    shutil.rmtree(folder / file)
  else:
    (folder / file).write_text(content)
  given = ["evaluate", f"--workdir={folder}", f"--data={lab / 'test.jsonl'}", "--model=student"]
  with pytest.raises(UserError, match=words) as error:
    command_line.main(given)
  assert "\n" not in str(error.value)


def planned(monkeypatch, *arguments: str):
  """Config and workdir of the run that `jaxkd distil` would begin."""
  caught = []
  read = lambda args: caught.append(overrides.parse(train.as_config_flags(args))) or 0
  monkeypatch.setattr(train, "train", read)
  assert command_line.main(["distil", *arguments]) == 0
  return caught[0]


def test_distil_is_the_flagship_in_one_line(lab, monkeypatch, tmp_path, caplog):
  caplog.set_level(logging.INFO)
  monkeypatch.chdir(tmp_path)
  given = [f"--teacher={lab / 'run'}", f"--audio={lab / 'audio'}", "--size=tiny"]
  config, folder = planned(monkeypatch, *given, "--config.training.epochs=3")
  assert (config.variant, config.recipe, str(folder)) == (
    "standard",
    "manifest-tiny",
    "runs/distil-audio",
  )
  assert (config.kd.scale, config.kd.selection.name) == (1.0, "all_frames")
  assert (config.teacher.source, config.training.epochs) == (str(lab / "run"), 3)
  paths = lambda split: [json.loads(r)["audio_filepath"] for r in open_(config.data[split])]
  lists = [paths("train"), paths("dev")]
  files = sorted(map(str, (lab / "audio").glob("*.flac")))
  assert sorted(lists[0] + lists[1]) == files and 0 < len(lists[1]) < len(files) / 5
  assert f"{len(lists[1])} of {len(files)} recordings are held out" in caplog.text
  (line,) = [r.message for r in caplog.records if r.message.startswith("the same as: ")]
  words = line.partition(" train ")[2].split()
  assert overrides.parse(["", *words])[0] == config
  # The same recordings are held out again, and more of them move none.
  soundfile.write(str(tmp_path / "new.wav"), np.ones(16_000) * 0.1, 16_000)
  more = f"--audio={lab / 'audio'},{tmp_path / 'new.wav'}"
  again, _ = planned(monkeypatch, given[0], more)
  assert set(lists[1]) <= {json.loads(r)["audio_filepath"] for r in open_(again.data.dev)}


def open_(path) -> list[str]:
  with open(path) as file:
    return file.read().splitlines()


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (["--audio=x"], "missing: --teacher"),
    (["--teacher=t", "--audio=gone"], "gone: no such file or folder"),
    (["--teacher=t", "--audio={lab}/audio/test-00.flac"], "a single recording: give --dev"),
    (["--teacher=t", "--audio={lab}/audio", "--dev=,"], "data is ','"),
    (["--teacher=none/t", "--audio={lab}/audio"], "none/t"),
    (["--teacher=t", "--audio={lab}/audio", "--out={lab}/test.jsonl"], "test.jsonl cannot be made"),
    (["--teacher=t", "--audio={lab}/audio", "--size=huge"], "--size: invalid choice: 'huge'"),
    (["--teacher=t", "--audio=a", "--config.data.dev=d"], "config.data.dev: give it as --dev=d"),
    (["--teacher=t", "--audio=a", "--config.kd.scale=0.5"], "distil reads no transcripts"),
  ],
)
def test_mistakes_of_distil_are_one_line(lab, flags, words, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match=words) as error:
    command_line.main(["distil", *(flag.format(lab=lab) for flag in flags)])
  assert "\n" not in str(error.value) and not (tmp_path / "runs").exists()


def test_held_out_recordings_keep_their_transcripts_and_the_others_none(lab, tmp_path):
  train_path, dev_path = distil.hold_out(str(lab / "train.jsonl"), tmp_path)
  dev = [json.loads(row) for row in open_(dev_path)]
  assert 0 < len(dev) < 8 and all(row["text"] for row in dev)
  assert not any("text" in json.loads(row) for row in open_(train_path))


def entries(path) -> list[tuple]:
  rows = [json.loads(row) for row in open_(path)]
  return [(row["audio_filepath"], row.get("offset", 0)) for row in rows]


def test_all_parts_of_a_recording_are_on_one_side_and_some_are_learnt_from(lab, tmp_path):
  names = [f"test-0{n}" for n in range(4)]
  rows = [
    {"audio_filepath": str(lab / "audio" / f"{name}.flac"), "offset": at, "duration": 0.2}
    for name in names
    for at in (0.1, 0.3, 0.5)
  ]
  corpus.write_manifest(tmp_path / "parts.jsonl", rows)
  paths = distil.hold_out(str(tmp_path / "parts.jsonl"), tmp_path)
  kept, dev = map(entries, paths)
  assert len(dev) == 3 and len(kept) == 9 and not {p for p, _ in dev} & {p for p, _ in kept}


def test_two_recordings_that_are_both_drawn_are_one_and_one(lab, tmp_path, monkeypatch):
  monkeypatch.setattr(distil, "_HELD_OUT_EVERY", 1)
  two = ",".join(str(lab / "audio" / f"test-0{n}.flac") for n in range(2))
  assert [len(entries(path)) for path in distil.hold_out(two, tmp_path)] == [1, 1]


def test_distil_leaves_the_lists_of_another_run_alone(lab, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  paths = distil.hold_out(str(lab / "audio"), tmp_path / "runs" / "x")
  (tmp_path / "runs" / "x" / "config.json").write_text(json.dumps({"data": {"train": paths[0]}}))
  before = {path: pathlib.Path(path).read_bytes() for path in paths}
  other = ["distil", "--teacher=none/t", f"--audio={lab / 'train.jsonl'}", "--out=runs/x"]
  with pytest.raises(UserError, match="none/t"):
    command_line.main(other)
  there = sorted(map(str, (tmp_path / "runs" / "x" / "data").iterdir()))
  assert there == sorted(paths)
  assert {path: pathlib.Path(path).read_bytes() for path in paths} == before


def test_a_mistake_beside_a_run_that_is_there_leaves_its_lists(lab, tmp_path, monkeypatch):
  """Also where the folder is spelled otherwise, and by the name that distil's flag has."""
  monkeypatch.chdir(tmp_path)
  paths = distil.hold_out(str(lab / "audio"), pathlib.Path("runs/x"))
  given = ["distil", "--teacher=none/t", f"--audio={lab / 'audio'}", f"--out={tmp_path}/runs/x"]
  with pytest.raises(UserError, match="config.training.epoch: no such field"):
    command_line.main([*given, "--config.training.epoch=2"])
  assert all(pathlib.Path(path).exists() for path in paths)


def test_a_run_that_an_older_version_began_as_symmetric_goes_on_so(lab, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "x").mkdir()
  given = [f"--teacher={lab / 'run'}", f"--audio={lab / 'audio'}", "--size=tiny", "--out=~/x"]
  assert planned(monkeypatch, *given)[0].variant == "standard"
  (tmp_path / "x" / "config.json").write_text(json.dumps({"variant": "symmetric"}))
  config, folder = planned(monkeypatch, *given)
  assert (config.variant, config.kd.selection.name) == ("symmetric", "symmetric")
  assert folder == tmp_path / "x" and config.data.train.startswith(f"{tmp_path}/x/data/train-")


def test_distil_names_its_own_flag(lab, tmp_path, monkeypatch):
  def refuse(args):
    raise UserError(f"--workdir={args.workdir} is taken: --workdir=other starts a new one")

  monkeypatch.setattr(train, "train", refuse)
  given = ["distil", "--teacher=t", f"--audio={lab / 'audio'}", f"--out={tmp_path / 'x'}"]
  with pytest.raises(UserError, match="^--out=.*/x is taken: --out=other starts"):
    command_line.main(given)


@pytest.mark.parametrize("flag", ["--lm", "--lexicon", "--phrases"])
def test_the_home_of_nobody_is_one_line(lab, flag):
  given = ["transcribe", str(lab / "run"), str(lab / "audio"), f"{flag}=~nobody-here/x"]
  with pytest.raises(UserError, match="~nobody-here/x") as error:
    command_line.main(given)
  assert "\n" not in str(error.value)


def test_search_tries_at_once_whether_its_results_can_be_written(lab, monkeypatch):
  def fail(**options):
    raise OSError(errno.EROFS, "Read-only file system")

  monkeypatch.setattr(tempfile, "TemporaryFile", fail)
  monkeypatch.setattr(jaxkd.inference.finished, "FinishedRun", None)
  with pytest.raises(UserError, match="run cannot be written: Read-only file system"):
    command_line.main(["search", f"--workdir={lab / 'run'}", "--lm=none"])
