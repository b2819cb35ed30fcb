"""One check for everything with a time axis: padding is not read, whatever it holds and its length.

    padding.check(lambda params, x, mask: nnx.merge(graphdef, params)(x, mask), params, x, mask)

It compares outputs at real frames, and gradients for the parameters, with

* padding of zeros, as long as the mask says,
* the same padding full of garbage,
* longer padding, full of garbage too,
* outputs of a row alone, without any padding.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def randomised(module: nnx.Module, seed: int = 0):
  """`nnx.split` with noise on all parameters: biases of 0 would hide what leaks through them."""
  graphdef, params = nnx.split(module)
  leaves, structure = jax.tree.flatten(params)
  rng = np.random.default_rng(seed)
  noisy = [x + np.float32(0.3) * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
  return graphdef, jax.tree.unflatten(structure, noisy)


def length_masks(lengths, size: int) -> np.ndarray:
  """bool[B, size], True at positions below the lengths."""
  return np.arange(size) < np.asarray(lengths)[:, None]


def fill(x: np.ndarray, mask: np.ndarray, garbage, longer: int = 0) -> np.ndarray:
  """x[B, T, ...] with padding replaced by garbage, and so many frames of garbage more."""
  where = mask.reshape(mask.shape + (1,) * (x.ndim - 2))
  out = np.where(where, x, np.asarray(garbage, x.dtype))
  return np.pad(
    out, [(0, 0), (0, longer)] + [(0, 0)] * (x.ndim - 2), constant_values=out.dtype.type(garbage)
  )


def check(
  apply: Callable,
  params,
  x: np.ndarray,
  mask: np.ndarray,
  *,
  garbage=np.nan,
  gradient_garbage=None,
  longer: int = 7,
  atol: float = 1e-5,
  gradient_rtol: float = 1e-4,
) -> None:
  """Raises AssertionError where padding changes real outputs or gradients, or makes them NaN.

  Args:
    apply: (params, x[B, T, ...], mask bool[B, T]) -> y[B, T', ...] or (y, mask bool[B, T']);
      without a mask, T' is T and the mask stays the same. Masks are True for real frames.
    params: a tree of float arrays.
    x: values; what is in the padding does not matter.
    mask: bool[B, T], with rows of several lengths.
    garbage: put into the padding when outputs are compared.
    gradient_garbage: the same when gradients are compared; `garbage` where None. Functions inside a
      model may count on finite padding: a gradient of 0 times NaN is NaN.
    longer: frames of garbage appended.
    atol: largest difference of an output.
    gradient_rtol: largest difference of a gradient over the largest entry of its array.
  """
  run = jax.jit(lambda params, x, mask: _outputs(apply, params, x, mask))

  @functools.partial(jax.grad, has_aux=True)
  def differentiate(params, x, mask):
    outputs = _outputs(apply, params, x, mask)
    return _scalar(*outputs), outputs

  differentiate = jax.jit(differentiate)
  expected_gradient, (expected, out_mask) = differentiate(params, fill(x, mask, 0), mask)
  expected, out_mask = np.asarray(expected), np.asarray(out_mask)
  assert out_mask.any() and not out_mask.all(), "the check needs real frames and padding"
  assert np.isfinite(expected[out_mask]).all()
  assert any(np.asarray(g).any() for g in jax.tree.leaves(expected_gradient))

  for extra in (0, longer):
    longer_mask = np.pad(mask, ((0, 0), (0, extra)))
    gradient, (got, got_mask) = differentiate(params, fill(x, mask, garbage, extra), longer_mask)
    got, got_mask, size = np.asarray(got), np.asarray(got_mask), out_mask.shape[1]
    np.testing.assert_array_equal(got_mask[:, :size], out_mask)
    assert not got_mask[:, size:].any()
    np.testing.assert_allclose(got[:, :size][out_mask], expected[out_mask], rtol=1e-5, atol=atol)
    if gradient_garbage is not None:
      values = fill(x, mask, gradient_garbage, extra)
      gradient, _ = differentiate(params, values, longer_mask)
    _compare_gradients(gradient, expected_gradient, gradient_rtol)

  # Not the shortest row: a single frame has no neighbours that padding could stand for.
  lengths = mask.sum(1)
  row = np.argsort(np.where(lengths == mask.shape[1], 0, lengths))[-1]
  got, got_mask = run(params, x[[row], : lengths[row]], mask[[row], : lengths[row]])
  assert np.asarray(got_mask).all()
  np.testing.assert_allclose(got[0], expected[row][out_mask[row]], rtol=1e-5, atol=atol)


def _compare_gradients(gradient, expected, rtol: float) -> None:
  for got, want in zip(*map(jax.tree.leaves, (gradient, expected)), strict=True):
    atol = rtol * max(1e-3, float(np.abs(want).max()))
    np.testing.assert_allclose(got, want, rtol=0, atol=atol)


def _outputs(apply, params, x, mask):
  """y and its mask."""
  out = apply(params, x, mask)
  return out if isinstance(out, tuple) else (out, mask)


def _scalar(y, mask):
  """A sum over real outputs in which each has its own weight, however long the padding is."""
  b, t, d = jnp.meshgrid(*(jnp.arange(n) for n in (*y.shape[:2], y[0, 0].size)), indexing="ij")
  weights = jnp.cos(1.0 + 3.1 * b + 1.7 * t + 0.9 * d)
  return jnp.where(mask[..., None], y.reshape(*y.shape[:2], -1) * weights, 0).sum()
