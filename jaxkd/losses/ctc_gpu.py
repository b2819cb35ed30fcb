"""The sums over CTC's paths as one GPU kernel: a program for each row and direction.

XLA runs a scan as a few kernels a frame; here a program keeps its states in registers over all
frames. What it computes is `ctc.scan_paths`, operation by operation. The compiler cannot split it:
of a batch that lies on several devices it would gather every row on each.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

MOST_LABELS = 1023  # the states of a row lie in the registers of one block


def run_paths(lattice, gain: int, floor: float, blank_probs, label_probs, *, interpret=False):
  """The results of `ctc.scan_paths`, for 1 to MOST_LABELS labels in a row; arguments as there.

  Args:
    lattice, gain, blank_probs, label_probs: of `scan_paths`.
    floor: below which no reachable state falls.
    interpret: the kernel as JAX operations, for tests without a GPU.
  """
  frames, _, size, rows = label_probs.shape
  lanes = pl.next_power_of_2(size + 1)

  def of_row(x, fill):  # [2, U or U + 1, B] to [2, B, lanes]
    x = x.swapaxes(1, 2)
    return jnp.pad(x, ((0, 0), (0, 0), (0, lanes - x.shape[2])), constant_values=fill)

  first = [of_row(window[0], 0) for window in (lattice.blank, lattice.label)]
  last = [of_row(window[1], -1) for window in (lattice.blank, lattice.label)]
  shape = jax.ShapeDtypeStruct
  states, exponents, done, _ = pl.pallas_call(
    functools.partial(_kernel, gain=gain, floor=floor, barrier=not interpret),
    grid=(2, rows),
    out_shape=[
      shape((frames, 2, rows, size), jnp.float32),
      shape((frames, 2, rows), jnp.int32),
      shape((2, rows), jnp.float32),
      shape((2, rows, 2, lanes), jnp.float32),
    ],
    compiler_params=triton.CompilerParams(num_warps=max(1, min(8, lanes // 64)), num_stages=1),
    interpret=interpret,
    name="ctc_paths",
  )(
    of_row(lattice.start, 0),
    *first,
    *last,
    of_row(lattice.skip.astype(jnp.int32), 0),
    lattice.enter,
    blank_probs[:, :, 0],
    label_probs.swapaxes(2, 3),
  )
  states = states.swapaxes(2, 3)
  return done[0], (states[:, 0], states[:, 1], exponents)


def _kernel(
  start, blank_first, label_first, blank_last, label_last, skip, enter, blank_probs, label_probs,
  states, exponents, done, shifted, *, gain, floor, barrier,
):  # fmt: skip
  """One row b in one direction d: every reference is to a whole array."""
  d, b = pl.program_id(0), pl.program_id(1)
  frames, _, _, size = label_probs.shape
  lanes = shifted.shape[-1]
  lane = jnp.arange(lanes, dtype=jnp.int32)
  is_label = lane < size
  before = jnp.maximum(lane - 1, 0)
  may_skip = skip[d, b, :] > 0
  enter = _power_of_two(enter[b])
  windows = blank_first[d, b, :], blank_last[d, b, :], label_first[d, b, :], label_last[d, b, :]

  def step(t, state):
    blank, label, moved, exponent = state
    label_prob = triton.load(label_probs.at[t, d, b, lane], mask=is_label, other=0.0)
    blank_prob = blank_probs[t, d, b]
    to_blank = blank + moved
    to_label = label + enter * (blank + jnp.where(may_skip, moved, 0.0))
    scale = _power_of_two(-exponent)
    blank = jnp.maximum(to_blank * (blank_prob * scale), floor)
    label = jnp.maximum(to_label * (label_prob * scale), floor)
    blank = jnp.where((windows[0] <= t) & (t <= windows[1]), blank, 0.0)
    label = jnp.where((windows[2] <= t) & (t <= windows[3]), label, 0.0)
    triton.store(states.at[t, d, b, lane], jnp.where(d == 0, label, to_label), mask=is_label)
    exponents[t, d, b] = exponent
    # Registers cannot be shifted over lanes; a frame's turn of the two buffers needs one barrier.
    turn = t & 1
    triton.store(shifted.at[d, b, turn, lane], label)
    if barrier:
      triton.debug_barrier()
    moved = triton.load(shifted.at[d, b, turn, before], volatile=barrier)
    moved = jnp.where(lane > 0, moved, 0.0)
    top = jnp.max(jnp.maximum(blank, label))
    return blank, label, moved, (jax.lax.bitcast_convert_type(top, jnp.int32) >> 23) - 127 - gain

  zeros = jnp.zeros(lanes, jnp.float32)
  state = start[d, b, :], zeros, zeros, jnp.int32(0)
  blank, label, _, _ = jax.lax.fori_loop(0, frames, step, state)
  done[d, b] = jnp.sum(blank + label)


def _power_of_two(exponent):
  return jax.lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)
