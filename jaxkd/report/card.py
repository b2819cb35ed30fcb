"""A finished run → the page that goes with its model: what it is, how good, how it was made."""

import dataclasses
import importlib.metadata
import os
import pathlib
import shlex

from jaxkd import buckets, console, files, workdirs
from jaxkd import config as config_lib
from jaxkd.errors import UserError
from jaxkd.inference import error_rates, finished
from jaxkd.models.kept import Kept
from jaxkd.report import collect, command, tables

# Corpora of recipes whose language is known: all but a user's own.
_ENGLISH = ("demo", "sentences", "digits", "prompts", "librispeech", "tedlium")
_FILL_IN = "# {field}: {example}  # fill in, and take away the first #"


@dataclasses.dataclass(frozen=True)
class _Facts:
  """What the card is made of.

  Attributes:
    kept: of the run.
    results: of its results.json.
    run: of the same workdir, or None where it lacks what comparisons need.
    parameters: numbers in the model.
  """

  kept: Kept
  results: dict
  run: collect.Run | None
  parameters: int


def text(kept: Kept, parameters: int, name: str = "") -> str:
  """A model card in Markdown, with Hugging Face's header in YAML.

  Of paths it has the last part only: the card is for others.

  Args:
    kept: of a finished run.
    parameters: numbers in its model.
    name: ORG/NAME on the hub; "" for a folder that is called as its finder likes.
  """
  results = files.read_json(kept.folder / workdirs.RESULTS, kind=dict)
  run = collect.read(kept.folder)
  facts = _Facts(kept, results, run if isinstance(run, collect.Run) else None, parameters)
  title = name.rpartition("/")[2] or kept.folder.absolute().name
  parts = [_header(facts), f"# {_plain(title)}", _model(facts), _use(name or "FOLDER")]
  return "\n\n".join([*parts, _figures(facts), _making(facts)]) + "\n"


def _header(facts: _Facts) -> str:
  own = facts.kept.architecture.is_ours
  english = str(facts.kept.config.recipe).partition("-")[0] in _ENGLISH
  lines = [
    _FILL_IN.format(field="license", example="apache-2.0"),
    "language: en" if english else _FILL_IN.format(field="language", example="en"),
    f"library_name: {'jaxkd' if own else 'transformers'}",
    "pipeline_tag: automatic-speech-recognition",
    "metrics:\n- wer",
    "tags:\n- ctc\n- knowledge-distillation\n- jax",
  ]
  return "\n".join(["---", *lines, "---"])


def _model(facts: _Facts) -> str:
  """What it is, in two sentences."""
  kept = facts.kept
  settings, vocabulary = kept.architecture.settings, kept.vocabulary
  frame_ms = kept.architecture.frame_samples / 16
  said = (
    f"A CTC speech recogniser: a {kept.architecture.kind}, layers: {settings.layers}, "
    f"width: {settings.width}, parameters: {facts.parameters:,}. It reads audio of 16 kHz and "
    f"gives each {frame_ms:g} ms one of {len(vocabulary.symbols)} classes ({vocabulary.kind}, "
    "with the blank)."
  )
  if getattr(settings, "pool", 1) > 1:
    said += (
      f" These are {settings.pool} of its own frames, pooled by their maximum before the head, "
      "with which it was trained and evaluated; transformers does not pool."
    )
  return said


def _use(name: str) -> str:
  return (
    "## Use\n\n```bash\npip install 'jaxkd[hf]'\n"
    f"jaxkd transcribe {shlex.quote(name)} audio.wav\n```"
  )


def _figures(facts: _Facts) -> str:
  """Error rates by split and model."""
  rows = [
    _row(facts, split, model)
    for split in reversed(collect.SPLITS)
    for model in reversed(collect.MODELS)
    if (facts.results.get(split) or {}).get(model, {}).get("wer") is not None
  ]
  if not rows:
    return "## Error rates\n\nThe run had no transcribed data to measure them on."
  heads = ("data", "utterances", "model", "WER %", "95 % interval", "CER %")
  table = [heads, ("---",) * len(heads), *rows]
  return (
    "## Error rates\n\n"
    + "\n".join(f"| {' | '.join(row)} |" for row in table)
    + "\n\nGreedy search, normalised text; the interval is the bootstrap's over utterances."
  )


def _row(facts: _Facts, split: str, model: str) -> tuple[str, ...]:
  block = facts.results[split]
  called = "this one" if model == "student" else "its teacher"
  said = f"{split}: {_public(block.get('name', ''))}"
  count, rates = block.get("utterances"), block[model]
  rate = console.percent(rates["wer"]), _interval(facts.run, split, model)
  return said, f"{count or '–'}", called, *rate, console.percent(rates.get("cer"))


