"""LibriSpeech and TED-LIUM as TensorFlow Datasets holds them, prepared as ArrayRecord files.

TFDS needs TensorFlow for its audio feature. It is imported where such a corpus is opened, in worker
processes too, and sees no accelerator: those are JAX's.
"""

import collections
import hashlib
import json
import os
import pathlib
import re
import resource
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxkd import console
from jaxkd.data import audio, cache
from jaxkd.errors import UserError
from jaxkd.types import SAMPLE_RATE_HZ

_VERSION = "1"  # of the index
_INDEX = "utterances.jsonl"
_FORMAT = "array_record"
# What is not scored is music, applause or a language that nobody wrote down.
_NOT_SCORED = "ignore_time_segment_in_scoring"
# TED-LIUM sets off what follows an apostrophe: it 's, don 't, the students '.
_ENDING = r"'(?:s|t|d|m|re|ve|ll|clock)?(?![a-z'])"
_VARIANT = re.compile(r"\(\d+\)")  # of a pronunciation: the(2)
_TAG = re.compile(rf"(?:<[^>]*>|\{{[^}}]*\}}|\[[^\]]*\]|\([^)]*\))(?: {_ENDING})?")
_DETACHED = re.compile(rf" +(?={_ENDING})")


def tedlium_words(text: str) -> str:
  """A transcript of TED-LIUM without tags and with its apostrophes joined; "" if not scored."""
  if text.strip() == _NOT_SCORED:
    return ""
  text = _TAG.sub(" ", _VARIANT.sub("", text))
  return " ".join(_DETACHED.sub("", text).split())


class _Corpus(NamedTuple):
  """How TFDS knows a corpus.

  Attributes:
    builder: name/config.
    needs: what TFDS prepares it with, besides itself.
    words: the transcript as TFDS has it → words; "" for what is not to be used.
  """

  builder: str
  needs: str
  words: Callable[[str], str]


TFDS_CORPORA = {
  "librispeech": _Corpus("librispeech/default", "pydub importlib_resources", str.strip),
  "tedlium": _Corpus("tedlium/release2", "pydub importlib_resources apache-beam", tedlium_words),
}


class Utterances(NamedTuple):
  """What a Source is made of.

  Attributes:
    ids: unique in the split.
    durations: f64[utterances], seconds.
    texts: transcripts.
    skipped: (id, reason) of those that cannot be used.
    read: index → f32[S] at 16 kHz, or audio.BrokenAudio; can be pickled.
  """

  ids: list[str]
  durations: np.ndarray
  texts: list[str]
  skipped: list[tuple[str, str]]
  read: "_Recordings"


def open_split(corpus: str, split: str, root: str) -> Utterances:
  """Opens a split, after one pass through it where the cache has no index of it.

  Args:
    corpus: one of TFDS_CORPORA.
    split: in TFDS's syntax: train_clean100+train_clean360, train[:10%].
    root: TFDS's data_dir; "" for its default.

  Raises:
    UserError: no TensorFlow, no such split, a corpus that is not prepared, damaged or not in
      ArrayRecord files.
  """
  builder = _builder(corpus, root)
  key = _key(builder, _files(corpus, split, builder))
  folder = str(builder.data_dir)
  index = cache.made(
    f"tfds-{corpus}-{key}", lambda path: _write_index(path, f"{corpus}:{split}", folder, split)
  )
  ids, durations, texts, skipped, records = [], [], [], [], []
  seen = collections.Counter()
  with (index / _INDEX).open() as lines:
    for record, line in enumerate(lines):
      entry = json.loads(line)
      words = TFDS_CORPORA[corpus].words(entry["text"])
      if not words:
        continue
      seen[entry["id"]] += 1
      count = seen[entry["id"]]  # more than 1 where parts of the split overlap
      unique = entry["id"] if count == 1 else f"{entry['id']}#{count}"
      if "broken" in entry:
        skipped.append((unique, entry["broken"]))
        continue
      ids.append(unique)
      durations.append(entry["duration"])
      texts.append(words)
      records.append(record)
  read = _Recordings(folder, split, np.array(records, np.int64))
  return Utterances(ids, np.array(durations, np.float64), texts, skipped, read)


def _tfds():
  """The package, with a TensorFlow that sees the CPU alone."""
  # It reports on standard error what it would compute with; it computes nothing here.
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
  try:
    import tensorflow
  except ImportError as error:
    raise UserError(
      "corpora of TensorFlow Datasets are read with TensorFlow, which cannot be imported "
      f"({_one_line(error)}): pip install 'jaxkd[tfds]'"
    ) from error
  for kind in ("GPU", "TPU"):
    tensorflow.config.set_visible_devices([], kind)
  import tensorflow_datasets

  return tensorflow_datasets


def _builder(corpus: str, root: str):
  """The dataset as it lies on the disk; TFDS's code that would download it stays out.

  Raises:
    UserError: not prepared there, or in files without random access.
  """
  tfds = _tfds()
  from tensorflow_datasets.core import constants, read_only_builder

  name, needs, _ = TFDS_CORPORA[corpus]
  folder = os.path.expanduser(root or constants.DATA_DIR)
  try:
    builder = read_only_builder.builder_from_files(name, data_dir=folder)
  except tfds.core.DatasetNotFoundError as error:
    raise UserError(
      f"{corpus} is not prepared in {folder} (config.data.root), and nothing is downloaded "
      f"unasked: pip install {needs}, install ffmpeg, and {_command(name, folder)}"
    ) from error
  formats = {form.value for form in builder.info.available_file_formats()}
  if _FORMAT not in formats:
    raise UserError(
      f"{corpus} is prepared in {folder} as {', '.join(sorted(formats))}, which has no random "
      f"access: prepare it as {_FORMAT} in another folder and set config.data.root to that: "
      + _command(name, "FOLDER")
    )
  return tfds.builder_from_directory(builder.data_dir, file_format=_FORMAT)


