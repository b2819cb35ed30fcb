"""Which runs are rows, and which row others are compared with."""

import json

import numpy as np
import pytest

from jaxkd.report import collect, tables
from report_runs import references, write_run


def rows_of(*folders):
  return tables.make_rows([collect.read(folder) for folder in folders])


def test_ctc_alone_has_no_second_view_and_no_teacher_in_any_epoch(tmp_path):
  more = {
    "a-views": ("consistency", "--config.kd.consistency=0.2"),
    "b-ramp": ("standard", "--config.kd.scale=0.0", "--config.kd.scale_ramp=(1.0, 3)"),
  }
  folders = [write_run(tmp_path / name, *given) for name, given in more.items()]
  rows = rows_of(*folders, write_run(tmp_path / "ctc", "ctc"))
  assert [row.name for row in rows] == ["consistency", "standard", "ctc"]
  assert [row.selects for row in rows] == [False, True, False]
  assert tables.find_baseline(rows, None).name == "ctc"


def test_a_run_that_goes_on_for_more_epochs_is_unfinished(tmp_path):
  folder = write_run(tmp_path / "run", figures={})
  config, results = (json.loads((folder / f"{n}.json").read_text()) for n in ("config", "results"))
  results["epochs"] = config["training"]["epochs"]
  (folder / "results.json").write_text(json.dumps(results))
  assert isinstance(collect.read(folder), collect.Run)
  config["training"]["epochs"] += 1
  (folder / "config.json").write_text(json.dumps(config))
  assert "unfinished" in collect.read(folder).reason


@pytest.mark.parametrize("name", ["results", "data", "labels", "search"])
def test_a_file_that_holds_something_else_costs_its_row_alone(tmp_path, name):
  folder = write_run(tmp_path / "run")
  (folder / f"{name}.json").write_text("[]")
  found = collect.read(folder)
  assert isinstance(found, collect.LeftOut) and f"{name}.json must hold" in found.reason


def test_other_dev_sets_of_one_size_have_no_p(tmp_path):
  """Without test data."""
  folders = [
    write_run(tmp_path / name, variant, errors=9, utterances=references(seed=seed))
    for name, variant, seed in (("ctc", "ctc", 0), ("other", "standard", 1))
  ]
  for folder in folders:
    results = json.loads((folder / "results.json").read_text())
    del results["test"]
    (folder / "results.json").write_text(json.dumps(results))
  one, other = rows_of(*folders)
  assert np.array_equal(one.errors["dev"][1], other.errors["dev"][1])  # as many words in each
  (p,) = [row["p"] for row in tables.compare([one, other], one) if row["row"] is other]
  assert p is None
