"""A user's mistake is one line that says what to do, exit status 2, and nothing left behind."""

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile

import corpus
from jaxkd import console, main
from jaxkd.config import overrides
from jaxkd.errors import Interrupted, UserError

CONFIGS = corpus.ROOT / "configs"


def parse(*arguments: str):
  return overrides.parse(["jaxkd.main", *arguments])


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), ()])
def test_help(arguments, capsys):
  with pytest.raises(SystemExit) as leave:
    parse(*arguments)
  assert leave.value.code == 0
  text = capsys.readouterr().out
  assert "usage: python -m jaxkd.main" in text and "prompts" in text


def test_defaults_and_overrides(monkeypatch):
  monkeypatch.chdir(corpus.ROOT)
  config, folder = parse("--config=configs/keep.py", "--config.kd.scale=0.25", "--config.seed=3")
  assert (config.variant, config.recipe, str(folder)) == ("keep", "demo", "runs/keep-demo")
  assert (config.kd.scale, config.seed) == (0.25, 3)
  config, folder = parse("--config=configs/keep.py:prompts", "--workdir=elsewhere")
  assert (config.recipe, str(folder)) == ("prompts", "elsewhere")


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--config=configs/symetric.py"], ["configs/symetric.py", "no such file", "symmetric"]),
    (["--config=configs/symmetric.py:dmeo"], ["unknown recipe 'dmeo'", "demo", "manifest"]),
    (["--workdir=x"], ["--config=configs/VARIANT.py", "missing"]),
    (["--config=configs/keep.py", "--wrkdir=x"], ["wrkdir"]),
    (["--config=configs/keep.py", "more"], ["'more' is not a flag"]),
    (
      ["--config=configs/keep.py", "--config.kd.scael=0.5"],
      ["config.kd.scael: no such field", "did you mean 'scale'", "temperature"],
    ),
    (
      ["--config=configs/keep.py", "--config.kd.scale=0.5", "--config.trainig.epochs=1"],
      ["config.trainig: no such field", "did you mean 'training'"],
    ),
    (
      ["--config=configs/keep.py", "--config.kd.selection.n=1"],
      ["config.kd.selection.n: 'keep' has no such field", "before, after"],
    ),
    (["--config=configs/keep.py", "--config.kd.scale=half"], ["half"]),
    (["--config=configs/keep.py", "--config.kd.scale=2"], ["kd.scale", "2", "0 to 1"]),
    (["--config=configs/keep.py", "--config.training.epochs=1.5"], ["1.5"]),
    (["--config=configs/standard.py", "--config.kd.grow_epochs=2"], ["kd.grow_epochs"]),
    (["--config=configs/keep.py:manifest"], ["data.train"]),
  ],
)
def test_wrong_command_lines(monkeypatch, arguments, words):
  monkeypatch.chdir(corpus.ROOT)
  with pytest.raises(UserError) as error:
    parse(*arguments)
  line = str(error.value)
  assert "\n" not in line
  for word in words:
    assert word in line


@pytest.mark.parametrize(
  ("text", "words"),
  [
    ("def get_config(:\n", "line 1"),
    ("import nothing_of_this_name\n", "nothing_of_this_name"),
    ("def get_config(recipe='demo'):\n  return 5\n", "get_config must return"),
  ],
)
def test_broken_config_files(tmp_path, text, words):
  path = tmp_path / "mine.py"
  path.write_text(text)
  with pytest.raises(UserError, match=words) as error:
    parse(f"--config={path}")
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("raised", "status", "words"),
  [
    (UserError("config.x is 1"), 2, "error: config.x is 1"),
    (OSError(errno.ENOSPC, "No space left on device"), 2, "error: no space left on device"),
    (RuntimeError("write failed: No space left on device"), 2, "error: no space left"),
    (KeyboardInterrupt(), 130, "interrupted"),
    (Interrupted(2), 130, "the same command resumes"),
    (Interrupted(15), 0, "the same command resumes"),
  ],
)
def test_guard_makes_a_line_and_a_status(monkeypatch, capsys, raised, status, words):
  monkeypatch.setattr(console, "err", console.Console(file=sys.stderr))
  monkeypatch.setattr(console, "start_logging", lambda: None)
  monkeypatch.setattr(cli, "_leave_at_once", lambda status: status)

  def command(argv):
    raise raised

  assert cli.guard(command) == status
  printed = capsys.readouterr()
  assert words in printed.err and printed.err.count("\n") == 1 and not printed.out


def test_other_errors_keep_their_traceback(monkeypatch):
  monkeypatch.setattr(console, "start_logging", lambda: None)

  def command(argv):
    raise ZeroDivisionError

  with pytest.raises(ZeroDivisionError):
    cli.guard(command)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
  folder = tmp_path_factory.mktemp("lab")
  corpus.make(folder)
  row = {"audio_filepath": "audio/train-00.flac", "duration": 0.2, "text": "a"}
  silent = folder / "audio/silent.wav"
  soundfile.write(str(silent), np.zeros(16_000), 16_000)
  written = {
    "malformed": [json.dumps(row), "{not json"],
    "silent": [json.dumps({"audio_filepath": str(silent), "text": "a"})],
    "unknown": [json.dumps(row | {"text": "a é"})],
    "untold": [json.dumps(row), json.dumps({"audio_filepath": "audio/train-01.flac"})],
  }
  for name, lines in written.items():
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
  return folder


@pytest.mark.parametrize(
  ("flag", "words"),
  [
    ("train=absent.jsonl", ["absent.jsonl", "no such file"]),
    ("train=malformed.jsonl", ["malformed.jsonl:2", "not JSON"]),
    ("train=silent.jsonl", ["silent.jsonl", "no utterance can be decoded", "silent"]),
    ("teacher_train=unknown.jsonl", ["unknown.jsonl", "'é'", "labels.alphabet"]),
    ("teacher_train=untold.jsonl", ["untold.jsonl", "audio/train-01.flac", "no transcript"]),
  ],
)
def test_wrong_data_leaves_no_workdir(lab, tmp_path, flag, words):
  field, name = flag.split("=")
  argv = corpus.flags(lab, "symmetric", tmp_path / "w", f"--config.data.{field}={lab / name}")
  with pytest.raises(UserError) as error:
    main.main(argv)
  line = str(error.value)
  assert "\n" not in line
  for word in words:
    assert word in line
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
  "line",
  [
    ["jaxkd.main", f"--config={CONFIGS / 'trim.py'}", "--config.kd.temperature=0"],
    ["jaxkd.evaluate", "--workdir=absent", "--data=absent.jsonl"],
    ["jaxkd.evaluate", "--data=absent.jsonl"],
  ],
)
def test_command_exits_with_one_line_and_status_2(line, tmp_path):
  environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
  done = subprocess.run(
    [sys.executable, "-m", *line], capture_output=True, text=True, cwd=tmp_path, env=environment
  )
  assert done.returncode == 2, done.stderr
  assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
  assert not done.stdout and not list(tmp_path.iterdir())
