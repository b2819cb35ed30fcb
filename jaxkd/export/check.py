"""Whether an exported file says in its runtime what the student says here."""

import dataclasses
import pathlib
from collections.abc import Callable, Container, Iterator
from typing import NamedTuple

import jax
import numpy as np

from jaxkd.data.audio import BrokenAudio
from jaxkd.data.sources import Source
from jaxkd.export import online, runtimes
from jaxkd.export.conformer import classes
from jaxkd.export.slots import SPACE, settings_of, tokens
from jaxkd.inference.error_rates import error_rates
from jaxkd.inference.listening import Frames, listen
from jaxkd.inference.search.greedy import collapse
from jaxkd.labels import normalise
from jaxkd.models.acoustic import LONGEST_SECONDS, AcousticModel
from jaxkd.models.features import log_mel
from jaxkd.types import SAMPLE_RATE_HZ

# Of float32 graphs: a wrong operation is far above, sums in another order are below, also where
# bands of a recording are empty and the logarithm of their rounding errors is a feature.
MOST_DIFFERENCE, LEAST_SAME = 0.1, 0.99
_COMPARED = 50  # recordings whose log probabilities are compared


class Recordings(NamedTuple):
  """What is listened to.

  Attributes:
    audio: f32[S] of each.
    transcripts: None of those that have none.
    left_out: recordings that are broken or too long to be heard at once.
  """

  audio: list[np.ndarray]
  transcripts: list[str | None]
  left_out: int


class Heard(NamedTuple):
  """Recordings, and what the student makes of them here.

  Attributes:
    audio: f32[S] of each.
    texts: hypotheses.
    prepared: folder → the same of audio as its runtime hears it, where that is another.
    references: transcripts; none where one is lacking, or the classes are phonemes.
    transcribed: whether they are transcripts.
    joined_otherwise: hypotheses that are other words than the student's own here, since a runtime
      writes classes one after another as they are; of phonemes, which are no words there, none.
  """

  audio: list[np.ndarray]
  texts: list[str]
  prepared: dict[str, list[str]]
  references: list[str]
  transcribed: bool
  joined_otherwise: int = 0


def read(source: Source) -> Recordings:
  """The recordings of a source."""
  audio, transcripts, left_out = [], [], 0
  for index in range(len(source)):
    try:
      samples = source.read(index)
    except BrokenAudio:
      samples = None
    if samples is None or len(samples) > LONGEST_SECONDS * SAMPLE_RATE_HZ:
      left_out += 1
      continue
    audio.append(samples)
    transcripts.append(source.texts[index])
  return Recordings(audio, transcripts, left_out)


def hear(
  model: AcousticModel, given: Recordings, folders: Container[str], update: Callable[[], None]
) -> Heard:
  """Runs the student on recordings, as it hears them in some folders, too.

  `update` is called after each recording.
  """
  written = _writer(model)
  texts, otherwise = [], 0
  for labels in _labels(model, given.audio):
    texts.append(written(labels))
    words = " ".join(word for word, _, _ in model.vocabulary.words(labels))
    otherwise += model.vocabulary.kind != "phonemes" and words != texts[-1]
    update()
  prepared = {
    folder: [written(labels) for labels in _labels(model, given.audio, folder)]
    for folder in PREPARATIONS
    if folder in folders
  }
  transcripts = given.transcripts
  transcribed = None not in transcripts and model.vocabulary.kind != "phonemes"
  references = [normalise(text) for text in transcripts] if transcribed else []
  return Heard(given.audio, texts, prepared, references, transcribed, otherwise)


def _writer(model: AcousticModel) -> Callable[[list[int]], str]:
  """Labels → what the runtimes should write: for phonemes, these and not their words."""
  written = dict(zip(classes(model), tokens(model), strict=True))
  return lambda labels: normalise("".join(map(written.get, labels)).replace(SPACE, " "))


