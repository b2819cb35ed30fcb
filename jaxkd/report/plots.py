"""The plots of a report, by matplotlib: colour-blind safe, without a screen.

Each is drawn of the rows of `tables.compare` into a file, and returns what its caption must say of
rows that have no place in it, "" where all have one. It raises `NotDrawn` where there is nothing.
"""

import collections
import pathlib

import numpy as np

from jaxkd.errors import UserError
from jaxkd.report.collect import MODELS

# Okabe and Ito's colours; the yellow is too light for lines on white. Black is the teacher.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F4FC9")
_LINES = ("-", "--", ":", "-.")
_MARKERS = "osD^vP"
TEACHER = "#000000"
_RULER = "#777777"
_CROWD = 10  # lines that a plot can hold, those of teachers with them
_TEACHERS = 2
_PANELS = 4  # of tuning
_FRAME_MS = 40.0  # of results that do not say: those of versions that had no others


class NotDrawn(Exception):
  """There is nothing to draw; the message says why."""


def library():
  """matplotlib.pyplot, drawing to files.

  Raises:
    UserError: it is not installed.
  """
  try:
    import matplotlib
  except ImportError as error:
    raise UserError(
      "the plots of a report are drawn with matplotlib: pip install 'jaxkd[report]'"
    ) from error
  matplotlib.use("Agg")
  import matplotlib.pyplot as plt

  plt.rcParams.update(
    {
      "figure.dpi": 110,
      "savefig.dpi": 110,
      "font.size": 10,
      "axes.spines.top": False,
      "axes.spines.right": False,
      "axes.grid": True,
      "grid.color": "#e4e4e4",
      "axes.axisbelow": True,
      "legend.frameon": False,
      "figure.constrained_layout.use": True,
      "text.parse_math": False,  # two dollars in a name or symbol are no formula
    }
  )
  return plt


def label(figures: dict) -> str:
  """What a row is called in plots: variant, selection's parameters, other settings, scale."""
  teacher = figures["role"] == "teacher"
  parts = [figures["name"] if teacher else figures["variant"]]
  parts += [figures["parameters"].replace(" = ", "=")] if figures["parameters"] else []
  parts += [figures["settings"].replace(" = ", "=")] if figures["settings"] else []
  if figures["scale"]:
    parts.append(f"scale {figures['scale']:g}")
  return " ".join(parts) + ("" if figures["same_train_data"] or teacher else " †")


def labels(found: list[dict]) -> dict[str, str]:
  """Row's name → what it is called in plots; its name stands behind where others are called so."""
  called = {f["name"]: label(f) for f in found}
  counts = collections.Counter(called.values())
  return {
    k: text if counts[text] == 1 or text == k else f"{text} ({k})" for k, text in called.items()
  }


