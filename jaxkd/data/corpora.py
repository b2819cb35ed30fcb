"""Named corpora: made once by seed into manifests in the user's cache."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable

import numpy as np
import soundfile

from jaxkd import console
from jaxkd.data import cache, demo, digits, pauses, prompts, sentences
from jaxkd.data.espeak import Spoken
from jaxkd.data.rows import Row
from jaxkd.errors import UserError

SPLITS = ("train", "unlabelled", "dev", "test")


@dataclasses.dataclass(frozen=True)
class Options:
  """What a corpus is made from.

  Attributes:
    root: folder of the recordings that digits and prompts are made of; "" for the default.
    split_by: of digits: "index" or "speaker".
  """

  root: str = ""
  split_by: str = "index"


@dataclasses.dataclass(frozen=True)
class _Corpus:
  """How one corpus is made.

  Attributes:
    key: options → text that tells apart what would be made differently.
    rows: options → split → rows with their audio, drawn by seed.
    total: about how many rows, for the progress bar.
  """

  key: Callable[[Options], str]
  rows: Callable[[Options], dict[str, Iterable[Row]]]
  total: int


def _spoken(corpus: Spoken) -> _Corpus:
  return _Corpus(lambda o: corpus.version, lambda o: corpus.splits(), sum(corpus.sizes.values()))


CORPORA = {
  "demo": _spoken(demo.CORPUS),
  "digits": _Corpus(
    lambda o: digits.key(o.root, o.split_by), lambda o: digits.splits(o.root, o.split_by), 1500
  ),
  "pauses": _spoken(pauses.CORPUS),
  "sentences": _spoken(sentences.CORPUS),
  "prompts": _Corpus(lambda o: prompts.key(o.root), lambda o: prompts.splits(o.root), 500),
}


def manifest(corpus: str, split: str, options: Options) -> pathlib.Path:
  """The manifest of a split, made first where the cache has none.

  Args:
    corpus: one of CORPORA.
    split: one of SPLITS.
    options: what it is made from.

  Raises:
    UserError: an unknown split, recordings or a package that are not there, no space left.
  """
  if split not in SPLITS:
    raise UserError(f"{corpus}:{split}: the splits of {corpus} are {', '.join(SPLITS)}")
  made = CORPORA[corpus]
  folder = cache.made(f"{corpus}-{made.key(options)}", lambda path: _write(corpus, path, options))
  return folder / f"{split}.jsonl"


def _write(corpus: str, folder: pathlib.Path, options: Options) -> None:
  made = CORPORA[corpus]
  (folder / "audio").mkdir()
  with console.progress(f"making {corpus}", made.total) as update:
    for split, rows in made.rows(options).items():
      with (folder / f"{split}.jsonl").open("w") as manifest_file:
        for number, row in enumerate(rows):
          name = f"audio/{split}-{number:04}.flac"
          samples = np.clip(row.samples, -1, 1)
          soundfile.write(str(folder / name), samples, row.rate_hz, subtype="PCM_16")
          entry = {"audio_filepath": name, "duration": round(len(samples) / row.rate_hz, 5)}
          if split != "unlabelled":
            entry["text"] = row.text
          manifest_file.write(json.dumps(entry | row.notes) + "\n")
          update()
