"""One utterance: what teacher and student say of each frame, and which frames are selected."""

import dataclasses
import pathlib

import numpy as np

from jaxkd import config as config_lib
from jaxkd import console, files
from jaxkd.errors import UserError
from jaxkd.report import plots
from jaxkd.report.collect import Run

_SELECTED = "#F5C242"
_BLANK = "#8a8a8a"


@dataclasses.dataclass(frozen=True)
class Picture:
  """Teacher and student of one run on one utterance.

  Attributes:
    symbols: the classes.
    blank_id: the blank's.
    frame_ms: length of a frame.
    student: f32[T, V], probabilities.
    teacher: f32[T, V], or None without teacher.
    selected: f32[T], weights of the distillation loss; None where there is no distillation.
  """

  symbols: tuple[str, ...]
  blank_id: int
  frame_ms: float
  student: np.ndarray
  teacher: np.ndarray | None
  selected: np.ndarray | None


def compute(run: Run, utterance: str) -> Picture:
  """Runs both models of a finished run on an utterance of its test (else dev) data.

  Args:
    run: finished.
    utterance: its id.

  Raises:
    UserError: the data, the utterance or a model is not there any more.
  """
  from jaxkd.inference.finished import FinishedRun
  from jaxkd.inference.frames import frames, log_softmax

  opened = FinishedRun(run.folder)
  data = opened.config.data
  source = opened.open(data.test or data.dev)
  if utterance not in source.ids:
    raise UserError(f"{source.name} has no utterance '{utterance}' any more")
  models, alone = opened.models(), source.only([source.ids.index(utterance)])
  spoken = next(frames(models, alone, opened.devices))
  if spoken.host.broken:
    raise UserError(f"{source.name}: {': '.join(spoken.host.broken[0])}")
  row = next(i for i, ids in enumerate(spoken.host.ids) if ids)
  logits = {}
  for name in models:
    out = spoken.my_rows(name)
    logits[name] = out.logits[row][out.mask[row]]
  size = min(map(len, logits.values()))
  logits = {name: x[:size] for name, x in logits.items()}
  selected = None
  if "teacher" in logits and _selects(opened.config):
    selected = _selected(opened, logits["teacher"][None])
  spoken_by = {name: np.exp(log_softmax(x)) for name, x in logits.items()}
  student = models["student"]
  return Picture(
    student.vocabulary.symbols,
    student.blank_id,
    student.frame_ms,
    spoken_by["student"],
    spoken_by.get("teacher"),
    selected,
  )


def _selects(config) -> bool:
  """Whether a run learns from frames of a teacher that is there after it."""
  learns = config_lib.distils(config.kd) and config.kd.loss != "hypotheses"
  return learns and config.teacher.source != "average"


def _selected(opened, logits: np.ndarray) -> np.ndarray:
  """f32[T]: weights in the last epoch of the run's selection, for logits f32[1, T, V]."""
  import jax

  from jaxkd.inference import priors
  from jaxkd.training import objective

  kd, prior = opened.config.kd, None
  if objective.needs_log_prior(kd):
    path = priors.place(opened.teacher_source, opened.folder)
    prior = np.array(files.read_json(path), np.float32)
  select = jax.jit(
    objective.make_selector(kd, blank_id=opened.vocabulary.blank_id, log_prior=prior)
  )
  key, mask = jax.random.key(opened.results["seed"]), np.ones(logits.shape[:2], bool)
  weights = select(logits, mask, key, opened.config.training.epochs - 1)
  return np.asarray(weights[0], np.float32)


