"""A folder that `jaxkd export` has written, as a model that is listened with."""

import pathlib

import numpy as np

from jaxkd import files
from jaxkd.errors import UserError
from jaxkd.labels import Vocabulary
from jaxkd.types import SAMPLE_RATE_HZ, FrameOutput

FACTS, VOCABULARY = "export.json", "labels.json"
_MODEL = pathlib.Path("onnx-asr", "model.onnx")  # the graph that takes padded batches of audio


class ExportedModel:
  """What `AcousticModel` is to those who listen, by onnxruntime.

  Attributes:
    vocabulary: its classes.
    frame_samples: audio samples in an output frame.
  """

  def __init__(self, folder: pathlib.Path):
    """Opens a folder.

    Raises:
      UserError: it is damaged, or onnxruntime is missing.
    """
    try:
      import onnxruntime
    except ImportError as error:
      raise UserError(f"{folder} needs onnxruntime: pip install 'jaxkd[export]'") from error
    facts = files.read_json(folder / FACTS, kind=dict)
    self.vocabulary = Vocabulary.load(folder / VOCABULARY)
    try:
      self.frame_samples = int(facts["frame_samples"])
      options = onnxruntime.SessionOptions()
      options.log_severity_level = 3
      self._session = onnxruntime.InferenceSession(
        str(folder / _MODEL), options, providers=["CPUExecutionProvider"]
      )
      classes = self._session.get_outputs()[0].shape[-1]
    except Exception as error:  # onnxruntime's many kinds
      reason = " ".join(str(error).split())[:200]
      raise UserError(f"{folder / _MODEL} cannot be used: {reason}") from error
    if classes != len(self.vocabulary.symbols):
      raise UserError(
        f"{folder / VOCABULARY} has {len(self.vocabulary.symbols)} classes, {_MODEL} {classes}"
      )
    # There the blank comes first.
    blank_id = self.blank_id
    others = [i for i in range(classes) if i != blank_id]
    self._places = np.argsort([blank_id, *others])

  @property
  def blank_id(self) -> int:
    return self.vocabulary.blank_id

  @property
  def frame_ms(self) -> float:
    """Milliseconds of an output frame."""
    return 1000 * self.frame_samples / SAMPLE_RATE_HZ

  def __call__(self, audio, audio_len) -> FrameOutput:
    """Log probabilities f32[B, T, V] and mask bool[B, T] of f32[B, S] and i32[B]."""
    audio, audio_len = np.asarray(audio, np.float32), np.asarray(audio_len, np.int64)
    inputs = {"input_values": audio, "input_lengths": audio_len}
    log_probs, frames = self._session.run(None, inputs)
    mask = np.arange(log_probs.shape[1]) < frames[:, None]
    return FrameOutput(log_probs[..., self._places], mask)
