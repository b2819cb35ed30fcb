"""Figures of all rows → the files of a report."""

import csv
import pathlib

from jaxkd import buckets, console
from jaxkd.inference.search.settings import KINDS
from jaxkd.report import claims, error_kinds, pictures, plots, render, tables
from jaxkd.report.collect import LeftOut
from jaxkd.report.render import Picture, Section, Table
from jaxkd.report.tables import Row

_PICTURED = 4  # rows whose posteriors are drawn
_TITLE = "CTC knowledge distillation: comparison of runs"
# File, heading, caption and what draws it.
_PLOTS = (
  (
    "wer.png",
    "Word error rates",
    "WER of every row and its 95 % bootstrap interval over utterances; small strokes are single "
    "seeds. Open circles were trained on other data than the baseline.",
    plots.wer,
  ),
  (
    "wer_over_scale.png",
    "WER over scale",
    "WER over the weight of distillation for each pattern; bars are the standard deviation of "
    "seeds. Open points with a dotted line were trained on other data than the baseline.",
    plots.wer_over_scale,
  ),
  (
    "wer_over_n.png",
    "WER over n",
    "WER over the number of neighbours of symmetric selection; bars are the standard deviation of "
    "seeds. Lines across: the teacher, and distillation of all frames. Open points with a dotted "
    "line were trained on other data than the baseline.",
    plots.wer_over_n,
  ),
  (
    "blank_runs.png",
    "Blanks between labels",
    "How many blank frames lie between two labels on the best path; the last bin is open.",
    plots.blank_runs,
  ),
  (
    "spike_timing.png",
    "Timing of labels",
    "How many frames after the teacher a student places a label, both aligned to the same text.",
    plots.spike_timing,
  ),
  (
    "training.png",
    "Training",
    "Training loss and dev WER over batches, a line for each seed. Losses of different scales "
    "have different terms and do not compare.",
    plots.training,
  ),
  (
    "tuning.png",
    "Tuning of the search",
    "Dev WER in % over language model weight and prior scale, of several word scores the best; "
    "bold is the minimum. All points are in tuning.csv.",
    plots.tuning,
  ),
)
_SEARCH = (
  "Weights were tuned on dev and then fixed for test. RTF: seconds of computing for a second of "
  "audio, of the search and of the acoustic model before it."
)
_POSTERIORS = "posteriors.png"
_TUNING = "tuning.csv"


def write(
  found: list[dict],
  left_out: list[LeftOut],
  baseline: Row | None,
  utterance: str | None,
  judged: list[claims.Finding],
  out: pathlib.Path,
) -> pathlib.Path:
  """Writes every file of the report and returns the HTML one.

  Args:
    found: of `tables.compare`.
    left_out: folders that are in no row.
    baseline: what p values compare with, or None.
    utterance: whose posteriors are drawn; None for none.
    judged: claims with what the runs say.
    out: an existing folder.
  """
  for name in (*(p[0] for p in _PLOTS), _POSTERIORS, _TUNING):
    (out / name).unlink(missing_ok=True)
  _write_csv(out / "report.csv", found)
  sections = [
    Section(
      "Results", [*_introduction(found, baseline), main_table(found), *_notes(found, baseline)]
    )
  ]
  sections += claims.section(judged) + _left_out(left_out)
  if searched := _search_table(found):
    sections.append(Section("Search", [_SEARCH, searched]))
    _write_tuning(out / _TUNING, found)
  sections += error_kinds.section(f["row"] for f in found)
  missing = []
  with console.progress("plots", len(_PLOTS)) as update:
    for file, title, caption, draw in _PLOTS:
      try:
        more = draw(found, out / file)
        sections.append(Section(title, [Picture(file, caption + more)]))
      except plots.NotDrawn as reason:
        missing.append(f"{title}: {reason}")
      update()
  pictured, why = _posteriors(found, utterance, out)
  sections += pictured
  missing += why
  if missing:
    sections.append(Section("Not drawn", [missing]))
  said = buckets.shown(render.markdown(_TITLE, sections))
  (out / "report.md").write_text(said, encoding="utf-8")
  page = out / "report.html"
  page.write_text(buckets.shown(render.page(_TITLE, sections, out)), encoding="utf-8")
  return page


