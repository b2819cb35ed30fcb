"""A teacher hears audio once, and what it says of every frame is stored."""

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxkd import buckets
from jaxkd.data import plan
from jaxkd.data.sources import Source
from jaxkd.devices import mesh as mesh_lib
from jaxkd.errors import UserError
from jaxkd.inference.frames import evaluation_shapes, frames
from jaxkd.models.acoustic import AcousticModel, parameter_count
from jaxkd.teacher import sources, store
from jaxkd.teacher.stored import Stored

# Seconds by which a duration may differ for two utterances of one name to be the same.
_SAME_SECONDS = 1e-3


class Wanted(NamedTuple):
  """What is to be stored.

  Attributes:
    source: of the utterances.
    speeds: factors that each of them is played at.
  """

  source: Source
  speeds: tuple[float, ...]


def facts(found: sources.Found) -> dict:
  """What a store's header says of its teacher; one of another fingerprint cannot go on in it."""
  return {
    "teacher": found.source,
    "fingerprint": sources.fingerprint(found.source),
    "parameters": parameter_count(found.like),
  }


def write(
  teacher: Callable[[], AcousticModel],
  wanted: Sequence[Wanted],
  folder: pathlib.Path,
  devices: jax.sharding.Mesh,
  *,
  vocabulary,
  frame_samples: int,
  temperature: float,
  top: int | None = None,
  dtype: str = "float16",
  facts: dict | None = None,
  workers: int = 0,
) -> dict:
  """Stores what a teacher says; goes on where it was stopped, and adds what is not there yet.

  Args:
    teacher: loads it; not called where nothing is left to be heard.
    wanted: audio.
    folder: of the store.
    devices: mesh; batches are split over all of it.
    vocabulary, frame_samples: of the teacher.
    temperature, top, dtype: see `store.Settings`; None for what suits the number of classes.
    facts: of the header.
    workers: processes that decode audio.

  Returns:
    The store's totals.

  Raises:
    UserError: two utterances have one name, or the folder holds another store.
  """
  _check_names(wanted)
  options = dict(temperature=temperature, top=top, dtype=dtype, facts=facts)
  writer = _opened(folder, vocabulary, frame_samples, options)
  asked: set[tuple[str, float]] = set()  # of splits that share utterances each is heard once
  pairs = [(source, speed) for source, speeds in wanted for speed in speeds]
  left = [(*pair, _left(writer, asked, *pair)) for pair in pairs]
  lengths = [source.durations[todo] / speed for source, speed, todo in left]
  broken: list[tuple[str, str]] = []
  try:
    if sum(map(len, lengths)):
      model = teacher()
      shapes = evaluation_shapes(np.concatenate(lengths), devices, frame_samples)
      for source, speed, todo in left:
        if len(todo):
          broken += _hear(model, source, speed, todo, writer, shapes, devices, workers)
  finally:
    writer.flush()  # Ctrl-C loses nothing either
    buckets.publish(folder)
  mesh_lib.wait_for_all(f"{folder} is written")
  skipped = [pair for source, _ in wanted for pair in source.skipped]
  left_out = {name: why for part in mesh_lib.gather(broken) for name, why in part}
  left_out |= dict(skipped)
  if mesh_lib.is_first():
    writer.close(left_out=sorted(left_out.items()))
  mesh_lib.wait_for_all(f"{folder} is complete")
  return store.Store(folder).header["complete"]


def _check_names(wanted: Sequence[Wanted]) -> None:
  seen: dict[str, tuple[float, str]] = {}
  for source, _ in wanted:
    for name, seconds in zip(source.ids, source.durations, strict=True):
      before, where = seen.setdefault(name, (seconds, source.name))
      if abs(before - seconds) > _SAME_SECONDS:
        raise UserError(
          f"{where} and {source.name} have an utterance {name} each, of {before:.2f} and "
          f"{seconds:.2f} s: write a store for each, or give them other ids"
        )


