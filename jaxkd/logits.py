"""What logits say of a frame, in float32, whatever their dtype and common offset."""

import jax
import jax.numpy as jnp


def relative(logits: jax.Array) -> jax.Array:
  """f32[..., V]: logits float[..., V] minus the largest of their frame, a constant to gradients.

  The difference is exact where the logits are, so nothing is rounded after it that a softmax would
  need. NaN where the largest is not finite: NaN, +inf, or -inf for every class.
  """
  if logits.dtype != jnp.float64:
    logits = logits.astype(jnp.float32)
  top = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
  return (logits - top).astype(jnp.float32)


def log_softmax(logits: jax.Array, temperature: float | jax.Array = 1.0) -> jax.Array:
  """f32[..., V]: log probabilities of float[..., V] at a temperature; NaN as in `relative`."""
  scaled = relative(logits) / temperature
  return scaled - jnp.log(jnp.exp(scaled).sum(-1, keepdims=True))


def is_distribution(logits: jax.Array) -> jax.Array:
  """bool[...] of float[..., V], False where a frame's classes have no softmax, as in `relative`."""
  return jnp.isfinite(logits.max(-1))