def _introduction(found: list[dict], baseline: Row | None) -> list[str]:
  facts = []
  for split in ("test", "dev"):
    rows = [(f["row"], run) for f in found for run in f["row"].runs]
    having = [(row, run) for row, run in rows if (split, "student") in run.hypotheses]
    if having:
      # A teacher of its own workdir may have been evaluated on other data than its students.
      row, run = min(having, key=lambda h: (split not in h[0].errors, h[0].role == "teacher"))
      name = run.results[split].get("name", split)
      words = row.errors[split][1].sum() if split in row.errors else 0
      utterances = len(run.hypotheses[split, "student"])
      facts.append(f"{split}: {name}, {utterances} utterances, {words} words")
  runs = sum(len(f["row"].runs) for f in found if f["role"] == "student")
  students = sum(f["role"] == "student" for f in found)
  facts.append(f"{runs} runs in {students} rows")
  against = (
    f"p: two-sided paired bootstrap against {baseline.name} (in bold), on the same utterances and "
    "not corrected for the number of rows."
    if baseline
    else "No baseline among the rows, so no p."
  )
  return [
    "; ".join(facts) + ".",
    "Error rates in %: mean over seeds ± their standard deviation; below, the 95 % bootstrap "
    "interval over utterances. Utterances are drawn, and with each its errors in all seeds of the "
    f"row together, so the interval holds for these seeds. {against}",
  ]


def main_table(found: list[dict]) -> Table:
  """The one table: a row for each teacher and each group of seeds."""
  settings = any(f["settings"] for f in found)
  head = ["#", "variant", "selection", "scale", *(["settings"] if settings else [])]
  head += [
    "trained on",
    "labels",
    "seeds",
    "parameters",
    "dev WER %",
    "test WER %",
    "p",
    "CER %",
  ]
  head += ["blank rate", "selected", "wall time", "commit"]
  rows = []
  for number, f in enumerate(found, 1):
    rows.append(
      [
        str(number),
        f["variant"] if f["role"] == "student" else f["name"],
        _selection(f),
        "" if f["scale"] is None else f"{f['scale']:g}",
        *([f["settings"].replace(", ", "\n")] if settings else []),
        _train(f),
        f["labels"] or "",
        f["seeds"],
        "" if f["params"] is None else f"{f['params'] / 1e6:.3g} M",
        _wer(f, "dev"),
        _wer(f, "test"),
        _p(f["p"]),
        _percent(f["cer"]),
        _number(f["blank_rate"], "{:.3f}"),
        _number(f["selected_rate"], "{:.3f}"),
        _duration(f["wall_seconds"]),
        (f["commit"] or "").replace(" ", "\n"),
      ]
    )
  marked = tuple(i for i, f in enumerate(found) if f["name"] == f["baseline"])
  return Table(head, rows, [f["command"] for f in found], "command", marked)


def _selection(f: dict) -> str:
  return (
    "" if f["selection"] is None else "\n".join([f["selection"], *filter(None, [f["parameters"]])])
  )


def _train(f: dict) -> str:
  if f["train_data"] is None:
    return ""
  mark = "" if f["same_train_data"] or f["role"] == "teacher" else " †"
  return f"{f['train_data']}{mark}\n{f['train_hours']:.3g} h"


def _wer(f: dict, split: str) -> str:
  if f[f"{split}_wer"] is None:
    return ""
  spread = f[f"{split}_wer_sd"]
  mean = _percent(f[f"{split}_wer"]) + ("" if spread is None else f" ± {100 * spread:.1f}")
  return f"{mean}\n{_percent(f[f'{split}_wer_low'])} to {_percent(f[f'{split}_wer_high'])}"


def _p(p: float | None) -> str:
  return "" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _percent(rate: float | None) -> str:
  return "" if rate is None else f"{100 * rate:.1f}"


def _number(value: float | None, form: str) -> str:
  return "" if value is None else form.format(value)


