"""Reports over workdirs with known numbers, and one over a real run."""

import base64
import csv
import html.parser
import json
import pathlib

import jax
import numpy as np
import pytest
import soundfile
from ml_collections import ConfigDict

import corpus
from jaxkd import files, report, workdirs
from jaxkd.commands import line as command_line
from jaxkd.devices import mesh
from jaxkd.errors import UserError
from jaxkd.labels import characters
from jaxkd.models import kept, parameters, registry
from jaxkd.models.acoustic import AcousticModel
from jaxkd.report import collect, pictures, tables
from report_runs import UTTERANCES, WORDS, references, write_run


@pytest.fixture
def no_models(monkeypatch):
  """Fake runs have no models to draw."""
  missing = "checkpoints/final is not there"
  monkeypatch.setattr(
    "jaxkd.report.pictures.compute", lambda *args: (_ for _ in ()).throw(UserError(missing))
  )


@pytest.fixture
def no_plots(no_models, monkeypatch):
  """They take most of a report's time."""
  monkeypatch.setattr("jaxkd.report.document._PLOTS", ())


def make(tmp_path, folders, **options) -> list[dict]:
  """Rows of report.csv."""
  report.write(folders, tmp_path / "report", **options)
  return table(tmp_path)


def table(tmp_path) -> list[dict]:
  with (tmp_path / "report" / "report.csv").open(newline="", encoding="utf-8") as file:
    return list(csv.DictReader(file))


def numbers(row: dict, *names: str) -> list[float]:
  return [float(row[name]) for name in names]


@pytest.fixture
def grid(tmp_path):
  """A teacher, CTC, standard at two scales, and symmetric n=2 with three seeds and n=1."""
  runs = tmp_path / "runs"
  write_run(runs / "teacher-x", "teacher", errors=1)
  write_run(runs / "ctc", "ctc", errors=20)
  for scale in (0.25, 0.9):
    flag = f"--config.kd.scale={scale}"
    write_run(runs / f"standard-{scale}", "standard", flag, errors=24, teacher="teacher-x")
  for seed, errors in enumerate((8, 10, 12)):
    flag = f"--config.seed={seed}"
    write_run(runs / f"sym-{seed}", "symmetric", flag, errors=errors, teacher="teacher-x")
  one = "--config.kd.selection.n=1"
  write_run(runs / "sym-n1", "symmetric", one, errors=16, teacher="teacher-x", trained_on="more")
  return sorted(runs.iterdir())


def by_name(rows: list[dict]) -> dict[str, dict]:
  return {row["name"]: row for row in rows}


def test_rows_and_numbers(tmp_path, grid, no_plots):
  rows = by_name(make(tmp_path, grid))
  assert set(rows) == {"teacher", "ctc", "standard-0.25", "standard-0.9", "sym-0", "sym-n1"}
  row, total = rows["sym-0"], UTTERANCES * WORDS
  assert (row["seeds"], row["n"], row["scale"]) == ("0 1 2", "2", "1.0")
  assert (row["selection"], row["parameters"]) == ("symmetric", "n = 2")
  rates = np.array([8, 10, 12]) / total
  for split in ("dev", "test"):
    mean, spread, low, high = numbers(
      row, *(f"{split}_wer{k}" for k in ("", "_sd", "_low", "_high"))
    )
    assert mean == pytest.approx(rates.mean()) and spread == pytest.approx(rates.std(ddof=1))
    assert 0 < low < mean < high
  assert numbers(row, "cer", "blank_rate", "selected_rate", "params") == [0.01, 0.5, 0.6, 1.2e6]
  assert float(row["wall_seconds"]) == 120 and row["commit"] == "abcdef0123"
  assert rows["ctc"]["test_wer_sd"] == "" and float(rows["ctc"]["test_wer"]) == 20 / total
  assert rows["ctc"]["selection"] == rows["ctc"]["selected_rate"] == ""
  assert rows["teacher"]["role"] == "teacher" and float(rows["teacher"]["test_wer"]) == 1 / total


