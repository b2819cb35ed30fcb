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
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

_NONE = -jnp.inf


class _Beam(NamedTuple):
  """Different label sequences of one utterance; slots that are not in use have no probability.

  Attributes:
    labels: i32[K, L], of which the first `length` count.
    length: i32[K].
    blank: f32[K], log p of the paths that end in a blank; -inf where the state is not kept.
    label: f32[K], of those that end in the last label.
  """

  labels: jax.Array
  length: jax.Array
  blank: jax.Array
  label: jax.Array

  @property
  def total(self) -> jax.Array:
    return jnp.logaddexp(self.blank, self.label)

  @property
  def last(self) -> jax.Array:
    """i32[K]: the last label, -1 of the empty sequence."""
    at = jnp.maximum(self.length - 1, 0)[:, None]
    return jnp.where(self.length > 0, jnp.take_along_axis(self.labels, at, 1)[:, 0], -1)


@functools.partial(jax.jit, static_argnames=("blank_id", "beam"))
def prefix_beam(
  logits: jax.Array, mask: jax.Array, *, blank_id: int, beam: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The most probable label sequences of each utterance, best first.

  Args:
    logits: float[B, T, V]; padding is not read.
    mask: bool[B, T], True for real frames, which come first.
    blank_id: class of the blank.
    beam: states that are kept; N. With 1 the result is `greedy`'s.

  Returns:
    hypotheses i32[B, N, T] (blank_id after their end), lengths i32[B, N], log_p f32[B, N]. log_p
    sums over the paths that the beam kept, so it is at most the sequence's true log probability.
    Rows with fewer hypotheses end in empty ones of log_p -inf.
  """
  search = functools.partial(_search, blank_id=blank_id, beam=beam)
  return jax.vmap(search)(logits, mask)


def _search(logits, mask, *, blank_id: int, beam: int):
  """`prefix_beam` of one utterance: f[T, V], bool[T]."""
  frames, classes = logits.shape
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
  # A sequence's extensions rank as their labels, but for a repeated one: more are never kept.
  choices = min(classes - 1, beam + 1)
  start = _Beam(
    labels=jnp.full((beam, frames), blank_id, jnp.int32),
    length=jnp.zeros(beam, jnp.int32),
    blank=jnp.full(beam, _NONE).at[0].set(0.0),
    label=jnp.full(beam, _NONE),
  )

  def advance(state: _Beam, frame):
    log_p, real = frame
    after = _advance(state, log_p, blank_id=blank_id, choices=choices)
    return jax.tree.map(lambda a, b: jnp.where(real, a, b), after, state), None

  end = jax.lax.scan(advance, start, (log_probs, mask))[0]
  log_p, order = jax.lax.top_k(end.total, beam)
  found = log_p > _NONE
  lengths = jnp.where(found, end.length[order], 0)
  inside = jnp.arange(frames)[None] < lengths[:, None]
  return jnp.where(inside, end.labels[order], blank_id), lengths, log_p


def _advance(state: _Beam, log_p, *, blank_id: int, choices: int) -> _Beam:
  """The beam after one frame of log probabilities f32[V]."""
  beam, room = state.labels.shape
  total, last = state.total, state.last
  of_last = jnp.where(last < 0, _NONE, log_p[last])
  child = _child_of(state)

  # Sequences that stay: by a blank, by their last label again, or as what a parent becomes by it.
  blank = total + log_p[blank_id]
  arriving = jnp.where(last[:, None] == last[None], state.blank[:, None], total[:, None])
  arriving = jnp.where(child, arriving, _NONE).max(0, initial=_NONE)
  label = jnp.logaddexp(state.label, arriving) + of_last

  # Sequences that grow: by the best labels, unless that is a sequence of the beam already.
  others = jnp.where(jnp.arange(len(log_p)) == blank_id, _NONE, log_p)
  added_log_p, added = jax.lax.top_k(others, choices)
  repeats = last[:, None] == added[None]
  grown = jnp.where(repeats, state.blank[:, None], total[:, None]) + added_log_p[None]
  known = (child[:, :, None] & repeats[None]).any(1)
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
  labels = state.labels[source]
  grows = ~stays[:, None] & (jnp.arange(room)[None] == length[:, None])
  pick = lambda staying, growing: jnp.where(
    stays, staying[jnp.minimum(slots, beam - 1)], growing[jnp.maximum(slots - beam, 0)]
  )
  return _Beam(
    labels=jnp.where(grows, symbol[:, None], labels),
    length=length + ~stays,
    blank=pick(blank, jnp.full_like(grown, _NONE)),
    label=pick(label, grown),
  )


def _child_of(state: _Beam) -> jax.Array:
  """bool[K, K]: [i, j] where sequence j is sequence i and one label more, both in use."""
  labels, length = state.labels, state.length
  inside = jnp.arange(labels.shape[1])[None] < length[:, None]
  same = ((labels[:, None] == labels[None]) | ~inside[:, None]).all(-1)
  used = state.total > _NONE
  longer = length[:, None] + 1 == length[None]
  return same & longer & used[:, None] & used[None]
