"""CTC loss with its own gradient.

Graves et al., "Connectionist temporal classification" (ICML 2006): a path of one class a frame
stands for the labels that are left once repeats are merged and blanks dropped, and the loss is
-log of the summed probability of all paths of the labels. The gradient is softmax - occupancy:
the share of the probability that passes through each class at each frame.

How the sum is made, for U labels in two sets of states, U + 1 blanks and U labels:

* Forward and backward run stacked in one scan, backward as the forward recursion on flipped
  frames and labels. A frame of padding is a sure step in the last blank, so nothing is aligned.
* It runs on probabilities, rescaled by powers of two, whose exponents sum up exactly.
* Every complete path enters exactly `label_len` labels, so a factor on entering changes nothing
  but a constant. It is chosen so that a model that knows nothing moves through its labels at the
  rate that ends in time: both directions then have their mass in the same place.
* Reachable states never fall below a floor. Whatever the floor adds can be seen: it matters only
  where the two directions hardly overlap at some frame. Then the batch is redone in logarithms.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxkd import arguments
from jaxkd.logits import relative
from jaxkd.losses import ctc_gpu
from jaxkd.masks import length_mask
from jaxkd.placement import is_whole, on_cpu, on_nvidia, split_alike, vary_alike

_FLOOR = 1e-37
_MAX_SCALE = 90
_LOG_ZERO = -1e30


def ctc_is_feasible(logit_len: jax.Array, labels: jax.Array, label_len: jax.Array) -> jax.Array:
  """Whether any path of CTC spells the labels.

  Args:
    logit_len: int[B], frames.
    labels: int[B, U]; entries at or past label_len are ignored.
    label_len: int[B]; above U where labels were truncated.

  Returns:
    bool[B], True where labels and the blanks between equal neighbours fit into the frames, and no
    label was cut off. False where a length, or a label that counts, is below 0.

  Raises:
    TypeError, ValueError: an argument is not of integers, or of another shape.
  """
  logit_len, labels, label_len = integer_targets(logit_len, labels, label_len)
  return split_alike(_is_feasible, 1, logit_len, labels, label_len)


def _is_feasible(logit_len, labels, label_len):
  size = labels.shape[1]
  counts = length_mask(label_len, size)
  repeats = (_repeats(labels) & counts).sum(1, jnp.int32)
  exist = (label_len >= 0) & (label_len <= size) & ((labels >= 0) | ~counts).all(1)
  return exist & (label_len + repeats <= logit_len)


def integer_targets(logit_len, labels, label_len) -> tuple[jax.Array, jax.Array, jax.Array]:
  """i32[B], i32[B, U] and i32[B] of any integers; TypeError or ValueError where they are not."""
  labels = arguments.integers("labels", labels, "B, U")
  logit_len = arguments.integers("logit_len", logit_len, "B")
  label_len = arguments.integers("label_len", label_len, "B")
  for name, x in (("logit_len", logit_len), ("label_len", label_len)):
    arguments.check_shape(name, x, labels.shape[:1], "the rows of labels")
  return logit_len, labels, label_len


def checked_targets(logits, logit_len, labels, label_len, blank_id) -> tuple[jax.Array, ...]:
  """Arguments of `ctc_loss` as arrays that vary alike.

  Returns:
    logits f[B, T, V], logit_len i32[B], labels i32[B, U], label_len i32[B] and blank i32[].
    logit_len is -1 where it was above T, or labels that count are the blank or no class: then
    `ctc_is_feasible` is False.

  Raises:
    TypeError, ValueError: as for `ctc_loss`.
  """
  logits = arguments.floats("logits", logits, "B, T, V")
  logit_len, labels, label_len = integer_targets(logit_len, labels, label_len)
  arguments.check_shape("labels", labels, (len(logits), labels.shape[1]), "with the rows of logits")
  frames, classes = logits.shape[1:]
  blank, exists = arguments.class_id("blank_id", blank_id, classes)
  counts = length_mask(label_len, labels.shape[1])
  spoken = (labels >= 0) & (labels < classes) & (labels != blank)
  right = (logit_len <= frames) & (spoken | ~counts).all(1) & exists
  logit_len = jnp.where(right, logit_len, -1)
  return tuple(vary_alike(logits, logit_len, labels, label_len, jnp.asarray(blank, jnp.int32)))


def ctc_loss(
  logits: jax.Array,
  logit_len: jax.Array,
  labels: jax.Array,
  label_len: jax.Array,
  *,
  blank_id: int,
) -> jax.Array:
  """-log p(labels | logits), differentiable in the logits in reverse mode.

  Args:
    logits: f[B, T, V] of any float dtype, before the softmax; computed in float32 relative to each
      frame's largest, and the gradient has their dtype. Frames at or past logit_len may hold
      anything; their gradient is 0. -inf excludes a class. T may be 0.
    logit_len: int[B] of any integer dtype, at most T.
    labels: int[B, U]; entries at or past label_len may hold anything. U may be 0.
    label_len: int[B]; 0 is the path of blanks alone, above U is infeasible.
    blank_id: the blank's class, int or traced i32[].

  Returns:
    f32[B], never below 0, float32 for float64 logits too. +inf with a gradient of exactly 0 where
    no path spells the labels: where `ctc_is_feasible` is False, logit_len is above T, a label that
    counts is the blank or none of the V classes, every path has probability 0, or a traced blank_id
    is no class. NaN, with NaN in the gradient, for the other rows with NaN, +inf, or -inf for every
    class in a real frame.

  Raises:
    TypeError, ValueError: shapes or dtypes do not fit, or blank_id is no class.
  """
  logits, *rest = checked_targets(logits, logit_len, labels, label_len, blank_id)
  if logits.dtype == jnp.float16:  # a scaled loss keeps gradients that float16 would round to 0
    logits = logits.astype(jnp.float32)
  if not logits.shape[1]:  # a frame that no row reads, for the scans
    logits = jnp.pad(logits, ((0, 0), (0, 1), (0, 0)))
  return split_alike(_ctc_loss, 1, logits, *rest)


@jax.custom_vjp
def _ctc_loss(logits, logit_len, labels, label_len, blank_id):
  return paths_and_gradient(logits, logit_len, labels, label_len, blank_id)[0]


def paths_and_gradient(logits, logit_len, labels, label_len, blank_id):
  """The loss f32[B], and what `_backward` needs: the loss's gradient, and where it exists."""
  feasible = _is_feasible(logit_len, labels, label_len)
  logit_len, label_len = jnp.where(feasible, logit_len, 0), jnp.where(feasible, label_len, 0)
  labels = jnp.where(length_mask(label_len, labels.shape[1]), labels, blank_id)
  classes = jnp.concatenate([jnp.full_like(label_len, 0)[:, None] + blank_id, labels], 1)
  frames = length_mask(logit_len, logits.shape[1])
  clean = lambda: relative(jnp.where(frames[..., None], logits, 0))
  norm = jnp.log(jnp.exp(clean()).sum(2, keepdims=True))
  probs = jnp.where(frames[..., None], jnp.exp(clean() - norm), 0)
  lattice = _lattice(logit_len, labels, label_len, logits.shape[1])
  gain = logits.shape[2].bit_length()
  sums, sound = _sum_paths(lattice, gain, probs, frames, classes)

  def in_logarithms():
    log_probs = jnp.maximum(clean() - norm, _LOG_ZERO)
    return _sum_log_paths(lattice, *_emissions(log_probs, frames, classes, 0))

  log_p, occupied = jax.lax.cond(sound, lambda: _occupied(*sums), in_logarithms)
  possible = feasible & ~(log_p < _LOG_ZERO / 2)
  occupied = jnp.where((frames.T & possible[None])[:, None], occupied, 0)
  blank = jnp.where(frames.T, 1 - occupied.sum(1), 0)[:, None]
  occupied = jnp.concatenate([blank, occupied], 1).transpose(2, 0, 1)
  subtract = jax.vmap(lambda row, classes, values: row.at[:, classes].add(-values))
  gradient = subtract(probs, classes, occupied).astype(logits.dtype)
  return jnp.where(possible, jnp.maximum(-log_p, 0), jnp.inf), (gradient, possible)


