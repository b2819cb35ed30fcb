"""A harder made corpus: sentences of a grammar in many voices, with pauses and noise, by eSpeak NG.

Words are drawn independently, so that a model must hear them; more than half is silence, as in
recordings of people who think; dev and test are spoken by voices that are in no other split.
"""

from collections.abc import Iterator

import numpy as np

from jaxkd.data.espeak import Espeak, Spoken, drawn_speaker
from jaxkd.data.rows import Row

# Kind → its words.
_WORDS = {
  kind: words.split()
  for kind, words in {
    "names": """anna bernard carla david emma felix grace henry iris jacob karen leo maria
      nathan olivia peter rosa simon teresa ursula walter yvonne""",
    "people": """teacher doctor farmer sailor neighbour driver singer captain student painter
      baker nurse lawyer soldier visitor stranger""",
    "things": """table window bottle garden ladder basket hammer mirror candle blanket letter
      pocket engine bicycle kettle curtain pencil needle wagon barrel lantern
      carpet shovel button""",
    "qualities": """heavy golden broken little ancient quiet purple narrow frozen wooden clever
      modern gentle hollow yellow simple dusty famous bitter silver""",
    "deeds": """carried painted repaired followed noticed covered borrowed admired measured
      ordered forgot counted lifted opened collected finished offered watched
      returned delivered""",
    "places": """harbour kitchen market valley station library mountain village office forest
      corner bridge theatre hospital airport cellar meadow island castle factory""",
    "times": """yesterday tomorrow today tonight monday tuesday wednesday thursday friday
      saturday sunday often never always again early later twice""",
    "numbers": """two three four five six seven eight nine ten eleven twelve twenty thirty""",
  }.items()
}
# Seconds between phrases and at both ends; decibels of speech over noise.
_PAUSE, _ENDS, _SNR_DB = (0.8, 2.2), (0.3, 1.5), (10.0, 20.0)


def _utterances(espeak: Espeak, variants, size: int, seed) -> Iterator[Row]:
  rng = np.random.default_rng(seed)
  for _ in range(size):
    speaker = drawn_speaker(rng, variants, (140, 210))
    phrases = _sentence(rng)
    silence = lambda low, high: np.zeros(int(rng.uniform(low, high) * espeak.rate_hz), np.float32)
    pieces = [silence(*_ENDS)]
    for phrase in phrases:
      pieces += [espeak.speak(phrase, **speaker), silence(*_PAUSE)]
    samples = np.concatenate([*pieces[:-1], silence(*_ENDS)])
    samples = _with_noise(rng, samples, rng.uniform(*_SNR_DB)) * 10 ** (rng.uniform(-12, -3) / 20)
    yield Row(samples.astype(np.float32), espeak.rate_hz, " ".join(phrases), speaker)


def _sentence(rng: np.random.Generator) -> list[str]:
  """Two to four phrases of two to five words."""
  one = lambda kind: str(rng.choice(_WORDS[kind]))
  thing = lambda: f"the {one('qualities')} {one('things')}"
  things = lambda: f"{one('numbers')} {one('qualities')} {one('things')}s"
  who = f"the {one('people')}" if rng.random() < 0.5 else f"{one('names')} and {one('names')}"
  phrases = [f"{who} {one('deeds')}", thing() if rng.random() < 0.6 else things()]
  if rng.random() < 0.6:
    phrases.append(f"near the {one('places')}")
  if rng.random() < 0.5:
    phrases.insert(0 if rng.random() < 0.5 else len(phrases), f"{one('times')} {one('times')}")
  return phrases


def _with_noise(rng: np.random.Generator, samples: np.ndarray, snr_db: float) -> np.ndarray:
  """f32[S] with noise whose spectrum falls by 0 to 6 dB an octave, relative to the speech in it."""
  spectrum = np.fft.rfft(rng.standard_normal(len(samples)))
  spectrum[1:] *= np.arange(1, len(spectrum)) ** -rng.uniform(0, 1)
  noise = np.fft.irfft(spectrum, len(samples))
  speech = np.sqrt((samples[samples != 0] ** 2).mean())
  noise *= speech / np.sqrt((noise**2).mean()) / 10 ** (snr_db / 20)
  found = samples + noise
  return found / max(np.abs(found).max(), 1)


CORPUS = Spoken(
  version="2",
  seed=20261126,
  sizes={"train": 800, "unlabelled": 800, "dev": 80, "test": 360},
  utterances=_utterances,
)
