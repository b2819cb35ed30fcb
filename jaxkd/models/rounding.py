"""Which parameters of a frozen model may lie in memory as its arithmetic reads them."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core

from jaxkd.devices import sharding
from jaxkd.models.acoustic import AcousticModel
from jaxkd.types import SAMPLE_RATE_HZ

# What changes no number of the first operand.
_MOVES = ("broadcast_in_dim", "dynamic_slice", "reshape", "rev", "slice", "squeeze", "transpose")


def lightened(model: AcousticModel, dtype: str) -> AcousticModel:
  """The model with its parameters as `rounded` has them."""
  like = rounded(model.graphdef, model.params, dtype)
  params = jax.tree.map(lambda x, to: x.astype(to.dtype), model.params, like)
  return dataclasses.replace(model, params=params)


def rounded(graphdef, like, dtype: str):
  """`like` with every matrix in `dtype` that a call of the model only ever reads rounded to that.

  Its results are the same to the last bit, and it takes half of the memory where that is bfloat16.
  Norms and biases, and what is computed with in float32, stay as they are.

  Args:
    graphdef, like: structure and parameters, abstract or not, of a model that is called with audio
      and its lengths.
    dtype: of its arithmetic; what is computed in another stays as it is.
  """
  dtype = jnp.dtype(dtype)
  if dtype == jnp.float32:
    return like
  audio = jax.ShapeDtypeStruct((1, SAMPLE_RATE_HZ), jnp.float32)
  audio_len = jax.ShapeDtypeStruct((1,), jnp.int32)
  call = lambda params, *audio: nnx.merge(graphdef, params)(*audio)
  only = _only_rounded(jax.make_jaxpr(call)(like, audio, audio_len).jaxpr, dtype)
  leaves, tree = jax.tree_util.tree_flatten_with_path(like)

  def stored(path, leaf, only):
    stacked = any(getattr(p, "key", None) in sharding.STACKS for p in path)
    is_matrix = len(leaf.shape) - stacked >= 2
    return jax.ShapeDtypeStruct(leaf.shape, dtype if only and is_matrix else leaf.dtype)

  found = [stored(*leaf, only) for leaf, only in zip(leaves, only, strict=False)]
  return jax.tree.unflatten(tree, found)


def _only_rounded(jaxpr: core.Jaxpr, dtype) -> list[bool]:
  """For each input, whether nothing is done with it but to convert it to a type."""
  only = {id(variable): False for variable in jaxpr.outvars}
  for equation in reversed(jaxpr.eqns):  # what a result is used for is known before what it is of
    results = all(only.get(id(variable), True) for variable in equation.outvars)
    for variable, rounds in zip(equation.invars, _rounds(equation, dtype, results), strict=True):
      only[id(variable)] = only.get(id(variable), True) and rounds
  return [only.get(id(variable), True) for variable in jaxpr.invars]


def _rounds(equation, dtype, results: bool) -> list[bool]:
  """For each operand of an equation, whether it is only converted to a type.

  Args:
    equation: of a jaxpr.
    dtype: the type.
    results: whether its results are only converted to that.
  """
  name, params, count = equation.primitive.name, equation.params, len(equation.invars)
  if name == "convert_element_type":
    return [params["new_dtype"] == dtype]
  if name in _MOVES:
    return [results] + [False] * (count - 1)
  inner = [getattr(value, "jaxpr", value) for value in params.values()]
  inner = [value for value in inner if isinstance(value, core.Jaxpr)]
  if len(inner) != 1 or len(inner[0].invars) != count:
    return [False] * count  # among them loops and choices, in which no parameters are rounded
  rounds = _only_rounded(inner[0], dtype)
  if name == "scan":  # what is carried goes from one round to the next
    first = params["num_consts"]
    rounds[first : first + params["num_carry"]] = [False] * params["num_carry"]
  return rounds
