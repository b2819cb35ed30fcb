"""What the library's functions are given, checked while they are traced.

Shapes, dtypes and numbers that Python knows raise ValueError or TypeError: one line with the
argument's name, its value and what it must be. What is known only when the program runs cannot
raise: such a number comes with a bool[], and the function says what it then returns.
"""

import math
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

_LARGEST = 2**31 - 1


def floats(name: str, x, axes: str) -> jax.Array:
  """An array of any float dtype.

  Args:
    name: of the argument.
    x: array, or nested lists of numbers.
    axes: names of its axes, "B, T, V"; "..., T, V" where others may come first.

  Raises:
    TypeError: it is not of floats.
    ValueError: it has other axes.
  """
  x = x if isinstance(x, jax.Array) else jnp.asarray(x)
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise TypeError(f"{name} is of {x.dtype}; it must be of floats")
  _check_axes(name, x, axes)
  return x


def integers(name: str, x, axes: str) -> jax.Array:
  """An array of any integer dtype as i32; what does not fit is as large as fits.

  Args:
    name: of the argument.
    x: array, or nested lists of ints.
    axes: as for `floats`.

  Raises:
    TypeError: it is not of integers.
    ValueError: it has other axes.
  """
  if not hasattr(x, "dtype"):
    x = jnp.asarray(x)
    x = x if x.size else x.astype(jnp.int32)  # an empty list has no dtype
  if not jnp.issubdtype(x.dtype, jnp.integer):
    raise TypeError(f"{name} is of {x.dtype}; it must be of integers")
  _check_axes(name, x, axes)
  if jnp.iinfo(x.dtype).max > _LARGEST:
    # Before jnp.asarray, which cuts off the upper half of a NumPy array's numbers.
    clip = jnp.clip if isinstance(x, jax.Array) else np.clip
    x = clip(x, max(-_LARGEST, int(jnp.iinfo(x.dtype).min)), _LARGEST)
  return jnp.asarray(x.astype(np.int32))


def truths(name: str, x, axes: str) -> jax.Array:
  """A bool array, or TypeError or ValueError as for `floats`."""
  x = jnp.asarray(x)
  if x.dtype != bool:
    raise TypeError(f"{name} is of {x.dtype}; it must be of bools, True for real frames")
  _check_axes(name, x, axes)
  return x


def weights(name: str, x) -> jax.Array:
  """f32[...] of an array of bools, integers or floats; TypeError for others."""
  x = jnp.asarray(x)
  if not (x.dtype == bool or jnp.issubdtype(x.dtype, jnp.number)) or jnp.iscomplexobj(x):
    raise TypeError(f"{name} is of {x.dtype}; it must be of bools, or weights")
  return x.astype(jnp.float32)


def _check_axes(name: str, x, axes: str) -> None:
  names = axes.split(", ")
  least = len(names) - ("..." in names)
  if x.ndim < least or (x.ndim > least and "..." not in names):
    raise ValueError(f"{name} has shape {x.shape}; it must be [{axes}]")


def check_shape(name: str, x, shape: tuple[int, ...], reason: str) -> None:
  """ValueError where an array has another shape.

  Args:
    name: of the argument.
    x: the array.
    shape: what it must be.
    reason: why, such as "the classes of logits".
  """
  if x.shape != tuple(shape):
    raise ValueError(f"{name} has shape {x.shape}; it must be {tuple(shape)}, {reason}")


def number(
  name: str, value, inside: Callable, what: str
) -> tuple[float | jax.Array, bool | jax.Array]:
  """A number as float or traced f32[], and whether it is what it must be, True or bool[].

  Args:
    name: of the argument.
    value: int or float, or an array of no axes.
    inside: of a finite number, whether it is what it must be.
    what: the same in words.

  Raises:
    TypeError: it is no number.
    ValueError: it is known and not what it must be.
  """
  value = _scalar(name, value, what, jnp.number)
  if isinstance(value, jax.core.Tracer):
    value = value.astype(jnp.float32)
    return value, inside(value) & jnp.isfinite(value)
  value = float(value)
  if not (math.isfinite(value) and inside(value)):
    raise ValueError(f"{name} is {value:g}; it must be {what}")
  return value, True


def count(name: str, value) -> tuple[int | jax.Array, bool | jax.Array]:
  """A whole number ≥ 0 as int or traced i32[], and whether it is one; raises as `number` does."""
  value = _scalar(name, value, "a whole number, 0 or more", jnp.integer)
  if isinstance(value, jax.core.Tracer):
    value = integers(name, value, "...")
    return value, value >= 0
  if value < 0:
    raise ValueError(f"{name} is {value}; it must be a whole number, 0 or more")
  return min(int(value), _LARGEST), True


def class_id(name: str, value, classes: int) -> tuple[int | jax.Array, bool | jax.Array]:
  """A class as int or traced i32[], and whether there is such a one; raises as `number` does."""
  what = f"one of the {classes} classes, 0 to {classes - 1}"
  value = _scalar(name, value, what, jnp.integer)
  if isinstance(value, jax.core.Tracer):
    value = integers(name, value, "...")
    return value, (value >= 0) & (value < classes)
  value = operator.index(value)
  if not 0 <= value < classes:
    raise ValueError(f"{name} is {value}; it must be {what}")
  return value, True


def key(name: str, value) -> jax.Array:
  """A single typed PRNG key; TypeError or ValueError for others."""
  if not (isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)):
    raise TypeError(f"{name} is {value!r}; it must be a typed key, such as jax.random.key(0)")
  if value.ndim:
    raise ValueError(f"{name} has shape {value.shape}; it must be a single key")
  return value


def whole(name: str, value) -> int:
  """An int of what is a whole number to Python or NumPy, no truth value; else TypeError."""
  if isinstance(value, (bool, np.bool_)):
    raise TypeError(f"{name} is {value}; it must be a whole number")
  try:
    return operator.index(value)
  except TypeError as error:
    raise TypeError(f"{name} is {value!r}; it must be a whole number") from error


def _scalar(name: str, value, what: str, kind: type):
  """The value where it is a single real number of a kind; else TypeError or ValueError."""
  dtype = value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype
  if not jnp.issubdtype(dtype, kind) or jnp.issubdtype(dtype, jnp.complexfloating):
    raise TypeError(f"{name} is {value!r}; it must be {what}")
  if np.ndim(value):
    raise ValueError(f"{name} has shape {np.shape(value)}; it must be a single number, {what}")
  return value