def _backward(residuals, cotangent):
  gradient, possible = residuals
  # A loss of +inf that the caller masked out arrives with a cotangent of 0 or NaN.
  scale = jnp.where(possible, cotangent, 0)[:, None, None]
  gradient = (gradient.astype(jnp.float32) * scale).astype(gradient.dtype)
  return gradient, None, None, None, None


_ctc_loss.defvjp(paths_and_gradient, _backward)


class _Lattice(NamedTuple):
  """States and steps of both directions; index 1 of an axis of size 2 is the backward one.

  Attributes:
    start: f32[2, U + 1, B], 1 at the blank that the direction is in before its first frame.
    blank: two i32[2, U + 1, B], first and last frame of a complete path's visit to each blank.
    label: two i32[2, U, B], the same for labels.
    skip: bool[2, U, B], whether the label may follow the one before without a blank.
    enter: i32[B], exponent of the factor on entering a label.
    entered: i32[B], sum of these exponents on a complete path.
  """

  start: jax.Array
  blank: tuple[jax.Array, jax.Array]
  label: tuple[jax.Array, jax.Array]
  skip: jax.Array
  enter: jax.Array
  entered: jax.Array


def _repeats(labels: jax.Array) -> jax.Array:
  """bool[B, U], True where a label equals the one before."""
  return jnp.diff(labels, axis=1, prepend=-1 - abs(labels[:, :1])) == 0


