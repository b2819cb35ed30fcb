"""Which frames carry the distillation loss: the patterns of Hilmes et al. 2025.

Every selector has the form

    (teacher_logits float[B, T, V], mask bool[B, T], *, blank_id, <its own>) -> bool[B, T]

where `mask` is True for real frames, `blank_id` is the class of the blank, and the result is a
subset of `mask`; or f32[B, T], weights ≥ 0 that are 0 outside of `mask` (`soft`, `occupancy`). Only
the teacher is looked at, and gets no gradient. Padded frames are never read, so they may hold NaN.

A *label frame* is one whose most probable class is not the blank. -inf excludes a class. A real
frame without a softmax (NaN, +inf, or -inf for every class) counts as a label frame, so that it is
selected and reaches the loss, which is NaN then; its weight is NaN.

What does not fit raises ValueError or TypeError when it is traced. Numbers may be traced (f32[],
counts and blank_id i32[]); where such a one is not what it must be, nothing is selected, and
weights are NaN.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import arguments
from jaxkd.logits import is_distribution, log_softmax, relative
from jaxkd.losses.occupancy import ctc_occupancy
from jaxkd.masks import dilate, lift
from jaxkd.placement import first_row, split_alike


def _selector(select: Callable) -> Callable:
  """The function for checked arrays on any mesh."""

  @functools.wraps(select)
  def checked(logits, mask, *, blank_id, **options):
    logits = jax.lax.stop_gradient(arguments.floats("logits", logits, "..., T, V"))
    mask = arguments.truths("mask", mask, "..., T")
    arguments.check_shape("mask", mask, logits.shape[:-1], "the frames of logits")
    blank_id, exists = arguments.class_id("blank_id", blank_id, logits.shape[-1])
    options["blank_id"] = blank_id
    traced = {name: x for name, x in options.items() if isinstance(x, jax.Array)}
    compute = lambda logits, mask, traced: select(logits, mask, **options | traced)
    return split_alike(compute, mask.ndim, logits, mask & exists, traced)

  return checked


@_selector
def all_frames(logits: jax.Array, mask: jax.Array, *, blank_id: int) -> jax.Array:
  """Every real frame ("standard")."""
  del logits, blank_id
  return mask


@_selector
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
    log_prior: float[V], finite; prior_scale · log_prior is subtracted from the teacher's log
      probabilities before the argmax, which makes blanks rarer. None for none.
    prior_scale: 0.5 in the paper; without a log_prior it must be 0.
  """
  prior_scale, sound = arguments.number("prior_scale", prior_scale, lambda x: x == x, "finite")
  if log_prior is None:
    if isinstance(prior_scale, jax.Array):
      raise ValueError("prior_scale is traced; it needs a log_prior")
    if prior_scale:
      raise ValueError(f"prior_scale is {prior_scale}; without a log_prior it must be 0")
    return _label_frames(logits, mask, blank_id)
  if not isinstance(log_prior, jax.core.Tracer) and not np.isfinite(np.asarray(log_prior)).all():
    raise ValueError("log_prior has a class that is not finite; of one never seen give a small p")
  log_prior = arguments.floats("log_prior", log_prior, "V")
  sound &= jnp.isfinite(log_prior).all()
  arguments.check_shape("log_prior", log_prior, logits.shape[-1:], "the classes of logits")
  prior = prior_scale * lift(log_prior.astype(jnp.float32), logits.ndim)
  return _label_frames(log_softmax(logits) - prior, mask & sound, blank_id)


def _label_frames(scores, mask, blank_id):
  """bool[..., T], of scores float[..., T, V]."""
  return mask & ((jnp.argmax(scores, axis=-1) != blank_id) | ~is_distribution(scores))


@_selector
def trim(logits: jax.Array, mask: jax.Array, *, blank_id: int) -> jax.Array:
  """From an utterance's first label frame to its last; nothing where it has none."""
  labels = _label_frames(logits, mask, blank_id)
  started = jnp.cumsum(labels, axis=-1) > 0
  not_over = jnp.cumsum(labels[..., ::-1], axis=-1)[..., ::-1] > 0
  return mask & started & not_over


@_selector
def keep(
  logits: jax.Array, mask: jax.Array, *, blank_id: int, before: int, after: int
) -> jax.Array:
  """Label frames, the `before` frames ahead of each and the `after` frames behind it.

  Args:
    logits, mask, blank_id: see the module.
    before, after: frames ≥ 0; int or traced i32[].
  """
  return mask & dilate(_label_frames(logits, mask, blank_id), before=before, after=after)


