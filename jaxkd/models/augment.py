"""SpecAugment (Park et al. 2019) with the paper's numbers of masks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

# Frames a second mask of each pair may come from: 2 to N / 25 time masks, 2 to 5 frequency masks.
_FRAMES_PER_TIME_MASK = 25
_MIN_MASKS = 2
_MAX_FREQ_MASKS = 5


@dataclasses.dataclass(frozen=True)
class SpecAugment:
  """Settings of `spec_augment`.

  Attributes:
    time_mask_frames: most frames (10 ms) in a time mask.
    freq_mask_bins: most filters in a frequency mask.
    more_time_masks: factor on the most time masks that an utterance draws.
  """

  time_mask_frames: int
  freq_mask_bins: int
  more_time_masks: float = 1.0


def spec_augment(
  features: jax.Array, mask: jax.Array, key: jax.Array, settings: SpecAugment
) -> jax.Array:
  """Sets random stretches of time and bands of frequency to 0.

  Each utterance draws 2 to N/25 time masks (N: its real frames; `more_time_masks` times as many) of
  0 to `time_mask_frames` frames, and 2 to 5 frequency masks of 0 to `freq_mask_bins` filters,
  uniformly.

  Args:
    features: float[B, N, F].
    mask: bool[B, N], True for real frames.
    key: typed PRNG key.
    settings: sizes.

  Returns:
    float[B, N, F].
  """
  keys = jax.random.split(key, features.shape[0])
  return jax.vmap(lambda x, m, k: _augment_row(x, m, k, settings))(features, mask, keys)


def spec_augment_if(
  on: jax.Array | bool, features: jax.Array, mask: jax.Array, key: jax.Array, settings: SpecAugment
) -> jax.Array:
  """`spec_augment` where bool[] `on` says so, else the features as they are."""
  apply = functools.partial(spec_augment, settings=settings)
  return jax.lax.cond(on, apply, lambda x, mask, key: x, features, mask, key)


def _augment_row(features, mask, key, settings):
  time_key, freq_key = jax.random.split(key)
  frames, filters = features.shape
  real = mask.sum()
  apart = max(round(_FRAMES_PER_TIME_MASK / settings.more_time_masks), 1)
  time_masks = max(_MIN_MASKS, frames // apart)
  most = jnp.maximum(_MIN_MASKS, real // apart)
  time = _stretches(time_key, frames, real, time_masks, most, settings.time_mask_frames)
  freq = _stretches(
    freq_key, filters, filters, _MAX_FREQ_MASKS, _MAX_FREQ_MASKS, settings.freq_mask_bins
  )
  return jnp.where(time[:, None] | freq[None, :], 0, features)


def _stretches(key, size, limit, slots, most, width):
  """bool[size]: the union of 2 to `most` stretches of 0 to `width` within the first `limit`."""
  count_key, start_key, width_key = jax.random.split(key, 3)
  count = jax.random.randint(count_key, (), _MIN_MASKS, most + 1)
  widths = jax.random.randint(width_key, (slots,), 0, width + 1)
  free = jnp.maximum(limit - widths, 0) + 1
  starts = jnp.floor(jax.random.uniform(start_key, (slots,)) * free).astype(jnp.int32)
  starts, widths = starts[None], widths[None]
  used = jnp.arange(slots)[None] < count
  positions = jnp.arange(size)[:, None]
  return ((positions >= starts) & (positions < starts + widths) & used).any(-1)