@pytest.mark.parametrize(
  ("variant", "name"), [("symmetric", "kd/kl"), ("hypotheses", "hypotheses")]
)
def test_metrics_of_older_runs_have_the_names_of_today(tmp_path, variant, name):
  """They call every distillation loss kd."""
  folder = write_run(tmp_path / "old", variant, errors=1)
  old = [{"step": 1, "epoch": 0, "loss": 2.0, "kd": 2.5, "ctc": 0.5}, {"step": 1, "dev/kl": 1.0}]
  new = [{"step": 2, "epoch": 0, "loss": 1.0, "kd/cosine": 1.5, "ctc": 0.5}]
  rows = "".join(json.dumps(row) + "\n" for row in old + new)
  (folder / "metrics.jsonl").write_text(rows)
  expected = {"step": 1, "epoch": 0, "loss": 2.0, name: 2.5, "ctc": 0.5}
  assert collect.read(folder).metrics == [expected, old[1], *new]


def test_interval_narrows_with_seeds_that_err_apart(tmp_path, no_plots):
  """Utterances are drawn with all seeds' errors: four seeds with other errors average out."""
  apart = [[int(i % 4 == seed) for i in range(UTTERANCES)] for seed in range(4)]
  for seed, errors in enumerate(apart):
    flag = f"--config.seed={seed}"
    write_run(tmp_path / f"runs/apart-{seed}", "symmetric", flag, errors=errors)
  write_run(tmp_path / "runs/alone", "trim", errors=apart[0])
  rows = by_name(make(tmp_path, sorted((tmp_path / "runs").iterdir())))
  # Each utterance has one error in four seeds, so nothing varies between draws.
  assert numbers(rows["symmetric"], "test_wer_low", "test_wer_high") == [1 / 16, 1 / 16]
  low, high = numbers(rows["trim"], "test_wer_low", "test_wer_high")
  assert low < 1 / 16 - 0.02 and high > 1 / 16 + 0.02


def test_p_values(tmp_path, no_plots):
  runs = tmp_path / "runs"
  spread = [int(i % 2 == 0) for i in range(UTTERANCES)]
  write_run(runs / "ctc", "ctc", errors=spread)
  write_run(runs / "same", "trim", errors=spread)
  write_run(runs / "near", "random", errors=[*spread[:-2], 0, 1])
  for seed in range(2):
    flag = f"--config.seed={seed}"
    write_run(runs / f"better-{seed}", "symmetric", flag, errors=[0] * UTTERANCES)
  rows = by_name(make(tmp_path, sorted(runs.iterdir())))
  assert {row["baseline"] for row in rows.values()} == {"ctc"} and rows["ctc"]["p"] == ""
  p = {name: float(row["p"]) for name, row in rows.items() if row["p"]}
  assert p["symmetric"] < 0.01 < 0.3 < p["random"] <= p["trim"] == 1


def test_baseline_can_be_named(tmp_path, grid, no_plots):
  for name, chosen in [("teacher", "teacher"), ("sym-1", "sym-0"), (str(grid[0]), "ctc")]:
    rows = make(tmp_path, grid, baseline=name)
    assert {row["baseline"] for row in rows} == {chosen}
    assert [row["name"] for row in rows if not row["p"]] == [chosen]


@pytest.mark.parametrize(
  ("variants", "chosen"),
  [(("ctc", "standard", "trim"), "ctc"), (("standard", "trim"), "standard"), (("trim",), "")],
)
def test_default_baseline(tmp_path, no_plots, variants, chosen):
  folders = [write_run(tmp_path / f"runs/{v}", v, errors=3) for v in variants]
  assert {row["baseline"] for row in make(tmp_path, folders)} == {chosen}


def test_order_and_marks_of_other_training_data(tmp_path, grid, no_plots):
  rows = make(tmp_path, grid)
  names = [row["name"] for row in rows]
  assert names[:3] == ["teacher", "sym-0", "ctc"] and names[-1] == "sym-n1"
  marked = {row["name"] for row in rows if row["same_train_data"] == "False"}
  assert marked == {"sym-n1"}
  text = (tmp_path / "report" / "report.md").read_text()
  assert "more.jsonl †" in text and "train.jsonl †" not in text and "† trained on other" in text


