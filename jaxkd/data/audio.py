"""Audio files → 16 kHz mono float32, at the amplitude that the file has."""

import contextlib
import io
import os
import re
import stat
import sys
from collections.abc import Iterator

import numpy as np
import soundfile
import soxr

from jaxkd import buckets
from jaxkd.types import SAMPLE_RATE_HZ

EXTENSIONS = (
  *(".wav", ".flac", ".ogg", ".opus", ".oga", ".mp3", ".aif", ".aiff"),
  *(".wave", ".mp2", ".aifc"),
)
# Recordings that are not decoded here, so that a folder of them is not silently small.
UNREAD_EXTENSIONS = (
  *(".m4a", ".mp4", ".aac", ".wma", ".amr", ".webm", ".mka", ".mkv", ".mov", ".3gp", ".sph"),
  *(".au", ".caf", ".w64", ".rf64", ".raw", ".pcm", ".spx", ".ape", ".wv", ".m4b", ".avi"),
  *(".wmv", ".mpg", ".mpeg"),
)
MIN_SECONDS = 0.05  # two feature frames; less cannot hold a sound
# A manifest's durations are rounded; of these formats, decoders differ about the ends.
_MISSING_SECONDS, _MISSING_SECONDS_OF = 0.1, {"MP3": 0.3, "OGG": 0.3}
# Decoders of what is lossy need what is before a place, to say the same as from the beginning on.
_BEFORE_SECONDS = {"MP3": 0.5, "OGG": 1.0}
_BLOCK = 1 << 20  # samples that are decoded at a time
# No codec here has more samples in a byte, even of silence: a header that says so is wrong.
_MOST_SAMPLES_A_BYTE = 2000
# What libsndfile notes of WAV and AIFF whose samples are fewer bytes than their header says. One
# that was written to a pipe says about 2 or 4 GB.
_CUT_SHORT = re.compile(r"^ ?(?:data|SSND) : (\d+) \(should be (\d+)\)", re.M)
_PIPED_BYTES = 0x7FFF0000
# Of the power that channels have when they have nothing in common: below, they cancel out.
_CANCELLED = 0.1


