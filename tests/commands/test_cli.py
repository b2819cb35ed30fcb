"""One command line: verbs, their help, and mistakes that are one line and leave nothing behind."""

import io
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile

import corpus
from jaxkd import config as config_lib
from jaxkd import console, main
from jaxkd.commands import grid, line, train
from jaxkd.config import overrides
from jaxkd.errors import UserError
from jaxkd.inference.search.settings import Settings

CONFIGS = corpus.ROOT / "configs"


def jaxkd(*arguments: str, cwd: pathlib.Path, code: str = "") -> subprocess.CompletedProcess:
  """`python -m MODULE …` of this checkout in another folder."""
  environment = os.environ | {"PYTHONPATH": str(corpus.ROOT), "JAX_PLATFORMS": "cpu"}
  how = ["-c", code] if code else ["-m"]
  given = [sys.executable, *how, *arguments]
  return subprocess.run(given, capture_output=True, text=True, cwd=cwd, env=environment)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_overview_names_every_verb(arguments, capsys):
  assert line.main(arguments) == 0
  text = capsys.readouterr().out
  for name, verb in line.VERBS.items():
    assert f"  {name}" in text and verb.sentence in text
  assert "train --config=symmetric:demo" in text


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("verb", line.VERBS)
def test_help_fits_the_terminal(verb, columns, capsys, monkeypatch):
  monkeypatch.setenv("COLUMNS", str(columns))
  monkeypatch.setattr(sys, "argv", ["jaxkd"])
  assert line.main([verb]) == 0
  text = capsys.readouterr().out
  assert text.startswith(f"usage: jaxkd {verb} ") and line.VERBS[verb].sentence in text
  assert f"jaxkd {verb} " in text.partition("example")[2]
  assert max(map(len, text.splitlines())) <= columns
  with pytest.raises(SystemExit) as leave:
    line.main([verb, "--help"])
  assert leave.value.code == 0 and capsys.readouterr().out == text


def test_defaults_in_help_are_the_codes(capsys):
  line.main(["search"])
  text = " ".join(capsys.readouterr().out.split())
  default = Settings()
  for value in (default.order, default.search.beam, default.prefix_beam, default.lm):
    assert f"(default {value})" in text
  assert "0,0.1,0.3,0.5,0.7" in text
  line.main(["train"])
  text = " ".join(capsys.readouterr().out.split())
  for name in (*config_lib.DATA, *config_lib.SIZES, *overrides.variants()):
    assert name in text


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_main_has_the_help_of_train(arguments, capsys):
  try:
    assert main.main(["jaxkd.main", *arguments]) == 0
  except SystemExit as leave:
    assert leave.code == 0
  text = capsys.readouterr().out
  assert "usage: python -m jaxkd.main" in text and "prompts" in text


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["trian"], ["'trian' is no verb", "did you mean 'train'", "plan-tpu"]),
    (["xyz"], ["'xyz' is no verb of jaxkd; the verbs are distil, teach, train"]),
    (["--config=symmetric"], ["a verb must come first, as in jaxkd train --config=symmetric"]),
    (["train", "--workdir=x"], ["--config=VARIANT[:RECIPE] is missing"]),
    (["train", "--config"], ["--config: expected one argument; see"]),
    (["train", "--config=trim", "--wrkdir=x"], ["--wrkdir=x: no such flag", "'--workdir'"]),
    (["train", "--config=trim", "more"], ["'more' is not a flag; see", "train --help"]),
    (["train", "--config=tirm"], ["--config=tirm: no such file or variant", "'trim'"]),
    (["train", "--config=trim", "--config.kd.scale", "2"], ["config.kd.scale is 2"]),
    (["evaluate", "--data=x"], ["missing: --workdir; see", "evaluate --help"]),
    (["evaluate", "--config.seed=1", "--data=x"], ["--config.seed=1: fields of a config are for"]),
    (["evaluate", "--workdir=absent", "--data=x"], ["absent is not the workdir of a finished run"]),
    (["search", "--workdir=absent"], ["absent is not the workdir of a finished run"]),
    (
      ["train", "--config=trim", "--workdir=hdfs://bucket/run"],
      ["hdfs://bucket/run: only local paths, gs:// and s3:// can be read and written here"],
    ),
    (["train", "--config=trim", "--config.data.train=a,hf://b/c"], ["hf://b/c: only local paths"]),
    (["train", "--config=trim", "--config.data.root=s3://b/c"], ["only local paths can be used"]),
    (["search", "--workdir=x", "--lm", "s3://b/lm.arpa"], ["s3://b/lm.arpa: only local paths"]),
    (["transcribe", "s3://", "a.wav"], ["s3://: no bucket in it: s3://BUCKET/PATH"]),
    (["convert"] + ["x"] * 3, ["'x' is not a flag"]),
    (["convert", "absent"], ["absent is neither a finished workdir"]),
    (["report", "--out=x"], ["missing: WORKDIR; see"]),
    (["grid", "smal"], ["smal: no such file or grid", "grids: evidence, losses, paper, small"]),
    (["grid", "small", "--config.kd.scael=1", "--dry_run"], ["config.kd.scael: no such field"]),
    (["plan-tpu", "--config=trim"], ["missing: --topology; see"]),
    (["export", "x", "--stream=0ms"], ["--stream: it is '0ms'; it must be longer, such as 320ms"]),
    (["search", "--threshold=inf"], ["a number from 0 upwards, not inf"]),
    (["transcribe", "x", "-", "--boost=nan"], ["--boost: it must be a number from 0 to 1000"]),
    (["search", "--lm-weights=nan"], ["--lm_weights: it must be a number"]),
  ],
)
def test_mistakes_are_one_line_and_load_no_jax(tmp_path, monkeypatch, arguments, words):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError) as error:
    line.main(arguments)
  assert "\n" not in str(error.value)
  for word in words:
    assert word in str(error.value)
  assert not list(tmp_path.iterdir())