def _labels(model: AcousticModel, audio, folder: str = "") -> Iterator[list[int]]:
  for frames in _listen(model, audio, folder):
    yield collapse(frames.path, blank_id=model.blank_id).tolist()


def _listen(
  model: AcousticModel, audio: list[np.ndarray], folder: str, *, log_probs: bool = False
) -> Iterator[Frames]:
  """What the student says here of audio as it is heard in a folder, and of no more."""
  prepare = PREPARATIONS.get(folder, lambda model, samples: samples)
  heard = listen(model, (prepare(model, x) for x in audio), log_probs=log_probs)
  for samples, frames in zip(audio, heard, strict=True):
    if folder == online.SLOT.folder:
      size = online.frames_heard(model, len(prepare(model, samples)))
      frames = frames._replace(
        path=frames.path[:size],
        log_probs=frames.log_probs[:size] if log_probs else None,
      )
    yield frames


def check(
  model: AcousticModel, path: pathlib.Path, heard: Heard, update: Callable[[], None]
) -> dict:
  """Facts of one file.

  Args:
    model: that was exported.
    path: the file, in the folder of a slot.
    heard: by the model here.
    update: called after each recording.

  Returns:
    "bytes"; "largest_difference" of log probabilities in onnxruntime; "wer_here"; "runtime",
    "same_texts" (share that is identical to what the student says here of audio as the runtime
    prepares it), "changed_by_preparation" (share of the student's texts that this changes), "wer",
    "words_changed" (WER with the student's texts here as references) and "real_time_factor" on
    one thread in its runtime; or, where that cannot be run, "not_run", why not, and the others of
    the best path in onnxruntime, without a factor. "wer_here" and "wer" are None where nothing is
    transcribed.
  """
  wer = lambda texts: error_rates(heard.references, texts)["wer"] if heard.transcribed else None
  folder = path.parent.name
  found = {
    "bytes": path.stat().st_size,
    "largest_difference": difference(model, path, heard),
    "wer_here": wer(heard.texts),
  }
  try:
    listener = runtimes.RUNTIMES[folder][1](path)
    found["runtime"] = runtimes.version(folder)
  except (ImportError, runtimes.NotRead) as error:
    listener = _best_path(model, path)
    found |= {"runtime": runtimes.onnxruntime_version(), "not_run": str(error)}

  def recordings():
    for audio in heard.audio:
      # What the runtime does not prepare itself, its users do.
      yield online.padded(model, audio) if folder == online.SLOT.folder else audio
      update()

  texts, seconds = runtimes.listen(listener, recordings())
  texts = [normalise(text) for text in texts]
  prepared = heard.prepared.get(folder, heard.texts)
  found |= {
    "same_texts": _same(texts, prepared),
    "changed_by_preparation": round(1 - _same(prepared, heard.texts), 4),
    "wer": wer(texts),
    "words_changed": error_rates(heard.texts, texts)["wer"],
  }
  if "not_run" in found:
    return found
  length = sum(map(len, heard.audio)) / SAMPLE_RATE_HZ
  return found | {"real_time_factor": round(seconds / length, 5)}


def _same(texts: list[str], others: list[str]) -> float:
  return round(float(np.mean([a == b for a, b in zip(texts, others, strict=True)])), 4)


def _best_path(model: AcousticModel, path: pathlib.Path) -> runtimes.Listener:
  """What onnxruntime alone makes of a file, for a runtime that is not here."""
  folder, settings, written = path.parent.name, settings_of(model), _writer(model)
  streamed = folder == online.SLOT.folder
  run, order = _in_onnxruntime(path), np.array(classes(model))

  def listener(audio: np.ndarray) -> str:
    if streamed and not online.frames_heard(model, len(audio)):
      return ""
    if not streamed and folder in PREPARATIONS:  # the silence of streams is there already
      audio = PREPARATIONS[folder](model, audio)
    log_probs = run(**INPUTS[folder](audio, settings))[0]
    return written(collapse(order[log_probs.argmax(-1)], blank_id=model.blank_id).tolist())

  return listener


