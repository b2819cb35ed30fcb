"""A frozen acoustic model: what a student learns from, and what a finished run leaves behind."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxkd.labels import Vocabulary
from jaxkd.models import wav2vec2
from jaxkd.models.huggingface import folder as huggingface
from jaxkd.models.huggingface import weights as port
from jaxkd.types import Batch, FrameOutput


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A model in evaluation mode for good: it is called without a key, so nothing in it is random.

  Attributes:
    graphdef: its structure (`nnx.split`).
    params: its parameters.
    vocabulary: its classes.
  """

  graphdef: Any
  params: Any
  vocabulary: Vocabulary

  @property
  def blank_id(self) -> int:
    return self.vocabulary.blank_id

  @property
  def labels(self) -> tuple[str, ...]:
    return self.vocabulary.symbols

  def __call__(self, audio: jax.Array, audio_len: jax.Array) -> FrameOutput:
    """Logits f32[B, T, V] and mask bool[B, T] of audio (i16 or f32 in [-1, 1])[B, S] at 16 kHz."""
    return _apply(self.graphdef, self.params, audio, audio_len)


class Ensemble(nnx.Module):
  """Several models as one, by the mean of their probabilities."""

  def __init__(self, members: list[nnx.Module]):
    self.members = nnx.List(members)

  def __call__(self, audio: jax.Array, audio_len: jax.Array) -> FrameOutput:
    """Logits f32[B, T, V], normalised, and mask bool[B, T]; T is that of the shortest output."""
    outputs = [member(audio, audio_len) for member in self.members]
    size = min(out.mask.shape[1] for out in outputs)
    log_probs = jnp.stack([jax.nn.log_softmax(out.logits[:, :size]) for out in outputs])
    mask = functools.reduce(jnp.logical_and, (out.mask[:, :size] for out in outputs))
    mean = jax.nn.logsumexp(log_probs, 0) - jnp.log(len(outputs))
    return FrameOutput(mean, mask)


def ensemble(teachers: list[Teacher]) -> Teacher:
  """One teacher whose posterior is the mean of those of several, which share a vocabulary."""
  models = [nnx.merge(teacher.graphdef, teacher.params) for teacher in teachers]
  return Teacher(*nnx.split(Ensemble(models)), teachers[0].vocabulary)


@functools.partial(jax.jit, static_argnums=0)
def _apply(graphdef, params, audio: jax.Array, audio_len: jax.Array) -> FrameOutput:
  return nnx.merge(graphdef, params)(audio, audio_len)


def from_huggingface(
  source: str | os.PathLike,
  pool: int = 1,
  *,
  dtype: str = "float32",
  place: Callable[[Any], Any] = jax.device_put,
) -> Teacher:
  """A HuBERT, wav2vec 2.0, WavLM or data2vec-audio model with a CTC head.

  Args:
    source: a folder with config.json, *.safetensors, vocab.json and preprocessor_config.json, or
      org/name on the Hugging Face hub.
    pool: frames (20 ms) that are max-pooled into one before the head; 2 in the paper.
    dtype: of the arithmetic, "float32" or "bfloat16".
    place: lays out the parameters (NumPy arrays) on devices.

  Raises:
    UserError: no such model, no CTC head, another architecture, a vocabulary without blank,
      another sampling rate than 16 kHz, or weights that do not fit.
  """
  folder = huggingface.folder_of(os.fspath(source))
  config, labels = read_huggingface(folder, pool, dtype)
  graphdef = port.structure(config, len(labels.symbols))[0]
  params = port.load(folder, config, len(labels.symbols))
  return Teacher(graphdef, place(params), labels)


def read_huggingface(
  folder: pathlib.Path, pool: int, dtype: str
) -> tuple[wav2vec2.Wav2Vec2Config, Vocabulary]:
  """Structure and classes of what `from_huggingface` loads; raises as that does."""
  description = huggingface.read_description(folder)
  config = huggingface.model_config(description, str(folder), pool=pool, dtype=dtype)
  return config, huggingface.read_labels(folder)


def log_prior(
  teacher: Teacher, batches: Iterable[Batch], sharding: jax.sharding.Sharding | None = None
) -> np.ndarray:
  """f32[V]: log of the teacher's mean posterior over all real frames of some batches.

  Args:
    teacher: frozen.
    batches: of audio.
    sharding: of sums over a batch, where it is spread over processes: a copy for each.
  """

  @functools.partial(jax.jit, out_shardings=sharding)
  def posterior_sum(params, batch):
    out = dataclasses.replace(teacher, params=params)(batch.audio, batch.audio_len)
    logits = jnp.where(out.mask[..., None], out.logits, 0)
    posterior = jnp.where(out.mask[..., None], jax.nn.softmax(logits), 0)
    return posterior.sum((0, 1)), out.mask.sum()

  total, frames = np.zeros(len(teacher.labels)), 0
  for batch in batches:
    batch_sum, count = posterior_sum(teacher.params, batch)
    total, frames = total + np.asarray(batch_sum, np.float64), frames + int(count)
  return np.log(np.maximum(total / max(frames, 1), 1e-10)).astype(np.float32)


def parameter_count(params) -> int:
  """Numbers in a tree of parameters."""
  return sum(x.size for x in jax.tree.leaves(params))
