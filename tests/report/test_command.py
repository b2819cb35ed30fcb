"""The commands that a report prints: whether they make the same run."""

import shlex

import pytest

import corpus
from jaxkd.config import overrides
from jaxkd.report import collect, command
from report_runs import config_of, write_run


def test_command_gives_the_config_again(tmp_path):
  """The command is parsed as `main` would: the same config, whatever the flags were."""
  flags = (
    "--config.kd.selection.n=3",
    "--config.training.speeds=(0.9, 1.1)",
    "--config.training.spec_augment=True",
    "--config.seed=5",
  )
  run = collect.read(write_run(tmp_path / "my run", "symmetric", *flags))
  python, dash_m, module, *line = shlex.split(command.command(run))
  assert (python, dash_m, module) == ("python", "-m", "jaxkd.main")
  line = [a.replace("=configs/", f"={corpus.ROOT}/configs/") for a in line]
  config, folder = overrides.parse([module, *line])
  assert config.to_dict() == config_of("symmetric", *flags)
  assert folder == tmp_path / "my run"
  assert sum(a.startswith("--config.") for a in line) == len(flags) + 4  # and four data fields


@pytest.mark.parametrize(
  "flags",
  [
    ("--config.kd.selection.name=keep", "--config.kd.selection.before=2"),
    ("--config.kd.selection.name=nonblank", "--config.kd.selection.prior_scale=0.3"),
    (
      *("--config.student.name=fastconformer", "--config.student.layers=2"),
      *("--config.features.kind=nemo", "--config.features.normalise=none"),
      *("--config.teacher.model.name=huggingface", "--config.teacher.model.source=hubert"),
      "--config.teacher.training.spec_augment=False",
    ),
  ],
)
def test_command_of_another_kind_gives_the_config_again(tmp_path, flags):
  """What the kind or the recipe's size has by itself is not among the flags."""
  run = collect.read(write_run(tmp_path / "run", "symmetric", *flags))
  line = shlex.split(command.command(run))[3:]
  line = [a.replace("=configs/", f"={corpus.ROOT}/configs/") for a in line]
  assert overrides.parse(["main", *line])[0].to_dict() == config_of("symmetric", *flags)
  assert {a for a in line if not a.startswith("--config.data.")} >= set(flags)
  assert sum(a.startswith("--config.") for a in line) == len(flags) + 4
