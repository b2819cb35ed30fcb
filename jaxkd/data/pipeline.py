"""Planned batches → arrays: decode, change speed, join, add noise, pad. Grain does the waiting."""

import functools
import logging
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import grain
import numpy as np
import soxr
from absl import flags

from jaxkd.data.audio import BrokenAudio
from jaxkd.data.plan import PlannedBatch
from jaxkd.data.sources import Source
from jaxkd.devices.mesh import padded_rows
from jaxkd.errors import UserError
from jaxkd.labels import UnknownSymbol, UnknownWords, Vocabulary
from jaxkd.types import HYPOTHESES, SAMPLE_RATE_HZ, TRANSCRIPTS, Batch, batch_like

log = logging.getLogger(__name__)
_THREADS = 2
_AHEAD = 4  # batches


class Targets(Protocol):
  """Label sequences that stand for utterances without a transcript."""

  def draw(self, utterances: list[int], rng: np.random.Generator) -> np.ndarray:
    """i32[U] of utterances that are joined."""


class HostBatch(NamedTuple):
  """This process's rows of a global batch.

  Attributes:
    batch: NumPy arrays.
    ids: for each row, the utterances in it.
    broken: (id, reason) of utterances that were left out.
  """

  batch: Batch
  ids: tuple[tuple[str, ...], ...]
  broken: list[tuple[str, str]]


def batches(
  source: Source,
  planned: list[PlannedBatch],
  *,
  vocabulary: Vocabulary | None = None,
  hypotheses: Targets | None = None,
  seed: int = 0,
  epoch: int = 0,
  noise_db: tuple[float, float] | None = None,
  start: int = 0,
  workers: int = 0,
  shards: tuple[tuple[int, ...], int] = ((0,), 1),
) -> Iterator[HostBatch]:
  """The planned batches in their order, prepared ahead in the background.

  Args:
    source: of the utterances.
    planned: all batches of an epoch.
    vocabulary: to encode transcripts with; None for no labels.
    hypotheses: of all utterances, drawn into `Batch.hypothesis`; None for none.
    seed, epoch: with the batch's number they fix noise and draws.
    noise_db: (low, high), white noise relative to a row's peak; None for none.
    start: first batch.
    workers: processes that decode; 0 for threads of this one.
    shards: which of how many equal parts of the rows are wanted (`mesh.my_shards`); rows are filled
      up so that the parts are equal.
  """
  numbered = list(enumerate(planned))[start:]
  if not numbered:
    return iter(())
  make = functools.partial(
    _host_batch,
    source=source,
    vocabulary=vocabulary,
    hypotheses=hypotheses,
    seed=(seed, epoch),
    noise_db=noise_db,
    shards=shards,
  )
  dataset = grain.MapDataset.source(numbered).map(make)
  if workers:
    if not flags.FLAGS.is_parsed():  # Grain looks up flags of its own there
      flags.FLAGS.mark_as_parsed()
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
    dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return _from_workers(iter(dataset))
  options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD)
  return iter(dataset.to_iter_dataset(options))


def _from_workers(dataset: Iterator) -> Iterator[HostBatch]:
  """The same; a worker that was killed is one line."""
  try:
    yield from dataset
  except RuntimeError as error:
    if "Worker process" not in str(error):
      raise
    reason = str(error).splitlines()[0]
    raise UserError(
      f"a process that decodes audio (config.data.workers) has died, perhaps for want of memory: "
      f"{reason} The same command goes on from the last save"
    ) from error


def _host_batch(numbered, *, source, vocabulary, hypotheses, seed, noise_db, shards) -> HostBatch:
  number, planned = numbered
  wanted, count = shards
  rows, samples, label_room = planned.shape
  size = padded_rows(rows, count) // count
  mine = [row for shard in wanted for row in range(shard * size, (shard + 1) * size)]
  given = {TRANSCRIPTS: vocabulary, HYPOTHESES: hypotheses}
  needs = [need for need, found in given.items() if found is not None]
  batch = batch_like(np.zeros, needs, rows=len(mine), samples=samples, labels=label_room)
  names, broken = [], []
  for place, row in enumerate(mine):
    parts, used = [], []
    if row >= rows:
      names.append(())
      continue
    for utterance, speed in zip(planned.rows[row], planned.speeds[row], strict=True):
      try:
        parts.append(_at_speed(source.read(utterance), speed))
        used.append(utterance)
      except BrokenAudio as error:
        broken.append((source.ids[utterance], str(error)))
    names.append(tuple(source.ids[u] for u in used))
    if not used:
      continue
    # As alone in its row, where features are of peak-normalised audio.
    if len(parts) > 1:
      parts = [_peak_normalised(part) for part in parts]
    joined = np.concatenate(parts)[:samples]
    if noise_db is not None:
      joined = _with_noise(joined, noise_db, np.random.default_rng([*seed, number, row]))
    batch.audio[place, : len(joined)] = joined
    batch.audio_len[place] = len(joined)
    if vocabulary is not None:
      text = vocabulary.encode(" ".join(source.texts[u] for u in used))
      _put(text, batch.labels, batch.label_len, place)
    if hypotheses is not None:
      heard = hypotheses.draw(used, np.random.default_rng([*seed, number, row, 1]))
      _put(heard, batch.hypothesis, batch.hypothesis_len, place)
  return HostBatch(batch, tuple(names), broken)


