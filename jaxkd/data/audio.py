"""Audio files → 16 kHz mono int16."""

import pathlib

import numpy as np
import soundfile
import soxr

from jaxkd.types import SAMPLE_RATE_HZ

EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3")
MIN_SECONDS = 0.05  # two feature frames; less cannot hold a sound
_MISSING_SECONDS = 0.1  # a manifest's durations are rounded


class BrokenAudio(Exception):
  """A recording that cannot be used; the message says why."""


def duration(path: pathlib.Path) -> float:
  """Seconds of a file, from its header.

  Raises:
    BrokenAudio: absent, unreadable or too short.
  """
  try:
    info = soundfile.info(str(path))
  except (OSError, RuntimeError) as error:
    raise BrokenAudio(_reason(path, error)) from error
  seconds = info.frames / max(info.samplerate, 1)
  if seconds < MIN_SECONDS:
    raise BrokenAudio(f"empty or too short ({info.frames} samples)")
  return seconds


def read(
  path: pathlib.Path, offset_seconds: float = 0.0, duration_seconds: float | None = None
) -> np.ndarray:
  """i16[S] at 16 kHz: channels averaged, resampled by soxr.

  Args:
    path: of the file.
    offset_seconds: where the wanted part starts.
    duration_seconds: its length; None for all that follows.

  Raises:
    BrokenAudio: absent, unreadable, too short, silent, or ending before the wanted part does.
  """
  try:
    with soundfile.SoundFile(str(path)) as file:
      rate = file.samplerate
      if offset_seconds:
        file.seek(min(round(offset_seconds * rate), file.frames))
      wanted = -1 if duration_seconds is None else round(duration_seconds * rate)
      samples = file.read(wanted, dtype="float32", always_2d=True)
  except (OSError, RuntimeError) as error:
    raise BrokenAudio(_reason(path, error)) from error
  if wanted - len(samples) > _MISSING_SECONDS * rate:
    raise BrokenAudio(f"holds {len(samples) / rate:.2f} s of the {duration_seconds:.2f} s expected")
  return to_int16(samples.mean(1), rate)


def to_int16(samples: np.ndarray, rate_hz: int) -> np.ndarray:
  """i16[S] at 16 kHz of f32[S'] in [-1, 1] at another rate.

  Raises:
    BrokenAudio: too short, silent, or not finite.
  """
  if len(samples) < MIN_SECONDS * rate_hz:
    raise BrokenAudio(f"empty or too short ({len(samples)} samples)")
  if not np.isfinite(samples).all():
    raise BrokenAudio("samples that are not numbers")
  if rate_hz != SAMPLE_RATE_HZ:
    samples = soxr.resample(samples, rate_hz, SAMPLE_RATE_HZ)
  whole = np.clip(np.round(samples * 32767), -32768, 32767).astype(np.int16)
  if not whole.any():
    raise BrokenAudio("silent: every sample is 0")
  return whole


def _reason(path: pathlib.Path, error: Exception) -> str:
  if not path.exists():
    return "no such file"
  text = " ".join(str(error).split())
  return f"not readable as audio ({text.rsplit(': ', 1)[-1].rstrip('.')})"
