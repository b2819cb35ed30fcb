"""The places of other runtimes that a student fits into: a graph, and its classes beside it.

These hear whole recordings; `export.online` has the one for streams.

omnilingual   sherpa-onnx, `from_omnilingual_asr_ctc`: raw audio, one recording at a time
zipformer     sherpa-onnx, `from_zipformer_ctc`: its own features, in batches
onnx-asr      onnx-asr's `wav2vec2-ctc`: raw audio in batches
"""

import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import onnx
from flax import nnx

from jaxkd import files
from jaxkd.errors import UserError
from jaxkd.export import features
from jaxkd.export.conformer import classes, conformer
from jaxkd.export.graph import FLOAT, INT, Graph
from jaxkd.models.acoustic import AcousticModel
from jaxkd.models.conformer import ConformerCTC
from jaxkd.models.features import HOP, LogMel

_OMNILINGUAL_FRAME_MS = 20
_ZIPFORMER_MELS, _ZIPFORMER_FRAME_MS = 80, 40
_NEMO_MELS = (80, 128)
SPACE = "▁"


class Slot(NamedTuple):
  """One of them.

  Attributes:
    folder: where its files go.
    lacks: model → why it does not fit, "" where it does.
    build: (model, half) → graph; with `half` its products and what lies between are of 16 bits.
    write_classes: (model, folder) writes what the runtime knows the classes by.
  """

  folder: str
  lacks: Callable[[AcousticModel], str]
  build: Callable[[AcousticModel, bool], onnx.ModelProto]
  write_classes: Callable[[AcousticModel, pathlib.Path], None]


def fitting(model: AcousticModel) -> tuple[list[Slot], dict[str, str]]:
  """Slots that a model fits into, and folder → reason of the others.

  Raises:
    UserError: it fits into none.
  """
  net = nnx.merge(model.graphdef, model.params)
  if not isinstance(net, ConformerCTC):
    raise UserError(
      "only a Conformer can be written as ONNX here; for a FastConformer and for models of Hugging "
      "Face's families: jaxkd convert, then what transformers offers"
    )
  reasons = {slot.folder: slot.lacks(model) for slot in SLOTS}
  found = [slot for slot in SLOTS if not reasons[slot.folder]]
  left_out = {folder: reason for folder, reason in reasons.items() if reason}
  if not found:
    told = "; ".join(f"{folder}: {reason}" for folder, reason in left_out.items())
    raise UserError(f"no runtime has a place for this student: {told}")
  return found, left_out


def settings_of(model: AcousticModel) -> LogMel:
  """Settings of the features of a Conformer."""
  return nnx.merge(model.graphdef, model.params).features


def _features(g: Graph, x: str, lengths: str | None, settings) -> str:
  """Features as the model takes them: padding at 0, normalised where it does so."""
  mask = features.length_mask(g, x, lengths, axis=1)
  if mask is not None:
    x = g("Mul", x, mask)
  return features.normalised(g, x, mask) if settings.normalise == "utterance" else x


def _omnilingual_lacks(model: AcousticModel) -> str:
  settings = settings_of(model)
  if settings.kind in ("kaldi", "sherpa") and settings.normalise == "none":
    return (
      f"the runtime changes the volume of audio, which features.kind={settings.kind} hears "
      "without features.normalise=utterance"
    )
  if model.frame_ms % _OMNILINGUAL_FRAME_MS:
    return f"frames of {model.frame_ms:g} ms are no multiple of {_OMNILINGUAL_FRAME_MS} ms"
  return ""


def _omnilingual(model: AcousticModel, half: bool = False) -> onnx.ModelProto:
  """x f32[N, S] without padding → log_probs f32[N, T, V], a frame every 20 ms."""
  g, settings = Graph(half), settings_of(model)
  x, _ = features.log_mel(g, "x", None, settings)
  log_probs, _, _ = conformer(g, _features(g, x, None, settings), None, model)
  repeats = int(model.frame_ms) // _OMNILINGUAL_FRAME_MS
  if repeats > 1:
    wide = g("Expand", g("Unsqueeze", log_probs, [2]), [1, 1, repeats, 1])
    shape = g("Concat", [0, -1], g.size(log_probs, 2), axis=0)
    log_probs = g("Reshape", wide, shape)
  g.named(log_probs, "log_probs")
  outputs = {"log_probs": (FLOAT, ["N", "T", len(model.labels)])}
  return g.model({"x": (FLOAT, ["N", "S"])}, outputs, {"model_type": "jaxkd-conformer"})


def _zipformer_lacks(model: AcousticModel) -> str:
  settings = settings_of(model)
  if settings.kind != "sherpa" or settings.mels != _ZIPFORMER_MELS:
    return (
      f"the runtime computes features.kind=sherpa with mels={_ZIPFORMER_MELS}, the student has "
      f"{settings.kind} with {settings.mels}"
    )
  if model.frame_ms != _ZIPFORMER_FRAME_MS:
    return f"frames must be of {_ZIPFORMER_FRAME_MS} ms, not {model.frame_ms:g}"
  return ""