def _in_onnxruntime(path: pathlib.Path) -> Callable[..., np.ndarray]:
  """Inputs by name → log probabilities of a file, as its runtime runs it."""
  streamed = path.parent.name == online.SLOT.folder
  return runtimes.streamed_log_probs(path) if streamed else runtimes.log_probs(path)


def difference(model: AcousticModel, path: pathlib.Path, heard: Heard) -> float | None:
  """Largest, in log probabilities of the first recordings; None where one is no number."""
  folder, order, settings = path.parent.name, classes(model), settings_of(model)
  run = _in_onnxruntime(path)
  given, prepare = heard.audio[:_COMPARED], PREPARATIONS.get(folder, lambda model, x: x)
  largest = 0.0
  for audio, here in zip(given, _listen(model, given, folder, log_probs=True), strict=True):
    frames = len(here.path)
    if not frames:
      continue
    there = run(**INPUTS[folder](prepare(model, audio), settings))[0]
    there = there[:: max(1, round(len(there) / frames))][:frames]
    found = float(np.abs(there - here.log_probs[:, order]).max())
    if not np.isfinite(found):
      return None
    largest = max(largest, found)
  return round(largest, 6)


def _standardised(model: AcousticModel, audio: np.ndarray) -> np.ndarray:
  """As sherpa-onnx gives audio to the place omnilingual."""
  return ((audio - audio.mean()) / np.sqrt(audio.var() + 1e-5)).astype(np.float32)


def _omnilingual_inputs(audio: np.ndarray, settings) -> dict:
  return {"x": audio[None]}


def _zipformer_inputs(audio: np.ndarray, settings) -> dict:
  """The student's own features, which are the runtime's within 1e-3 (tests/models)."""
  settings = dataclasses.replace(settings, normalise="none")
  x, mask = _log_mel(audio[None], np.array([len(audio)], np.int32), settings)
  return {"x": np.asarray(x), "x_lens": np.asarray(mask.sum(1), np.int64)}


def _onnx_asr_inputs(audio: np.ndarray, settings) -> dict:
  return {"input_values": audio[None], "input_lengths": np.array([len(audio)], np.int64)}


def _nemo_inputs(audio: np.ndarray, settings) -> dict:
  x = _zipformer_inputs(audio, settings)
  return {"audio_signal": x["x"].transpose(0, 2, 1), "length": x["x_lens"]}


def _online_inputs(audio: np.ndarray, settings) -> dict:
  return {"x": _zipformer_inputs(audio, settings)["x"]}


# Of audio, before it is heard in a folder: by the runtime, or by its users.
PREPARATIONS = {"omnilingual": _standardised, online.SLOT.folder: online.padded}
_log_mel = jax.jit(log_mel, static_argnums=2)
INPUTS = {
  "omnilingual": _omnilingual_inputs,
  "zipformer": _zipformer_inputs,
  "onnx-asr": _onnx_asr_inputs,
  "onnx-asr-nemo": _nemo_inputs,
  "online": _online_inputs,
}


def wrong(facts: dict) -> str:
  """Why a float32 file must not be used; "" where it is right."""
  if facts["largest_difference"] is None:
    return "it says no numbers (NaN)"
  if facts["largest_difference"] > MOST_DIFFERENCE:
    return f"log probabilities differ by {facts['largest_difference']:g}"
  if facts.get("same_texts", 1.0) < LEAST_SAME:
    return f"{100 * (1 - facts['same_texts']):.1f} % of the texts differ in {facts['runtime']}"
  return ""


def lost(whole: dict, small: dict) -> float:
  """Points of WER that a smaller file loses against the float32 one; else of changed words."""
  for rate in ("wer", "words_changed"):
    if small.get(rate) is not None and whole.get(rate) is not None:
      return 100 * (small[rate] - whole[rate])
  return 0.0
