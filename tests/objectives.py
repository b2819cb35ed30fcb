"""Objectives of a few lines of config, and models of a few lines that learn by them."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from jaxkd.masks import length_mask
from jaxkd.training import objective
from jaxkd.training import step as step_lib
from jaxkd.types import Batch, FrameOutput

BLANK, CLASSES, WIDTH, FRAME = 2, 3, 5, 640


def kd(**changes) -> ConfigDict:
  """A `config.kd` block: standard distillation, but for the changes."""
  fields = dict(
    loss="kl",
    scale=1.0,
    ctc="transcripts",
    scale_ramp=(),
    temperature=2.0,
    temperature_ramp=(),
    delays=(0,),
    softness=1.0,
    delay_of="frame",
    blank_scale=1.0,
    targets="hypotheses",
    consistency=0.0,
    co_teacher=0.0,
    inner_scale=0.0,
    selection=dict(name="all_frames"),
    start_epoch=0,
    stop_epoch=0,
    grow_epochs=0,
    n_ramp=(),
    normalization="frames",
    warmup=0,
    hypotheses=0,
  )
  return ConfigDict(fields | changes)


def make(
  blank_id: int,
  *,
  spec_augment: bool = False,
  average_decay=None,
  chunk_frames=(),
  left_frames=(),
  **changes,
) -> objective.Objective:
  """The objective of a `kd` block with the changes."""
  training = ConfigDict(
    dict(spec_augment=spec_augment, spec_augment_from_epoch=0, time_mask_frames=5, freq_mask_bins=2)
  )
  options = dict(blank_id=blank_id, log_prior=None, average_decay=average_decay)
  options |= dict(chunk_frames=chunk_frames, left_frames=left_frames)
  return objective.make(kd(**changes), training, **options)


class Frames(nnx.Module):
  """Frames of 640 samples times matrices: an encoder, a head and a projection."""

  def __init__(self, seed: int, width: int = WIDTH, project_to: int | None = None):
    keys = jax.random.split(jax.random.key(seed), 3)
    self.inner = nnx.Param(0.1 * jax.random.normal(keys[0], (FRAME, width)))
    self.outer = nnx.Param(jax.random.normal(keys[1], (width, CLASSES)))
    if project_to:
      self.to = nnx.Param(jax.random.normal(keys[2], (width, project_to)))

  def projection(self, x):
    return x @ self.to[...]

  def encode(self, audio, audio_len, *, key=None, spec_augment=None, augment_on=True):
    del key, spec_augment, augment_on
    frames = audio.reshape(len(audio), -1, FRAME) / 32768
    mask = length_mask(-(-audio_len // FRAME), frames.shape[1])
    return frames @ self.inner[...], mask

  def classify(self, x, mask):
    return FrameOutput(x @ self.outer[...], mask)

  def __call__(self, audio, audio_len, **options):
    return self.classify(*self.encode(audio, audio_len, **options))


def make_batch(rows=4, frames=8, seed=0) -> Batch:
  rng = np.random.default_rng(seed)
  audio = rng.integers(-(2**15), 2**15, (rows, frames * FRAME)).astype(np.int16)
  audio_len = (FRAME * rng.integers(4, frames + 1, rows)).astype(np.int32)
  labels = rng.integers(0, 2, (2, rows, 3)).astype(np.int32)
  lengths = rng.integers(1, 3, (2, rows)).astype(np.int32)
  return Batch(audio, audio_len, labels[0], lengths[0], labels[1], lengths[1])


def distill(settings, batch, epoch=0, width=WIDTH):
  """Loss, terms and the gradient of a `Frames` beside another, wider one."""
  student, teacher = Frames(1, project_to=width + 2), Frames(2, width + 2)
  graphdef, params = nnx.split(student)
  taught = step_lib.teach(teacher, batch, settings.needs) if settings.asks_teacher else None
  if settings.views == 2:
    batch = step_lib.twice(batch)
    taught = taught and step_lib.Taught(step_lib.twice(taught.output))

  def loss_fn(params):
    model = nnx.merge(graphdef, params)
    args = batch, jax.random.key(0), jnp.int32(epoch), settings
    return settings(step_lib.observe(model, taught, *args))

  (loss, terms), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params)
  return float(loss), terms, grads