def _zipformer(model: AcousticModel, half: bool = False) -> onnx.ModelProto:
  """x f32[N, M, 80] and x_lens i64[N] → log_probs f32[N, T, V] and log_probs_len i64[N]."""
  g, settings = Graph(half), settings_of(model)
  x = _features(g, "x", "x_lens", settings)
  log_probs, _, lengths = conformer(g, x, "x_lens", model)
  g.named(log_probs, "log_probs")
  g.named(lengths, "log_probs_len")
  inputs = {"x": (FLOAT, ["N", "M", _ZIPFORMER_MELS]), "x_lens": (INT, ["N"])}
  outputs = {
    "log_probs": (FLOAT, ["N", "T", len(model.labels)]),
    "log_probs_len": (INT, ["N"]),
  }
  return g.model(inputs, outputs, {"model_type": "jaxkd-conformer"})


def _onnx_asr(model: AcousticModel, half: bool = False) -> onnx.ModelProto:
  """Padded audio input_values f32[N, S], input_lengths i64[N] → logprobs f32[N, T, V], i64[N].

  Its padding is blank, since the runtime reads up to one frame more than there is.
  """
  g, settings = Graph(half), settings_of(model)
  real = features.length_mask(g, "input_values", "input_lengths", axis=1)
  audio = g("Mul", "input_values", g("Squeeze", real, [2]))
  x, lengths = features.log_mel(g, audio, "input_lengths", settings)
  log_probs, mask, lengths = conformer(g, _features(g, x, lengths, settings), lengths, model)
  silence = np.where(np.arange(len(model.labels)) == 0, 0, -1e4)
  padding = g("Mul", g("Sub", 1.0, mask), silence[None, None])
  g.named(g("Add", g("Mul", log_probs, mask), padding), "logprobs")
  g.named(lengths, "logprobs_len")
  inputs = {"input_values": (FLOAT, ["N", "S"]), "input_lengths": (INT, ["N"])}
  outputs = {"logprobs": (FLOAT, ["N", "T", len(model.labels)]), "logprobs_len": (INT, ["N"])}
  return g.model(inputs, outputs, {"model_type": "jaxkd-conformer"})


def _nemo_lacks(model: AcousticModel) -> str:
  settings = settings_of(model)
  if settings.kind != "nemo" or settings.mels not in _NEMO_MELS:
    return (
      f"the runtime computes features.kind=nemo with mels=80 or 128, the student has "
      f"{settings.kind} with {settings.mels}"
    )
  return ""


def _nemo(model: AcousticModel, half: bool = False) -> onnx.ModelProto:
  """audio_signal f32[N, F, M] and length i64[N] → logprobs f32[N, T, V]."""
  g, settings = Graph(half), settings_of(model)
  x = g("Transpose", "audio_signal", perm=[0, 2, 1])
  log_probs, _, _ = conformer(g, _features(g, x, "length", settings), "length", model)
  g.named(log_probs, "logprobs")
  inputs = {"audio_signal": (FLOAT, ["N", settings.mels, "M"]), "length": (INT, ["N"])}
  outputs = {"logprobs": (FLOAT, ["N", "T", len(model.labels)])}
  return g.model(inputs, outputs, {"model_type": "jaxkd-conformer"})


def tokens(model: AcousticModel) -> list[str]:
  """What the runtimes write for each class, the blank first."""
  vocabulary, spaces = model.vocabulary, model.vocabulary.space_ids()

  def apart(index: int) -> bool:
    """Whether a space comes before it that no class stands for."""
    of_pieces = vocabulary.kind == "subwords" and vocabulary.starts_word(index)
    return of_pieces or vocabulary.kind in ("phonemes", "tokens")

  def token(index: int) -> str:
    if index == vocabulary.blank_id:
      return "<blk>"
    if index in spaces:
      return SPACE
    symbol = vocabulary.symbols[index].replace(" ", SPACE)
    return SPACE + symbol.removeprefix(SPACE) if apart(index) else symbol

  return [token(index) for index in classes(model)]


def write_tokens(model: AcousticModel, folder: pathlib.Path, name: str = "tokens.txt") -> None:
  """Writes what the runtimes write for each class."""
  lines = [f"{token} {index}\n" for index, token in enumerate(tokens(model))]
  files.write_text(folder / name, "".join(lines))


def _write_onnx_asr(model: AcousticModel, folder: pathlib.Path) -> None:
  write_tokens(model, folder, "vocab.txt")
  _write_config(folder, model_type="wav2vec2-ctc", subsampling_factor=model.frame_samples)


def _write_nemo(model: AcousticModel, folder: pathlib.Path) -> None:
  write_tokens(model, folder, "vocab.txt")
  _write_config(
    folder,
    model_type="nemo-conformer-ctc",
    features_size=settings_of(model).mels,
    subsampling_factor=model.frame_samples // HOP,
  )


def _write_config(folder: pathlib.Path, **config) -> None:
  files.write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")


SLOTS = (
  Slot("omnilingual", _omnilingual_lacks, _omnilingual, write_tokens),
  Slot("zipformer", _zipformer_lacks, _zipformer, write_tokens),
  Slot("onnx-asr", lambda model: "", _onnx_asr, _write_onnx_asr),
  Slot("onnx-asr-nemo", _nemo_lacks, _nemo, _write_nemo),
)
