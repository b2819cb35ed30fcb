"""`jaxkd export --to=onnx`: the folders that other runtimes read, and what they make of them."""

import dataclasses
import pathlib
from typing import NamedTuple

from jaxkd import console, files
from jaxkd.data.sources import Source
from jaxkd.errors import UserError
from jaxkd.export import check, online, quantised, slots
from jaxkd.models.acoustic import AcousticModel, Chunks
from jaxkd.models.exported import FACTS, VOCABULARY

_SMALLER = ("int8", "fp16")


class Wanted(NamedTuple):
  """What is asked for beside float32.

  Attributes:
    forms: of "int8" and "fp16".
    max_wer_loss: points of WER, or where nothing is transcribed of words that are others than
      here; a form that loses more is not kept.
    chunks: of the streams that a graph is to hear, too; None for none.
  """

  forms: tuple[str, ...]
  max_wer_loss: float
  chunks: Chunks | None = None


def write(model: AcousticModel, folder: pathlib.Path, source: Source, wanted: Wanted) -> dict:
  """Writes a folder for each runtime that has a place for the student, and checks every file.

  Args:
    model: the student.
    folder: of all of them.
    source: recordings that are listened to for the check.
    wanted: what else.

  Returns:
    What export.json holds: "files", path → facts (see `check.check`; "not_kept": why a file was
    taken away again), "left_out", folder → why there is none, and facts of the model and of what
    was listened to ("joined_otherwise": see `check.Heard`).

  Raises:
    UserError: no runtime has a place for it, the folder cannot be written, or nothing can be heard.
  """
  found, left_out = slots.fitting(model)
  models = {slot.folder: model for slot in found}
  if wanted.chunks:
    streamed = dataclasses.replace(model, chunks=wanted.chunks)
    if reason := online.SLOT.lacks(streamed):
      raise UserError(f"no runtime has a place for streams of this student: {reason}")
    found, models[online.SLOT.folder] = [*found, online.SLOT], streamed
  try:
    (folder / FACTS).unlink(missing_ok=True)  # of an earlier export: it says that all is checked
    names = [
      name
      for slot in found
      for name in _write_slot(models[slot.folder], slot, folder, wanted.forms)
    ]
    _remove_others(found, folder)
    folder.mkdir(parents=True, exist_ok=True)
    model.vocabulary.save(folder / VOCABULARY)
  except OSError as error:
    raise UserError(f"{folder} cannot be written: {error.strerror or error}") from error
  given = check.read(source)
  if not given.audio:
    raise UserError(f"{source.name}: no recording of up to a minute that could be read")
  heard = _hear(models, given)
  facts: dict[str, dict] = {}
  with console.progress("checking", len(names) * len(given.audio)) as update:
    for name in names:
      of = models[name.partition("/")[0]]
      facts[name] = check.check(of, folder / name, heard[of.chunks], update)
  _drop_what_is_wrong(folder, facts, wanted.max_wer_loss)
  result = {
    "frame_samples": model.frame_samples,
    "parameters": model.parameter_count,
    "data": source.name,
    "recordings": len(given.audio),
    "recordings_left_out": given.left_out,
    "transcribed": heard[model.chunks].transcribed,
    "joined_otherwise": heard[model.chunks].joined_otherwise,
    "files": facts,
    "left_out": left_out,
  }
  files.write_json(folder / FACTS, result)
  return result


def _hear(models: dict[str, AcousticModel], given: check.Recordings) -> dict:
  """What the student makes of recordings in all ways in which it hears, by its chunks."""
  ways = {model.chunks: model for model in models.values()}
  heard = {}
  with console.progress("listening", len(ways) * len(given.audio)) as update:
    for chunks, model in ways.items():
      folders = [folder for folder, of in models.items() if of.chunks == chunks]
      heard[chunks] = check.hear(model, given, folders, update)
  return heard


def _write_slot(model, slot: slots.Slot, folder: pathlib.Path, forms) -> list[str]:
  """Names of the files that were written, relative to the folder of all."""
  inside = folder / slot.folder
  inside.mkdir(parents=True, exist_ok=True)
  slot.write_classes(model, inside)
  whole = inside / "model.onnx"
  files.write_bytes(whole, slot.build(model, False).SerializeToString())
  for form in _SMALLER:
    path = inside / f"model.{form}.onnx"
    path.unlink(missing_ok=True)  # of an earlier export
    if form == "int8" and form in forms:
      unfinished = path.with_suffix(".unfinished")
      quantised.write_int8(whole, unfinished)
      unfinished.replace(path)
    elif form in forms:
      files.write_bytes(path, slot.build(model, True).SerializeToString())
  names = [whole.name, *(f"model.{form}.onnx" for form in forms)]
  return [f"{slot.folder}/{name}" for name in names]


def _remove_others(written: list[slots.Slot], folder: pathlib.Path) -> None:
  """Takes away an earlier export's models in places that this one has not written."""
  new = {slot.folder for slot in written}
  for slot in (*slots.SLOTS, online.SLOT):
    if slot.folder not in new:
      for name in ("model.onnx", *(f"model.{form}.onnx" for form in _SMALLER)):
        (folder / slot.folder / name).unlink(missing_ok=True)


def _drop_what_is_wrong(folder: pathlib.Path, facts: dict, max_wer_loss: float) -> None:
  """Takes away files that must not be used, and says why in their facts."""
  for name in sorted(facts, key=lambda name: not name.endswith("/model.onnx")):
    whole = f"{name.partition('/')[0]}/model.onnx"
    if name == whole:
      reason = check.wrong(facts[name])
    elif "not_kept" in facts[whole]:
      reason = f"{whole} is wrong"
    elif facts[name]["largest_difference"] is None:
      reason = "it says no numbers (NaN)"
    else:
      lost = check.lost(facts[whole], facts[name])
      reason = f"it loses {lost:.2f} points of WER"
      if facts[whole].get("wer") is None:
        reason = f"it changes {lost:.2f} % more of the words"
      reason = reason if lost > max_wer_loss else ""
    if reason:
      (folder / name).unlink()
      facts[name]["not_kept"] = reason
