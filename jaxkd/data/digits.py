"""Connected digits from the Free Spoken Digit Dataset: real recordings, cut together with gaps.

The dataset (Zohar Jackson and contributors, CC BY-SA 4.0) is a folder of
{digit}_{speaker}_{index}.wav at 8 kHz, in the public repository
Jakobovski/free-spoken-digit-dataset.
"""

import hashlib
import pathlib
import re
from collections.abc import Iterator

import numpy as np
import soundfile

from jaxkd import files
from jaxkd.data.demo import DIGITS
from jaxkd.data.rows import Row, background
from jaxkd.errors import UserError

_VERSION = "1"
_NAME = re.compile(r"(\d)_(\w+)_(\d+)\.wav")
_INDICES = {
  "test": range(0, 10),
  "dev": range(10, 14),
  "train": range(14, 30),
  "unlabelled": range(30, 50),
}
# Every recording is used this often, in different strings.
_USES = {"train": 3, "unlabelled": 3, "dev": 1, "test": 1}
_SEED = 2506


def _recordings(root: str) -> dict[tuple[str, int], dict[int, pathlib.Path]]:
  """(speaker, index) → digit → file."""
  folder = files.expanded(root)
  found: dict[tuple[str, int], dict[int, pathlib.Path]] = {}
  for path in sorted(folder.glob("*.wav")):
    if match := _NAME.fullmatch(path.name):
      digit, speaker, index = match.groups()
      found.setdefault((speaker, int(index)), {})[int(digit)] = path
  if not found:
    raise absent(root)
  return found


def absent(root: str) -> UserError:
  """What is wrong where `root` holds no recordings."""
  return UserError(
    f"config.data.root is {root!r}: it must be the folder of Free Spoken Digit Dataset "
    "recordings ({digit}_{speaker}_{index}.wav; fetch the public repository "
    "Jakobovski/free-spoken-digit-dataset)"
  )


def key(root: str, split_by: str) -> str:
  """Tells apart what would be made differently.

  Raises:
    UserError: no recordings in `root`.
  """
  files = [
    (path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    for digits in _recordings(root).values()
    for path in digits.values()
  ]
  digest = hashlib.sha256(repr(sorted(files)).encode()).hexdigest()
  return f"{_VERSION}-{split_by}-{digest[:8]}"


def splits(root: str, split_by: str) -> dict[str, Iterator[Row]]:
  """Split → its strings of 2 to 6 digits of one speaker.

  Args:
    root: folder of the recordings.
    split_by: "index": the same speakers everywhere, no recording in two splits; "speaker": the
      last speaker by name is the test, the one before dev, and train and unlabelled share the rest
      by index.
  """
  recordings = _recordings(root)
  speakers = sorted({speaker for speaker, _ in recordings})
  if split_by == "speaker" and len(speakers) < 3:
    raise UserError(f"config.data.split_by is 'speaker': {root} has only {', '.join(speakers)}")
  chosen: dict[str, dict[str, list]] = {split: {} for split in _USES}
  for (speaker, index), digits in recordings.items():
    if split := _split_of(speaker, index, speakers, split_by):
      chosen[split].setdefault(speaker, []).extend(digits.items())
  return {
    split: _strings(by_speaker, _USES[split], [_SEED, number])
    for number, (split, by_speaker) in enumerate(chosen.items())
  }


def _split_of(speaker: str, index: int, speakers: list[str], split_by: str) -> str | None:
  if split_by == "speaker" and speaker == speakers[-1]:
    return "test" if index in _INDICES["test"] else None
  if split_by == "speaker" and speaker == speakers[-2]:
    return "dev" if index in _INDICES["dev"] else None
  if split_by == "speaker":
    return "train" if index < 20 else "unlabelled"
  return next((split for split, indices in _INDICES.items() if index in indices), None)


def _strings(by_speaker: dict[str, list], uses: int, seed) -> Iterator[Row]:
  rng = np.random.default_rng(seed)
  for speaker, recordings in by_speaker.items():
    for _ in range(uses):
      order = [recordings[i] for i in rng.permutation(len(recordings))]
      while order:
        count = min(int(rng.integers(2, 7)), len(order))
        string, order = order[:count], order[count:]
        yield _string(string, speaker, rng)


def _string(string, speaker: str, rng) -> Row:
  """Recordings with noisy gaps of 0.05 to 0.35 s before, between and after them."""
  rate, parts = 0, []
  level_db = rng.uniform(-60, -45)
  for _, path in string:
    samples, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    parts += [np.zeros(int(rng.uniform(0.05, 0.35) * rate), np.float32), samples.mean(1)]
  parts.append(np.zeros(int(rng.uniform(0.05, 0.35) * rate), np.float32))
  joined = np.concatenate(parts)
  joined += background(rng, len(joined), level_db) * max(float(abs(joined).max()), 1e-3)
  text = " ".join(DIGITS[digit] for digit, _ in string)
  return Row(joined, rate, text, {"speaker": speaker})