def _lattice(logit_len, labels, label_len, frames: int) -> _Lattice:
  """Clean lengths i32[B] and labels i32[B, U], and the frames T of the batch, to a `_Lattice`."""
  size = labels.shape[1]
  repeats = _repeats(labels) & length_mask(label_len, size)
  states = jnp.arange(size + 1, dtype=jnp.int32)
  # Frames that the labels before each blank take, and those from each label on.
  before = states[None] + jnp.pad(jnp.cumsum(repeats, 1, jnp.int32), ((0, 0), (1, 0)))
  needed = jnp.take_along_axis(before, label_len[:, None], 1)
  last = logit_len[:, None] - 1 - needed
  mandatory = jnp.pad(repeats, ((0, 0), (0, 1))).astype(jnp.int32)
  blank_last = jnp.where(states[None] < label_len[:, None], last + before + mandatory, -1)
  blank_last = jnp.where(states[None] == label_len[:, None], frames, blank_last)
  label_last = jnp.where(states[None, 1:] <= label_len[:, None], last + before[:, 1:], -1)
  skip = ~repeats & (states[None, :-1] > 0)
  skips = jnp.stack([skip, jnp.roll(skip, -1, 1)[:, ::-1]])
  ends = jnp.stack([jnp.zeros_like(label_len), size - label_len])

  def both(first, final):
    first, final = (
      jnp.stack([first, frames - 1 - final[:, ::-1]]),
      jnp.stack([final, frames - 1 - first[:, ::-1]]),
    )
    return first.swapaxes(1, 2), final.swapaxes(1, 2)

  # The growth of the number of paths per frame and factor w on entering is the larger root of
  # x^2 - (2 + w) x + 1, and labels per frame are d log x / d log w = sqrt(w / (w + 4)).
  rate = label_len.astype(jnp.float32) / jnp.maximum(logit_len, 1).astype(jnp.float32)
  rate = jnp.clip(rate, 1e-3, 0.99)
  enter = jnp.round(jnp.log2(4 * rate**2 / (1 - rate**2))).astype(jnp.int32)
  return _Lattice(
    start=(states[None, None] == ends[..., None]).astype(jnp.float32).swapaxes(1, 2),
    blank=both(before, blank_last),
    label=both(before[:, 1:] - 1, label_last),
    skip=skips.swapaxes(1, 2),
    enter=enter,
    entered=enter * label_len,
  )


def _emissions(values, frames, classes, sure):
  """`values` f32[B, T, V] of the classes i32[B, 1 + U], blank first, for both directions.

  Returns:
    f32[T, 2, 1, B] of the blank, `sure` in padding, and f32[T, 2, U, B] of the labels.
  """
  values = jnp.take_along_axis(values, classes[:, None], 2).transpose(1, 2, 0)
  blank = jnp.where(frames.T, values[:, 0], sure)[:, None]
  return tuple(jnp.stack([x, x[::-1, ::-1]], 1) for x in (blank, values[:, 1:]))