def test_help_and_mistakes_load_no_jax(tmp_path):
  code = """
import sys
from jaxkd.commands import line
from jaxkd.errors import UserError

mistakes = [["trian"], ["train", "--config=tirm"], ["train", "--config=trim", "--config.x=1"],
  ["evaluate", "--workdir=absent", "--data=x"], ["search", "--workdir=absent"], ["grid", "smal"],
  ["convert", "absent"], ["plan-tpu", "--config=trim"]]
for given in [[], *([verb] for verb in line.VERBS), ["grid", "small", "--dry_run"], *mistakes]:
  try:
    assert line.main(given) == 0 and given not in mistakes
  except UserError:
    assert given in mistakes
  loaded = {"jax", "flax", "tensorflow", "torch"} & sys.modules.keys()
  assert not loaded, (given, loaded)
"""
  done = jaxkd(cwd=tmp_path, code=code)
  assert done.returncode == 0, done.stderr


def test_values_may_stand_behind_a_space(monkeypatch):
  """And one dash is as good as two: what absl's flags took is still taken."""
  parser = line.Parser("jaxkd train", "")
  train.add_arguments(parser)
  for given in (
    "--config symmetric:demo --config.kd.selection.n 4 --workdir w --config.training.remat",
    "--config.kd.selection.n=4 --workdir=w --config=symmetric:demo --config.training.remat=True",
    "-workdir=w -config=symmetric:demo -config.kd.selection.n=4 --config.training.remat=True",
    "--config=keep --config=symmetric:demo --workdir=v --workdir=w --config.kd.selection.n=3 "
    "--config.kd.selection.n=4 --noconfig.training.remat --config.training.remat",
  ):
    config, folder = overrides.parse(train.as_config_flags(parser.parse(shlex.split(given))))
    assert (config.variant, config.recipe, str(folder)) == ("symmetric", "demo", "w"), given
    assert config.kd.selection.n == 4 and config.training.remat is True, given
  fields, rest = line.split_fields(["small", "--config.a", "-1.5", "--config.b= '", "--only=x"])
  assert fields == ["--config.a=-1.5", "--config.b= '"] and rest == ["small", "--only=x"]


def test_names_that_look_like_markup_are_shown(monkeypatch):
  for shown in (console.out, console.err):
    with shown.capture() as found:
      shown.print("x[/b]y [old] :cat:")
    assert found.get() == "x[/b]y [old] :cat:\n"
  told = io.StringIO()
  monkeypatch.setattr(console, "err", console.Console(file=told, force_terminal=True, width=120))
  with console.progress("opening x[/b]y [old]", 3) as update:
    update(note="a[/i]")
  assert "opening x[/b]y [old]" in told.getvalue() and "note a[/i]" in told.getvalue()


def test_dashes_are_as_good_as_underscores():
  parser = line.Parser("jaxkd grid", "")
  grid.add_arguments(parser)
  for given in ("--dry-run", "--dry_run", "-dry-run"):
    assert parser.parse(["small", given, "--only=a-b"]).dry_run
  with pytest.raises(UserError, match="--dryrun: no such flag .did you mean '--dry_run'"):
    parser.parse(["small", "--dryrun"])


