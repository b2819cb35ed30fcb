"""What audio is known by: the same on other machines, and another of other audio."""

import numpy as np
import pytest
import soxr

from jaxkd.teacher import heard
from jaxkd.teacher.store import Row


def row(audio: np.ndarray) -> Row:
  return Row("it", 1.0, len(audio), 0, heard.known_by(audio))


def noise(seed: int = 0, size: int = 32_000) -> np.ndarray:
  return (0.1 * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def tone(hz: float) -> np.ndarray:
  return (0.5 * np.sin(2 * np.pi * hz * np.arange(32_000) / 16_000)).astype(np.float32)


def test_it_is_known_after_rounding():
  audio = noise()
  there = row(audio)
  assert heard.is_same(there, audio)
  assert heard.is_same(there, np.round(audio * 32_768).astype(np.float32) / 32_768)
  assert heard.is_same(there, audio * np.float32(1 + 1e-6) + np.float32(1e-6))
  at = lambda quality: soxr.resample(tone(440), 16_000 * 1.1, 16_000, quality=quality)
  assert heard.is_same(row(at("LQ")), at("HQ"))


@pytest.mark.parametrize(
  "other",
  [noise(1), noise()[::-1].copy(), 0.9 * noise(), noise() + 0.1 * noise(1), tone(300), noise()[1:]],
)
def test_other_audio_is_another(other):
  assert not heard.is_same(row(noise()), other)


def test_tones_are_told_apart():
  assert not heard.is_same(row(tone(300)), tone(900))


def test_what_is_not_known_is_not_compared():
  assert heard.is_same(row(noise())._replace(heard=""), noise(1))
  assert not heard.is_same(row(noise())._replace(heard=""), noise(1, 31_999))


def test_places_are_spread():
  assert heard.some(0) == [] and heard.some(1) == [0] and heard.some(5) == [0, 1, 2, 3, 4]
  found = heard.some(100)
  assert len(found) == 16 and (found[0], found[-1]) == (0, 99)
