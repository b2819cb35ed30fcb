"""jaxkd teach: the command that it prints, and flags that would do nothing."""

import argparse
import shlex

import pytest

from jaxkd.commands import line, teach
from jaxkd.config import overrides
from jaxkd.errors import UserError


@pytest.mark.parametrize(
  "given, speeds, temperature",
  [
    ([], (1.0,), 2.0),
    (["--speeds=0.9,1,1.1", "--temperature=1"], (0.9, 1.0, 1.1), 1.0),
    (["--speeds=1.05"], (1.05,), 2.0),
  ],
)
def test_training_from_the_store_asks_for_what_it_has(given, speeds, temperature):
  parser = argparse.ArgumentParser()
  teach.add_arguments(parser)
  args = parser.parse_args(["--teacher=t", "--data=my audio", "--out=my frames", *given])
  config, _ = overrides.parse(shlex.split(" ".join(teach.training(teach.complete(args)))))
  assert (config.teacher.source, config.data.train) == ("my frames", "my audio")
  assert (config.training.speeds, config.kd.temperature) == (speeds, temperature)


WRITING = ("--speeds=0.9", "--temperature=2", "--top=0", "--dtype=float16", "--workers=0")
HEARING = ("--root=x", "--max_seconds=40", "--pool=2", "--language=eng", "--arithmetic=float32")


@pytest.mark.parametrize("flag", HEARING)
def test_what_verify_would_ignore_is_refused(flag):
  words = f"{flag.partition('=')[0]}: --verify=STORE reads that with --teacher and --data alone"
  with pytest.raises(UserError, match=f"^{words}$"):
    line.main(["teach", "--verify=gone", flag])


@pytest.mark.parametrize("again", [[], ["--teacher=t", "--data=d"]])
@pytest.mark.parametrize("flag", WRITING)
def test_what_writing_alone_reads_is_refused(flag, again):
  words = f"{flag.partition('=')[0]}: --verify=STORE does not read that: leave it out"
  with pytest.raises(UserError, match=f"^{words}$"):
    line.main(["teach", "--verify=gone", flag, *again])


@pytest.mark.parametrize("flag", HEARING)
def test_what_hearing_again_reads_is_taken(flag):
  with pytest.raises(UserError, match="gone"):
    line.main(["teach", "--verify=gone", "--teacher=t", "--data=d", flag])


def test_the_help_has_the_defaults(capsys):
  with pytest.raises(SystemExit):
    line.main(["teach", "--help"])
  told = " ".join(capsys.readouterr().out.split())
  for words in ("others left out (default 40.0)", "is played at (default 1)", "(default 2.0)"):
    assert words in told
  assert "(default float16)" in told and "(default float32)" in told