def cores() -> int:
  """CPU cores that this process may use: so many threads decode."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class BrokenAudio(Exception):
  """A recording that cannot be used; the message says why."""


Recording = str | os.PathLike | bytes  # a file's path, or the encoded recording itself


def duration(path: Recording) -> float:
  """Seconds of a recording, from its header; counted where that does not know.

  A file that is cut short has less, which is known when it is read.

  Raises:
    BrokenAudio: absent, unreadable or too short.
  """
  try:
    with opened(path, whole=False) as (file, size):
      frames, rate = file.frames, file.samplerate
      if is_wrong(frames, size):
        frames = sum(len(block) for block in blocks(file, None))
      elif cut := _CUT_SHORT.search(file.extra_info):
        said, there = map(int, cut.groups())
        frames = frames * said // there if 0 < there < said < _PIPED_BYTES else frames
  except (OSError, RuntimeError, ValueError) as error:
    raise BrokenAudio(reason(path, error)) from error
  seconds = frames / max(rate, 1)
  if seconds < MIN_SECONDS:
    raise BrokenAudio(f"empty or too short ({frames} samples)")
  return seconds


def read(
  path: Recording, offset_seconds: float = 0.0, duration_seconds: float | None = None
) -> np.ndarray:
  """f32[S] at 16 kHz: one channel of all of them, resampled by soxr.

  Samples keep the amplitude that the file has, above 1 too: models that normalise lose nothing.

  Args:
    path: of the file, or its bytes.
    offset_seconds: where the wanted part starts.
    duration_seconds: its length; None for all that follows.

  Raises:
    BrokenAudio: absent, unreadable, too short, silent, or ending before the wanted part does.
  """
  try:
    with opened(path) as (file, size):
      rate = file.samplerate
      wanted = None if duration_seconds is None else round(duration_seconds * rate)
      begin_at(file, size, offset_seconds)
      samples = np.concatenate([np.empty((0, file.channels), np.float32), *blocks(file, wanted)])
      spare = _MISSING_SECONDS_OF.get(file.format, _MISSING_SECONDS)
  except (OSError, RuntimeError, ValueError) as error:
    raise BrokenAudio(reason(path, error)) from error
  if wanted is not None and wanted - len(samples) > spare * rate:
    raise BrokenAudio(f"holds {len(samples) / rate:.2f} s of the {duration_seconds:.2f} s expected")
  return as_model_hears(_one_channel(samples), rate)


def stream(path: Recording) -> Iterator[np.ndarray]:
  """f32[S] at 16 kHz, a file's samples in parts of some seconds, of which memory holds one.

  Raises:
    BrokenAudio: absent, unreadable, or with samples that are not numbers.
  """
  try:
    with opened(path) as (file, _):
      rate = file.samplerate
      resampler = soxr.ResampleStream(rate, SAMPLE_RATE_HZ, 1, dtype="float32")
      for block in blocks(file, None):
        samples = _one_channel(block)
        if not np.isfinite(samples).all():
          raise BrokenAudio("samples that are not numbers")
        yield samples if rate == SAMPLE_RATE_HZ else resampler.resample_chunk(samples)
      if rate != SAMPLE_RATE_HZ:
        yield resampler.resample_chunk(np.empty(0, np.float32), last=True)
  except (OSError, RuntimeError, ValueError) as error:
    raise BrokenAudio(reason(path, error)) from error


def as_model_hears(samples: np.ndarray, rate_hz: int) -> np.ndarray:
  """f32[S] at 16 kHz of f32[S'] at another rate.

  Raises:
    BrokenAudio: too short, silent, or not finite.
  """
  if len(samples) < MIN_SECONDS * rate_hz:
    raise BrokenAudio(f"empty or too short ({len(samples)} samples)")
  if not np.isfinite(samples).all():
    raise BrokenAudio("samples that are not numbers")
  if rate_hz != SAMPLE_RATE_HZ:
    samples = soxr.resample(samples, rate_hz, SAMPLE_RATE_HZ)
  if not samples.any():
    raise BrokenAudio("silent: every sample is 0")
  return samples


@contextlib.contextmanager
def opened(path: Recording, *, whole: bool = True):
  """A file, by the bytes of its name, which need be no UTF-8, and its size; OSError or ValueError.

  Args:
    path: of a file, or of an object in a bucket; or the bytes of one.
    whole: all of an object will be read; else what is asked for is fetched.
  """
  if isinstance(path, bytes):
    with soundfile.SoundFile(io.BytesIO(path)) as file:
      yield file, len(path)
    return
  if buckets.is_url(path):
    object_ = buckets.read(path) if whole else buckets.opened(path)
    with object_, soundfile.SoundFile(object_) as file:
      yield file, object_.getbuffer().nbytes if whole else object_.size
    return
  there = os.stat(path)  # says what is wrong with a name better than libsndfile does
  if not stat.S_ISREG(there.st_mode):  # a pipe would be waited for without end
    raise ValueError("no file, but a folder, a pipe or a device")
  size = there.st_size
  with soundfile.SoundFile(os.fsencode(path)) as file:
    yield file, size


def is_wrong(frames: int, size: int) -> bool:
  """Whether a header cannot be right: FLAC from a pipe does not know its length."""
  return frames > _MOST_SAMPLES_A_BYTE * size


def is_lossy(file: soundfile.SoundFile) -> bool:
  """Whether its samples are a decoder's, of more bits than they are worth."""
  return file.format in _BEFORE_SECONDS


def begin_at(file: soundfile.SoundFile, size: int, seconds: float) -> None:
  """The next read begins there, or at the end; as a decoder of the whole file has it."""
  skipped = round(min(seconds * file.samplerate, sys.maxsize))
  if not is_wrong(file.frames, size):
    frame = min(skipped, file.frames)
    before = round(_BEFORE_SECONDS.get(file.format, 0) * file.samplerate)
    file.seek(max(0, frame - before))
    skipped = min(frame, before)
  for _ in blocks(file, skipped):
    pass


def blocks(file: soundfile.SoundFile, wanted: int | None):
  """f32[≤ _BLOCK, channels] up to the wanted number of samples, or to the end of the file."""
  # soundfile seeks to where it is after each read, which fails in a file of unknown length.
  file.seekable = lambda: False
  left = wanted
  while left is None or left > 0:
    block = file.read(_BLOCK if left is None else min(left, _BLOCK), "float32", always_2d=True)
    if not len(block):
      return
    left = left and left - len(block)
    yield block


def _one_channel(samples: np.ndarray) -> np.ndarray:
  """f32[S] of f32[S, channels]: their mean, or the loudest where they cancel out in it."""
  mean = samples.mean(1)
  if samples.shape[1] == 1:
    return mean
  powers = (samples.astype(np.float64) ** 2).sum(0)
  unrelated = powers.sum() / samples.shape[1] ** 2
  if (mean.astype(np.float64) ** 2).sum() < _CANCELLED * unrelated:
    return np.ascontiguousarray(samples[:, powers.argmax()])
  return mean


def reason(path: Recording, error: Exception) -> str:
  """Why a recording cannot be read."""
  if isinstance(path, bytes):
    absent = False
  elif buckets.is_url(path):
    absent = isinstance(error, FileNotFoundError)
  else:
    absent = not os.path.exists(path)
  if absent:
    return "no such file"
  text = " ".join(str(error).split())
  return f"not readable as audio ({text.rsplit(': ', 1)[-1].rstrip('.')})"