def _during(window, frame):
  return (window[0] <= frame) & (frame <= window[1])


def _after(x, fill):
  """x[2, U, B] moved to the blank after each label, [2, U + 1, B]."""
  return jnp.pad(x, ((0, 0), (1, 0), (0, 0)), constant_values=fill)


def _occupied(log_p, label, onward, scale):
  """log p f32[B], and the share of p that is in each label at each frame, f32[T, U, B]."""
  return log_p, label * onward[::-1, ::-1] * scale[:, None]


def _by_frames(probs, classes) -> bool:
  """Whether what the labels emit takes more room than probs: clearing and filling its pages is what
  a CPU would be busy with."""
  return classes.shape[1] - 1 > probs.shape[2] and probs.size < 2**31  # places are i32


def _sum_paths(lattice: _Lattice, gain: int, probs, frames, classes):
  """Arguments of `_occupied`, and bool[], whether floor and range of float32 leave them right.

  2^gain is a guess of 1 / probability, which keeps the states near 1.
  """

  def at_once(probs):
    blank_probs, label_probs = _emissions(probs, frames, classes, 1)
    scan = lambda *inputs: scan_paths(lattice, gain, *inputs)
    kernel = lambda *inputs: ctc_gpu.run_paths(lattice, gain, _FLOOR, *inputs)
    if not (is_whole() and 1 <= label_probs.shape[2] <= ctc_gpu.MOST_LABELS):
      kernel = scan
    return on_nvidia(kernel, scan, blank_probs, label_probs)

  by_frames = at_once
  if _by_frames(probs, classes):
    by_frames = lambda probs: scan_frames(lattice, gain, probs, frames, classes)
  done, (label, onward, exponents) = on_cpu(by_frames, at_once, probs)
  total, scales = _scales(exponents)
  sound = (scales - _exponent(done)[None] <= _MAX_SCALE - gain).all() & (done < jnp.inf).all()
  # A path that is in a label has entered it in both directions.
  scales = _power_of_two(jnp.clip(scales - lattice.enter[None], -126, 127)) / done[None]
  log_p = jnp.log(done) + (total - lattice.entered).astype(jnp.float32) * math.log(2)
  return (log_p, label, onward, scales), sound


def scan_frames(lattice: _Lattice, gain: int, probs, frames, classes):
  """`scan_paths` on probs f32[B, T, V], frames bool[B, T] and classes i32[B, 1 + U], blank first.

  What a frame emits is looked up when it is due: a CPU clears and fills no pages for it.
  """
  size, many = probs.shape[1:]
  first = size * many * jnp.arange(len(classes), dtype=jnp.int32)
  # A traced blank may be no class: such rows have no path.
  places = jnp.clip(classes, 0, many - 1).T + first[None]
  places = jnp.stack([places, jnp.concatenate([places[:1], places[:0:-1]])])
  flat = probs.reshape(-1)

  def emit(frame, _):
    both = jnp.stack([frame, size - 1 - frame])
    values = flat[places + many * both[:, None, None]]
    real = frames.T[both][:, None]
    return jnp.where(real, values[:, :1], 1), values[:, 1:]

  return _scan(lattice, gain, size, emit)


def scan_paths(lattice: _Lattice, gain: int, blank_probs, label_probs):
  """Runs both directions over the frames.

  Args:
    lattice: states and steps.
    gain: i32 exponent, 2^gain is a guess of 1 / probability.
    blank_probs: f32[T, 2, 1, B].
    label_probs: f32[T, 2, U, B].

  Returns:
    f32[B], the sum over complete paths, with a factor 2^(sum of the forward exponents) taken out,
    and of every frame: f32[T, U, B], the labels of the forward direction, f32[T, U, B], what the
    backward direction brings to its labels, and i32[T, 2, B], the exponents taken out before it.
  """
  emitted = blank_probs, label_probs
  return _scan(lattice, gain, len(blank_probs), lambda _, given: given, emitted)