def test_markdown_table(tmp_path, grid, no_plots):
  make(tmp_path, grid)
  lines = (tmp_path / "report" / "report.md").read_text().splitlines()
  start = next(i for i, line in enumerate(lines) if line.startswith("| \\# |"))
  cells = [[c.strip() for c in line.strip("|").split(" | ")] for line in lines[start : start + 8]]
  assert len({len(row) for row in cells}) == 1 and not lines[start + 8]
  head = {name: place for place, name in enumerate(cells[0])}
  row = next(r for r in cells if "symmetric<br>n = 2" in r)
  assert row[head["test WER %"]].startswith("6.2 ± 1.2<br>") and row[head["seeds"]] == "0 1 2"
  assert row[head["trained on"]] == "train.jsonl<br>1.5 h" and row[head["CER %"]] == "1.0"
  assert row[head["wall time"]] == "2.0 min" and row[head["commit"]] == "abcdef0123"


def test_seeds_group_only_with_their_like(tmp_path):
  flags = [(), ("--config.seed=1",), ("--config.seed=1", "--config.kd.temperature=1.0")]
  runs = [
    collect.read(write_run(tmp_path / f"r{i}", "symmetric", *more)) for i, more in enumerate(flags)
  ]
  other_data = collect.read(write_run(tmp_path / "r3", "symmetric", trained_on="more"))
  found = [[run.name for run in row.runs] for row in tables.make_rows([*runs, other_data])]
  assert found == [["r0", "r1"], ["r2"], ["r3"]]
  figures = tables.compare(tables.make_rows(runs), None)
  assert {f["name"]: f["settings"] for f in figures} == {"r0": "", "r2": "kd.temperature = 1.0"}


def test_copies_of_a_run(tmp_path, no_plots):
  """A folder that is given twice counts once; a copy of it counts, and is said."""
  runs = [write_run(tmp_path / name, errors=4) for name in ("run", "copy")]
  (row,) = make(tmp_path, [runs[0], tmp_path / "copy" / ".." / "run"])
  assert row["seeds"] == "0"
  (row,) = make(tmp_path, runs)
  text = (tmp_path / "report" / "report.md").read_text()
  assert row["seeds"] == "0 0" and "symmetric has a seed more than once" in text


def test_kind_of_labels(tmp_path):
  folders = [write_run(tmp_path / v, v) for v in ("trim", "random")]
  (folders[0] / "labels.json").write_text('{"kind": "phonemes", "symbols": []}')
  rows = tables.make_rows([collect.read(folder) for folder in folders])
  assert {f["name"]: f["labels"] for f in tables.compare(rows, None)} == {
    "trim": "phonemes",
    "random": "characters",
  }


def test_names_of_rows(tmp_path):
  flags = [f"--config.kd.selection.n={n}" for n in range(4)]
  places = ["a/x", "b/x", "a/y", "a/trim"]
  runs = [write_run(tmp_path / p, "symmetric", f) for p, f in zip(places, flags, strict=True)]
  runs += [write_run(tmp_path / "c/t", "trim"), write_run(tmp_path / "c/s", "standard")]
  names = [row.name for row in tables.make_rows([collect.read(run) for run in runs])]
  assert names == [str(runs[0]), str(runs[1]), "y", str(runs[3]), "t", "standard"]
  # A row of a grid is not called by its first seed.
  seeds = [write_run(tmp_path / f"symmetric-n{n}-s0", "symmetric", flags[n]) for n in (1, 2)]
  names = [row.name for row in tables.make_rows([collect.read(run) for run in seeds])]
  assert names == ["symmetric-n1", "symmetric-n2"]


def test_results_that_contradict_hypotheses_are_said(tmp_path, no_plots):
  folder = write_run(tmp_path / "run", errors=8)
  found = json.loads((folder / "results.json").read_text())
  found["test"]["student"]["wer"] = 0.01
  (folder / "results.json").write_text(json.dumps(found))
  (row,) = make(tmp_path, [folder])
  assert float(row["test_wer"]) == 0.05
  text = (tmp_path / "report" / "report.md").read_text()
  assert "test WER is 1.00 % in results.json and 5.00 % by" in text and "dev WER is" not in text


def test_one_process_at_a_time_writes_a_report(tmp_path, monkeypatch):
  out = tmp_path / "report"

  def write(*args):
    with pytest.raises(files.Held), files.locked(out / ".lock"):
      pass
    return out / "report.html"

  monkeypatch.setattr("jaxkd.report.document.write", write)
  report.write([write_run(tmp_path / "run")], out)
  with files.locked(out / ".lock"):
    pass