def _put(labels: np.ndarray, into: np.ndarray, lengths: np.ndarray, row: int) -> None:
  """What has no room could not have a CTC path either; its length says so."""
  room = into.shape[1]
  into[row, : len(labels)] = labels[:room]
  lengths[row] = len(labels)


def _at_speed(samples: np.ndarray, speed: float) -> np.ndarray:
  """i16, played `speed` times as fast: pitch and tempo change together."""
  if speed == 1.0:
    return samples
  return soxr.resample(samples, SAMPLE_RATE_HZ * speed, SAMPLE_RATE_HZ, quality="LQ")


def _peak_normalised(samples: np.ndarray) -> np.ndarray:
  peak = max(1, np.abs(samples.astype(np.int32)).max())
  return (samples * (16384 / peak)).astype(np.int16)


def _with_noise(samples: np.ndarray, db: tuple[float, float], rng) -> np.ndarray:
  peak = np.abs(samples.astype(np.int32)).max()
  level = peak * 10 ** (rng.uniform(*db) / 20)
  noise = level * rng.standard_normal(len(samples), dtype=np.float32)
  return np.clip(np.round(samples + noise), -32768, 32767).astype(np.int16)


def transcripts(source: Source) -> list[str]:
  """Of every utterance.

  Raises:
    UserError: names the first that has none.
  """
  for name, text in zip(source.ids, source.texts, strict=True):
    if text is None:
      raise UserError(
        f'{source.name}: {name} has no transcript ("text"), and this run needs one for every '
        "utterance; with config.kd.scale=1.0 the student's data needs none"
      )
  return source.texts


def check_texts(source: Source, vocabulary: Vocabulary, missing: str = "error") -> Source:
  """The source, every utterance of which has a transcript that the classes can write.

  Args:
    source: of the utterances.
    vocabulary: the classes.
    missing: words without phonemes are an error, or "skip": their utterances are left out.

  Raises:
    UserError: names the first that has none or a character without a class; or the words.
  """
  untold: dict[int, tuple[str, ...]] = {}
  for index, text in enumerate(transcripts(source)):
    try:
      vocabulary.encode(text)
    except UnknownWords as error:
      untold[index] = error.words
    except UnknownSymbol as error:
      raise UserError(
        f"{source.name}: {source.ids[index]}: {_unwritten(text, vocabulary, error)}"
      ) from error
  if not untold:
    return source
  found = _missing(source, untold)
  if missing == "error" or len(untold) == len(source):
    skip = "; config.labels.missing=skip leaves these utterances out" * (missing == "error")
    raise UserError(
      f"{found}: add them to a lexicon, a line `word P1 P2 ...` each, and give it with "
      f"config.labels.name=phonemes config.labels.lexicon=FILE{skip}"
    )
  log.warning("%s: these are left out", found)
  reason = lambda words: f"no pronunciation for {words[0]!r}"
  return source.without({index: reason(words) for index, words in untold.items()})


def _missing(source: Source, untold: dict[int, tuple[str, ...]]) -> str:
  words = list(dict.fromkeys(word for missing in untold.values() for word in missing))
  count = "1 word has" if len(words) == 1 else f"{len(words)} words have"
  rest = ", ..." if len(words) > 5 else ""
  return (
    f"{source.name}: {count} no pronunciation ({', '.join(words[:5])}{rest}), in {len(untold)} of "
    f"{len(source)} utterances"
  )


def _unwritten(text: str, vocabulary: Vocabulary, error: UnknownSymbol) -> str:
  said = f"the text {text[:60]!r} has {error.symbol!r}, which is no class of the model: "
  if vocabulary.kind == "sentencepiece":
    return f"{said}the transcripts of its training have none"
  known = "".join(s for i, s in enumerate(vocabulary.symbols) if i != vocabulary.blank_id)
  return f"{said}normalise the text, or add it to config.labels.alphabet (now {known!r})"
