"""Prefix beam search without a language model: N-best label sequences, batched, under jit.

A *state* is a label sequence together with whether the frame before was a blank: what has to be
known to go on (Graves et al. 2006, section 3.2; Hannun et al. 2014). The beam keeps the best states
of every frame, each with the summed probability of all paths that led there through kept states.
Hence

* a beam of one state follows one path: it is the best path (`greedy`), whatever the posteriors are;
* a beam that holds all states gives the exact probability of every label sequence.

A beam of label sequences instead of states would have the second property and not the first: its
only sequence would stand for a repeat and a blank at once, and beat a label that is more probable
than either.

Whether one sequence is another and a label more is told by hashes that grow with the sequences, as
comparing the labels of all pairs would cost beam² · T in every frame. Two hashes of 32 bits are
alike by accident once in 2^64 pairs: with a beam of 256 and 1500 frames, less than 6e-12 a search.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import arguments
from jaxkd.logits import is_distribution, log_softmax
from jaxkd.masks import length_mask
from jaxkd.placement import split_alike, vary_alike

_NONE = -jnp.inf
_SEEDS = np.array([0x243F6A88, 0x85A308D3], np.uint32)  # of the empty sequence's hashes
_ODD = np.array([0x9E3779B1, 0xC2B2AE3D], np.uint32)


class _Beam(NamedTuple):
  """Different label sequences of one utterance; slots that are not in use have no probability.

  Attributes:
    labels: i32[K, L], of which the first `length` count.
    length: i32[K].
    blank: f32[K], log p of the paths that end in a blank; -inf where the state is not kept.
    label: f32[K], of those that end in the last label.
    mark: u32[K, 2], hashes of the sequence.
    before: u32[K, 2], of the sequence without its last label.
  """

  labels: jax.Array
  length: jax.Array
  blank: jax.Array
  label: jax.Array
  mark: jax.Array
  before: jax.Array

  @property
  def total(self) -> jax.Array:
    return jnp.logaddexp(self.blank, self.label)

  @property
  def last(self) -> jax.Array:
    """i32[K]: the last label, -1 of the empty sequence."""
    at = jnp.maximum(self.length - 1, 0)[:, None]
    return jnp.where(self.length > 0, jnp.take_along_axis(self.labels, at, 1)[:, 0], -1)


def prefix_beam(
  logits: jax.Array, mask: jax.Array, *, blank_id: int, beam: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The most probable label sequences of each utterance, best first.

  Args:
    logits: float[B, T, V]; padding is not read. -inf excludes a class.
    mask: bool[B, T], True for real frames, which come first.
    blank_id: class of the blank, int or traced i32[].
    beam: states that are kept, 1 or more; N. With 1 the result is `greedy`'s.

  Returns:
    hypotheses i32[B, N, T] (blank_id after their end), lengths i32[B, N], log_p f32[B, N]. log_p
    sums over the paths that the beam kept, so it is at most the sequence's true log probability.
    Rows with fewer hypotheses end in empty ones of log_p -inf. All of a row are empty and of log_p
    NaN where a real frame has NaN, +inf, or -inf for every class, or a traced blank_id is no class.

  Raises:
    TypeError, ValueError: shapes or dtypes do not fit, blank_id is no class, or beam is below 1.
  """
  logits = arguments.floats("logits", logits, "B, T, V")
  mask = arguments.truths("mask", mask, "B, T")
  arguments.check_shape("mask", mask, logits.shape[:2], "the frames of logits")
  blank_id, exists = arguments.class_id("blank_id", blank_id, logits.shape[2])
  beam = checked_beam(beam)
  frames = logits.shape[1]
  if not frames:  # one of padding, for the scan
    logits, mask = (jnp.pad(x, [(0, 0), (0, 1)] + [(0, 0)] * (x.ndim - 2)) for x in (logits, mask))
  search = functools.partial(_search_all, beam=beam)
  arrays = vary_alike(logits, mask, jnp.asarray(blank_id, jnp.int32), jnp.asarray(exists))
  hypotheses, lengths, log_p = split_alike(search, 1, *arrays)
  return hypotheses[..., :frames], lengths, log_p


def checked_beam(beam) -> int:
  """States that are kept; TypeError or ValueError for what is not a whole number, 1 or more."""
  if (beam := arguments.whole("beam", beam)) < 1:
    raise ValueError(f"beam is {beam}; it must be 1 or more")
  return beam


@functools.partial(jax.jit, static_argnames="beam")
def _search_all(logits, mask, blank_id, exists, *, beam: int):
  known = (is_distribution(logits) | ~mask).all(1, keepdims=True) & exists
  logits = jnp.where((mask & known)[..., None], logits, 0)
  search = functools.partial(_search, blank_id=blank_id, beam=beam)
  hypotheses, lengths, log_p = jax.vmap(search)(logits, mask & known)
  return hypotheses, lengths, jnp.where(known, log_p, jnp.nan)


