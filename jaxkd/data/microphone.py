"""Audio that a pipe brings bit by bit, such as a recorder's."""

import string
import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from jaxkd.data.audio import BrokenAudio
from jaxkd.types import SAMPLE_RATE_HZ

_PCM, _EXTENSIBLE = 1, 0xFFFE
# What files begin with, after so many bytes.
_BEGINNINGS = (
  (0, b"RIFF", "WAV or AVI"),
  (0, b"RF64", "RF64"),
  (0, b"FORM", "AIFF"),
  (0, b"fLaC", "FLAC"),
  (0, b"OggS", "Ogg"),
  (0, b"ID3", "MP3"),
  (4, b"ftyp", "MP4 or M4A"),
  (0, b"\x1aE\xdf\xa3", "WebM or Matroska"),
  (0, b"0&\xb2u", "WMA"),
  (0, b"#!AMR", "AMR"),
  (0, b"caff", "CAF"),
  (0, b".snd", "AU"),
)
_LONGEST = 12  # bytes that show it; of RIFF, all before the first chunk
_SHOWS_TEXT = 64  # bytes: of 2 ms of samples some are no characters
_CHARACTERS = string.printable.encode()


def packets(pipe: BinaryIO) -> Iterator[np.ndarray]:
  """f32[S] of full scale 1, whatever has come; raw 16-bit samples at 16 kHz, or WAV of them.

  Args:
    pipe: buffered, with `read1`.

  Raises:
    BrokenAudio: a WAV header of other samples, another kind of file, or text.
  """
  held = pipe.read(_LONGEST)
  if held.startswith(b"RIFF"):
    _skip_header(pipe)
    held = b""
  else:
    held += pipe.read(_SHOWS_TEXT - _LONGEST)
  if told := no_samples(held):
    raise BrokenAudio(told)
  while True:
    whole = len(held) // 2 * 2
    if whole:
      yield np.frombuffer(held[:whole], "<i2").astype(np.float32) / 32768
    more = pipe.read1(1 << 16)
    if not more:
      return
    held = held[whole:] + more


def no_samples(data: bytes) -> str:
  """What to do about text, or bytes that begin a file; "" where they may be raw samples."""
  kinds = [kind for at, mark, kind in _BEGINNINGS if data.startswith(mark, at)]
  if kinds:
    told = f"begins as {kinds[0]} does and cannot be read as that"
  elif data and not data.strip(_CHARACTERS):
    told = "is text and no audio"
  else:
    return ""
  return f"{told}: pipe raw samples, with ffmpeg -i FILE -f s16le -ac 1 -ar {SAMPLE_RATE_HZ} -"


def _skip_header(pipe: BinaryIO) -> None:
  """Reads to the first sample; the length that the header tells is not believed."""
  while True:
    name, size = struct.unpack("<4sI", _exactly(pipe, 8))
    if name == b"data":
      return
    body = _exactly(pipe, size + size % 2)
    if name == b"fmt " and len(body) >= 16:
      kind, channels, rate, _, _, bits = struct.unpack("<HHIIHH", body[:16])
      if kind not in (_PCM, _EXTENSIBLE) or (channels, rate, bits) != (1, SAMPLE_RATE_HZ, 16):
        raise BrokenAudio(
          f"{channels} channels of {bits} bits at {rate} Hz: a stream must be one of 16 bits at "
          f"{SAMPLE_RATE_HZ} Hz (arecord -f S16_LE -r {SAMPLE_RATE_HZ} -c 1)"
        )


def _exactly(pipe: BinaryIO, size: int) -> bytes:
  found = pipe.read(size)
  if len(found) < size:
    raise BrokenAudio("its WAV header is cut short")
  return found