def without_test(folder: pathlib.Path) -> pathlib.Path:
  """The run, with a dev set of one other utterance and no test data."""
  results = json.loads((folder / "results.json").read_text())
  del results["test"]
  (folder / "results.json").write_text(json.dumps(results))
  row = {"id": "other", "reference": "a b", "hypothesis": "a b"}
  (folder / "hypotheses" / "dev.student.jsonl").write_text(json.dumps(row) + "\n")
  return folder


def test_runs_without_test_data_do_not_decide_what_is_shown(tmp_path, no_plots):
  folders = [without_test(write_run(tmp_path / "a", "trim"))]
  with pytest.raises(UserError, match="--utterance=u is not in the dev set; some that are: other"):
    make(tmp_path, folders, utterance="u")
  folders.append(write_run(tmp_path / "b", "ctc", errors=3))
  assert report._utterance([collect.read(folder) for folder in folders], None) == "u000"
  make(tmp_path, folders, utterance="u007")
  text = (tmp_path / "report" / "report.md").read_text().replace("\\", "")
  assert "test: test.jsonl, 40 utterances, 160 words; dev: dev.jsonl, 1 utterances, 2 words" in text


def test_left_out_folders_are_listed(tmp_path, no_plots):
  runs = tmp_path / "runs"
  write_run(runs / "good")
  (write_run(runs / "running") / "results.json").unlink()
  with (runs / "running" / "metrics.jsonl").open("a") as file:
    file.write('{"step": 70, "epoch": 6, "loss": 0.4}\n{"step": 80, "ep')
  started = write_run(runs / "started")
  for name in ("results.json", "metrics.jsonl"):
    (started / name).unlink()
  (write_run(runs / "damaged") / "results.json").write_text('{"variant": ')
  (write_run(runs / "torn") / "hypotheses" / "test.student.jsonl").write_text("{}\nhello\n")
  (runs / "foreign").mkdir()
  (runs / "foreign" / "config.json").write_text('{"model_type": "hubert"}')
  (runs / "empty").mkdir()
  (runs / "notes.txt").write_text("")
  rows = make(tmp_path, [*sorted(runs.iterdir()), runs / "absent"])
  assert [row["name"] for row in rows] == ["symmetric"]
  text = (tmp_path / "report" / "report.md").read_text().replace("\\", "")
  for folder, reason in {
    "running": "unfinished: step 70, in epoch 7 of 20",
    "started": "unfinished: no update",
    "damaged": "unreadable: .*results.json cannot be read",
    "torn": "unreadable: .*test.student.jsonl, line 2",
    "foreign": "not a workdir: its config.json",
    "empty": "not a workdir: no config.json",
    "notes.txt": "not a folder",
    "absent": "no such folder",
  }.items():
    (line,) = [s for s in text.splitlines() if s.startswith(f"- {runs / folder}: ")]
    for part in reason.split(".*"):
      assert part in line


@pytest.mark.parametrize("other", [references(39), references(seed=1)])
def test_different_test_sets_are_refused(tmp_path, other):
  runs = [write_run(tmp_path / name) for name in ("a", "b")]
  runs.append(write_run(tmp_path / "c", utterances=other))
  with pytest.raises(UserError, match="different test sets") as error:
    report.write(runs, tmp_path / "report")
  text = str(error.value)
  assert f"(40 utterances, 160 words): {runs[0]}, {runs[1]};" in text
  assert f"({len(other)} utterances, {4 * len(other)} words): {runs[2]}:" in text
  assert "\n" not in text and not (tmp_path / "report").exists()


@pytest.mark.parametrize(
  ("options", "words"),
  [
    ({"baseline": "tirm"}, "--baseline=tirm: choose one of symmetric, trim"),
    ({"utterance": "u0400"}, "--utterance=u0400 is not in the test set; .*u040"),
    ({"out": "config.json"}, "--out=.*config.json cannot be written"),
  ],
)
def test_mistakes(tmp_path, options, words):
  runs = [write_run(tmp_path / v, v, utterances=references(60)) for v in ("symmetric", "trim")]
  out = runs[0] / options.pop("out") if "out" in options else tmp_path / "report"
  with pytest.raises(UserError, match=words):
    report.write(runs, out, **options)


def test_no_finished_run(tmp_path):
  folder = write_run(tmp_path / "run")
  (folder / "results.json").unlink()
  with pytest.raises(
    UserError, match=r"no finished run among 2 folders .*run: unfinished: step 40"
  ):
    report.write([folder, tmp_path / "gone"], tmp_path / "report")