def _scan(lattice: _Lattice, gain: int, size: int, emit, given=None):
  """`scan_paths`; emit(frame, its row of `given`) tells what a frame of both directions emits."""
  enter = _power_of_two(lattice.enter)[None, None]

  def step(state, frame):
    blank, label, exponent = state
    frame, its = frame
    blank_prob, label_prob = emit(frame, its)
    moved = _after(label, 0.0)
    to_blank = blank + moved
    to_label = label + enter * (blank[:, :-1] + jnp.where(lattice.skip, moved[:, :-1], 0))
    scale = _power_of_two(-exponent)
    blank = jnp.maximum(to_blank * (blank_prob * scale), _FLOOR)
    label = jnp.maximum(to_label * (label_prob * scale), _FLOOR)
    blank = jnp.where(_during(lattice.blank, frame), blank, 0)
    label = jnp.where(_during(lattice.label, frame), label, 0)
    top = jnp.maximum(blank.max(1, keepdims=True), label.max(1, keepdims=True, initial=0))
    return (blank, label, _exponent(top) - gain), (label[0], to_label[1], exponent[:, 0])

  frames = jnp.arange(size, dtype=jnp.int32)
  start = lattice.start
  state = start, _filled(start[:, 1:], 0), _filled(start[:, :1], 0).astype(jnp.int32)
  state, (label, onward, exponents) = jax.lax.scan(step, state, (frames, given))
  return state[0][0].sum(0) + state[1][0].sum(0), (label, onward, exponents)


def _scales(removed: jax.Array) -> tuple[jax.Array, jax.Array]:
  """What the steps have taken out of the states, as sums of exponents.

  Args:
    removed: [T, 2, B], taken out in each direction and step, whole numbers.

  Returns:
    [B], taken out of the result of the forward direction, and [T, B], what a product of the states
    of both directions at a frame lacks in comparison with that result.
  """
  sums = jnp.cumsum(removed, 0, removed.dtype)
  total = sums[-1:, 0]
  return total[0], sums[:, 0] + (sums - removed)[::-1, 1] - total


def _sum_log_paths(lattice: _Lattice, blank_probs, label_probs):
  """`_occupied` of log probabilities, without a limit on their range."""

  def step(state, frame):
    blank, label, top = state
    frame, blank_prob, label_prob = frame
    moved = _after(label, _LOG_ZERO)
    to_blank = jnp.logaddexp(blank, moved)
    to_label = jnp.where(lattice.skip, moved[:, :-1], _LOG_ZERO)
    to_label = jnp.logaddexp(label, jnp.logaddexp(blank[:, :-1], to_label))
    blank = jnp.where(_during(lattice.blank, frame), to_blank + blank_prob - top, _LOG_ZERO)
    label = jnp.where(_during(lattice.label, frame), to_label + label_prob - top, _LOG_ZERO)
    new_top = jnp.maximum(
      blank.max(1, keepdims=True), label.max(1, keepdims=True, initial=_LOG_ZERO)
    )
    return (blank, label, jnp.ceil(new_top)), (label[0], to_label[1], top[:, 0])

  frames = jnp.arange(len(blank_probs), dtype=jnp.int32)
  start = jnp.where(lattice.start > 0, _filled(lattice.start, 0), _LOG_ZERO)
  state = start, _filled(start[:, 1:], _LOG_ZERO), _filled(start[:, :1], 0)
  state, (label, onward, tops) = jax.lax.scan(step, state, (frames, blank_probs, label_probs))
  done = jax.nn.logsumexp(jnp.concatenate([state[0][0], state[1][0]]), 0)
  total, scales = _scales(tops)
  return done + total, jnp.exp(label + onward[::-1, ::-1] + (scales - done[None])[:, None])


def _filled(like: jax.Array, value: float) -> jax.Array:
  """The shape and dtype of `like`, with one value; for a scan to begin with."""
  return vary_alike(jnp.full(like.shape, value, like.dtype), like)[0]


def _exponent(x: jax.Array) -> jax.Array:
  """floor(log2 x) of normal f32 x > 0, as i32."""
  return (jax.lax.bitcast_convert_type(x, jnp.int32) >> 23) - 127


def _power_of_two(exponent: jax.Array) -> jax.Array:
  return jax.lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)