def _duration(seconds: float | None) -> str:
  if seconds is None:
    return ""
  return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _notes(found: list[dict], baseline: Row | None) -> list:
  """What one must know to compare the rows."""
  rows = [f["row"] for f in found]
  notes = tables.disagreements(rows) + tables.repeated(rows)
  students = [f for f in found if f["role"] == "student"]
  if any(not f["same_train_data"] for f in students):
    than = f"{baseline.name}, the baseline" if baseline else students[0]["name"]
    notes.append(
      f"† trained on other data than {than}: the rows do not differ in the variant alone."
    )
  if len({run.split_set("dev") for f in students for run in f["row"].runs}) > 1:
    notes.append("The runs have different dev sets: dev WERs do not compare.")
  tested = ["test" in f["row"].errors for f in students]
  if any(tested) and not all(tested):
    notes.append("Rows without test WER have no transcribed test data.")
  if any(len(f["row"].runs) > 1 for f in students):
    notes.append(
      "Wall times are means over the seeds of a row; a teacher's is not in its students'."
    )
  return [notes] if notes else []


def _left_out(left_out: list[LeftOut]) -> list[Section]:
  if not left_out:
    return []
  return [Section("Not in the table", [[f"{f.folder}: {f.reason}" for f in left_out]])]


def _search_table(found: list[dict]) -> Table | None:
  """Error rates of every search that was tried, and what it was tuned to."""
  head = ["model", "search", "of", "LM weight", "word score", "prior scale"]
  head += ["dev WER %", "test WER %", "test CER %", "RTF search", "RTF acoustic"]
  rows = []
  for title, block, run, _ in plots.searched(found):
    speed = block.get("rtf") or {}
    for kind in (k for k in KINDS if k in block):
      row = block[kind]
      dev, test = row.get("dev") or {}, row.get("test") or {}
      timed = speed.get(KINDS[kind].timed)
      rows.append(
        [
          f"{title}\n{run.folder}",
          KINDS[kind].title,
          ", ".join((run.search.get("data") or {}).values()),
          *(_number(row.get(k), "{:g}") for k in ("lm_weight", "word_score", "prior_scale")),
          *(_percent(x) for x in (dev.get("wer"), test.get("wer"), test.get("cer"))),
          _number(timed, "{:.4f}"),
          _number(speed.get("acoustic"), "{:.4f}"),
        ]
      )
  return Table(head, rows) if rows else None


def _write_tuning(path: pathlib.Path, found: list[dict]) -> None:
  """Every point of every grid."""
  fields = ("search", "lm_weight", "prior_scale", "word_score", "dev_wer", "dev_cer")
  rows = [
    [buckets.name(run.folder), model, *(point.get(k) for k in fields)]
    for _, block, run, model in plots.searched(found)
    for point in block.get("grid") or ()
  ]
  if rows:
    with path.open("w", newline="", encoding="utf-8") as file:
      csv.writer(file).writerows([["run", "model", *fields], *rows])


def _posteriors(found: list[dict], utterance: str | None, out: pathlib.Path):
  """Section and reasons of the picture of one utterance: the best row of each variant."""
  title = "Posteriors of one utterance"
  best: dict[str, dict] = {}
  for f in found:
    if f["role"] == "student":
      best.setdefault(f["variant"], f)
  wer = lambda f: next((f[k] for k in ("test_wer", "dev_wer") if f[k] is not None), 1.0)
  chosen = sorted(best.values(), key=wer)[:_PICTURED]
  if utterance is None or not chosen:
    return [], [f"{title}: no student that was evaluated"]
  why, failed = pictures.draw(chosen, utterance, out / _POSTERIORS)
  if why:
    return [], [f"{title}: {why}"]
  caption = (
    f"{utterance}: probability of the blank and of the labels in every frame, teacher and student; "
    "shaded are the frames that carry the run's distillation loss in its last epoch (at random: "
    "one draw). The best row of each variant, its first seed."
  )
  return [Section(title, [Picture(_POSTERIORS, caption)])], [f"{title}: {f}" for f in failed]


def _write_csv(path: pathlib.Path, found: list[dict]) -> None:
  """All figures, unrounded; rates as fractions, as in results.json."""
  rows = [{k: v for k, v in f.items() if k != "row"} for f in found]
  with path.open("w", newline="", encoding="utf-8") as file:
    writer = csv.DictWriter(file, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
