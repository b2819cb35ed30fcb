"""Which frames carry the distillation loss: the patterns of Hilmes et al. 2025.

Every selector has the form

    (teacher_logits float[B, T, V], mask bool[B, T], *, blank_id, <its own>) -> bool[B, T]

where `mask` is True for real frames, `blank_id` is the class of the blank, and the result is a
subset of `mask`; or f32[B, T], weights ≥ 0 that are 0 outside of `mask` (`soft`). Only the teacher
is looked at. Padded frames are never read, so they may hold NaN.
A *label frame* is one whose most probable class is not the blank.
"""

import jax
import jax.numpy as jnp

from jaxkd.masks import dilate, lift


def all_frames(logits: jax.Array, mask: jax.Array, *, blank_id: int) -> jax.Array:
  """Every real frame ("standard")."""
  del logits, blank_id
  return mask


def nonblank(
  logits: jax.Array,
  mask: jax.Array,
  *,
  blank_id: int,
  log_prior: jax.Array | None = None,
  prior_scale: float = 0.0,
) -> jax.Array:
  """Label frames only ("blank elimination").

  Args:
    logits, mask, blank_id: see the module.
    log_prior: float[V]; prior_scale · log_prior is subtracted from the teacher's log probabilities
      before the argmax, which makes blanks rarer. None for none.
    prior_scale: 0.5 in the paper.
  """
  if log_prior is not None:
    log_prior = lift(jnp.asarray(log_prior), logits.ndim)
    logits = jax.nn.log_softmax(logits.astype(jnp.float32)) - prior_scale * log_prior
  return mask & (jnp.argmax(logits, axis=-1) != blank_id)


def trim(logits: jax.Array, mask: jax.Array, *, blank_id: int) -> jax.Array:
  """From an utterance's first label frame to its last; nothing where it has none."""
  labels = nonblank(logits, mask, blank_id=blank_id)
  started = jnp.cumsum(labels, axis=-1) > 0
  not_over = jnp.cumsum(labels[..., ::-1], axis=-1)[..., ::-1] > 0
  return mask & started & not_over


def keep(
  logits: jax.Array, mask: jax.Array, *, blank_id: int, before: int, after: int
) -> jax.Array:
  """Label frames, the `before` frames ahead of each and the `after` frames behind it.

  Args:
    logits, mask, blank_id: see the module.
    before, after: frames ≥ 0; int or traced i32[].
  """
  labels = nonblank(logits, mask, blank_id=blank_id)
  return mask & jax.vmap(lambda row: dilate(row, before=before, after=after))(labels)


def symmetric(logits: jax.Array, mask: jax.Array, *, blank_id: int, n: int) -> jax.Array:
  """Label frames and the n frames on each side of each ("symmetric selection").

  Args:
    logits, mask, blank_id: see the module.
    n: frames ≥ 0, 2 for TED-LIUM and 4 for LibriSpeech in the paper; int or traced i32[].
  """
  return keep(logits, mask, blank_id=blank_id, before=n, after=n)


def threshold(
  logits: jax.Array, mask: jax.Array, *, blank_id: int, min_label_prob: float
) -> jax.Array:
  """Label frames, and blank frames whose label mass 1 - p(blank) is at least `min_label_prob`.

  Args:
    logits, mask, blank_id: see the module.
    min_label_prob: in [0, 1]; the softmax is taken at temperature 1.
  """
  label_mass = _label_mass(logits, mask, blank_id)
  return nonblank(logits, mask, blank_id=blank_id) | (mask & (label_mass >= min_label_prob))


def soft(
  logits: jax.Array, mask: jax.Array, *, blank_id: int, min_weight: float = 0.0
) -> jax.Array:
  """Weights f32[B, T]: 1 for label frames, 1 - p(blank) for blank frames. Not in the paper.

  Args:
    logits, mask, blank_id: see the module.
    min_weight: in [0, 1], the least that a blank frame weighs; the softmax is taken at
      temperature 1.
  """
  weights = jnp.maximum(_label_mass(logits, mask, blank_id), min_weight)
  weights = jnp.where(nonblank(logits, mask, blank_id=blank_id), 1.0, weights)
  return jnp.where(mask, weights, 0.0)


def _label_mass(logits, mask, blank_id: int) -> jax.Array:
  """f32[B, T]: 1 - p(blank) at temperature 1."""
  scores = jnp.where(mask[..., None], logits.astype(jnp.float32), 0)
  is_blank = lift(jnp.arange(scores.shape[-1]) == blank_id, scores.ndim)
  # Summed over labels: 1 - p(blank) would lose a small mass to rounding.
  return jnp.where(is_blank, 0, jax.nn.softmax(scores)).sum(-1)


def random_blanks(
  logits: jax.Array, mask: jax.Array, *, blank_id: int, ratio: float, key: jax.Array
) -> jax.Array:
  """Label frames, and round(ratio · label frames) of each utterance's blank frames at random.

  Drawn without replacement; all blank frames where there are fewer. Row b draws with
  fold_in(key, b), and a frame's lot does not depend on the padding.

  Args:
    logits, mask, blank_id: see the module.
    ratio: ≥ 0.
    key: typed PRNG key.
  """
  draw = lambda x, m, row: _random_row(x, m, blank_id, ratio, jax.random.fold_in(key, row))
  return jax.vmap(draw)(logits, mask, jnp.arange(mask.shape[0]))


def _random_row(logits, mask, blank_id, ratio, key):
  """bool[T] for float[T, V] and bool[T]."""
  labels = nonblank(logits, mask, blank_id=blank_id)
  blanks = mask & ~labels
  frames = jnp.arange(mask.shape[0])
  lots = jax.vmap(lambda t: jax.random.bits(jax.random.fold_in(key, t)))(frames) >> 1
  order = jnp.argsort(jnp.where(blanks, lots, jnp.uint32(2**32 - 1)), stable=True)
  rank = jnp.zeros_like(frames).at[order].set(frames)
  wanted = jnp.round(ratio * labels.sum()).astype(jnp.int32)
  return labels | (blanks & (rank < wanted))