def _command(name: str, folder: str) -> str:
  """Not `tfds build`, which cannot start without packages that its own does not install."""
  return (
    'python -c "import tensorflow_datasets as tfds; '
    f"tfds.builder('{name}', data_dir='{folder}', file_format='{_FORMAT}')"
    '.download_and_prepare()"'
  )


def _files(corpus: str, split: str, builder) -> list:
  """TFDS's file instructions of a split: filename, skip, take.

  Raises:
    UserError: no such split, or no example in it.
  """
  try:
    files = builder.info.splits[split].file_instructions
  except (ValueError, KeyError, NotImplementedError) as error:
    raise UserError(_wrong_split(corpus, split, builder)) from error
  if not files or any(file.take < 1 for file in files):  # TFDS lets 90%:10% pass
    raise UserError(_wrong_split(corpus, split, builder))
  return files


def _wrong_split(corpus: str, split: str, builder) -> str:
  sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
  first = next(iter(sizes))
  return (
    f"{corpus}:{split}: no examples: a split is one of "
    + ", ".join(f"{name} ({size} examples)" for name, size in sizes.items())
    + f", a part of one ({first}[:10%]), or a sum (A+B)"
  )


def _key(builder, files: list) -> str:
  """Tells apart what would have another index; the same wherever the folder is moved to.

  Raises:
    UserError: a file is missing.
  """
  facts = []
  for file in files:
    path = pathlib.Path(file.filename)
    try:
      found = path.stat()
    except OSError as error:
      raise UserError(
        f"{path} cannot be read ({error.strerror}): delete {path.parent} and prepare it again"
      ) from error
    facts.append((path.name, file.skip, file.take, found.st_size, found.st_mtime_ns))
  given = (_VERSION, builder.info.full_name, facts)
  return hashlib.sha256(repr(given).encode()).hexdigest()[:16]


def _open(folder: str, split: str):
  """The examples of a split by number, and the rate of their samples."""
  builder = _tfds().builder_from_directory(folder, file_format=_FORMAT)
  _allow_open_files(len(builder.info.splits[split].file_instructions))
  rate_hz = builder.info.features["speech"].sample_rate or SAMPLE_RATE_HZ
  return builder.as_data_source(split), rate_hz


def _write_index(index: pathlib.Path, name: str, folder: str, split: str) -> None:
  """One line for each example: id, text, and its duration or what is wrong with the recording.

  Raises:
    UserError: a file is damaged.
  """
  examples, rate_hz = _open(folder, split)
  with (
    console.progress(f"reading {name} once", len(examples)) as update,
    (index / _INDEX).open("w") as lines,
  ):
    for number in range(len(examples)):
      try:
        example = examples[number]
      except RuntimeError as error:
        raise UserError(
          f"{name}: example {number} cannot be read ({_one_line(error)}): delete {folder} and "
          "prepare it again"
        ) from error
      entry = {"id": example["id"].decode(), "text": example["text"].decode()}
      try:
        entry["duration"] = len(_heard(example, rate_hz)) / SAMPLE_RATE_HZ
      except audio.BrokenAudio as error:
        entry["broken"] = str(error)
      lines.write(json.dumps(entry) + "\n")
      update()


class _Recordings:
  """Utterance → samples; pickled as the names of what it was opened from."""

  def __init__(self, folder: str, split: str, records: np.ndarray):
    """Opens a split.

    Args:
      folder: of the builder, config and version.
      split: in TFDS's syntax.
      records: i64[utterances], where in the split they are.
    """
    self._opened_from = (folder, split, records)
    self._records = records
    self._examples, self._rate_hz = _open(folder, split)

  def __reduce__(self):
    return _Recordings, self._opened_from

  def __call__(self, index: int) -> np.ndarray:
    """f32[S], 16 kHz.

    Raises:
      audio.BrokenAudio: the message says why.
    """
    try:
      example = self._examples[int(self._records[index])]
    except RuntimeError as error:
      raise audio.BrokenAudio(f"not readable ({_one_line(error)})") from error
    return _heard(example, self._rate_hz)


def _heard(example: dict, rate_hz: int) -> np.ndarray:
  """f32[S] at 16 kHz of an example, or audio.BrokenAudio."""
  return audio.as_model_hears(as_float(example["speech"]), rate_hz)


def as_float(samples: np.ndarray) -> np.ndarray:
  """f32[S] of full scale 1, of TFDS's samples: 16-bit values of any integer type, or floats.

  Raises:
    audio.BrokenAudio: integers of more than 16 bits.
  """
  if samples.dtype.kind not in "iu":
    return samples.astype(np.float32)
  if samples.size and (samples.min() < -32768 or samples.max() > 32767):
    raise audio.BrokenAudio("samples of more than 16 bits")
  return samples.astype(np.float32) / 32768


def _allow_open_files(more: int) -> None:
  """Every file that was read from stays open: LibriSpeech has 2,560, a usual limit is 1,024."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if soft != resource.RLIM_INFINITY:
    limit = soft + more if hard == resource.RLIM_INFINITY else min(soft + more, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def _one_line(error: Exception) -> str:
  return " ".join(str(error).split())