def _opened(folder, vocabulary, frame_samples: int, options: dict) -> store.Writer:
  """This process's writer; all see the same as written already."""
  made: list[store.Writer] = []

  def make():
    try:
      made.append(
        store.Writer(
          folder,
          symbols=vocabulary.symbols,
          blank_id=vocabulary.blank_id,
          frame_samples=frame_samples,
          kind=vocabulary.kind,
          space=vocabulary.space,
          part=jax.process_index(),
          **options,
        )
      )
      vocabulary.save(folder / store.LABELS)
    except (store.StoreError, OSError) as error:
      raise UserError(f"{folder}: {error}") from error

  mesh_lib.by_first(make)
  if not mesh_lib.is_first():
    make()
  mesh_lib.wait_for_all(f"{folder} is open")
  return made[0]


def _left(writer: store.Writer, asked: set, source: Source, speed: float) -> np.ndarray:
  """i64[...]: utterances that are not stored at a speed, nor asked for, which they are then."""
  left = [
    i
    for i, name in enumerate(source.ids)
    if (name, speed) not in writer and (name, speed) not in asked
  ]
  asked.update((source.ids[i], speed) for i in left)
  return np.array(left, np.int64)


def _hear(model, source, speed, todo, writer, shapes, devices, workers) -> list[tuple[str, str]]:
  """Stores utterances at a speed; returns (id, reason) of those that could not be decoded."""
  planned, broken = plan.evaluation_plan(source.durations[todo], shapes, speed).of(todo), []
  name = f"{source.name} at speed {speed:g}" if speed != 1 else source.name
  said = frames(
    {"teacher": model}, source, devices, planned=planned, workers=workers, description=name
  )
  for spoken in said:
    broken += spoken.host.broken
    out = spoken.my_rows("teacher")
    rows = zip(spoken.host.ids, spoken.host.batch.audio_len, out.logits, out.mask, strict=True)
    for ids, samples, logits, mask in rows:
      if ids:
        log_probs = _log_softmax(logits[: int(mask.sum())])
        try:
          writer.add(ids[0], log_probs, samples=int(samples), speed=speed)
        except store.StoreError as error:
          raise UserError(f"{ids[0]}: what the teacher says cannot be stored: {error}") from error
        if writer.is_flushed:
          buckets.publish(writer.folder)
  return broken


def _log_softmax(logits: np.ndarray) -> np.ndarray:
  """f32[T, V]."""
  shifted = logits - logits.max(-1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def differences(
  found: Stored, model: AcousticModel, source: Source, devices: jax.sharding.Mesh, count: int
) -> tuple[int, float]:
  """What a teacher says now beside what is stored.

  Args:
    found: the store.
    model: the teacher.
    source: of the utterances.
    devices: mesh.
    count: utterances that are heard again, spread over the source.

  Returns:
    How many were heard, and the largest difference of a stored posterior.
  """
  known = np.array([i for i, name in enumerate(source.ids) if (name, 1.0) in found.positions])
  if not len(known):
    raise UserError(f"{found.source} has no utterance of {source.name}")
  chosen = known[np.unique(np.linspace(0, len(known) - 1, count).astype(int))]
  shapes = evaluation_shapes(source.durations[chosen], devices, found.frame_samples)
  planned = plan.evaluation_plan(source.durations[chosen], shapes).of(chosen)
  largest, heard = 0.0, 0
  models = {"now": model, "stored": found}
  for spoken in frames(models, source, devices, planned=planned, description="heard again"):
    now, before = spoken.my_rows("now"), spoken.my_rows("stored")
    size = min(now.mask.shape[1], before.mask.shape[1])
    real = now.mask[:, :size] & before.mask[:, :size]
    p, q = (np.exp(_log_softmax(x.logits[:, :size])) for x in (now, before))
    largest = max(largest, float(np.abs(p - q)[real].max(initial=0)))
    heard += sum(map(bool, spoken.host.ids))
  return heard, largest