def test_missing_matplotlib_is_said(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
  with pytest.raises(UserError, match=r"pip install 'jaxkd\[report\]'"):
    report.write([write_run(tmp_path / "run")], tmp_path / "report")


def test_command_line(tmp_path, grid, no_plots, capsys):
  assert command_line.main(["report", *map(str, grid), f"--out={tmp_path / 'report'}"]) == 0
  assert str(tmp_path / "report" / "report.html") in capsys.readouterr().out
  with pytest.raises(SystemExit, match="0"):
    command_line.main(["report", "--help"])
  assert "usage" in capsys.readouterr().out
  with pytest.raises(UserError, match="--ouch=1: no such flag .*--out.*; see .*--help"):
    command_line.main(["report", "--ouch=1", "runs"])
  with pytest.raises(UserError, match="missing: WORKDIR"):
    command_line.main(["report", "--out=x"])


class Page(html.parser.HTMLParser):
  """What a page refers to, its pictures, and whether its tags are closed in order."""

  VOID = ("meta", "img", "br")

  def __init__(self, text: str):
    super().__init__()
    self.open, self.tags, self.links, self.pictures = [], [], [], []
    self.feed(text)

  def handle_starttag(self, tag, attributes):
    self.tags.append(tag)
    if tag not in self.VOID:
      self.open.append(tag)
    for name, value in attributes:
      if name in ("href", "src"):
        data = value.startswith("data:image/png;base64,")
        (self.pictures if data else self.links).append(value.rpartition(",")[2])

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


def full(tmp_path) -> list[pathlib.Path]:
  """Runs that have everything a report can show but models."""
  runs, folders = tmp_path / "runs", []
  blanks = {"blank_runs": [30, 10, 5, 2, 1]}
  offsets = {"spike_offsets": {"histogram": [1, 4, 80, 0, 15], "same": 0.8}}
  more = dict(teacher="gone", figures=blanks, split_figures=offsets)
  for n in (1, 2):
    for scale in (0.9, 1.0):
      flags = (f"--config.kd.selection.n={n}", f"--config.kd.scale={scale}")
      folders.append(write_run(runs / f"s{n}-{scale}", "symmetric", *flags, errors=9 - n, **more))
  folders.append(write_run(runs / "ctc", "ctc", errors=12, figures=blanks))
  point = {"search": "lexicon_lm", "lm_weight": 1.5, "prior_scale": 0.3, "word_score": 0.0}
  search = {
    "greedy": {"dev": {"wer": 0.06, "cer": 0.02}, "test": {"wer": 0.07, "cer": 0.02}},
    "lexicon_lm": point | {"dev": {"wer": 0.04}, "test": {"wer": 0.05, "cer": 0.015}},
    "grid": [point | {"dev_wer": 0.04}, point | {"lm_weight": 0.5, "dev_wer": 0.055}],
    "rtf": {"acoustic": 0.01, "search": 0.002, "greedy": 0.0001},
  }
  found = {"data": {"test": "test.jsonl"}, "lm": None, "student": search, "teacher": search}
  for folder in folders[:2]:  # of one teacher
    (folder / "search.json").write_text(json.dumps(found))
  return folders


def test_page_and_plots(tmp_path, no_models):
  folders = full(tmp_path)
  out = tmp_path / "report"
  out.mkdir()
  (out / "posteriors.png").write_text("of an earlier report")
  make(tmp_path, folders)
  text = (out / "report.html").read_text()
  page = Page(text)
  assert not page.open and not page.links and "script" not in page.tags
  assert "http" not in text and "@import" not in text and "url(" not in text
  drawn = {p.name for p in out.glob("*.png")}
  assert drawn == {
    *("wer.png", "wer_over_scale.png", "wer_over_n.png", "blank_runs.png"),
    *("spike_timing.png", "training.png", "tuning.png"),
  }
  assert {base64.b64decode(p) for p in page.pictures} == {p.read_bytes() for p in out.glob("*.png")}
  for picture in out.glob("*.png"):
    size = np.frombuffer(picture.read_bytes()[16:24], ">u4")
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n") and (size > 300).all()
  markdown = (out / "report.md").read_text()
  assert all(f"]({name})" in markdown for name in drawn)
  assert "Posteriors of one utterance: " in markdown and "is not there" in markdown


def test_searches_are_shown(tmp_path, no_plots):
  make(tmp_path, full(tmp_path))
  text = (tmp_path / "report" / "report.md").read_text()
  row = "| lexicon + LM | test.jsonl | 1.5 | 0 | 0.3 | 4.0 | 5.0 | 1.5 | 0.0020 | 0.0100 |"
  assert text.count(row) == 3  # two students and their teacher
  points = (tmp_path / "report" / "tuning.csv").read_text().splitlines()
  assert len(points) == 1 + 6
  assert sum(p.endswith("teacher,lexicon_lm,0.5,0.3,0.0,0.055,") for p in points) == 1


def test_what_cannot_be_drawn_is_said(tmp_path, no_models):
  make(tmp_path, [write_run(tmp_path / "run")])
  text = (tmp_path / "report" / "report.md").read_text()
  for reason in ("at least two values of kd", "at least two values of n", "no results.json has"):
    assert reason in text.replace("\\", "")
  assert {p.name for p in (tmp_path / "report").glob("*.png")} == {"wer.png", "training.png"}


def test_hypotheses_select_no_frames(tmp_path):
  row = tables.make_rows([collect.read(write_run(tmp_path / "run", "hypotheses"))])[0]
  assert not row.selects and row.selection == {"name": "hypotheses", "N": 10}
  assert tables.find_baseline([row], None) is None


def give_model(folder: pathlib.Path, seed: int, audio: np.ndarray) -> None:
  """Puts untrained parameters into a workdir; half of the frames of `audio` become blanks."""
  config = ConfigDict(json.loads((folder / "config.json").read_text()))
  vocabulary = characters(config.labels.alphabet)
  model = registry.architecture(config.student, config.features, dtype=config.dtype)
  params = model.first_params(vocabulary)(jax.random.key(seed))
  graphdef = model.structure(len(vocabulary.symbols))[0]
  logits = logits_of(AcousticModel(graphdef, params, vocabulary, model.frame_samples), audio)
  blank = vocabulary.blank_id
  bias = params["head"]["bias"]
  bias[...] += np.eye(logits.shape[-1])[blank] * np.median(
    logits[:, :blank].max(-1) - logits[:, blank]
  )
  parameters.save_params(folder / kept.FINAL, params)
  vocabulary.save(folder / workdirs.LABELS)


def logits_of(model, audio: np.ndarray) -> np.ndarray:
  """f32[T, V]."""
  return np.asarray(model(audio[None], np.array([len(audio)], np.int32)).logits[0])


@pytest.mark.slow
@pytest.mark.usefixtures("quick_to_compile")
def test_posteriors(tmp_path):
  """What is drawn is what both models say of the audio, and what the run's selection selects."""
  manifest = corpus.make_split(tmp_path, "test", 3)
  rows = [json.loads(line) for line in manifest.read_text().splitlines()]
  texts = {row["audio_filepath"]: row["text"] for row in rows}
  utterance = max(rows, key=lambda row: row["duration"])["audio_filepath"]
  audio = soundfile.read(tmp_path / utterance, dtype="float32")[0]
  flags = [*corpus.TINY, f"--config.data.test={manifest}", "--config.kd.selection.n=1"]
  teacher = write_run(tmp_path / "teacher", "teacher", *flags[:-1], utterances=texts)
  folder = write_run(tmp_path / "run", "symmetric", *flags, utterances=texts, teacher="teacher")
  for seed, place in enumerate((folder, teacher)):
    give_model(place, seed, audio)
  found = pictures.compute(collect.read(folder), utterance)
  for name, place in [("student", folder), ("teacher", teacher)]:
    model = kept.read(place).load(mesh.make_mesh())
    spoken = jax.nn.softmax(logits_of(model, audio))
    np.testing.assert_allclose(getattr(found, name), spoken, atol=1e-3)
  assert found.frame_ms == 40 and found.student.shape == (len(audio) // 640, len(found.symbols))
  label_frames = found.teacher.argmax(-1) != found.blank_id
  near = np.convolve(label_frames, np.ones(3), "same") > 0
  assert 0 < label_frames.sum() < near.sum()
  np.testing.assert_array_equal(found.selected, near)
  make(tmp_path, [folder], utterance=utterance)
  picture = (tmp_path / "report" / "posteriors.png").read_bytes()
  assert base64.b64encode(picture).decode() in (tmp_path / "report" / "report.html").read_text()