@pytest.mark.parametrize("given", [["--fields"], ["--fields=manifest-medium"]])
def test_every_field_is_printed(given, capsys, monkeypatch):
  monkeypatch.setattr(console, "out", console.Console(file=sys.stdout, width=80))
  assert line.main(["train", *given]) == 0
  printed = capsys.readouterr().out
  rows = config_lib.describe(given[0].partition("=")[2] or "demo")
  heads = [text for text in printed.splitlines() if not text.startswith(" ")]
  for row, head in zip(rows, heads, strict=True):
    assert head.startswith(f"config.{row.name} = ")
    assert row.unit in head and str(row.default) in head
  assert f"config.recipe = {rows[0].default}" in printed and rows[0].name == "recipe"
  assert max(map(len, printed.splitlines())) <= 80
  text = " ".join(printed.split())
  assert all(" ".join(row.about.split()) in text for row in rows)
  assert "config.training.epochs = " in printed and "config.data.root = ''" in printed


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
    "untold": [json.dumps({"audio_filepath": "audio/train-01.flac"})],
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
    ("teacher_train=untold.jsonl", ["untold.jsonl", "audio/train-01.flac", "has a transcript"]),
  ],
)
def test_wrong_data_leaves_no_workdir(lab, tmp_path, flag, words):
  field, name = flag.split("=")
  flags = [f"--config.data.{field}={lab / name}", "--config.labels.alphabet=abc "]
  argv = corpus.flags(lab, "symmetric", tmp_path / "w", *flags)
  with pytest.raises(UserError) as error:
    main.main(argv)
  told = str(error.value)
  assert "\n" not in told
  for word in words:
    assert word in told
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "given",
  [
    ["jaxkd.main", f"--config={CONFIGS / 'trim.py'}", "--config.kd.temperature=0"],
    ["jaxkd", "train", "--config=trim:demo", "--config.kd.nope=1"],
    ["jaxkd", "evaluate", "--workdir=absent", "--data=absent.jsonl"],
    ["jaxkd", "evaluate", "--data=absent.jsonl"],
    ["jaxkd", "evalute"],
  ],
)
def test_a_command_ends_with_one_line_and_status_2(given, tmp_path):
  done = jaxkd(*given, cwd=tmp_path)
  assert done.returncode == 2, done.stderr
  assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
  assert not done.stdout and not list(tmp_path.iterdir())


def finished(
  folder: pathlib.Path, *, dev: str = "demo:dev", test: str = "a", teacher: str = "", told=("dev",)
) -> pathlib.Path:
  """What `next_steps` reads of a finished run; `told` are the splits with a word error rate."""
  folder.mkdir(parents=True)
  data = {"dev": dev, "test": "demo:test"}
  rates = {split: {"student": {"wer": 0.1 if split in told else None}} for split in ("dev", "test")}
  kd = {"scale": 1.0, "scale_ramp": [], "ctc": "transcripts", "loss": "kl"}
  for name, value in {
    "config": {"student": {"name": "conformer"}, "data": data, "kd": kd},
    "data": {"test": {"fingerprint": test}},
    "results": rates | {"teacher_workdir": teacher or None},
  }.items():
    (folder / f"{name}.json").write_text(json.dumps(value))
  return folder


def test_next_steps_are_commands_to_paste(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
  monkeypatch.setattr(line, "pasted", lambda: "jaxkd")
  first = finished(pathlib.Path("my runs/a"), teacher="../a")
  assert train.next_steps(first) == [
    "jaxkd transcribe 'my runs/a' RECORDING.wav",
    "jaxkd export 'my runs/a' --int8",
    "jaxkd evaluate --workdir='my runs/a' --data=demo:dev",
    "jaxkd search --workdir='my runs/a'",
    "jaxkd report 'my runs'/*",
  ]
  finished(pathlib.Path("my runs/b"), test="other")  # does not stand in one table with a
  assert train.next_steps(first)[-1] == "jaxkd report 'my runs/a'"
  untuned = finished(tmp_path / "c", dev="", told=("test",))
  assert train.next_steps(untuned)[2:4] == [
    f"jaxkd evaluate --workdir={untuned} --data=demo:test",
    f"jaxkd search --workdir={untuned} --lm=none",
  ]
  heard = finished(tmp_path / "e", teacher="org/model")  # nothing to estimate a model from
  assert train.next_steps(heard)[3] == f"jaxkd search --workdir={heard} --lm=none"
  untold = finished(tmp_path / "f", teacher="../a", told=())
  assert not any("search" in step for step in train.next_steps(untold))
  shutil.rmtree(tmp_path / "e"), shutil.rmtree(tmp_path / "f")
  assert train.next_steps(finished(pathlib.Path("d")))[-1] == "jaxkd report ./*"
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  steps = train.next_steps(first)
  assert len(steps) == 3 and steps[-1].endswith("--lm=none")


def test_next_steps_name_a_program_that_is_there(tmp_path, monkeypatch):
  python = tmp_path / ".venv" / "bin" / "python"
  python.parent.mkdir(parents=True)
  monkeypatch.setattr(sys, "executable", str(python))
  monkeypatch.setenv("PATH", str(python.parent))
  monkeypatch.chdir(tmp_path)
  assert line.pasted() == ".venv/bin/python -m jaxkd"
  script = python.with_name("jaxkd")
  script.write_text("#!/bin/sh\n")
  script.chmod(0o755)
  assert line.pasted() == "jaxkd"
  monkeypatch.setattr(sys, "executable", "/other/bin/python")  # another environment's script
  assert line.pasted() == "/other/bin/python -m jaxkd"
