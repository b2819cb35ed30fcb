"""What a workdir says of its run."""

import pytest

from jaxkd import workdirs
from jaxkd.errors import UserError


def test_steps_are_those_of_whole_saves(tmp_path):
  assert workdirs.saved_steps(tmp_path) == []
  for name in ("12", "9", "15.orbax-checkpoint-tmp-3", "_CHECKPOINT"):
    (tmp_path / "checkpoints" / "last" / name).mkdir(parents=True)
  assert workdirs.saved_steps(tmp_path) == [9, 12]


def test_a_run_is_finished_with_its_results(tmp_path):
  (tmp_path / "config.json").write_text("{}")
  assert not workdirs.is_finished(tmp_path)
  with pytest.raises(UserError, match="workdir of a finished run [(]no results.json[)]: run it"):
    workdirs.check_finished(tmp_path)
  (tmp_path / "results.json").write_text("{}")
  assert workdirs.is_finished(tmp_path)
  workdirs.check_finished(tmp_path)
