"""The features of `models.features` as an ONNX graph.

Window, pre-emphasis, removal of the mean and Fourier transform are linear: they are one convolution
over the waveform.
"""

import numpy as np

from jaxkd.export.graph import FLOAT, Graph
from jaxkd.models import features as features_lib
from jaxkd.models.features import FFT, HOP, PREEMPHASIS, WINDOW, LogMel, povey_window


def log_mel(g: Graph, audio: str, lengths: str | None, settings: LogMel):
  """Features of audio f32[N, S] of full scale 1, before masks and `normalised`.

  Args:
    g: the graph.
    audio: its padding is 0.
    lengths: i64[N] real samples; None for all.
    settings: of the model's features.

  Returns:
    f32[N, M, F], and i64[N] real frames of M (None without lengths).
  """
  g.prefix = "features/"
  pads = [0, 0]
  if settings.kind == "logmel":
    peak = g("ReduceMax", g("Abs", audio), axes=[1], keepdims=1)
    audio = _emphasised(g, g("Div", audio, g("Max", peak, 1e-30)), lengths)
    kernel, pads = _fourier(np.hanning(WINDOW + 1)[:-1]), [120, 279]
  elif settings.kind == "nemo":
    audio = _emphasised(g, audio, lengths)
    kernel, pads = _fourier(np.hanning(WINDOW)), [WINDOW // 2, WINDOW // 2 - HOP]
  else:
    audio = audio if settings.kind == "kaldi" else _mirrored(g, audio, lengths)
    audio, kernel = _as_kaldi(g, audio, settings)
  power, floor = _power(g, audio, kernel, pads, settings)
  lengths = None if lengths is None else _frame_len(g, lengths, settings.kind)
  if settings.kind == "nemo":
    features = g("Log", g("Add", power, floor))
    return _as_nemo_standardises(g, features, length_mask(g, features, lengths, axis=1)), lengths
  return g("Log", g("Max", power, floor)), lengths


def log_mel_of_windows(g: Graph, audio: str, settings: LogMel) -> str:
  """f32[N, M, F] of windows that lie wholly in audio f32[N, S], the first at its first sample.

  Args:
    g: the graph.
    audio: of full scale 1, a piece of a stream.
    settings: of features of the kind kaldi or sherpa, whose windows know nothing of each other.
  """
  g.prefix = "features/"
  power, floor = _power(g, *_as_kaldi(g, audio, settings), [0, 0], settings)
  return g("Log", g("Max", power, floor))


def _as_kaldi(g: Graph, audio: str, settings: LogMel) -> tuple[str, np.ndarray]:
  """Audio at the scale of the kind, and the kernel of its windows."""
  scaled = g("Mul", audio, 32768.0) if settings.kind == "kaldi" else audio
  return scaled, _fourier(povey_window()) @ _kaldi_steps()


def _power(g: Graph, audio: str, kernel: np.ndarray, pads: list[int], settings: LogMel):
  """f32[N, M, F] in the bands of windows, and the least that has a logarithm."""
  spectrum = g("Conv", g("Unsqueeze", audio, [1]), kernel[:, None], strides=[HOP], pads=pads)
  real, imaginary = g("Split", g("Mul", spectrum, spectrum), axis=1, outputs=2)
  power = g("Transpose", g("Add", real, imaginary), perm=[0, 2, 1])
  bank, floor = features_lib.filters(settings)
  return g("MatMul", power, bank), floor


def _emphasised(g: Graph, audio: str, lengths: str | None) -> str:
  """Each sample less a part of the one before; 0 in padding, where the last one would echo."""
  before = g("Slice", g("Pad", audio, [0, 1, 0, 0]), [0], [-1], [1])
  audio = g("Sub", audio, g("Mul", before, PREEMPHASIS))
  if lengths is None:
    return audio
  return g("Mul", audio, g("Squeeze", length_mask(g, audio, lengths, axis=1), [2]))


def _frame_len(g: Graph, lengths: str, kind: str) -> str:
  """`models.features.frame_len` of i64[N] samples."""
  first = {"logmel": HOP - 1, "kaldi": HOP - WINDOW, "sherpa": HOP // 2, "nemo": 0}[kind]
  return g("Div", g("Max", g("Add", lengths, first), 0), HOP)


def length_mask(g: Graph, x: str, lengths: str | None, axis: int) -> str | None:
  """float[N, T, 1] of the lengths i64[N], T the size of an axis of x."""
  if lengths is None:
    return None
  frames = g("Range", np.int64(0), g.count(x, axis), np.int64(1))
  real = g("Less", g("Unsqueeze", frames, [0]), g("Unsqueeze", lengths, [1]))
  return g("Unsqueeze", g("Cast", real, to=g.float), [2])


def normalised(g: Graph, x: str, mask: str | None) -> str:
  """x f32[N, M, F] with zero mean and unit variance of each filter; padding becomes 0.

  Args:
    g: the graph.
    x: features, 0 where the mask is.
    mask: f32[N, M, 1], 1 for real frames; None for all.
  """
  x, variance = _centred(g, x, mask, bias=0.0)
  return g("Div", x, g("Sqrt", g("Add", variance, 1e-5)))


def _as_nemo_standardises(g: Graph, x: str, mask: str | None) -> str:
  x, variance = _centred(g, x if mask is None else g("Mul", x, mask), mask, bias=1.0)
  return g("Div", x, g("Add", g("Sqrt", variance), 1e-5))


def _centred(g: Graph, x: str, mask: str | None, bias: float) -> tuple[str, str]:
  """x less its mean over real frames, and its variance, of which `bias` frames are not counted."""
  if mask is None:
    count = g("Cast", g.size(x, 1), to=FLOAT)
  else:
    count = g("Max", g("ReduceSum", mask, [1], keepdims=1), 1.0)
  x = g("Sub", x, g("Div", g("ReduceSum", x, [1], keepdims=1), count))
  if mask is not None:
    x = g("Mul", x, mask)
  count = g("Max", g("Sub", count, bias), 1.0)
  return x, g("Div", g("ReduceSum", g("Mul", x, x), [1], keepdims=1), count)


def _mirrored(g: Graph, audio: str, lengths: str | None) -> str:
  """Audio that windows of 400 samples every 10 ms lie centred in, mirrored at its ends."""
  size = g.size(audio, 1)
  if lengths is None:
    last = g("Unsqueeze", g("Sub", size, 1), [1])
  else:
    last = g("Unsqueeze", g("Sub", lengths, 1), [1])
  stop = g("Add", g("Mul", g("Div", g("Add", size, HOP // 2), HOP), HOP), WINDOW - HOP)
  place = g("Range", np.int64(0), g("Squeeze", stop, [0]), np.int64(1))
  place = g("Unsqueeze", g("Sub", place, (WINDOW - HOP) // 2), [0])
  place = g("Max", place, g("Sub", -1, place))  # at the start
  place = g("Min", place, g("Sub", g("Add", g("Mul", last, 2), 1), place))  # at the end
  place = g("Max", g("Min", place, last), 0)
  place = g("Expand", place, g("Concat", g.size(audio, 0), [1], axis=0))
  return g("GatherElements", audio, place, axis=1)


def _kaldi_steps() -> np.ndarray:
  """[400, 400]: removal of a window's mean, then pre-emphasis; the first sample is its own past."""
  centre = np.eye(WINDOW) - 1 / WINDOW
  before = np.eye(WINDOW, k=-1)
  before[0, 0] = 1
  return (np.eye(WINDOW) - PREEMPHASIS * before) @ centre


def _fourier(window: np.ndarray) -> np.ndarray:
  """[514, 400]: real, then imaginary parts of the 257 bins of a window of samples."""
  turns = 2 * np.pi * np.outer(np.arange(FFT // 2 + 1), np.arange(WINDOW)) / FFT
  return np.concatenate([np.cos(turns), -np.sin(turns)]) * window