@_selector
def symmetric(logits: jax.Array, mask: jax.Array, *, blank_id: int, n: int) -> jax.Array:
  """Label frames and the n frames on each side of each ("symmetric selection").

  Args:
    logits, mask, blank_id: see the module.
    n: frames ≥ 0, 2 for TED-LIUM and 4 for LibriSpeech in the paper; int or traced i32[].
  """
  if not isinstance(n, jax.core.Tracer):
    n, _ = arguments.count("n", n)
  return keep(logits, mask, blank_id=blank_id, before=n, after=n)


@_selector
def threshold(
  logits: jax.Array, mask: jax.Array, *, blank_id: int, min_label_prob: float
) -> jax.Array:
  """Label frames, and blank frames whose label mass 1 - p(blank) is at least `min_label_prob`.

  Args:
    logits, mask, blank_id: see the module.
    min_label_prob: in [0, 1]; the softmax is taken at temperature 1.
  """
  least, sound = _share("min_label_prob", min_label_prob)
  enough = _label_mass(logits, mask, blank_id) >= least
  return sound & (_label_frames(logits, mask, blank_id) | (mask & enough))


@_selector
def soft(
  logits: jax.Array, mask: jax.Array, *, blank_id: int, min_weight: float = 0.0
) -> jax.Array:
  """Weights f32[B, T]: 1 for label frames, 1 - p(blank) for blank frames. Not in the paper.

  Args:
    logits, mask, blank_id: see the module.
    min_weight: in [0, 1], the least that a blank frame weighs; the softmax is taken at
      temperature 1.
  """
  least, sound = _share("min_weight", min_weight)
  weights = jnp.maximum(_label_mass(logits, mask, blank_id), least)
  labels = _label_frames(logits, mask, blank_id) & ~jnp.isnan(weights)
  weights = jnp.where(sound, jnp.where(labels, 1.0, weights), jnp.nan)
  return jnp.where(mask, weights, 0.0)


@_selector
def occupancy(
  logits: jax.Array, mask: jax.Array, *, blank_id: int, delta: float = 3.0
) -> jax.Array:
  """Weights f32[..., T]: the expected share of a label in each frame, blanks made rarer first.

  With ŷ the teacher's greedy labels and z - delta on the blank in place of its logits z, the weight
  is 1 - γ(blank), γ being `losses.ctc_occupancy` of ŷ. The spikes get shoulders that never cross
  another label, without a number of neighbours to choose: delta → -∞ leaves one frame a label,
  delta → ∞ takes every frame of an utterance that has labels, but for one blank where equal labels
  meet. Not in the paper.

  Args:
    logits, mask, blank_id: see the module. One frame without a softmax makes all weights of its
      utterance NaN.
    delta: finite, in nats; 3 gives shoulders, 6 wide ones.

  Its memory grows with T²: 0.06 GB for an utterance of 1,500 frames and 32 classes, 0.7 of 5,000.
  """
  delta, sound = arguments.number("delta", delta, lambda x: x == x, "finite")
  frames, classes = logits.shape[-2:]
  if not mask.size:
    return jnp.zeros(mask.shape, jnp.float32)
  real = mask.reshape(-1, frames)
  proper = is_distribution(logits) | ~mask
  scores = relative(jnp.where((mask & proper)[..., None], logits, 0)).reshape(-1, frames, classes)
  is_blank = jnp.arange(classes, dtype=jnp.int32) == blank_id
  path = jnp.where(real, jnp.argmax(scores, -1).astype(jnp.int32), blank_id)
  labels, label_len = jax.vmap(lambda row: _collapse(row, blank_id))(path)
  # A frame that is not real is a sure blank, which takes nothing from the paths of the others.
  of_padding = lift(jnp.where(is_blank, 0, -jnp.inf), 3)
  scores = scores - lift(jnp.where(is_blank, delta, 0), 3)
  scores = jnp.where(real[..., None], scores, of_padding)
  every = jnp.full(label_len.shape, frames, jnp.int32)
  occupied = ctc_occupancy(scores, every, labels, label_len, blank_id=blank_id)
  # Summed over labels, as in `_label_mass`.
  weights = jnp.where(lift(is_blank, 3), 0, occupied).sum(-1).reshape(mask.shape)
  told = sound & proper.all(-1, keepdims=True)
  return jnp.where(mask, jnp.where(told, jnp.minimum(weights, 1), jnp.nan), 0)


