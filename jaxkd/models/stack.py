"""Layers of one structure, their arrays stacked: run one after the other by a scan."""

import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxkd.devices import sharding


def scan_stack(
  stack: nnx.Module,
  x: jax.Array,
  call: Callable[[nnx.Module, jax.Array, jax.Array | None], jax.Array],
  keys: jax.Array | None = None,
  *,
  part: slice = slice(None),
  layer_drop: float | np.ndarray = 0.0,
  remat: bool = False,
) -> jax.Array:
  """What the last layer makes of x; compile time does not grow with depth.

  Args:
    stack: every array of it has the layer as its first axis.
    x: what the first layer reads; each keeps its shape and type.
    call: (layer, x, the layer's key) -> what the next layer reads.
    keys: one for each layer of the stack; None is evaluation: `call` gets None for a key.
    part: layers that are run.
    layer_drop: probability that a layer is skipped in training, or one for each layer.
    remat: in training a layer's products, too, are computed again for its gradient.
  """
  graphdef, params = nnx.split(stack)
  rates = None
  if keys is not None and np.any(layer_drop):
    rates = jnp.broadcast_to(jnp.asarray(layer_drop, jnp.float32), keys.shape)

  def step(x, inputs):
    layer_params, key, rate = inputs
    run = lambda x: call(nnx.merge(graphdef, sharding.layer(layer_params)), x, key)
    if rate is None:
      return run(x), None
    skip = jax.random.bernoulli(jax.random.fold_in(key, 4), rate)
    return jax.lax.cond(skip, lambda x: x, run, x), None

  if keys is not None:
    step = recomputed(step, everything=remat)
  inputs = jax.tree.map(operator.itemgetter(part), (params, keys, rates))
  return jax.lax.scan(step, x, inputs)[0]


def recomputed(step: Callable, *, everything: bool) -> Callable:
  """`step` of a scan over layers, computed again for its gradient instead of kept in memory.

  Args:
    step: (carried, inputs) -> (carried, outputs).
    everything: False keeps the results of matrix products: what lies between them is computed
      faster than stacked over the layers and read again.
  """
  policy = None if everything else jax.checkpoint_policies.dots_saveable
  return jax.checkpoint(step, prevent_cse=False, policy=policy)  # in a scan there is no CSE
