"""A run's batches are those that it began with."""

import pytest

from jaxkd import config as config_lib
from jaxkd.training import batches
from jaxkd.training.batches import Budget


def training(**changes):
  block = config_lib.base("manifest-medium").training
  block.update(changes)
  return block


@pytest.mark.parametrize(
  ("changes", "wanted"),
  [
    ({}, Budget(180.0, 16, False)),
    ({"row_multiple": 1}, Budget(180.0, 1, False)),
    ({"row_multiple": 8}, Budget(180.0, 8, False)),
    ({"batch_seconds_per_device": 30.0}, Budget(480.0, 16, True)),
  ],
)
def test_what_a_config_asks_for(changes, wanted):
  assert batches.of_config(training(**changes), 16) == wanted


def test_tiny_batches_do_not_depend_on_devices():
  block = config_lib.base("demo").training
  assert batches.of_config(block, 8) == batches.of_config(block, 1)


def test_a_run_goes_on_with_what_it_began_with(caplog, tmp_path):
  caplog.set_level("INFO")
  block = training()
  assert batches.of_run(block, 4, tmp_path) == Budget(180.0, 4, False)
  # Nothing is saved yet: it begins again.
  assert batches.of_run(block, 16, tmp_path) == Budget(180.0, 16, False)
  (tmp_path / "checkpoints/last/7").mkdir(parents=True)
  assert not caplog.records
  assert batches.of_run(block, 8, tmp_path) == Budget(180.0, 16, False)
  assert [r.getMessage() for r in caplog.records] == [
    "goes on with the batches that it began with: 180 s, rows in multiples of 16"
  ]


def test_before_there_was_a_record_batches_did_not_depend_on_devices(tmp_path):
  (tmp_path / "checkpoints/last/7").mkdir(parents=True)
  assert batches.of_run(training(), 8, tmp_path) == Budget(180.0, 1, False)
