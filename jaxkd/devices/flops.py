"""Arithmetic of a traced function: operations of its matrix products and convolutions.

XLA's own count takes the body of a loop once, and these models scan over their layers; so this one
walks the jaxpr and multiplies by the lengths of scans.
"""

import math
from collections.abc import Iterator

import numpy as np
from jax.extend import core


def count(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> float:
  """Operations (a multiplication and an addition are two) of the products in a jaxpr.

  Elementwise arithmetic, sorts and Fourier transforms are not counted. Of a `cond` the branch with
  the most counts; the body of a `while` counts once, for its number of rounds is not known.

  Args:
    jaxpr: of `jax.make_jaxpr` or `jax.jit(f).trace(...)`.
  """
  jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
  return float(sum(_of_equation(equation) for equation in jaxpr.eqns))


def _of_equation(equation) -> float:
  name, params = equation.primitive.name, equation.params
  if name == "dot_general":
    return _dot(equation)
  if name == "conv_general_dilated":
    return _convolution(equation)
  inner = [count(jaxpr) for value in params.values() for jaxpr in _jaxprs(value)]
  if name == "cond":
    return max(inner)
  return sum(inner) * (params["length"] if name == "scan" else 1)


def _jaxprs(value) -> Iterator:
  """The jaxprs in a parameter of an equation."""
  if isinstance(value, (core.Jaxpr, core.ClosedJaxpr)):
    yield value
  elif isinstance(value, (tuple, list)):
    for part in value:
      yield from _jaxprs(part)


def _dot(equation) -> float:
  (contracted, _), _ = equation.params["dimension_numbers"]
  left = equation.invars[0].aval.shape
  terms = math.prod(left[axis] for axis in contracted)
  return 2.0 * terms * math.prod(equation.outvars[0].aval.shape)


def _convolution(equation) -> float:
  """Products with padding, and with the zeros that a dilation puts in between, are none."""
  params = equation.params
  numbers = params["dimension_numbers"]
  image, kernel, out = (variable.aval.shape for variable in (*equation.invars, equation.outvars[0]))
  pairs = 1.0
  for axis, (i, k, o) in enumerate(
    zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True)
  ):
    pairs *= _pairs(
      image[i],
      kernel[k],
      out[o],
      stride=params["window_strides"][axis],
      before=params["padding"][axis][0],
      image_dilation=params["lhs_dilation"][axis],
      kernel_dilation=params["rhs_dilation"][axis],
    )
  inputs = kernel[numbers.rhs_spec[1]]  # of a group
  rows = image[numbers.lhs_spec[0]] // params["batch_group_count"]
  return 2.0 * rows * inputs * out[numbers.out_spec[1]] * pairs


def _pairs(image, kernel, out, *, stride, before, image_dilation, kernel_dilation) -> int:
  """Pairs of an output position and a tap of the kernel that meet a real position of the image."""
  total, starts = 0, np.arange(out) * stride - before
  # The loop is over the shorter of the two: gradients have kernels as long as the waveform.
  taps = np.arange(kernel) * kernel_dilation
  few, many = sorted((starts, taps), key=len)
  for first in few:
    position = first + many
    real = (position >= 0) & (position <= (image - 1) * image_dilation)
    total += int((real & (position % image_dilation == 0)).sum())
  return total
