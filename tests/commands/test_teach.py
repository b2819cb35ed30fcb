"""jaxkd teach: the command that it prints."""

import argparse
import shlex

import pytest

from jaxkd.commands import teach
from jaxkd.config import overrides


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
  config, _ = overrides.parse(shlex.split(" ".join(teach.training(args))))
  assert (config.teacher.source, config.data.train) == ("my frames", "my audio")
  assert (config.training.speeds, config.kd.temperature) == (speeds, temperature)
