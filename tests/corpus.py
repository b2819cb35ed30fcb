"""A corpus of tones that is trained on in seconds, and the flags of models that small."""

import json
import pathlib

import numpy as np
import soundfile

ROOT = pathlib.Path(__file__).parents[1]
TONES_HZ = {"a": 300.0, "b": 900.0, "c": 2700.0}

# Two models of a few thousand parameters; two epochs of a few batches.
TINY = [
  "--config.features.mels=16",
  *(
    f"--config.{model}.{field}"
    for model in ("student", "teacher.model")
    for field in ("layers=1", "width=16", "heads=2", "conv_kernel=3", "dropout=0.1")
  ),
  *(
    f"--config.{training}.{field}"
    for training in ("training", "teacher.training")
    for field in ("epochs=2", "batch_seconds=6", "buckets=1", "join_seconds=0.0", "average=2")
  ),
]


def tone(letters: str, rate_hz: int = 16_000, seconds: float = 0.2) -> np.ndarray:
  """f32[S]: one tone a letter."""
  time = np.arange(int(seconds * rate_hz)) / rate_hz
  tones = [0.5 * np.sin(2 * np.pi * TONES_HZ[c] * time) for c in letters]
  return np.concatenate(tones).astype(np.float32)


def write_manifest(path: pathlib.Path, rows: list[dict]) -> pathlib.Path:
  path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
  return path


def make_split(folder: pathlib.Path, name: str, size: int, *, text: bool = True) -> pathlib.Path:
  """A manifest of `size` utterances of one to four tones, with or without transcripts."""
  rng = np.random.default_rng(hash_of(name))
  rows = []
  (folder / "audio").mkdir(parents=True, exist_ok=True)
  for number in range(size):
    letters = "".join(rng.choice(list(TONES_HZ), rng.integers(1, 5)))
    samples = tone(letters)
    samples += 1e-3 * rng.standard_normal(len(samples), dtype=np.float32)
    file = f"audio/{name}-{number:02}.flac"
    soundfile.write(str(folder / file), samples, 16_000)
    row = {"audio_filepath": file, "duration": len(samples) / 16_000}
    rows.append(row | ({"text": " ".join(letters)} if text else {}))
  return write_manifest(folder / f"{name}.jsonl", rows)


def hash_of(name: str) -> int:
  return sum(ord(c) * 31**i for i, c in enumerate(name))


def make(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """train, unlabelled, dev and test."""
  sizes = {"train": 32, "unlabelled": 32, "dev": 8, "test": 8}
  return {name: make_split(folder, name, n, text=name != "unlabelled") for name, n in sizes.items()}


def flags(folder: pathlib.Path, variant: str, workdir: pathlib.Path, *more: str) -> list[str]:
  """A command line of jaxkd.main for `make`'s corpus; later flags win."""
  return [
    "jaxkd.main",
    f"--config={ROOT / 'configs' / variant}.py:manifest",
    f"--workdir={workdir}",
    *(
      f"--config.data.{field}={folder / split}.jsonl"
      for field, split in [
        ("train", "unlabelled"),
        ("teacher_train", "train"),
        ("dev", "dev"),
        ("test", "test"),
      ]
    ),
    *TINY,
    *more,
  ]
