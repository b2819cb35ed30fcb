"""Random bits for dropout, cheaper than `jax.random.bits`.

That runs 20 rounds of Threefry-2x32 for every element, of whose 64 bits 16 are used; here are 13
rounds, the fewest that pass every test of BigCrush (Salmon et al. 2011, "Parallel random numbers:
as easy as 1, 2, 3"), for every four elements. What an element draws depends on the key and on its
place in the whole array alone, so that it is the same on any mesh.
"""

import jax
import jax.numpy as jnp

_ROUNDS = 13
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def sixteen_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """u32[shape] of 0 to 2¹⁶ - 1, uniform.

  Args:
    key: typed key.
    shape: of one axis or more. Four elements along the last axis have a counter, or along the
      second of four axes: rows, heads, queries, keys.
  """
  axis = 1 if len(shape) == 4 else len(shape) - 1
  counters = list(shape)
  counters[axis] = -(-shape[axis] // 4)
  # Not fused with what reads it: it would be computed for each element again.
  first, second = jax.lax.optimization_barrier(_words(key, tuple(counters)))
  parts = [first & 0xFFFF, first >> 16, second & 0xFFFF, second >> 16]
  return jax.lax.slice_in_dim(jnp.concatenate(parts, axis), 0, shape[axis], axis=axis)


def _words(key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
  """Two of u32[shape]: Threefry-2x32 of each element's number under a key."""
  a, b = jax.random.key_data(key).reshape(-1)[:2]
  keys = (a, b, a ^ b ^ jnp.uint32(_PARITY))
  x, y = _numbers(shape) + a, jnp.full(shape, b)
  for number in range(_ROUNDS):
    turn = _ROTATIONS[number // 4 % 2][number % 4]
    x = x + y
    y = (y << turn | y >> (32 - turn)) ^ x
    if number % 4 == 3:
      block = number // 4 + 1
      x, y = x + keys[block % 3], y + keys[(block + 1) % 3] + jnp.uint32(block)
  return x, y


def _numbers(shape: tuple[int, ...]) -> jax.Array:
  """u32[shape]: 0, 1, 2, ... in order."""
  total, stride = jnp.zeros(shape, jnp.uint32), 1
  for axis in reversed(range(len(shape))):
    place = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    total, stride = total + place * jnp.uint32(stride % 2**32), stride * shape[axis]
  return total