def _search(logits, mask, *, blank_id, beam: int):
  """`prefix_beam` of one utterance: f[T, V], bool[T]."""
  frames, classes = logits.shape
  log_probs = log_softmax(logits)
  # A sequence's extensions rank as their labels, but for a repeated one: more are never kept.
  choices = min(max(classes - 1, 1), beam + 1)
  nothing = jnp.full(beam, _NONE, jnp.float32)
  start = _Beam(
    labels=jnp.zeros((beam, frames), jnp.int32) + blank_id,
    length=jnp.zeros(beam, jnp.int32),
    blank=nothing.at[0].set(0.0),
    label=nothing,
    mark=jnp.zeros((beam, 2), jnp.uint32) + _SEEDS[None],
    before=jnp.zeros((beam, 2), jnp.uint32),
  )
  start = _Beam(*vary_alike(*start, log_probs)[:-1])

  def advance(state: _Beam, frame):
    log_p, real = frame
    after = _advance(state, log_p, blank_id=blank_id, choices=choices)
    return jax.tree.map(lambda a, b: jnp.where(real, a, b), after, state), None

  end = jax.lax.scan(advance, start, (log_probs, mask))[0]
  log_p, order = jax.lax.top_k(end.total, beam)
  found = log_p > _NONE
  lengths = jnp.where(found, end.length[order], 0)
  inside = length_mask(lengths, frames)
  return jnp.where(inside, end.labels[order], blank_id), lengths, log_p


def _advance(state: _Beam, log_p, *, blank_id, choices: int) -> _Beam:
  """The beam after one frame of log probabilities f32[V]."""
  beam, room = state.labels.shape
  total, last = state.total, state.last
  of_last = jnp.where(last < 0, _NONE, log_p[last])
  parent, has_parent = _parents(state)

  # Sequences that stay: by a blank, by their last label again, or as what a parent becomes by it.
  blank = total + log_p[blank_id]
  arriving = jnp.where(last[parent] == last, state.blank[parent], total[parent])
  arriving = jnp.where(has_parent, arriving, _NONE)
  label = jnp.logaddexp(state.label, arriving) + of_last

  # Sequences that grow: by the best labels, unless that is a sequence of the beam already.
  others = jnp.where(jnp.arange(len(log_p), dtype=jnp.int32) == blank_id, _NONE, log_p)
  added_log_p, added = jax.lax.top_k(others, choices)
  repeats = last[:, None] == added[None]
  grown = jnp.where(repeats, state.blank[:, None], total[:, None]) + added_log_p[None]
  known = jnp.zeros(repeats.shape, bool).at[parent].max(repeats & has_parent[:, None])
  grown = jnp.where(known, _NONE, grown).reshape(-1)

  scores = jnp.concatenate([blank, label, grown])
  best = jax.lax.top_k(scores, beam)[1]
  kept = jnp.zeros(scores.shape, bool).at[best].set(True) & (scores > _NONE)
  blank, label, grown = jnp.split(jnp.where(kept, scores, _NONE), [beam, 2 * beam])

  # At most `beam` different sequences are left.
  slots = jax.lax.top_k(jnp.concatenate([jnp.maximum(blank, label), grown]), beam)[1]
  stays = slots < beam
  source = jnp.where(stays, slots, (slots - beam) // choices)
  symbol = added[(slots - beam) % choices]
  length = state.length[source]
  labels, mark = state.labels[source], state.mark[source]
  here = ~stays[:, None] & (jnp.arange(room, dtype=jnp.int32)[None] == length[:, None])
  pick = lambda staying, growing: jnp.where(
    stays, staying[jnp.minimum(slots, beam - 1)], growing[jnp.maximum(slots - beam, 0)]
  )
  return _Beam(
    labels=jnp.where(here, symbol[:, None], labels),
    length=length + (~stays).astype(jnp.int32),
    blank=pick(blank, jnp.full_like(grown, _NONE)),
    label=pick(label, grown),
    mark=jnp.where(stays[:, None], mark, _longer(mark, symbol)),
    before=jnp.where(stays[:, None], state.before[source], mark),
  )


def _longer(mark: jax.Array, label: jax.Array) -> jax.Array:
  """u32[K, 2]: hashes of sequences after one label more.

  MurmurHash3's last step spreads every bit over all. It is one to one, so that sequences of which
  just one label differs are never taken for the same.
  """
  mark = mark ^ (label.astype(jnp.uint32)[:, None] * _ODD[None] + _SEEDS[None])
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    mark = (mark ^ (mark >> shift)) * jnp.uint32(factor)
  return mark ^ (mark >> 16)


def _parents(state: _Beam) -> tuple[jax.Array, jax.Array]:
  """i32[K], the sequence that each is with its last label left out, and bool[K], whether kept."""
  used = state.total > _NONE
  alike = (state.mark[:, None] == state.before[None]).all(-1)
  longer = state.length[:, None] + 1 == state.length[None]
  child = alike & longer & used[:, None] & used[None]
  return child.argmax(0), child.any(0)
