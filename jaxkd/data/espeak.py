"""eSpeak NG, which speaks the corpora that are made here."""

import ctypes
import dataclasses
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from jaxkd.data.rows import Row
from jaxkd.errors import UserError

ACCENTS = ("en-us", "gmw/en", "gmw/en-GB-x-rp", "gmw/en-US-nyc")
# Variants of each voice: those that models are trained on, and those that they are tested on.
HEARD = ("f1", "f3", "f4", "m1", "m2", "m4", "m5", "m6", "m8") + (
  *("Andy", "Gene", "Lee", "Michael", "adam", "belinda", "edward", "john", "linda", "max"),
  *("paul", "robert", "steph", "victor"),
)
UNHEARD = {"dev": ("f5", "m7"), "test": ("f2", "m3", "Mike")}
_SEED = 20250825


@dataclasses.dataclass(frozen=True)
class Spoken:
  """A corpus spoken by eSpeak NG; dev and test by voices of their own.

  Attributes:
    version: another one wherever other audio would be made.
    seed: with a split's number it is that of the split.
    sizes: split → its utterances.
    utterances: (espeak, variants of voices, size, seed) → the rows of a split.
  """

  version: str
  seed: int
  sizes: Mapping[str, int]
  utterances: Callable[..., Iterator[Row]]

  def splits(self) -> dict[str, Iterator[Row]]:
    """Split → its utterances, spoken when they are asked for.

    Raises:
      UserError: eSpeak NG is not installed.
    """
    espeak = Espeak()
    return {
      split: self.utterances(espeak, UNHEARD.get(split, HEARD), size, [self.seed, number])
      for number, (split, size) in enumerate(self.sizes.items())
    }


def drawn_speaker(rng: np.random.Generator, variants, words_per_minute: tuple[int, int]) -> dict:
  """How an utterance is spoken, as `Espeak.speak` takes it and its row notes it.

  Args:
    rng: draws.
    variants: of the voices, as in HEARD.
    words_per_minute: from, to but not including.
  """
  voice = f"{rng.choice(ACCENTS)}+{rng.choice(variants)}"
  rate, pitch = int(rng.integers(*words_per_minute)), int(rng.integers(30, 71))
  return {"voice": voice, "words_per_minute": rate, "pitch": pitch}


class Espeak:
  """eSpeak NG through its C interface (speak_lib.h)."""

  _SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: samples come through the callback
  _RATE, _PITCH = 1, 3  # espeak_PARAMETER
  _UTF8 = 1  # espeakCHARS_UTF8
  _BY_CHARACTER = 1  # POS_CHARACTER

  def __init__(self):
    try:
      import espeakng_loader

      self._lib = ctypes.CDLL(espeakng_loader.get_library_path())
      data = espeakng_loader.get_data_path()
    except (ImportError, OSError) as error:
      raise UserError(
        f"the corpus is spoken by eSpeak NG, which cannot be loaded ({error}): "
        "pip install 'jaxkd[demo]'"
      ) from error
    self.rate_hz = self._lib.espeak_Initialize(self._SYNCHRONOUS, 0, data.encode(), 0)
    if self.rate_hz <= 0:
      raise UserError(f"eSpeak NG cannot read its data in {data}: pip install 'jaxkd[demo]' again")
    # It seeds its noise with the time. One process is to make the corpus only once: the library
    # also keeps phases from one utterance to the next.
    self._lib.espeak_ng_SetRandSeed(ctypes.c_long(_SEED))
    self._chunks: list[np.ndarray] = []
    kind = ctypes.CFUNCTYPE(
      ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
    )
    self._callback = kind(self._receive)  # the library keeps no reference
    self._lib.espeak_SetSynthCallback(self._callback)

  def _receive(self, samples, count, events) -> int:
    del events
    if samples and count:
      self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
    return 0

  def speak(self, text: str, voice: str, *, words_per_minute: int, pitch: int) -> np.ndarray:
    """f32[S] in [-1, 1] at `rate_hz`.

    Raises:
      RuntimeError: the library knows no such voice, or says nothing.
    """
    if self._lib.espeak_SetVoiceByName(voice.encode()):
      raise RuntimeError(f"eSpeak NG has no voice {voice}")
    self._lib.espeak_SetParameter(self._RATE, words_per_minute, 0)
    self._lib.espeak_SetParameter(self._PITCH, pitch, 0)
    self._chunks.clear()
    given = text.encode()
    self._lib.espeak_Synth(given, len(given) + 1, 0, self._BY_CHARACTER, 0, self._UTF8, None, None)
    self._lib.espeak_Synchronize()
    if not self._chunks:
      raise RuntimeError(f"eSpeak NG said nothing of {text!r} as {voice}")
    return np.concatenate(self._chunks).astype(np.float32) / 32768
