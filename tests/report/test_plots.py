"""Lines of plots: whose they are, and what is said of rows that have none."""

import json
import pathlib

import numpy as np
import pytest

from jaxkd.report import collect, pictures, plots, tables
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
    draw.figure = figure
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


@pytest.mark.parametrize(
  ("plot", "axis", "least", "scale"),
  [
    (plots.wer, "x", 0, "linear"),
    (plots.wer, "x", 9, "log"),
    *((p, "y", 0, "linear") for p in (plots.wer_over_n, plots.wer_over_scale)),
    *((p, "y", 1, "linear") for p in (plots.wer_over_n, plots.wer_over_scale)),
    *((p, "y", 9, "log") for p in (plots.wer_over_n, plots.wer_over_scale)),
  ],
)
def test_what_is_at_zero_is_on_the_axis(tmp_path, drawn, plot, axis, least, scale):
  """A rate, or the end of an interval or bar, of which a logarithm would show nothing."""
  folders = [
    write_run(
      tmp_path / f"r{place}",
      "symmetric",
      f"--config.kd.selection.n={place // 2}",
      f"--config.kd.scale={1 - place // 2 / 8}",
      f"--config.seed={place % 2}",
      errors=[errors // 40 + (i < errors % 40) for i in range(40)],
    )
    for place, errors in enumerate([least, 10 * least, 20, 20, 160, 160])
  ]
  if least == 9:  # whose bar ends above zero
    folders = [*folders[:1], *folders[2:]]
  drawn(plot, folders)
  assert getattr(drawn.figure.axes[0], f"get_{axis}scale")() == scale


def test_dollars_are_no_formula(tmp_path):
  """In a name, in the title of a panel or as a symbol."""
  row = tables.make_rows([collect.read(write_run(tmp_path / "run", errors=8))])
  (found,) = tables.compare(row, None)
  found |= {"variant": "$\\bad$", "name": "$\\bad$"}
  plots.wer([found], tmp_path / "wer.png")
  plt = plots.library()
  figure, axes = plt.subplots()
  picture = pictures.Picture(("$\\bad$", "-"), 1, 40.0, np.array([[0.9, 0.1]]), None, None)
  pictures._panel(axes, picture, picture.student, {"$\\bad$": "#000000"}, "$\\bad$")
  plots.save(plt, figure, tmp_path / "panel.png")


def test_gaps_are_labelled_with_plain_numbers(tmp_path, drawn):
  """Shares of less than a decade, too, which would have labels between them."""
  folder = write_run(tmp_path / "r", figures={"blank_runs": [30, 20, 25]})
  drawn(plots.blank_runs, [folder])
  drawn.figure.canvas.draw()
  texts = [label.get_text() for label in drawn.figure.axes[0].get_yticklabels(which="both")]
  assert any(texts) and not any("$" in text for text in texts)


@pytest.mark.parametrize("plot", [plots.wer_over_scale, plots.wer_over_n])
def test_lines_without_room_are_counted(tmp_path, drawn, plot):
  """The best of the lines across has room, however bad it is."""
  write_run(tmp_path / "t", "teacher", errors=1)
  folders = [tmp_path / "t"]
  for number in range(12):
    more = f"--config.kd.temperature=1.{number:02}"
    for n, scale in ((1, 0.5), (2, 1.0)):
      flags = f"--config.kd.scale={scale}", f"--config.kd.selection.n={n}", more
      if plot is plots.wer_over_scale:
        flags = flags[0], "--config.kd.selection.n=1", more
      else:
        flags = "--config.kd.scale=1.0", flags[1], more
      folder = tmp_path / f"s{number}-{n}"
      folders.append(write_run(folder, "symmetric", *flags, errors=number + 5, teacher="t"))
  across = "ctc" if plot is plots.wer_over_scale else "standard"
  for number in range(2):
    more = f"--config.training.epochs={20 + number}"
    folders.append(write_run(tmp_path / f"x{number}", across, more, errors=30 + number))
  lines, note = drawn(plot, folders)
  assert len(lines) == 10 and "teacher" in lines
  assert sum(name.startswith(across) for name in lines) == 1
  assert {k for k in lines if "1.07" in k} and not {k for k in lines if "1.08" in k}
  assert " Of 14 students' lines 9 are shown, those of the lowest test WER and the" in note
