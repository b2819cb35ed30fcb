"""Lines of plots: whose they are, and what is said of rows that have none."""

import json
import pathlib

import pytest

from jaxkd.report import collect, plots, tables
from report_runs import write_run


@pytest.fixture
def drawn(monkeypatch):
  """What a plot draws: label → x of its line, and what its caption must add."""
  figures = []
  monkeypatch.setattr(plots, "save", lambda plt, figure, path: figures.append((plt, figure)))

  def draw(plot, folders):
    rows = tables.make_rows([collect.read(folder) for folder in folders])
    note = plot(tables.compare(rows, None), pathlib.Path("x.png"))
    plt, figure = figures.pop()
    lines = [line for axes in figure.axes for line in axes.lines]
    found = {line.get_label(): list(line.get_xdata()) for line in lines}
    plt.close(figure)
    return {k: v for k, v in found.items() if not k.startswith("_")}, note

  return draw


def test_rows_of_two_teachers_have_lines_of_their_own(tmp_path, drawn):
  more = dict(split_figures={"spike_offsets": {"histogram": [1, 4, 80, 0, 15]}})
  folders = [
    write_run(tmp_path / name, "symmetric", "--config.teacher.source=t", teacher=f"t{name}", **more)
    for name in ("x", "y")
  ]
  folders.append(write_run(tmp_path / "z", "symmetric", "--config.kd.selection.n=4", **more))
  lines, note = drawn(plots.spike_timing, folders)
  assert len(lines) == 3 and not note
  assert [name.partition(" (")[2] for name in lines] == ["x)", "y)", ""]


@pytest.mark.parametrize("plot", [plots.training, plots.blank_runs])
def test_rows_without_room_are_counted(tmp_path, drawn, plot):
  """The teacher has room, and no row without WER has it before one with."""
  blanks = {"blank_runs": [30, 10, 5]}
  write_run(tmp_path / "t", "teacher", errors=40, figures=blanks)
  folders = [
    write_run(
      tmp_path / f"r{n}", "trim", f"--config.kd.scale=0.{n}", errors=n, teacher="t", figures=blanks
    )
    for n in range(10, 22)
  ]
  for path in (folders[0] / "hypotheses").glob("*.student.jsonl"):
    rows = [json.loads(line) | {"reference": None} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  lines, note = drawn(plot, [tmp_path / "t", *folders])
  assert set(lines) == {"teacher", *(f"trim scale 0.{n}" for n in range(11, 20))}
  assert "Of 13 rows 10 are shown" in note and "lowest test WER" in note


def test_other_variants_are_no_points_of_the_symmetric_line(tmp_path, drawn):
  folders = [
    write_run(tmp_path / f"n{n}", "symmetric", f"--config.kd.selection.n={n}") for n in (1, 4)
  ]
  folders += [write_run(tmp_path / v, v) for v in ("elimination", "warmup", "pseudo_labels")]
  name = lambda text: text.split(" ")[0]
  lines, _ = drawn(plots.wer_over_n, folders)
  assert {name(k) for k in lines} == {"symmetric", "warmup", "pseudo_labels"}
