"""CTC forced alignment against all paths, a slow oracle and itself, and offsets by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from jaxkd import losses
from jaxkd.inference import alignment as align

pytestmark = pytest.mark.usefixtures("quick_to_compile")
BLANK = 2
aligned = jax.jit(align.viterbi, static_argnames="blank_id")
ctc_loss = jax.jit(losses.ctc_loss, static_argnames="blank_id")
offsets_of = jax.jit(align.spike_offsets, static_argnames="blank_id")


def states_of(path, labels, blank_id):
  """States of a path of classes in blank, label, blank, …; None where it spells something else."""
  merged = [c for c, _ in itertools.groupby(path)]
  if [c for c in merged if c != blank_id] != list(labels):
    return None
  states, done = [], 0
  for before, now in zip([None, *path], path, strict=False):
    done += now != blank_id and now != before
    states.append(2 * done - (now != blank_id))
  return states


def best_of_all(log_probs, labels, blank_id):
  """States and score of the best path; of equal ones, the one furthest along, from the end."""
  frames, classes = log_probs.shape
  found = []
  for path in itertools.product(range(classes), repeat=frames):
    if (states := states_of(path, labels, blank_id)) is not None:
      score = np.float32(0)
      for t, c in enumerate(path):  # in the order and precision of the recursion
        score = np.float32(score + log_probs[t, c])
      found.append((score, states[::-1]))
  if not found:
    return None, -np.inf
  score, states = max(found)
  return states[::-1], score


def slow_viterbi(logits, labels, blank_id):
  """Score f64 and states of the best path, by a recursion over lists."""
  log_probs = reference.log_softmax(logits)
  classes = [blank_id]
  for label in labels:
    classes += [int(label), blank_id]
  best = {0: (0.0, [])}
  for frame in log_probs:
    new = {}
    for state, c in enumerate(classes):
      sources = [state, state - 1]
      if state % 2 and state > 1 and c != classes[state - 2]:
        sources.append(state - 2)
      came = [best[s] for s in sources if s in best]
      if came:
        score, path = max(came, key=lambda x: x[0])
        new[state] = score + frame[c], [*path, state]
    best = new
  ends = [best[s] for s in {len(classes) - 1, max(len(classes) - 2, 0)} if s in best]
  return max(ends, key=lambda x: x[0]) if ends else (-np.inf, None)


def labels_of(states):
  """Path of label indices, -1 for blank."""
  return [s // 2 if s % 2 else -1 for s in states]


def firsts(path, count):
  return [path.index(u) for u in range(count)]


def padded(sequences, size):
  return np.array([[*s, *[0] * (size - len(s))] for s in sequences], np.int32).reshape(-1, size)


@pytest.mark.parametrize("kind", ["random", "equal", "two values"])
@pytest.mark.parametrize("frames", [1, 2, 3, 5])
def test_best_of_all_paths(frames, kind):
  """All sequences of up to three of two labels at once, repeats and infeasible ones among them."""
  sequences = [s for n in range(4) for s in itertools.product((0, 1), repeat=n)]
  rng = np.random.default_rng(frames)
  shape = (len(sequences), frames, 3)
  logits = {
    "random": rng.normal(size=shape).astype(np.float32),
    "equal": np.zeros(shape, np.float32),
    # Classes of probability 0 beside equal ones: ties, and labels that cannot be.
    "two values": np.where(rng.random(shape) < 0.7, np.float32(0), -np.float32(np.inf)),
  }[kind]
  logits[..., 1] = np.where(np.isneginf(logits).all(-1), 0, logits[..., 1])
  lengths = np.array([len(s) for s in sequences], np.int32)
  row_frames = np.full(len(sequences), frames, np.int32)
  found = aligned(logits, row_frames, padded(sequences, 3), lengths, blank_id=BLANK)
  log_probs = np.asarray(jax.nn.log_softmax(logits))
  for row, labels in enumerate(sequences):
    states, score = best_of_all(log_probs[row], labels, BLANK)
    path = [-1] * frames if score == -np.inf else labels_of(states)
    first = [-1] * len(labels) if score == -np.inf else firsts(path, len(labels))
    np.testing.assert_allclose(found.score[row], score, rtol=1e-6)
    np.testing.assert_array_equal(found.path[row], path)
    np.testing.assert_array_equal(found.first[row], [*first, *[-1] * (3 - len(labels))])


def test_labels_come_early_in_ties():
  logits = np.zeros((1, 6, 3), np.float32)
  found = aligned(logits, np.array([6]), np.array([[0, 0, 1]]), np.array([3]), blank_id=BLANK)
  np.testing.assert_array_equal(found.path[0], [0, -1, 1, 2, -1, -1])


@st.composite
def rows(draw):
  """Logits, labels and the blank of a row that has a path."""
  classes, blank_id = draw(st.integers(2, 6)), draw(st.integers(0, 1))
  known = [c for c in range(classes) if c != blank_id]
  labels = draw(st.lists(st.sampled_from(known), max_size=8))
  repeats = sum(a == b for a, b in itertools.pairwise(labels))
  frames = len(labels) + repeats + draw(st.integers(0, 12))
  rng = np.random.default_rng(draw(st.integers(0, 99)))
  scale = draw(st.sampled_from([0.1, 1.0, 10.0]))
  return (scale * rng.normal(size=(max(frames, 1), classes))).astype(np.float32), labels, blank_id


@settings(deadline=None, max_examples=60)
@given(rows())
def test_against_the_oracle_and_the_loss(row):
  """The path spells the labels, is as good as the oracle's, and no better than all together."""
  logits, labels, blank_id = row
  frames, size = 24 + 4, 8
  dirty = np.full((1, frames, 6), np.nan, np.float32)
  dirty[0, :, : logits.shape[1]], dirty[0, :, logits.shape[1] :] = np.nan, -np.inf
  dirty[0, : len(logits), : logits.shape[1]] = logits
  garbage = np.full((1, size), 99, np.int32)
  garbage[0, : len(labels)] = labels
  args = dirty, np.array([len(logits)]), garbage, np.array([len(labels)])
  path, first, score = jax.tree.map(lambda x: np.asarray(x[0]), aligned(*args, blank_id=blank_id))
  expected, states = slow_viterbi(logits, labels, blank_id)
  np.testing.assert_allclose(score, expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(path[: len(logits)], labels_of(states))
  assert (path[len(logits) :] == -1).all()
  np.testing.assert_array_equal(first[: len(labels)], firsts(path.tolist(), len(labels)))
  assert (first[len(labels) :] == -1).all()
  classes = np.where(path < 0, blank_id, np.array([*labels, 0])[path])[: len(logits)]
  assert [c for c, _ in itertools.groupby(classes) if c != blank_id] == labels
  log_p = -ctc_loss(*args, blank_id=blank_id)[0]
  assert score <= log_p + 1e-4 * max(1, abs(log_p))


def test_rows_of_a_batch_are_those_alone_and_padding_is_not_read():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(5, 30, 7)).astype(np.float32)
  labels = rng.integers(0, 6, (5, 9)).astype(np.int32)
  frames, count = np.array([30, 12, 20, 0, 30]), np.array([9, 4, 0, 0, 5])
  whole = aligned(logits, frames, labels, count, blank_id=6)
  for garbage in (np.nan, np.inf):
    mask = np.arange(30) < frames[:, None]
    dirty = np.where(mask[..., None], logits, np.float32(garbage))
    marks = np.where(np.arange(9) < count[:, None], labels, -7)
    found = aligned(dirty, frames, marks, count, blank_id=6)
    jax.tree.map(np.testing.assert_array_equal, found, whole)
  for row in (1, 4):
    cut = logits[[row], : frames[row]], frames[[row]], labels[[row], : count[row]], count[[row]]
    alone = aligned(*cut, blank_id=6)
    np.testing.assert_array_equal(alone.path[0], whole.path[row, : frames[row]])
    np.testing.assert_array_equal(alone.first[0], whole.first[row, : count[row]])
    np.testing.assert_allclose(alone.score[0], whole.score[row], rtol=1e-6)
  assert whole.score[3] == 0


