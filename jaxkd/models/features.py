"""Audio → log-mel features, computed on the device."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.masks import length_mask, zero_padding
from jaxkd.types import SAMPLE_RATE_HZ

HOP = 160  # samples: 10 ms
WINDOW = 400  # samples: 25 ms
FFT = 512
PREEMPHASIS = 0.97
_KINDS = ("logmel", "kaldi", "sherpa", "nemo", "lasr", "granite")
_BANDS_HZ = {
  "sherpa": (20.0, 7600.0),
  "nemo": (0.0, 8000.0),
  "lasr": (125.0, 7500.0),
  "granite": (0.0, 8000.0),
}
NEMO_GUARD = 2.0**-24
_FLOORS = {"logmel": 1e-10, "lasr": 1e-5, "granite": 1e-10}
_KALDI_EPSILON = np.finfo(np.float32).eps


@dataclasses.dataclass(frozen=True)
class LogMel:
  """Settings of `log_mel`.

  Attributes:
    kind: "logmel": peak-normalised, pre-emphasised audio, frames centred every 10 ms, as many as
      ceil(samples / 160) (the paper's front-end); "kaldi": as Kaldi's fbank with 16-bit scale,
      snipped edges, Povey window and no dither; "sherpa": what sherpa-onnx gives its models, as
      Kaldi's but of full scale 1, with frames centred every 10 ms and audio mirrored at its ends;
      "nemo": as NeMo's models read it, Slaney's filters, each normalised over the utterance;
      "lasr": as Google's LASR, snipped edges, a Hann window and nothing else before the filters;
      "granite": as torchaudio's MelSpectrogram for Granite Speech 5, frames centred every 10 ms, an
      even number of them.
    mels: filters; sherpa-onnx has 80, NeMo 80 or 128.
    low_hz, high_hz: edges of the filter bank; those of "sherpa" are 20 and 7600 Hz, of "nemo" 0
      and 8000 Hz, of "lasr" 125 and 7500 Hz, of "granite" 0 and 8000 Hz.
    normalise: "none", or "utterance" for zero mean and unit variance of each filter over the
      utterance's real frames.

  Raises:
    ValueError: a setting is none of these, or low_hz to high_hz is no band up to 8 kHz.
  """

  kind: str = "logmel"
  mels: int = 80
  low_hz: float = 60.0
  high_hz: float = 7600.0
  normalise: str = "none"

  def __post_init__(self):
    _check_choice("kind", self.kind, _KINDS)
    _check_choice("normalise", self.normalise, ("none", "utterance"))
    if self.mels != int(self.mels) or self.mels < 1:
      raise ValueError(f"mels is {self.mels}; it must be a whole number, 1 or more")
    if not 0 <= self.low_hz < self.high_hz <= SAMPLE_RATE_HZ / 2:
      raise ValueError(
        f"low_hz is {self.low_hz} and high_hz {self.high_hz}; "
        f"they must be a band from 0 to {SAMPLE_RATE_HZ // 2} Hz, low_hz below high_hz"
      )

  @property
  def band_hz(self) -> tuple[float, float]:
    """Edges of the filter bank that is used."""
    return _BANDS_HZ.get(self.kind, (self.low_hz, self.high_hz))


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
  if value not in choices:
    raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")


def frame_len(audio_len, kind: str):
  """Feature frames of so many samples, for ints and arrays, of a kind of `LogMel`."""
  _check_choice("kind", kind, _KINDS)
  if kind in ("kaldi", "lasr"):
    arrays = jnp if isinstance(audio_len, jax.Array) else np
    return arrays.maximum(0, 1 + (audio_len - WINDOW) // HOP)
  if kind == "sherpa":
    return (audio_len + HOP // 2) // HOP
  if kind == "nemo":
    return audio_len // HOP
  if kind == "granite":  # what is mirrored at the ends must be longer than half of its FFT
    return -(-(audio_len // HOP) // 2) * 2 * (audio_len > FFT // 2)
  return -(-audio_len // HOP)


def log_mel(
  audio: jax.Array, audio_len: jax.Array, settings: LogMel
) -> tuple[jax.Array, jax.Array]:
  """Log-mel features.

  Args:
    audio: i16[B, S], or float[B, S] of full scale 1, 16 kHz; padding may hold anything.
    audio_len: i32[B], real samples.
    settings: kind, filters and normalisation.

  Returns:
    f32[B, N, F] with padding at 0, and bool[B, N], True for real frames; N = ceil(S / 160), and
    even for "granite".
  """
  scale = 1 / 32768 if jnp.issubdtype(audio.dtype, jnp.integer) else 1
  real = length_mask(audio_len, audio.shape[1])
  audio = jnp.where(real, audio.astype(jnp.float32) * scale, 0)
  size = -(-audio.shape[1] // HOP)
  size += size % 2 if settings.kind == "granite" else 0
  if settings.kind == "kaldi":
    spectrum = _kaldi_power(_frames(audio * 32768, size, 0))
  elif settings.kind == "sherpa":
    left = -window_start("sherpa")
    spectrum = _kaldi_power(_frames(_mirrored(audio, audio_len, left, size), size, 0))
  elif settings.kind == "granite":
    spectrum = _torchaudio_power(audio, audio_len, size)
  elif settings.kind in ("nemo", "lasr"):
    nemo = settings.kind == "nemo"
    frames = (
      _frames(_emphasised(audio, real), size, WINDOW // 2) if nemo else _frames(audio, size, 0)
    )
    spectrum = _power(frames * np.hanning(WINDOW).astype(np.float32)[None, None])
  else:
    spectrum = _paper_power(audio, real, size)
  mask = length_mask(frame_len(audio_len, settings.kind), size)
  if settings.kind == "nemo":
    features = jnp.log(spectrum @ filters(settings)[0] + NEMO_GUARD)
    features = _as_nemo_standardises(zero_padding(features, mask), mask)
  else:
    features = zero_padding(_log_filtered(spectrum, settings), mask)
  if settings.normalise == "utterance":
    features = standardise(features, mask)
  return features, mask


def window_start(kind: str) -> int:
  """Samples from the first feature's hop to the start of its window, 0 or less."""
  return -((WINDOW - HOP) // 2) if kind == "sherpa" else 0


def log_mel_between(
  audio: jax.Array, start: jax.Array, audio_len: jax.Array, first: jax.Array, size: int, settings
) -> tuple[jax.Array, jax.Array]:
  """Some of the features that `log_mel` makes, of audio that is known in part.

  Args:
    audio: f32[B, S] of full scale 1, with the samples that these features are made of.
    start: i32[], the place of audio[:, 0] in the whole; below 0 nothing is read.
    audio_len: i32[B], of the whole; where that is not known yet, more than these features read.
    first: i32[], the first feature; those below 0 hold anything.
    size: how many.
    settings: of a kind in `config.meaning.STREAMED`, not normalised.

  Returns:
    f32[B, size, F] with what lies behind the end at 0, and i32[B], how many do not.
  """
  place = first * HOP + window_start(settings.kind)
  place = place + jnp.arange(size * HOP + WINDOW - HOP, dtype=jnp.int32)[None]
  if settings.kind == "sherpa":
    place = _reflected(place, audio_len)
  place = jnp.clip(place - start, 0, audio.shape[1] - 1)
  frames = _frames(
    jnp.take_along_axis(audio, jnp.broadcast_to(place, (audio.shape[0], place.shape[1])), 1),
    size,
    0,
  )
  scale = 32768 if settings.kind == "kaldi" else 1
  length = jnp.clip(frame_len(audio_len, settings.kind) - first, 0, size)
  features = _log_filtered(_kaldi_power(frames * scale), settings)
  return zero_padding(features, length_mask(length, size)), length


def _log_filtered(spectrum: jax.Array, settings: LogMel) -> jax.Array:
  bank, floor = filters(settings)
  return jnp.log(jnp.maximum(spectrum @ bank, floor))


def _frames(audio: jax.Array, size: int, left: int) -> jax.Array:
  """f32[B, size, 400]: windows every 160 samples, the first starting `left` samples early."""
  blocks = -(-WINDOW // HOP)
  total = (size + blocks) * HOP
  padded = jnp.pad(audio, ((0, 0), (left, max(0, total - left - audio.shape[1]))))[:, :total]
  rows = padded.reshape(audio.shape[0], size + blocks, HOP)
  # Windows as shifted copies of the hops: no gather.
  shifted = [rows[:, i : i + size] for i in range(blocks)]
  return jnp.concatenate(shifted, axis=-1)[..., :WINDOW]


def _paper_power(audio: jax.Array, real: jax.Array, size: int) -> jax.Array:
  """f32[B, size, 257]: power of peak-normalised, pre-emphasised audio under a Hann window."""
  peak = jnp.abs(audio).max(-1, keepdims=True)
  audio = audio / jnp.where(peak > 0, peak, 1)
  audio = _emphasised(audio, real)
  return _power(_frames(audio, size, (WINDOW - HOP) // 2) * _hann()[None, None])


def _emphasised(audio: jax.Array, real: jax.Array) -> jax.Array:
  """Each sample less 0.97 times the one before; masked, or the last would echo into the padding."""
  return jnp.where(real, audio - PREEMPHASIS * jnp.pad(audio, ((0, 0), (1, 0)))[:, :-1], 0)


def _mirrored(
  audio: jax.Array, audio_len: jax.Array, left: int, size: int, *, edges: int = 2
) -> jax.Array:
  """f32[B, ·] for `size` windows: `left` samples more at the start, and both ends mirrored.

  The first sample and the last are there `edges` times, twice or once.
  """
  position = jnp.arange(size * HOP + WINDOW - HOP)[None] - left
  position = _reflected(position, audio_len, edges=edges)
  return jnp.take_along_axis(audio, jnp.maximum(position, 0), 1)


def _reflected(position: jax.Array, audio_len: jax.Array, *, edges: int = 2) -> jax.Array:
  """i32[B, ·]: places before the first sample and behind the last as places of samples."""
  position = jnp.where(position < 0, 1 - edges - position, position)
  last = audio_len[:, None] - 1
  position = jnp.where(position > last, 2 * last + edges - 1 - position, position)
  return jnp.clip(position, 0, jnp.maximum(last, 0))


def _torchaudio_power(audio: jax.Array, audio_len: jax.Array, size: int) -> jax.Array:
  """f32[B, size, 257]: under a Hann window; a frame that begins after the audio has one 0 more."""
  heard = jnp.maximum(audio_len, (frame_len(audio_len, "granite") - 1) * HOP + 1)
  audio = jnp.pad(audio, ((0, 0), (0, 1)))
  audio = _mirrored(audio, heard, WINDOW // 2, size, edges=1)
  return _power(_frames(audio, size, 0) * _hann()[None, None])


def _hann() -> np.ndarray:
  """f32[400]: one period."""
  return np.hanning(WINDOW + 1)[:-1].astype(np.float32)


def _kaldi_power(frames: jax.Array) -> jax.Array:
  """f32[B, size, 257]: as Kaldi: per-window mean removal and pre-emphasis, Povey window."""
  frames = frames - frames.mean(-1, keepdims=True)
  before = jnp.concatenate([frames[..., :1], frames[..., :-1]], axis=-1)
  frames = frames - PREEMPHASIS * before
  return _power(frames * povey_window().astype(np.float32)[None, None])


def povey_window() -> np.ndarray:
  """f64[400]: Kaldi's own."""
  turns = 2 * np.pi * np.arange(WINDOW) / (WINDOW - 1)
  return (0.5 - 0.5 * np.cos(turns)) ** 0.85


def _power(frames: jax.Array) -> jax.Array:
  spectrum = jnp.fft.rfft(frames, n=FFT)
  return spectrum.real**2 + spectrum.imag**2


@functools.cache
def filters(settings: LogMel) -> tuple[np.ndarray, float]:
  """f32[257, F], a triangle for each filter, and the floor of their power."""
  if settings.kind == "nemo":
    hz = _slaney_hz(np.linspace(*map(_slaney_mel, settings.band_hz), settings.mels + 2))
    bins = np.arange(FFT // 2 + 1) * SAMPLE_RATE_HZ / FFT
    bank = _triangles(hz, bins) * (2 / (hz[2:] - hz[:-2]))  # of equal area
    return bank.astype(np.float32), NEMO_GUARD
  if settings.kind == "granite":
    low, high = (2595 * np.log10(1 + hz / 700) for hz in settings.band_hz)
    hz = 700 * (10 ** (np.linspace(low, high, settings.mels + 2) / 2595) - 1)
    bins = np.arange(FFT // 2 + 1) * SAMPLE_RATE_HZ / FFT
    return _triangles(hz, bins).astype(np.float32), _FLOORS["granite"]
  mel = lambda hz: 1127 * np.log1p(np.asarray(hz) / 700)
  # Of equal height and width in mel (Kaldi).
  edges = np.linspace(*map(mel, settings.band_hz), settings.mels + 2)
  bank = _triangles(edges, mel(np.arange(FFT // 2 + 1) * SAMPLE_RATE_HZ / FFT))
  if settings.kind in _FLOORS:
    return bank.astype(np.float32), _FLOORS[settings.kind]
  bank[-1] = 0  # Kaldi leaves out the Nyquist bin
  return bank.astype(np.float32), _KALDI_EPSILON


def _triangles(edges: np.ndarray, bins: np.ndarray) -> np.ndarray:
  """[bins, filters]: from an edge up to 1 at the next one and down to the one after."""
  bins, (left, centre, right) = bins[:, None], (edges[:-2], edges[1:-1], edges[2:])
  rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
  return np.maximum(0, np.minimum(rising, falling))


# Linear up to 1 kHz, logarithmic above (Slaney 1998, "Auditory Toolbox", as librosa has it).
_LINEAR_MEL, _LOG_STEP = 15.0, np.log(6.4) / 27


def _slaney_mel(hz: float) -> float:
  return 3 * hz / 200 if hz < 1000 else _LINEAR_MEL + np.log(hz / 1000) / _LOG_STEP


def _slaney_hz(mel: np.ndarray) -> np.ndarray:
  above = 1000 * np.exp(_LOG_STEP * (mel - _LINEAR_MEL))
  return np.where(mel < _LINEAR_MEL, 200 * mel / 3, above)


def _as_nemo_standardises(features: jax.Array, mask: jax.Array) -> jax.Array:
  """Zero mean and unit deviation, without the sample's bias, of every filter; padding stays 0."""
  count = mask.sum(-1)[:, None, None]
  centred = zero_padding(features - features.sum(1, keepdims=True) / jnp.maximum(count, 1), mask)
  variance = (centred**2).sum(1, keepdims=True) / jnp.maximum(count - 1, 1)
  return centred / (jnp.sqrt(variance) + 1e-5)


def standardise(
  features: jax.Array, mask: jax.Array, *, eps: float = 1e-5, unbiased: bool = False
) -> jax.Array:
  """Zero mean and unit variance of every filter over the real frames; padding stays 0.

  Args:
    features: f32[B, N, F] with padding at 0.
    mask: bool[B, N], True for real frames.
    eps: added to the variance.
    unbiased: the variance is that of a sample, over one frame less.
  """
  count = mask.sum(-1)[:, None, None]
  mean = features.sum(1, keepdims=True) / jnp.maximum(count, 1)
  centred = zero_padding(features - mean, mask)
  variance = (centred**2).sum(1, keepdims=True) / jnp.maximum(count - unbiased, 1)
  return centred * jax.lax.rsqrt(variance + eps)