def _styles(found: list[dict], name=lambda f: f["name"]) -> dict[str, tuple[str, str, str]]:
  """Name → colour, line style and marker."""
  styles: dict[str, tuple[str, str, str]] = {}
  for figures in found:
    if (key := name(figures)) not in styles:
      i, n = len(styles), len(COLOURS)
      styles[key] = COLOURS[i % n], _LINES[i // n % len(_LINES)], _MARKERS[i % len(_MARKERS)]
  return styles


def _split(found: list[dict]) -> str:
  return "test" if any(f["test_wer"] is not None for f in found) else "dev"


def _students(found: list[dict], key: str | None = None) -> list[dict]:
  key = key or f"{_split(found)}_wer"
  return [f for f in found if f["role"] == "student" and f[key] is not None]


def save(plt, figure, path: pathlib.Path) -> None:
  """Writes a figure, the same bytes each time, and frees it."""
  figure.savefig(path, metadata={"Software": None})
  plt.close(figure)


def _wer_axis(axes, values, split: str, axis: str = "y") -> None:
  """Logarithmic where one collapsed run would squeeze the others, and nothing drawn is at 0."""
  text = f"{split} WER / %"
  lowest = min(getattr(axes.dataLim, f"interval{axis}"))
  if lowest > 0 and max(values) > 6 * min(values):
    _logarithmic(axes, axis)
    text += " (logarithmic)"
  getattr(axes, f"set_{axis}label")(text)


def _logarithmic(axes, axis: str = "y") -> None:
  """With plain numbers at 1, 2, 5, 10, …"""
  from matplotlib import ticker

  getattr(axes, f"set_{axis}scale")("log")
  ruler = getattr(axes, f"{axis}axis")
  ruler.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
  ruler.set_major_formatter(ticker.FormatStrFormatter("%g"))
  ruler.set_minor_formatter(ticker.NullFormatter())


def wer(found: list[dict], path: pathlib.Path) -> str:
  """WER of every row with its interval."""
  split = _split(found)
  rows = [f for f in found if f[f"{split}_wer"] is not None]
  if not rows:
    raise NotDrawn("no split is transcribed")
  plt = library()
  figure, axes = plt.subplots(figsize=(8, 1.3 + 0.34 * len(rows)))
  variants = _styles([f for f in rows if f["role"] == "student"], lambda f: f["variant"])
  for place, f in enumerate(rows):
    mean, low, high = (100 * f[f"{split}_{k}"] for k in ("wer", "wer_low", "wer_high"))
    colour = TEACHER if f["role"] == "teacher" else variants[f["variant"]][0]
    axes.plot([low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt")
    filled = colour if f["role"] == "teacher" or f["same_train_data"] else "white"
    axes.plot(mean, place, "o", color=colour, markerfacecolor=filled, markersize=7)
    if len(f["row"].models) > 1:
      rates = 100 * f["row"].rates(split)
      axes.plot(rates, [place + 0.28] * len(rates), "|", color=colour, markersize=6)
  called = labels(found)
  axes.set_yticks(range(len(rows)), [called[f["name"]] for f in rows])
  axes.set_ylim(len(rows) - 0.4, -0.6)
  axes.grid(axis="y", visible=False)
  ends = [100 * f[f"{split}_{k}"] for f in rows for k in ("wer_low", "wer_high", "wer")]
  _wer_axis(axes, ends, split, axis="x")
  save(plt, figure, path)
  return ""


def _lines(axes, found: list[dict], x, name, split: str) -> list[float]:
  """WER over x(figures): a colour for each name, error bars of seeds; returns the values.

  Points of the baseline's training data are joined, those of other data are open, with a dotted
  line to them.
  """
  values = []
  found = sorted(found, key=name)
  for key, (colour, line, marker) in _styles(found, name).items():
    points = sorted((f for f in found if name(f) == key), key=x)
    whole = [f for f in points if f["same_train_data"]]
    place = lambda members: ([x(f) for f in members], [100 * f[f"{split}_wer"] for f in members])
    axes.plot(*place(points), color=colour, linestyle=":", linewidth=1)
    axes.plot(*place(whole), color=colour, linestyle=line)
    for f in points:
      filled = colour if f["same_train_data"] else "white"
      axes.errorbar(
        *place([f]),
        yerr=100 * (f[f"{split}_wer_sd"] or 0) or None,
        color=colour,
        marker=marker,
        markerfacecolor=filled,
        capsize=3,
      )
    axes.plot([], [], color=colour, linestyle=line, marker=marker, label=key)
    values += place(points)[1]
  return values


def _rulers(axes, found: list[dict], split: str) -> list[float]:
  """Horizontal lines of the teachers and of standard distillation or CTC; returns their values."""
  values, called = [], labels(found)
  for number, f in enumerate(found):
    value = 100 * f[f"{split}_wer"]
    teacher = f["role"] == "teacher"
    colour, line = (TEACHER, "-") if teacher else (_RULER, _LINES[1 + number % 3])
    axes.axhline(value, linewidth=1, label=called[f["name"]], color=colour, linestyle=line)
    values.append(value)
  return values


def _legend(axes) -> None:
  axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)


def wer_over_scale(found: list[dict], path: pathlib.Path) -> str:
  """WER over the distillation scale, a line for each pattern."""
  split = _split(found)
  rows = _students(found)
  distilled = [f for f in rows if f["row"].distils]
  if len({f["scale"] for f in rows}) < 2 or not distilled:
    raise NotDrawn("it needs runs with at least two values of kd.scale")
  plt = library()
  figure, axes = plt.subplots(figsize=(8, 4.5))
  pattern = lambda f: label(f | {"scale": None, "same_train_data": True})
  alone = [f for f in rows if not f["row"].distils]
  teachers, note = _teachers(found, split)
  distilled, alone, more = _best_lines(distilled, pattern, alone, split, len(teachers))
  values = _lines(axes, distilled, lambda f: f["scale"], pattern, split)
  values += _rulers(axes, teachers + alone, split)
  for f in alone:
    axes.plot(0, 100 * f[f"{split}_wer"], "o", color=_RULER)
  axes.set_xlabel("weight of distillation, kd.scale (CTC gets the rest)")
  axes.set_xticks(sorted({f["scale"] for f in distilled + alone}))
  _wer_axis(axes, values, split)
  _legend(axes)
  save(plt, figure, path)
  return note + more


def _best_lines(points: list[dict], name, across: list[dict], split: str, taken: int):
  """The points and rows across of the lines that one plot can hold; what to say of the others.

  Args:
    points: figures of rows, a line for each `name`.
    name: figures → what their line is called.
    across: rows that are a line each; the best of them always has room, to compare with.
    split: whose WER says which are best.
    taken: lines that there are besides.
  """
  best: dict[tuple, float] = {}
  of_point, of_row = lambda f: ("line", name(f)), lambda f: ("row", f["name"])
  for key, f in [*((of_point(f), f) for f in points), *((of_row(f), f) for f in across)]:
    best[key] = min(best.get(key, np.inf), f[f"{split}_wer"])
  room = _CROWD - taken
  if len(best) <= room:
    return points, across, ""
  first = min((of_row(f) for f in across), key=best.get, default=None)
  kept = sorted(best, key=lambda key: (key != first, best[key]))[:room]
  note = f" Of {len(best)} students' lines {room} are shown, those of the lowest {split} WER"
  note += " and the best across." if first else "."
  return [f for f in points if of_point(f) in kept], [f for f in across if of_row(f) in kept], note


def _teachers(found: list[dict], split: str) -> tuple[list[dict], str]:
  """The teachers that lines across are of, and what to say of others."""
  rows = [f for f in found if f["role"] == "teacher" and f[f"{split}_wer"] is not None]
  note = f" {_TEACHERS} of {len(rows)} teachers are shown." if len(rows) > _TEACHERS else ""
  return rows[:_TEACHERS], note


def wer_over_n(found: list[dict], path: pathlib.Path) -> str:
  """WER over the neighbours of symmetric selection; blank elimination is n = 0."""
  split = _split(found)
  plain = lambda f: f["selection"] == "nonblank" and not f["row"].selection.get("prior_scale")
  rows = [f | {"n": 0} if plain(f) else f for f in _students(found)]
  rows = [f for f in rows if f["n"] is not None]
  if len({f["n"] for f in rows}) < 2:
    raise NotDrawn(
      "it needs symmetric runs with at least two values of n (elimination counts as n = 0)"
    )
  plt = library()
  figure, axes = plt.subplots(figsize=(8, 4.5))
  same = lambda f: "symmetric" if f["variant"] == "elimination" else f["variant"]
  name = lambda f: label(f | {"parameters": "", "variant": same(f), "same_train_data": True})
  everything = [f for f in _students(found) if f["selection"] == "all_frames"]
  teachers, note = _teachers(found, split)
  rows, everything, more = _best_lines(rows, name, everything, split, len(teachers))
  values = _lines(axes, rows, lambda f: f["n"], name, split)
  values += _rulers(axes, teachers + everything, split)
  axes.set_xlabel("neighbours n on each side of a label frame, frames (0: blank elimination)")
  axes.set_xticks(sorted({f["n"] for f in rows}))
  _wer_axis(axes, values, split)
  _legend(axes)
  save(plt, figure, path)
  return note + more


def _crowd(found: list[dict]) -> tuple[list[dict], str]:
  """The rows that one plot can hold, teachers and the best students; what to say of the others."""
  if len(found) <= _CROWD:
    return found, ""
  wer = f"{_split(found)}_wer"
  place = lambda f: (f["role"] != "teacher", f[wer] is None, f[wer])
  ranked = sorted(found, key=place)
  teachers = [f for f in ranked if f["role"] == "teacher"][:_TEACHERS]
  students = [f for f in ranked if f["role"] == "student"][: _CROWD - len(teachers)]
  kept = {f["name"] for f in teachers + students}
  note = (
    f" Of {len(found)} rows {len(kept)} are shown: teachers, and the students of the lowest "
    f"{wer.removesuffix('_wer')} WER."
  )
  return [f for f in found if f["name"] in kept], note


def training(found: list[dict], path: pathlib.Path) -> str:
  """Loss and dev WER over updates, a line for each seed."""
  rows, note = _crowd([f for f in found if any(run.metrics for run in f["row"].runs)])
  if not rows:
    raise NotDrawn("no run has a metrics.jsonl")
  plt = library()
  figure, panels = plt.subplots(2, 1, figsize=(8, 6.5), sharex=True)
  called, styles = labels(found), _styles([f for f in rows if f["role"] == "student"])
  for f in rows:
    colour, line, _ = (TEACHER, "-", "") if f["role"] == "teacher" else styles[f["name"]]
    for number, run in enumerate(f["row"].runs):
      for axes, field, unit in zip(panels, ("loss", "dev/wer"), (1, 100), strict=True):
        points = [(r["step"], unit * r[field]) for r in run.metrics if r.get(field) is not None]
        name = None if number else called[f["name"]]
        if points:
          axes.plot(
            *zip(*points, strict=True), color=colour, linestyle=line, linewidth=1.2, label=name
          )
  for axes in panels:
    _logarithmic(axes)
  panels[0].set_ylabel("training loss (logarithmic)")
  panels[1].set_ylabel("dev WER / % (logarithmic)")
  panels[1].set_xlabel("batches")
  _legend(panels[0])
  save(plt, figure, path)
  return note


def blank_runs(found: list[dict], path: pathlib.Path) -> str:
  """How long the blanks between labels are, teachers and students."""
  split, shares = _split(found), []
  for f in found:
    counts = [_at(m.figures, split, "blank_runs") for m in f["row"].models]
    counts = [np.asarray(c, float) for c in counts if c]
    if counts and sum(c.sum() for c in counts):
      size = min(map(len, counts))
      total = sum(c[:size] for c in counts)
      ms = _at(f["row"].models[0].figures, split, "frame_ms") or _FRAME_MS
      shares.append(f | {"share": total / total.sum(), "ms": ms * np.arange(size)})
  if not shares:
    raise NotDrawn("no results.json has blank_runs")
  rows, note = _crowd(shares)
  plt = library()
  figure, axes = plt.subplots(figsize=(8, 4.2))
  called, styles = labels(found), _styles([f for f in rows if f["role"] == "student"])
  for f in rows:
    teacher = f["role"] == "teacher"
    colour, line, marker = (TEACHER, "-", "o") if teacher else styles[f["name"]]
    axes.plot(
      f["ms"],
      100 * f["share"],
      color=colour,
      linestyle=line,
      marker=marker,
      markersize=4,
      linewidth=2 if teacher else 1.2,
      label=called[f["name"]],
    )
  last = max(f["ms"][-1] for f in rows)
  ticks = np.linspace(0, last, 6)
  axes.set_xticks(ticks, [*(f"{ms:g}" for ms in ticks[:-1]), f"≥ {last:g}"])
  _logarithmic(axes)  # most gaps are short
  axes.set_xlabel("blank frames between two labels / ms")
  axes.set_ylabel(f"share of the gaps / %, {split}")
  _legend(axes)
  save(plt, figure, path)
  return note


def spike_timing(found: list[dict], path: pathlib.Path) -> str:
  """How much later than the teacher's a student's labels come."""
  split, shares = _split(found), []
  for f in (f for f in found if f["role"] == "student"):
    counts = [_offsets(_at(r.results, split, "spike_offsets")) for r in f["row"].runs]
    total: dict[int, float] = {}
    for offset, count in (pair for found_ in counts for pair in found_.items()):
      total[offset] = total.get(offset, 0) + count
    if sum(total.values()):
      whole = sum(total.values())
      ms = _at(f["row"].models[0].figures, split, "frame_ms") or _FRAME_MS
      shares.append(f | {"share": {ms * k: v / whole for k, v in sorted(total.items())}})
  if not shares:
    raise NotDrawn("no results.json has spike_offsets")
  rows, note = _crowd(shares)
  plt = library()
  figure, axes = plt.subplots(figsize=(8, 4.2))
  called, styles = labels(found), _styles(rows)
  for f in rows:
    share, (colour, line, marker) = f["share"], styles[f["name"]]
    axes.plot(
      list(share),
      [100 * v for v in share.values()],
      color=colour,
      linestyle=line,
      marker=marker,
      markersize=4,
      label=called[f["name"]],
    )
  axes.axvline(0, color=TEACHER, linewidth=1)
  axes.set_xlabel("student's label after the teacher's / ms (ends are open)")
  axes.set_ylabel(f"share of the labels / %, {split}")
  _legend(axes)
  save(plt, figure, path)
  return note


def _offsets(block) -> dict[int, float]:
  """Offset → count of a spike_offsets block."""
  counts = (block or {}).get("histogram") or {}
  if isinstance(counts, dict):
    return {int(k): float(v) for k, v in counts.items()}
  return {i - len(counts) // 2: float(v) for i, v in enumerate(counts)}


def _at(tree: dict, *path: str):
  for field in path:
    tree = (tree or {}).get(field)
  return tree


def tuning(found: list[dict], path: pathlib.Path) -> str:
  """Dev WER over LM weight and prior scale, as they were tuned; a panel for each model."""
  grids = []
  for title, block, *_ in searched(found):
    points = [p for p in block.get("grid") or () if p.get("search", "lexicon_lm") == "lexicon_lm"]
    if points := [p for p in points if p["dev_wer"] is not None]:
      grids.append((title, points))
  if not grids:
    raise NotDrawn("no search.json with a tuning grid of a language model")
  note = f" {_PANELS} of {len(grids)} models are shown." if len(grids) > _PANELS else ""
  grids = grids[:_PANELS]
  plt = library()
  columns = min(2, len(grids))
  lines = -(-len(grids) // columns)
  size = 1 + 3.8 * columns, 0.4 + 3.2 * lines
  figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False)
  for panel in axes.flat[len(grids) :]:
    panel.axis("off")
  for panel, (title, grid) in zip(axes.flat, grids, strict=False):
    weights = sorted({p["lm_weight"] for p in grid})
    priors = sorted({p["prior_scale"] for p in grid})
    table = np.full((len(priors), len(weights)), np.nan)
    for p in grid:  # of several word scores the best
      at = priors.index(p["prior_scale"]), weights.index(p["lm_weight"])
      table[at] = np.fmin(table[at], 100 * p["dev_wer"])
    panel.imshow(table, cmap="viridis", aspect="auto", origin="lower")
    panel.grid(visible=False)
    middle = (np.nanmin(table) + np.nanmax(table)) / 2
    best = np.unravel_index(np.nanargmin(table), table.shape)
    for at in np.ndindex(*table.shape):
      if np.isfinite(table[at]):
        ink = "white" if table[at] <= middle else "black"
        weight = "bold" if at == best else "normal"
        panel.text(
          at[1], at[0], f"{table[at]:.1f}", ha="center", va="center", color=ink, weight=weight
        )
    panel.set_xticks(range(len(weights)), [f"{w:g}" for w in weights])
    panel.set_yticks(range(len(priors)), [f"{p:g}" for p in priors])
    panel.set_xlabel("LM weight")
    panel.set_ylabel("prior scale")
    panel.set_title(title, fontsize=10)
  save(plt, figure, path)
  return note


def searched(found: list[dict]) -> list[tuple]:
  """(title, block of search.json, run, model) of every model that was searched with, each once."""
  blocks, seen, called = [], set(), labels(found)
  for f in found:
    for run in f["row"].runs:
      for model in (m for m in MODELS if m in (run.search or {})):
        whose = (run.teacher or str(run.folder)) if model == "teacher" else str(run.folder)
        if whose not in seen:
          seen.add(whose)
          title = "teacher" if model == "teacher" else called[f["name"]]
          blocks.append((title, run.search[model], run, model))
  return blocks
