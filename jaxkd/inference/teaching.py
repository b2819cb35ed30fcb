"""A teacher hears audio once, and what it says of every frame is stored."""

import contextlib
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxkd import buckets, files
from jaxkd.data import plan
from jaxkd.data.audio import BrokenAudio
from jaxkd.data.sources import Source
from jaxkd.devices import mesh as mesh_lib
from jaxkd.errors import UserError
from jaxkd.inference.frames import Spoken, evaluation_shapes, frames, log_softmax
from jaxkd.labels import check_same
from jaxkd.models.acoustic import AcousticModel, parameter_count
from jaxkd.teacher import heard, sources, store
from jaxkd.teacher.stored import Stored

# Seconds by which a duration may differ for two utterances of one name to be the same.
_SAME_SECONDS = 1e-3
# By how much a posterior that is heard again may differ: float16 makes 2e-4 of it, and bfloat16 or
# another accelerator a tenth where two classes are as good.
MOST_DIFFERENCE = 0.2


class Wanted(NamedTuple):
  """What is to be stored.

  Attributes:
    source: of the utterances.
    speeds: factors that each of them is played at.
  """

  source: Source
  speeds: tuple[float, ...]


def write(
  teacher: sources.Found,
  wanted: Sequence[Wanted],
  folder: pathlib.Path,
  devices: jax.sharding.Mesh,
  *,
  temperature: float,
  top: int | None = None,
  dtype: str = "float16",
) -> dict:
  """Stores what a teacher says; goes on where it was stopped, and adds what is not there yet.

  Args:
    teacher: not loaded where nothing is left to be heard.
    wanted: audio.
    folder: of the store.
    devices: mesh; batches are split over all of it.
    temperature, top, dtype: see `store.Settings`; None for what suits the number of classes.

  Returns:
    The store's totals.

  Raises:
    UserError: two utterances have one name, or the folder holds another store, or other audio.
  """
  _check_names(wanted)
  if buckets.url(folder):
    mesh_lib.check_one_host(str(folder))
  with _alone(folder):
    writer = _opened(folder, teacher, dict(temperature=temperature, top=top, dtype=dtype))
    broken = _add(teacher, wanted, writer, devices)
    mesh_lib.wait_for_all(f"{folder} is written")
    left_out = {name: why for part in mesh_lib.gather(broken) for name, why in part}
    left_out |= {name: why for source, _ in wanted for name, why in source.skipped}
    if mesh_lib.is_first():
      writer.close(left_out=left_out.items())
    mesh_lib.wait_for_all(f"{folder} is complete")
    try:
      return store.Store(folder).header["complete"]
    except store.StoreError as error:
      raise UserError(str(error)) from error


@contextlib.contextmanager
def _alone(folder: pathlib.Path):
  """While one command or run writes, others that want the same store wait."""
  with contextlib.ExitStack() as stack:

    def lock():
      waits = f"waiting for another process that writes {folder}"
      try:
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(files.locked(folder / ".lock", waits=waits))
      except OSError as error:
        raise UserError(f"{folder}: {error}") from error
      buckets.fetch(folder, mine=True)

    mesh_lib.by_first(lock)
    yield
    mesh_lib.by_first(lambda: buckets.publish(folder))


def _check_names(wanted: Sequence[Wanted]) -> None:
  """No two utterances have one name, by their lengths, and of some by their audio."""
  seen: dict[str, tuple[Source, int]] = {}
  shared = []
  for source, _ in wanted:
    for i, name in enumerate(source.ids):
      first, j = seen.setdefault(name, (source, i))
      if abs(first.durations[j] - source.durations[i]) > _SAME_SECONDS:
        raise _two_of_one_name(name, first, j, source, i)
      if first is not source:
        shared.append((name, first, j, source, i))
  for k in heard.some(len(shared)):
    name, first, j, source, i = shared[k]
    with contextlib.suppress(BrokenAudio):
      audio = first.read(j)
      row = store.Row(name, 1.0, len(audio), 0, heard.known_by(audio))
      if not heard.is_same(row, source.read(i)):
        raise _two_of_one_name(name, first, j, source, i)


def _two_of_one_name(name: str, first: Source, j: int, source: Source, i: int) -> UserError:
  return UserError(
    f"{first.name} and {source.name} have an utterance {name} each, of {first.durations[j]:.2f} "
    f"and {source.durations[i]:.2f} s and other audio: write a store for each, or give them other "
    "ids"
  )