def test_infeasible_rows_say_so():
  """Too few frames, a repeat without room for its blank, labels that were cut off, no frame."""
  labels = np.array([[0, 1, 0], [0, 0, 1], [0, 1, 0], [0, 1, 0], [0, 1, 0]], np.int32)
  frames, count = np.array([2, 3, 9, 0, 3]), np.array([3, 3, 4, 1, 3])
  found = aligned(np.zeros((5, 9, 3), np.float32), frames, labels, count, blank_id=BLANK)
  feasible = np.asarray(losses.ctc_is_feasible(frames, labels, count))
  np.testing.assert_array_equal(feasible, [False] * 4 + [True])
  np.testing.assert_array_equal(np.isfinite(found.score), feasible)
  assert (found.score[:4] == -np.inf).all()
  assert (found.path[:4] == -1).all() and (found.first[:4] == -1).all()


def test_half_precision_is_computed_in_single():
  logits = np.random.default_rng(1).normal(size=(2, 40, 5))
  half = jnp.asarray(logits, jnp.bfloat16)
  args = np.array([40, 30]), np.array([[0, 1, 1], [3, 0, 0]]), np.array([3, 1])
  found = aligned(half, *args, blank_id=4)
  assert found.score.dtype == np.float32
  expected = aligned(half.astype(np.float32), *args, blank_id=4)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def spikes(frames_of_labels, frames, labels, classes=4, blank_id=3):
  """Logits f32[T, V] that are sure of each label at one frame and of the blank at all others."""
  logits = np.zeros((frames, classes), np.float32)
  logits[:, blank_id] = 9
  for frame, label in zip(frames_of_labels, labels, strict=True):
    logits[frame] = 0
    logits[frame, label] = 9
  return logits


def test_offsets_by_hand():
  """Labels on time, one frame late and early, far away at both ends; and rows that do not count."""
  labels = [0, 1, 2, 0, 1]
  teacher = spikes([2, 5, 8, 14, 25], 40, labels)
  student = spikes([2, 6, 7, 20, 19 + 4], 40, labels)
  late, early = spikes([9], 40, [2]), spikes([1], 40, [2])
  none = np.zeros((40, 4), np.float32)
  found = offsets_of(
    np.stack([teacher, late, none, none, none]),
    np.stack([student, early, none, none, none]),
    np.array([40, 40, 40, 0, 4]),
    padded([labels, [2], [], [], labels], 6),
    np.array([5, 1, 0, 0, 5]),
    blank_id=3,
  )
  #                                            -5       -2 -1  0  1        5
  np.testing.assert_array_equal(found.histogram, [1, 0, 0, 1, 1, 1, 1, 0, 0, 0, 1])
  assert int(found.total) == 0 + 1 - 1 + 6 - 2 - 8
  assert (int(found.utterances), int(found.left_out)) == (2, 1)


def test_offsets_where_one_model_has_no_path():
  """A class that the student says is impossible."""
  teacher = np.zeros((1, 5, 4), np.float32)
  student = teacher.copy()
  student[..., 1] = -np.inf
  args = np.array([5]), np.array([[0, 1]]), np.array([2])
  found = offsets_of(teacher, student, *args, blank_id=3)
  assert (int(found.utterances), int(found.left_out)) == (0, 1)
  assert not np.asarray(found.histogram).any() and int(found.total) == 0
