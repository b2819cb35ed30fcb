"""Where stretches of frames are cut."""

import numpy as np
import pytest

from jaxkd.inference.word_times import stretches
from jaxkd.labels import MarkedVocabulary, characters

LETTERS = characters("ab ")
PIECES = MarkedVocabulary(("a", "b", "▁", "-"), 3, "")


def of(text: str) -> np.ndarray:
  """i32[T], a class for each character; "-" is the blank, and "_" begins a piece."""
  return np.array(["ab -".replace("_", " ").index(c) for c in text.replace("_", " ")], np.int32)


@pytest.mark.parametrize("vocabulary", [LETTERS, PIECES], ids=["letters", "pieces"])
@pytest.mark.parametrize("longest", [1, 2, 10, 40, 1000])
def test_stretches_cover_all(vocabulary, longest):
  rng = np.random.default_rng(1)
  path = np.repeat(rng.integers(0, 7, 100).clip(max=3), rng.integers(1, 6, 100))
  found = stretches(path, vocabulary, longest)
  assert found[0][0] == 0 and found[-1][1] == len(path)
  assert all(a[1] == b[0] for a, b in zip(found, found[1:], strict=False))
  assert all(0 < end - start <= longest for start, end in found)
  assert stretches(path[:0], vocabulary, longest) == []


@pytest.mark.parametrize(
  ("text", "vocabulary", "cut"),
  [
    # In the wider gap, although a longer run of blanks is in a word, and an earlier gap not.
    ("--a--- ---b- a-----b-b", LETTERS, 13),
    ("--a--a---b-- --a-----b", LETTERS, 13),
    # Behind the space, wherever in the gap it is.
    ("--a---a-a-a --------bb", LETTERS, 16),
    ("--a---a-a-a----- ---bb", LETTERS, 17),
    ("--a---a-a-a-------  bb", LETTERS, 20),
    # Between pieces, also where nothing lies between.
    ("_b-----aa----_-aa-----", PIECES, 12),
    ("_b-------aa_a---b-----", PIECES, 11),
    # No gap: in the middle of the longest run of blanks; nor any blank.
    ("--a---a-a-a---b----b-b", LETTERS, 17),
    ("abababababababababababa", LETTERS, 20),
  ],
)
def test_where_a_stretch_ends(text, vocabulary, cut):
  """Of 20 frames, in the second half."""
  (_, end), *_ = stretches(of(text), vocabulary, 20)
  assert end == cut
