"""LibriSpeech and TED-LIUM of tones: prepared by TFDS, with the features and splits of the real."""

import pathlib

import numpy as np
import tensorflow_datasets as tfds

from corpus import TONES_HZ, hash_of, tone

SIZES = {
  "librispeech": {
    **{"train_clean100": 24, "train_clean360": 12, "train_other500": 12},
    **{"dev_clean": 6, "dev_other": 6, "test_clean": 6, "test_other": 6},
  },
  "tedlium": {"train": 24, "validation": 6, "test": 6},
}
# corpus -> config, version, and the features besides speech, text and id
_KINDS = {
  "librispeech": ("default", "2.1.1", lambda: {"speaker_id": np.int64, "chapter_id": np.int64}),
  "tedlium": (
    "release2",
    "1.0.1",
    lambda: {
      "speaker_id": np.str_,
      "gender": tfds.features.ClassLabel(names=["unknown", "female", "male"]),
    },
  ),
}
_REST = {
  "librispeech": {"speaker_id": 19, "chapter_id": 198},
  "tedlium": {"speaker_id": "AlGore_2009", "gender": "male"},
}


def make(data_dir: pathlib.Path) -> None:
  """Both corpora, in two files a split."""
  for corpus, sizes in SIZES.items():
    prepare(data_dir, corpus, {split: rows(corpus, split) for split in sizes}, files=2)


def rows(corpus: str, split: str) -> list[dict]:
  """What goes into a split: one to four tones an utterance."""
  rng = np.random.default_rng(hash_of(split))
  found = []
  for number in range(SIZES[corpus][split]):
    letters = "".join(rng.choice(list(TONES_HZ), rng.integers(1, 5)))
    samples = tone(letters) + 1e-3 * rng.standard_normal(3200 * len(letters))
    text = " ".join(letters)
    found.append(
      row(
        f"{split}-{number:04}",
        np.round(samples * 32767).astype(np.int16),
        text.upper() if corpus == "librispeech" else text,
      )
    )
  return found


def row(name: str, samples: np.ndarray, text: str = "A") -> dict:
  return {"id": name, "speech": samples, "text": text}


def prepare(
  data_dir: pathlib.Path,
  corpus: str,
  splits: dict[str, list[dict]],
  *,
  files: int = 1,
  file_format: str = "array_record",
  **audio,
) -> None:
  """Prepares a corpus through TFDS.

  Args:
    data_dir: of TFDS.
    corpus: librispeech or tedlium.
    splits: name → rows.
    files: for each split.
    file_format: one of TFDS's.
    audio: fields of the audio feature that are not as in the real corpus.
  """
  config, version, more = _KINDS[corpus]
  audio = {
    "sample_rate": 16_000,
    "dtype": np.int16 if corpus == "librispeech" else np.int64,
  } | audio

  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    name = corpus
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config, version=version, description="Tones.")]

    def _info(self):
      speech = {"speech": tfds.features.Audio(**audio), "text": tfds.features.Text()}
      features = tfds.features.FeaturesDict(speech | more() | {"id": np.str_})
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
      return {split: self._generate_examples(rows) for split, rows in splits.items()}

    def _generate_examples(self, rows):
      for row in rows:
        yield row["id"], row | _REST[corpus]

  tfds.disable_progress_bar()
  Builder(data_dir=data_dir, file_format=file_format).download_and_prepare(
    download_config=tfds.download.DownloadConfig(num_shards=files)
  )
