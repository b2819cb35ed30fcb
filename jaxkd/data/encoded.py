"""Recordings as the bytes that they lie in: whole files as they are, parts of them encoded anew."""

import io
import pathlib
from collections.abc import Iterator

import numpy as np
import soundfile

from jaxkd import buckets
from jaxkd.data import audio
from jaxkd.data.audio import BrokenAudio

# A file that is hardly longer than what is wanted of it goes whole.
_SPARE_SECONDS = 1.0
# Below this largest sample 16 bits leave too little of what is heard.
_LOUD = 2**-6
# Where a cut is looked for, from this share of the longest piece on; and how much is heard at once.
_EARLIEST, _QUIET_SECONDS = 0.5, 0.1


def part(path: audio.Recording, offset: float, seconds: float) -> bytes:
  """Bytes that `audio.read(bytes, 0, seconds)` makes the same samples of as of the file.

  Parts of files without loss and of at most 24 bits are FLAC, with the same samples; those of lossy
  files are FLAC of 16 bits, unless they are quiet; others are WAV of floats.

  Args:
    path: of the file, or its bytes.
    offset, seconds: the wanted part.

  Raises:
    BrokenAudio: absent or unreadable.
  """
  try:
    with audio.opened(path) as (file, size):
      rate = file.samplerate
      known = not audio.is_wrong(file.frames, size)
      lossy = audio.is_lossy(file)
      if not offset and (not known or file.frames <= (seconds + _SPARE_SECONDS) * rate):
        return _bytes(path)
      audio.begin_at(file, size, offset)
      parts = audio.blocks(file, round(seconds * rate))
      samples = np.concatenate([np.empty((0, file.channels), np.float32), *parts])
  except (OSError, RuntimeError, ValueError) as error:
    raise BrokenAudio(audio.reason(path, error)) from error
  return of_samples(samples, rate, rounds=lossy)


def _bytes(path: audio.Recording) -> bytes:
  if isinstance(path, bytes):
    return path
  return buckets.read(path).getvalue() if buckets.is_url(path) else pathlib.Path(path).read_bytes()


def of_samples(samples: np.ndarray, rate_hz: int, *, rounds: bool = True) -> bytes:
  """f32[S] or f32[S, channels] as FLAC, exactly where 24 bits hold it; else WAV of floats.

  Args:
    samples: of full scale 1.
    rate_hz: of them.
    rounds: whether FLAC of 16 bits will do where 24 do not hold it, and it is not quiet.
  """
  for bits, kind in ((16, np.int16), (24, np.int32)):
    scaled = samples.astype(np.float64) * 2 ** (bits - 1)
    fits = (scaled >= -(2 ** (bits - 1))) & (scaled < 2 ** (bits - 1))
    if fits.all() and (scaled == np.rint(scaled)).all():
      # Of 24 bits libsndfile takes the upper ones of 32.
      return _written((scaled * (256 if bits == 24 else 1)).astype(kind), rate_hz, f"PCM_{bits}")
  if rounds and np.isfinite(samples).all() and _LOUD <= np.abs(samples).max(initial=0) < 1:
    rounded = np.clip(np.rint(samples.astype(np.float64) * 32768), -32768, 32767)
    return _written(rounded.astype(np.int16), rate_hz, "PCM_16")
  return _written(samples, rate_hz, "FLOAT")


def _written(samples: np.ndarray, rate_hz: int, subtype: str) -> bytes:
  file, form = io.BytesIO(), "WAV" if subtype == "FLOAT" else "FLAC"
  try:
    soundfile.write(file, samples, rate_hz, format=form, subtype=subtype)
  except (RuntimeError, ValueError):  # more channels than FLAC has
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format="WAV", subtype=subtype)
  return file.getvalue()


def pieces(
  path: audio.Recording, offset: float, seconds: float, longest: float
) -> Iterator[tuple[float, float, bytes]]:
  """(start, seconds, bytes) of parts that follow one another, cut where it is quietest.

  Memory holds one piece, however long the recording.

  Args:
    path: of the file, or its bytes.
    offset, seconds: the wanted part.
    longest: seconds of a piece.

  Raises:
    BrokenAudio: unreadable; before anything was given or after some pieces were.
  """
  try:
    with audio.opened(path) as (file, size):
      rate = file.samplerate
      audio.begin_at(file, size, offset)
      left, start = round(seconds * rate), 0
      most, held = int(longest * rate), np.empty((0, file.channels), np.float32)
      while left > 0 or len(held):
        more = file.read(min(left, most - len(held)), "float32", always_2d=True)
        left = left - len(more) if len(more) else 0
        held = np.concatenate([held, more])
        end = len(held) if left <= 0 and len(held) <= most else _quietest(held, rate)
        if end >= audio.MIN_SECONDS * rate:
          samples = of_samples(held[:end], rate, rounds=audio.is_lossy(file))
          yield start / rate, end / rate, samples
        held, start = held[end:], start + end
  except (OSError, RuntimeError, ValueError) as error:
    raise BrokenAudio(audio.reason(path, error)) from error


def _quietest(samples: np.ndarray, rate_hz: int) -> int:
  """The middle of the quietest tenth of a second in the later part of f32[S, channels]."""
  first, size = int(_EARLIEST * len(samples)), max(1, int(_QUIET_SECONDS * rate_hz))
  power = (samples[first:].astype(np.float64) ** 2).sum(1)
  total = np.concatenate([[0.0], np.cumsum(power)])
  heard = total[size:] - total[:-size]
  return first + int(heard.argmin()) + size // 2
