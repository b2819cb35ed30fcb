"""The runtimes that exported folders are for, called as their users call them."""

import importlib.metadata
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator

import numpy as np

from jaxkd.types import SAMPLE_RATE_HZ

# Reads f32[S] of full scale 1 at 16 kHz, and returns the text.
Listener = Callable[[np.ndarray], str]


class NotRead(Exception):
  """The installed version of a runtime has no place for such a folder."""


def omnilingual(model: pathlib.Path) -> Listener:
  """sherpa-onnx on a file of the folder omnilingual, on one thread."""
  import sherpa_onnx

  make = sherpa_onnx.OfflineRecognizer.from_omnilingual_asr_ctc
  return _sherpa(make(model=str(model), tokens=str(model.with_name("tokens.txt"))))


def zipformer(model: pathlib.Path) -> Listener:
  """sherpa-onnx on a file of the folder zipformer, on one thread."""
  import sherpa_onnx

  make = sherpa_onnx.OfflineRecognizer.from_zipformer_ctc
  return _sherpa(make(model=str(model), tokens=str(model.with_name("tokens.txt"))))


def _sherpa(recogniser) -> Listener:
  def listen(audio: np.ndarray) -> str:
    stream = recogniser.create_stream()
    stream.accept_waveform(SAMPLE_RATE_HZ, audio)
    recogniser.decode_stream(stream)
    return stream.result.text

  return listen


def onnx_asr(model: pathlib.Path) -> Listener:
  """onnx-asr on a file of one of its folders, on one thread.

  Raises:
    NotRead: its version does not know the model type.
  """
  import onnx_asr as runtime
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = 1
  quantization = model.name.removeprefix("model").removesuffix(".onnx").strip(".") or None
  kind = json.loads(model.with_name("config.json").read_text())["model_type"]
  try:
    loaded = runtime.load_model(
      kind,
      model.parent,
      quantization=quantization,
      sess_options=options,
      providers=["CPUExecutionProvider"],
    )
  except Exception as error:
    if "NotSupported" in type(error).__name__ or "NotFound" in type(error).__name__:
      version = importlib.metadata.version("onnx-asr")
      raise NotRead(f"onnx-asr {version} does not know the model type {kind}") from error
    raise
  return lambda audio: loaded.recognize(audio, sample_rate=SAMPLE_RATE_HZ)


RUNTIMES = {
  "omnilingual": ("sherpa-onnx", omnilingual),
  "zipformer": ("sherpa-onnx", zipformer),
  "onnx-asr": ("onnx-asr", onnx_asr),
  "onnx-asr-nemo": ("onnx-asr", onnx_asr),
}


def version(folder: str) -> str:
  """Name and version of the runtime of a folder.

  Raises:
    importlib.metadata.PackageNotFoundError: it is not installed.
  """
  name = RUNTIMES[folder][0]
  return f"{name} {importlib.metadata.version(name)}"


def listen(listener: Listener, recordings: Iterator[np.ndarray]) -> tuple[list[str], float]:
  """Texts, and seconds that they took."""
  texts, seconds = [], 0.0
  for audio in recordings:
    started = time.perf_counter()
    texts.append(listener(audio))
    seconds += time.perf_counter() - started
  return texts, seconds


def log_probs(model: pathlib.Path) -> Callable[..., np.ndarray]:
  """inputs by name → the first output of a file in onnxruntime on one thread."""
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = 1
  options.log_severity_level = 3
  session = onnxruntime.InferenceSession(
    os.fspath(model), options, providers=["CPUExecutionProvider"]
  )
  return lambda **inputs: session.run(None, inputs)[0]
