"""Words of audio that comes bit by bit, each as soon as it is final."""

import functools
import logging
from collections.abc import Iterable, Iterator

import jax
import numpy as np
from flax import nnx

from jaxkd.data.audio import BrokenAudio
from jaxkd.errors import UserError
from jaxkd.inference.listening import Frames, said, unsound
from jaxkd.inference.recogniser import runs, timed
from jaxkd.inference.transcript import Word
from jaxkd.models import streaming
from jaxkd.models.acoustic import AcousticModel, Chunks
from jaxkd.models.conformer import ConformerCTC

log = logging.getLogger(__name__)
# A word ends where so long nothing follows, even if no other begins.
_PAUSE_SECONDS = 0.8
# What a model attends to before a chunk that has not learnt how much.
_LEFT_FRAMES = 64


def chunks(model: AcousticModel, milliseconds: int, name: str) -> Chunks:
  """How a model hears streams in chunks of so many milliseconds.

  Args:
    model: any.
    milliseconds: of a chunk, a multiple of those of a frame.
    name: of the model, for what is wrong.

  Raises:
    UserError: it cannot hear streams, or not such chunks.
  """
  net = nnx.merge(model.graphdef, model.params) if isinstance(model, AcousticModel) else None
  if not isinstance(net, ConformerCTC):
    raise UserError(f"{name} hears whole recordings only: streams are for Conformers of a run")
  why = streaming.unfit(net.features)
  if why:
    raise UserError(f"{name} cannot hear streams: {why}")
  frame = model.frame_ms
  if milliseconds < frame or milliseconds % frame:
    raise UserError(f"--stream={milliseconds}ms must be a multiple of a frame, {frame:g} ms")
  return Chunks(int(milliseconds / frame), max(net.config.left_frames, default=_LEFT_FRAMES))


def has_learnt(model: AcousticModel) -> bool:
  """Whether a Conformer was trained on chunks."""
  return any(nnx.merge(model.graphdef, model.params).config.chunk_frames)


class Live:
  """Audio in, words out.

  Attributes:
    latency_ms: from the first sample of a chunk to the last that its frames wait for.
  """

  def __init__(self, model: AcousticModel, heard: Chunks):
    """Begins a stream of a model that `chunks` has looked at."""
    self._model = model
    stream = nnx.merge(model.graphdef, model.params).stream(*heard)
    self.latency_ms = stream.latency_ms
    # After a packet of what a chunk waits for, each packet of a chunk's length completes one.
    self._packet, self._chunk = stream.lookahead, heard.chunk * model.frame_samples
    self._step = _jitted(model.graphdef, heard, "step")
    self._end = _jitted(model.graphdef, heard, "finish")
    self._state = stream.init(1)
    self._waiting = np.empty(0, np.float32)
    self._path, self._sure, self._start = np.empty(0, np.int32), np.empty(0, np.float32), 0

  def hear(self, samples: np.ndarray) -> list[Word]:
    """Words that are final now that f32[S], 16 kHz, was heard, too."""
    self._waiting = np.concatenate([self._waiting, samples.astype(np.float32)])
    found = []
    while len(self._waiting) >= self._packet:
      packet, self._waiting = self._waiting[: self._packet], self._waiting[self._packet :]
      self._packet = self._chunk
      found += self._take(packet, len(packet))
    return found

  def finish(self) -> list[Word]:
    """The last words; nothing more is heard."""
    rest, padded = len(self._waiting), np.zeros(self._packet, np.float32)
    padded[:rest] = self._waiting
    found = self._take(padded, rest)
    self._add(self._end(self._model.params, self._state))
    return [*found, *self._final(ends=True)]

  def _take(self, packet: np.ndarray, real: int) -> list[Word]:
    arguments = self._state, packet[None], np.array([real], np.int32)
    self._state, output = self._step(self._model.params, *arguments)
    self._add(output)
    return self._final(ends=False)

  def _add(self, output) -> None:
    """Frames that were told."""
    count = int(output.mask.sum())
    path, sure, _ = jax.device_get(said(output.logits, whole=False))
    if broken := unsound(path[0, :count]):
      raise UserError(str(broken))
    self._path = np.concatenate([self._path, path[0, :count]])
    self._sure = np.concatenate([self._sure, sure[0, :count]])

  def _final(self, *, ends: bool) -> list[Word]:
    """Words that nothing can change any more; their frames are forgotten."""
    labels = runs(self._path, self._model.blank_id)
    if not labels:
      self._forget(len(self._path))
      return []
    seconds = self._model.frame_ms / 1000
    ends |= (len(self._path) - 1 - labels[-1][2]) * seconds >= _PAUSE_SECONDS
    spans = self._model.vocabulary.words([label for label, _, _ in labels])
    if not ends:
      spans = [span for span in spans if span[2] < len(labels)]
    frames = Frames(self._path, self._sure, None, np.inf)
    found = [word.later(self._start * seconds) for word in timed(labels, spans, frames, seconds)]
    if ends:  # also labels that are no word, such as a space
      self._forget(len(self._path))
    elif spans:
      self._forget(labels[spans[-1][2] - 1][2] + 1)
    return found

  def _forget(self, count: int) -> None:
    self._path, self._sure = self._path[count:], self._sure[count:]
    self._start += count


@functools.cache
def _jitted(graphdef, heard: Chunks, what: str):
  call = lambda params, *rest: getattr(nnx.merge(graphdef, params).stream(*heard), what)(*rest)
  return jax.jit(call)


def words(model: AcousticModel, heard: Chunks, packets: Iterable[np.ndarray]) -> Iterator[Word]:
  """The words of f32[S] after f32[S] at 16 kHz, as they become final; the last also after Ctrl-C.

  Raises:
    BrokenAudio: of the packets, behind the words of what came before.
    UserError: what the model says is NaN.
  """
  live = Live(model, heard)
  try:
    for packet in packets:
      yield from live.hear(packet)
  except KeyboardInterrupt:
    log.info("stopped: the last words")
  except BrokenAudio:
    yield from live.finish()
    raise
  yield from live.finish()
