"""A stored teacher in the place of one that runs: its frames by utterance, and as logits."""

import contextlib
import dataclasses
import functools
import logging
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import buckets
from jaxkd.data.audio import BrokenAudio
from jaxkd.data.pipeline import HostBatch
from jaxkd.data.sources import Source
from jaxkd.devices import mesh as mesh_lib
from jaxkd.errors import UserError
from jaxkd.labels import Vocabulary
from jaxkd.teacher import heard
from jaxkd.teacher import store as store_lib
from jaxkd.types import STORED, STORED_IDS, Batch, FrameOutput, StoredFrames

log = logging.getLogger(__name__)
_PIECE = re.compile(r"@\d+\.\d\ds$")  # ends the id of a part of a recording
_BY_LENGTH = "config.data.max_seconds"  # in the reason of what was left out for that


@dataclasses.dataclass(frozen=True)
class Stored:
  """A store, at the frame length of the model that learns from it.

  Attributes:
    source: where it lies.
    store: its records.
    vocabulary: its classes.
    frame_samples: audio samples in a frame as it is used, which need not be the store's own.
  """

  source: str
  store: store_lib.Store
  vocabulary: Vocabulary
  frame_samples: int

  @property
  def settings(self) -> store_lib.Settings:
    """How its frames are kept."""
    return self.store.settings

  @property
  def parameter_count(self) -> int:
    """Parameters of the model that spoke; 0 where its writer did not say."""
    return int(self.store.header.get("parameters", 0))

  @property
  def blank_id(self) -> int:
    return self.vocabulary.blank_id

  @property
  def needs(self) -> frozenset[str]:
    """Parts of a batch that its frames take."""
    return parts(self.settings)

  @property
  def slots(self) -> int:
    """Numbers of a frame in a batch."""
    return self.settings.slots

  @functools.cached_property
  def positions(self) -> dict[tuple[str, float], int]:
    """(utterance, speed) → position of its record."""
    return self.store.positions()

  def row(self, key: tuple[str, float]) -> store_lib.Row | None:
    """What is listed of an (utterance, speed); None where it is not there."""
    position = self.positions.get(key)
    return None if position is None else self.store.rows[position]

  def load(self, devices: jax.sharding.Mesh) -> "Stored":
    """Itself: there are no parameters."""
    del devices
    return self

  def at(self, frame_samples: int) -> "Stored":
    """The same at another frame length (`at_frame_length`).

    Raises:
      UserError: neither length divides the other.
    """
    given = self.store.frame_samples
    if max(given, frame_samples) % min(given, frame_samples):
      raise UserError(
        f"{self.source} has a frame every {given / 16:g} ms and the student every "
        f"{frame_samples / 16:g} ms: one must be a multiple of the other"
      )
    return dataclasses.replace(self, frame_samples=frame_samples)

  @functools.cached_property
  def left_out(self) -> dict[str, str]:
    """Utterance → why it could not be heard when the store was written."""
    return dict(self.store.header["complete"].get("left_out", ()))

  def has(self, source: Source) -> bool:
    """Whether every utterance of a source that could be heard is there, of the same audio."""
    return not self._lacking(source, 1.0) and not heard.another(self.row, source, 1.0)

  def _lacking(self, source: Source, speed: float) -> list[str]:
    """Utterances of a source that another writing of the store would add."""
    there = self.positions
    absent = [i for i, name in enumerate(source.ids) if (name, speed) not in there]
    by_length = lambda i: _BY_LENGTH in self.left_out.get(source.ids[i], _BY_LENGTH)
    if lacking := [source.ids[i] for i in absent if by_length(i)]:
      return lacking
    # What could not be decoded then may be by now: a training would find out half-way.
    first = next((source.ids[i] for i in absent if _reads(source, i)), None)
    return [] if first is None else [first]

  def _cure(self, name: str, speed: float) -> str:
    """How a store gets an utterance that it lacks."""
    if why := self.left_out.get(name):
      long = f"it was left out, since {why}: jaxkd teach with another --max_seconds"
      return long if _BY_LENGTH in why else f"it can be read now ({why} then): jaxkd teach adds it"
    whole = _PIECE.sub("", name)
    if any(_PIECE.sub("", other) == whole for other, s in self.positions if s == speed):
      return (
        "it has other pieces of that recording: config.data.max_seconds must be what jaxkd teach "
        "had as --max_seconds"
      )
    return "jaxkd teach with --data and --speeds adds them"

  def check(self, source: Source, speeds: tuple[float, ...], temperature: float) -> None:
    """UserError where a training on a source at these speeds and temperature lacks something."""
    kept = self.settings.temperature
    if temperature != kept and not self.settings.exact:
      raise UserError(
        f"config.kd.temperature is {temperature:g}, and {self.source} was written for {kept:g}: "
        f"jaxkd teach --temperature={temperature:g} writes one, or --dtype=float32 one for any"
      )
    for speed in speeds:
      if lacking := self._lacking(source, float(speed)):
        raise UserError(
          f"{self.source} lacks {len(lacking)} of {source.name}'s {len(source)} utterances at "
          f"speed {speed:g}, such as {lacking[0]}: {self._cure(lacking[0], float(speed))}"
        )
      if other := heard.another(self.row, source, float(speed)):
        raise self._other_audio(other, speed)
    if unheard := [name for name in source.ids if name in self.left_out]:
      log.warning(
        "%s: %d of %s's %d utterances could not be heard when it was written, such as %s: %s",
        self.source,
        len(unheard),
        source.name,
        len(source),
        unheard[0],
        self.left_out[unheard[0]],
      )

  def _other_audio(self, utterance: str, speed: float) -> UserError:
    return UserError(
      f"{self.source} was written of other audio than {utterance} at speed {speed:g} is now: the "
      "recording has changed, or another one had its name: jaxkd teach writes a new --out"
    )

  def frames(self, utterance: str, speed: float, audio: np.ndarray) -> store_lib.Frames:
    """What is kept of an utterance, at `frame_samples`.

    Args:
      utterance: its id.
      speed: factor that it is played at.
      audio: f32[S], as it is played.

    Raises:
      UserError: it is not there, its audio was another, or its record is damaged.
    """
    position, samples = self.positions.get((utterance, float(speed))), len(audio)
    if position is None:
      why = self.left_out.get(utterance)
      raise UserError(
        f"{self.source} has nothing of {utterance} at speed {speed:g}"
        + (f" ({why} when it was written)" if why else "")
        + ": jaxkd teach adds it"
      )
    try:
      found = self.store.read(position)
    except store_lib.StoreError as error:
      raise UserError(str(error)) from error
    if found.samples != samples:
      raise UserError(
        f"{self.source}: {utterance} had {found.samples} samples at speed {speed:g} when it was "
        f"written and has {samples}: the audio has changed, so write it again"
      )
    if not heard.is_same(self.store.rows[position], audio):
      raise self._other_audio(utterance, speed)
    blank = self.settings.blank_slot
    return at_frame_length(found, blank, self.store.frame_samples, self.frame_samples)

  def put(self, frames: store_lib.Frames, into: StoredFrames, row: int) -> None:
    """Writes an utterance's frames into a row of a batch's arrays."""
    count = min(len(frames.log_probs), into.mask.shape[1])
    place = (row, slice(count))
    into.log_probs[place], into.tail[place] = frames.log_probs[:count], frames.tail[:count]
    into.mask[place] = True
    if into.ids is not None:
      into.ids[place] = frames.ids[:count]

  def of_batch(
    self, number: int, host: HostBatch, batch: Batch, devices: jax.sharding.Mesh
  ) -> FrameOutput:
    """The output of one that runs, of a batch of utterances that are alone in their rows."""
    del number
    rows, samples = host.batch.audio.shape
    sizes = dict(rows=rows, frames=-(-samples // self.frame_samples), slots=self.slots)
    into = StoredFrames.like(np.zeros, self.needs, **sizes)
    for row, names in enumerate(host.ids):
      if names:
        audio = host.batch.audio[row, : host.batch.audio_len[row]]
        self.put(self.frames(names[0], 1.0, audio), into, row)
    return _logits(mesh_lib.put_rows(into, devices), self.settings)


def _reads(source: Source, index: int) -> bool:
  """Whether an utterance can be decoded."""
  try:
    return bool(len(source.read(index)))
  except BrokenAudio:
    return False


def parts(settings: store_lib.Settings) -> frozenset[str]:
  """Parts of a batch that frames of such a store take."""
  return frozenset({STORED, STORED_IDS} if settings.top else {STORED})


def at_frame_length(
  frames: store_lib.Frames, blank_slot: int, given: int, wanted: int
) -> store_lib.Frames:
  """The same frames, longer or shorter.

  A frame repeats where shorter ones are wanted. Of those that become one, the frame with the least
  blank stays: its label would be lost in a mean.

  Args:
    frames: of an utterance.
    blank_slot: of `Settings`.
    given: audio samples in a frame.
    wanted: in a frame of the result; one of the two divides the other.
  """
  count = len(frames.log_probs)
  if wanted == given or not count:
    return frames
  if wanted < given:
    kept = np.repeat(np.arange(count), given // wanted)
  else:
    size = wanted // given
    blank = frames.log_probs[:, blank_slot]
    blocks = np.pad(blank, (0, -count % size), constant_values=np.inf).reshape(-1, size)
    kept = blocks.argmin(1) + size * np.arange(len(blocks))
  ids = None if frames.ids is None else frames.ids[kept]
  return store_lib.Frames(frames.samples, frames.log_probs[kept], ids, frames.tail[kept])


def as_logits(frames: StoredFrames, settings: store_lib.Settings) -> FrameOutput:
  """Logits f32[B, T, V] whose softmax is the posterior; classes that were not kept share evenly.

  Args:
    frames: of a batch.
    settings: of the store.
  """
  log_probs, rest = _spread(frames, settings)
  share = _tail(frames, 0) - jnp.log(jnp.maximum(rest.sum(-1), 1))
  return FrameOutput(jnp.where(rest, share[..., None], log_probs), frames.mask)


def softened(
  frames: StoredFrames, settings: store_lib.Settings, student_logits: jax.Array
) -> jax.Array:
  """Logits f32[B, T, V] whose softmax at the store's temperature is the posterior there.

  Of the classes that were not kept only the sum is known; they share it as the student has it. So
  the KL is that over the classes that were kept and all others as one, and so is its gradient: the
  student is taught nothing of what is not known.

  Args:
    frames: of a batch; those behind the student's last are not looked at.
    settings: of the store.
    student_logits: f32[B, T, V], of the frame that each is compared with.
  """
  size = student_logits.shape[1]
  frames = jax.tree.map(lambda x: x[:, :size], frames)
  log_probs, rest = _spread(frames, settings)
  own = jax.lax.stop_gradient(student_logits.astype(jnp.float32)) / settings.temperature
  # Where nothing is left out there is no sum to share, and padding may hold anything.
  own = jnp.where(rest & frames.mask[..., None], own, -jnp.inf)
  own = jnp.where(rest.any(-1, keepdims=True), own, 0)
  share = _tail(frames, 1)[..., None] + jax.nn.log_softmax(own)
  return jnp.where(rest, settings.temperature * share, log_probs)


def _spread(frames: StoredFrames, settings: store_lib.Settings) -> tuple[jax.Array, jax.Array]:
  """f32[B, T, V], log probabilities by class, and bool[B, T, V], classes that were not kept."""
  log_probs = jnp.where(frames.mask[..., None], frames.log_probs, 0)
  if frames.ids is not None:
    rows, frame, _ = frames.ids.shape
    index = (jnp.arange(rows)[:, None, None], jnp.arange(frame)[None, :, None], frames.ids)
    log_probs = jnp.full((rows, frame, settings.classes), -jnp.inf).at[index].max(log_probs)
  rest = jnp.isneginf(log_probs)
  return jnp.where(rest, 0, log_probs), rest


def _tail(frames: StoredFrames, column: int) -> jax.Array:
  """f32[B, T]: log of a sum over the classes that were not kept."""
  known = frames.mask & ~jnp.isneginf(frames.tail[..., column])
  return jnp.where(known, frames.tail[..., column], 0)


@functools.partial(jax.jit, static_argnums=1)
def _logits(frames: StoredFrames, settings: store_lib.Settings) -> FrameOutput:
  return as_logits(frames, settings)


def is_one(folder: pathlib.Path) -> bool:
  """Whether a folder is a store, complete or not."""
  return (folder / store_lib.HEADER).exists()


def damaged(store: store_lib.Store) -> list[str]:
  """What is wrong with its files: checksums, counts, and records that do not fit their list."""
  found, start = [], 0
  for shard in store.shards:
    whole = store_lib.digest(shard.path) == shard.sha256
    if not whole:
      found.append(f"{shard.path}: other bytes than were written")
    for position, row in enumerate(shard.records if whole else (), start):
      with contextlib.suppress(store_lib.StoreError):
        frames = store.read(position)
        if (frames.samples, len(frames.log_probs)) == (row.samples, row.frames):
          continue
      found.append(f"{shard.path}: the record of {row.utterance} at speed {row.speed:g}")
    start += len(shard.records)
  return found


def find(source: str) -> Stored:
  """The store at a source.

  Raises:
    UserError: it cannot be read, or is not complete.
  """
  folder = buckets.here(source)
  try:
    found = store_lib.Store(folder)
  except (store_lib.StoreError, KeyError, TypeError) as error:
    raise UserError(str(error)) from error
  vocabulary = Vocabulary.load(folder / store_lib.LABELS)
  return Stored(source, found, vocabulary, found.frame_samples)