def draw(found: list[dict], utterance: str, path: pathlib.Path) -> tuple[str | None, list[str]]:
  """The picture of some rows' first runs, one below the other.

  Args:
    found: figures of the rows.
    utterance: its id.
    path: of the PNG.

  Returns:
    Why nothing was drawn, or None; and a line for each run that could not be.
  """
  pictures, failed = [], []
  with console.progress("posteriors", len(found)) as update:
    for f in found:
      try:
        pictures.append((f, compute(f["row"].first, utterance)))
      except Exception as error:  # a model or data of another day must not cost the whole report
        first = (str(error) or type(error).__name__).splitlines()[0]
        failed.append(f"{f['row'].first.folder}: {first}")
      update()
  if not pictures:
    return "; ".join(failed) or "no student", []
  plt = plots.library()
  count = sum(1 + (p.teacher is not None) for _, p in pictures)
  seconds = max(len(p.student) * p.frame_ms for _, p in pictures) / 1000
  width = min(16.0, max(8.0, 3.2 * seconds))
  figure, panels = plt.subplots(
    count, 1, figsize=(width, 0.6 + 1.45 * count), sharex=True, sharey=True, squeeze=False
  )
  left = iter(panels[:, 0])
  colours = _colours([p for _, p in pictures])
  for f, picture in pictures:
    for who in ("teacher", "student"):
      if (values := getattr(picture, who)) is not None:
        _panel(next(left), picture, values, colours, f"{who} · {plots.label(f)}")
  panels[-1, 0].set_xlabel("time / ms")
  panels[0, 0].set_ylim(0, 1.25)
  panels[0, 0].set_yticks([0, 0.5, 1])
  _legend(plt, figure, any(p.selected is not None for _, p in pictures))
  plots.save(plt, figure, path)
  return None, failed


def _colours(pictures: list[Picture]) -> dict[str, str]:
  """Symbol → colour of the labels that are most probable somewhere."""
  mass: dict[str, float] = {}
  for picture in pictures:
    for values in (picture.student, picture.teacher):
      for label in () if values is None else np.unique(values.argmax(-1)):
        if label != picture.blank_id:
          symbol = picture.symbols[label]
          mass[symbol] = mass.get(symbol, 0) + float(values[:, label].sum())
  symbols = sorted(mass, key=mass.get, reverse=True)
  return {s: plots.COLOURS[i % len(plots.COLOURS)] for i, s in enumerate(symbols)}


def _panel(axes, picture: Picture, values: np.ndarray, colours: dict, title: str) -> None:
  """One model's posteriors over time."""
  step = picture.frame_ms
  edges = np.arange(len(values) + 1) * step
  if picture.selected is not None:
    for frame, weight in enumerate(picture.selected):
      if weight > 0:
        axes.axvspan(
          edges[frame],
          edges[frame + 1],
          color=_SELECTED,
          alpha=0.45 * min(1.0, weight),
          linewidth=0,
        )
  middle = edges[:-1] + step / 2
  axes.plot(middle, values[:, picture.blank_id], color=_BLANK, linewidth=1.2, linestyle="--")
  for label, symbol in enumerate(picture.symbols):
    if label == picture.blank_id or symbol not in colours or values[:, label].max() < 0.05:
      continue
    axes.plot(middle, values[:, label], color=colours[symbol], linewidth=1.4)
  path = values.argmax(-1)
  for frame, label in enumerate(path):
    spoken = label != picture.blank_id and (frame == 0 or path[frame - 1] != label)
    if spoken:
      symbol = picture.symbols[label]
      name = "␣" if symbol in (" ", "|") else symbol
      axes.text(middle[frame], 1.06, name, ha="center", color=colours[symbol], fontsize=9)
  axes.set_title(title, fontsize=9, loc="left", pad=3)
  axes.set_ylabel("p")
  axes.margins(x=0)
  axes.grid(visible=False)


def _legend(plt, figure, shaded: bool) -> None:
  handles = [plt.Line2D([], [], color=_BLANK, linestyle="--", label="blank")]
  handles.append(plt.Line2D([], [], color=plots.COLOURS[0], label="labels, named where they win"))
  if shaded:
    handles.append(plt.Rectangle((0, 0), 1, 1, color=_SELECTED, alpha=0.45, label="selected frame"))
  figure.legend(handles=handles, loc="outside upper right", ncols=3, fontsize=9)