def _collapse(path, blank_id) -> tuple[jax.Array, jax.Array]:
  """i32[T] labels of a path i32[T] after merging repeats and dropping blanks, and their number."""
  before = jnp.concatenate([jnp.full((1,), -1, jnp.int32), path[:-1]])
  begins = (path != blank_id) & (path != before)
  place = jnp.where(begins, jnp.cumsum(begins, dtype=jnp.int32) - 1, path.size)
  labels = jnp.zeros_like(path).at[place].set(path, mode="drop")
  return labels, begins.sum(dtype=jnp.int32)


def _share(name: str, value):
  """As `arguments.number`, of what is in [0, 1]."""
  return arguments.number(name, value, lambda x: (x >= 0) & (x <= 1), "from 0 to 1")


def _label_mass(logits, mask, blank_id) -> jax.Array:
  """f32[..., T]: 1 - p(blank) at temperature 1; NaN where there is no softmax."""
  probs = jnp.exp(log_softmax(jnp.where(mask[..., None], logits, 0)))
  is_blank = lift(jnp.arange(probs.shape[-1], dtype=jnp.int32) == blank_id, probs.ndim)
  # Summed over labels: 1 - p(blank) would lose a small mass to rounding.
  return jnp.where(is_blank, 0, probs).sum(-1)


@_selector
def random_blanks(
  logits: jax.Array, mask: jax.Array, *, blank_id: int, ratio: float, key: jax.Array
) -> jax.Array:
  """Label frames, and round(ratio · label frames) of each utterance's blank frames at random.

  Drawn without replacement; all blank frames where there are fewer. Row b draws with
  fold_in(key, b), and a frame's lot does not depend on the padding. Inside of `jax.shard_map` b
  counts the rows of all shards, as `jaxkd.placement.first_row` tells them apart: a batch that is
  split over its rows draws what the whole one would.

  Args:
    logits, mask, blank_id: see the module.
    ratio: ≥ 0.
    key: typed PRNG key, the same in every shard.
  """
  ratio, sound = arguments.number("ratio", ratio, lambda x: x >= 0, "finite and 0 or more")
  _check_rows(mask)
  labels = _label_frames(logits, mask, blank_id)
  wanted = jnp.minimum(ratio * labels.sum(1, jnp.float32), mask.shape[1])
  return sound & _with_blanks(labels, mask, jnp.round(wanted).astype(jnp.int32), key)


@_selector
def shuffled(
  logits: jax.Array, mask: jax.Array, *, blank_id: int, n: int, key: jax.Array
) -> jax.Array:
  """Label frames, and as many of each utterance's blank frames as `symmetric` has, at random.

  What says whether it matters *which* blank frames are selected, or only how many. Drawn as by
  `random_blanks`.

  Args:
    logits, mask, blank_id: see the module.
    n: of `symmetric`.
    key: typed PRNG key, the same in every shard.
  """
  _check_rows(mask)
  near = symmetric(logits, mask, blank_id=blank_id, n=n)
  labels = near & _label_frames(logits, mask, blank_id)  # none where a traced n cannot be
  return _with_blanks(labels, mask, (near & ~labels).sum(1, dtype=jnp.int32), key)


def _check_rows(mask) -> None:
  if mask.ndim != 2:
    raise ValueError(f"mask has shape {mask.shape}; it must be [B, T]")


def _with_blanks(labels, mask, wanted, key) -> jax.Array:
  """bool[B, T]: label frames, and so many i32[B] of each row's other real frames at random."""
  key = arguments.key("key", key)
  rows = jnp.arange(mask.shape[0], dtype=jnp.int32) + first_row(mask)
  draw = lambda blanks, row: _ranks(blanks, jax.random.fold_in(key, row))
  blanks = mask & ~labels
  return labels | (blanks & (jax.vmap(draw)(blanks, rows) < wanted[:, None]))


def _ranks(blanks, key) -> jax.Array:
  """i32[T]: each frame's place in a random order of the blanks bool[T], others after them."""
  frames = jnp.arange(blanks.shape[0], dtype=jnp.int32)
  lots = jax.vmap(lambda t: jax.random.bits(jax.random.fold_in(key, t), (), "uint32"))(frames) >> 1
  order = jnp.argsort(jnp.where(blanks, lots, jnp.uint32(2**32 - 1)), stable=True)
  return jnp.zeros_like(frames).at[order].set(frames)
