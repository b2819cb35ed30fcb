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
_PACKET = SAMPLE_RATE_HZ // 10


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


def online(model: pathlib.Path) -> Listener:
  """sherpa-onnx on a file of the folder online, on one thread, in packets of 100 ms."""
  import sherpa_onnx

  make = sherpa_onnx.OnlineRecognizer.from_zipformer2_ctc
  tokens, mels = str(model.with_name("tokens.txt")), _session(model).get_inputs()[0].shape[2]
  recogniser = make(model=str(model), tokens=tokens, feature_dim=mels, num_threads=1)

  def listen(audio: np.ndarray) -> str:
    stream = recogniser.create_stream()
    for start in range(0, len(audio), _PACKET):
      stream.accept_waveform(SAMPLE_RATE_HZ, audio[start : start + _PACKET])
      while recogniser.is_ready(stream):
        recogniser.decode_stream(stream)
    stream.input_finished()
    while recogniser.is_ready(stream):
      recogniser.decode_stream(stream)
    return recogniser.get_result(stream)

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
  "online": ("sherpa-onnx", online),
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


def onnxruntime_version() -> str:
  """Name and version of what runs files whose own runtime cannot."""
  return f"onnxruntime {importlib.metadata.version('onnxruntime')}"


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
  session = _session(model)
  return lambda **inputs: session.run(None, inputs)[0]


def streamed_log_probs(model: pathlib.Path) -> Callable[..., np.ndarray]:
  """As `log_probs`, of a file of the folder online: window by window, as sherpa-onnx gives them."""
  session = _session(model)
  size = session.get_inputs()[0].shape[1]
  shift = int(session.get_modelmeta().custom_metadata_map["decode_chunk_len"])
  types = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
  zeros = lambda of: np.zeros([1 if n == "N" else n for n in of.shape], types[of.type])

  def run(x: np.ndarray) -> np.ndarray:
    states, found = {of.name: zeros(of) for of in session.get_inputs()[1:]}, []
    for start in range(0, x.shape[1] - size, shift):
      log_probs, *after = session.run(None, {"x": x[:, start : start + size], **states})
      states = dict(zip(states, after, strict=True))
      found.append(log_probs)
    return np.concatenate(found, 1)

  return run


def _session(model: pathlib.Path):
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = 1
  options.log_severity_level = 3
  return onnxruntime.InferenceSession(os.fspath(model), options, providers=["CPUExecutionProvider"])