def _interval(run: collect.Run | None, split: str, model: str) -> str:
  """95 % interval of a WER, where the run has kept its hypotheses."""
  hypotheses = run and run.hypotheses.get((split, model))
  if not hypotheses:
    return "–"
  low, high = error_rates.bootstrap_interval(*tables.word_counts(hypotheses))
  return f"{console.percent(low)} to {console.percent(high)}"


def _making(facts: _Facts) -> str:
  results, config = facts.results, facts.kept.config
  lines = [_data(results.get("train") or {}), _teacher(facts), _objective(config)]
  origin = [
    f"jaxkd {importlib.metadata.version('jaxkd')}, commit {results.get('commit', 'unknown')}",
    f"seed {results.get('seed', config.seed)}",
  ]
  if "wall_seconds" in results:
    origin.append(f"{results['wall_seconds']:.0f} s on {results.get('device', 'unknown')}")
  lines.append(f"Made by: {', '.join(origin)}.")
  listed = "\n".join(f"- {line}" for line in lines if line)
  again = f"\n\n```bash\n{_command(facts.run)}\n```" if facts.run else ""
  return f"## How it was made\n\n{listed}{again}"


def _data(train: dict) -> str:
  if "hours" not in train:
    return ""
  size = f"{train['utterances']:,} utterances, {_long(train['hours'])}"
  return f"Data: {_public(train.get('name', ''))}, {size}."


def _teacher(facts: _Facts) -> str:
  source = facts.results.get("teacher_workdir")
  if not source:
    return "" if facts.kept.config.teacher.source == "train" else "Teacher: none."
  said = [_public(source)]
  for split in collect.SPLITS:
    if params := (facts.results.get(split) or {}).get("teacher", {}).get("params"):
      said.append(f"{params:,} parameters")
      break
  if trained := _trained(finished.teacher_source(facts.results, facts.kept.folder)):
    said.append(trained)
  return f"Teacher: {', '.join(said)}."


def _trained(teacher: str) -> str:
  """What a teacher was trained on, where it is a workdir that is still there."""
  path = buckets.here(teacher) / workdirs.RESULTS
  try:
    train = files.read_json(path, kind=dict)["train"] if path.exists() else {}
    return f"trained on {_long(train['hours'])} of {_public(train['name'])}" if train else ""
  except (UserError, KeyError, TypeError, ValueError):  # it may say less, and is not needed
    return ""


def _long(hours: float) -> str:
  return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def _objective(config) -> str:
  kd = config.kd
  by = " to ".join(f"{scale:g}" for scale in (*kd.scale_ramp[:1], kd.scale))
  if config.teacher.source == "none" or not config_lib.distils(kd):
    return "Objective: CTC on transcripts."
  frames = f"selection {kd.selection.name}" if kd.loss != "hypotheses" else "its transcripts"
  whose = "the average of its own past" if config.teacher.source == "average" else "the teacher"
  learnt = f"{whose}'s labels ({frames})"
  transcribed = config_lib.reads_transcripts(kd)
  if kd.ctc == "hypotheses" and config_lib.scales(kd)[0] < 1:
    others = "" if transcribed else "; no others"
    return f"Objective: {learnt}, by {by}, and CTC on its transcripts{others}."
  if not transcribed:
    return f"Objective: {learnt} alone; no transcripts."
  return f"Objective: {learnt}, by {by}, and CTC on transcripts."


def _command(run: collect.Run) -> str:
  """The command that makes it again, where the data lies in the folder that one stands in."""
  words = [word.partition("=") for word in shlex.split(command.command(run))]
  return shlex.join(f"{k}{eq}{_last_parts(v)}" for k, eq, v in words)


def _last_parts(value: str) -> str:
  """Paths from the root, home or above, several with commas, without the folders in them."""
  outside = lambda part: (
    os.path.isabs(part) or buckets.is_url(part) or part[:1] == "~" or part[:2] == ".."
  )
  return ",".join(_last_part(p) if outside(p) else p for p in value.split(","))


def _last_part(path: str) -> str:
  """With the workdir's name where it is what `jaxkd convert` calls all of its folders."""
  parts = pathlib.PurePath(path).parts
  return "/".join(parts[-2:] if parts[-1:] == ("huggingface",) else parts[-1:])


def _public(name) -> str:
  return f"`{_plain(_last_parts(str(name)))}`"


def _plain(said: str) -> str:
  """Text that neither ends a line, nor a cell of a table, nor is read as Markdown's code."""
  return " ".join(said.replace("`", "'").replace("|", "/").split())