def _add(teacher: sources.Found, wanted, writer, devices) -> list[tuple[str, str]]:
  """Stores what is not there yet; returns (id, reason) of what could not be decoded."""
  asked: set[tuple[str, float]] = set()  # of splits that share utterances each is heard once
  pairs = [(source, speed) for source, speeds in wanted for speed in speeds]
  for source, speed in pairs:
    if name := heard.another(writer.there.get, source, speed):
      raise UserError(
        f"{writer.folder} has {name} at speed {speed:g} of other audio than {source.name} has: "
        "write to another folder, or remove this one"
      )
  left = [(*pair, _left(writer, asked, *pair)) for pair in pairs]
  lengths = [source.durations[todo] / speed for source, speed, todo in left]
  broken: list[tuple[str, str]] = []
  try:
    if sum(map(len, lengths)):
      model = teacher.load(devices)
      shapes = evaluation_shapes(np.concatenate(lengths), devices, teacher.frame_samples)
      for source, speed, todo in left:
        if len(todo):
          broken += _hear(model, source, speed, todo, writer, shapes, devices)
  finally:
    writer.flush()  # Ctrl-C loses nothing either
    buckets.publish(writer.folder)
  return broken


def _opened(folder: pathlib.Path, teacher: sources.Found, options: dict) -> store.Writer:
  """This process's writer; all see the same as written already."""
  made: list[store.Writer] = []
  vocabulary = teacher.vocabulary
  facts = {  # a teacher of another fingerprint cannot go on in it
    "teacher": teacher.source,
    "fingerprint": sources.fingerprint(teacher.source),
    "parameters": parameter_count(teacher.like),
  }

  def make():
    try:
      made.append(
        store.Writer(
          folder,
          symbols=vocabulary.symbols,
          blank_id=vocabulary.blank_id,
          frame_samples=teacher.frame_samples,
          kind=vocabulary.kind,
          space=vocabulary.space,
          facts=facts,
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


def _hear(model, source, speed, todo, writer, shapes, devices) -> list[tuple[str, str]]:
  """Stores utterances at a speed; returns (id, reason) of those that could not be decoded."""
  planned, broken = plan.evaluation_plan(source.durations[todo], shapes, speed).of(todo), []
  name = f"{source.name} at speed {speed:g}" if speed != 1 else source.name
  said = frames({"teacher": model}, source, devices, planned=planned, description=name)
  for spoken in said:
    broken += spoken.host.broken
    out = spoken.my_rows("teacher")
    for row, ids in enumerate(spoken.host.ids):
      if ids:
        audio = _audio(spoken, row)
        log_probs = log_softmax(out.logits[row, : int(out.mask[row].sum())])
        known = dict(samples=len(audio), speed=speed, heard=heard.known_by(audio))
        try:
          writer.add(ids[0], log_probs, **known)
        except store.StoreError as error:
          raise UserError(f"{ids[0]}: what the teacher says cannot be stored: {error}") from error
        if writer.is_flushed:
          buckets.publish(writer.folder)
  return broken


def _audio(spoken: Spoken, row: int) -> np.ndarray:
  """f32[S], what was heard of one of this process's rows."""
  batch = spoken.host.batch
  return batch.audio[row, : int(batch.audio_len[row])]


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

  Raises:
    UserError: none is stored, or of other audio, classes or frames.
  """
  check_same(found.vocabulary, model.vocabulary, found.source, "the teacher")
  if model.frame_samples != found.frame_samples:
    raise UserError(
      f"{found.source} has a frame every {found.frame_samples / 16:g} ms and the teacher every "
      f"{model.frame_samples / 16:g} ms"
    )
  known = np.array([i for i, name in enumerate(source.ids) if (name, 1.0) in found.positions])
  if not len(known):
    raise UserError(f"{found.source} has no utterance of {source.name} at speed 1")
  chosen = known[heard.some(len(known), count)]
  shapes = evaluation_shapes(source.durations[chosen], devices, found.frame_samples)
  planned = plan.evaluation_plan(source.durations[chosen], shapes).of(chosen)
  largest, again = 0.0, 0
  for spoken in frames({"now": model}, source, devices, planned=planned, description="heard again"):
    now = spoken.my_rows("now")
    for row, ids in enumerate(spoken.host.ids):
      if ids:
        before = found.frames(ids[0], 1.0, _audio(spoken, row))
        logits = now.logits[row, : int(now.mask[row].sum())]
        largest, again = max(largest, _difference(before, logits)), again + 1
  return again, largest


def _difference(before: store.Frames, logits: np.ndarray) -> float:
  """The largest difference of a posterior that was kept."""
  now = np.exp(log_softmax(logits))
  if len(now) != len(before.log_probs):
    return 1.0
  if before.ids is not None:
    now = np.take_along_axis(now, before.ids, 1)
  apart = np.abs(now - np.exp(before.log_probs))
  return float(apart[np.isfinite(before.log_probs)].max(initial=0))
