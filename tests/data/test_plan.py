"""Every utterance once, in a shape that holds it, at little padding."""

import functools
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from jaxkd.data import plan

RATE = 16_000
FRAME = RATE // 25
SPEEDS = (0.9, 1.0, 1.1)

make_shapes = functools.partial(plan.shapes, frame_samples=640)  # 40 ms


def durations_of(size: int, low: float = 0.3, high: float = 6.0, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).uniform(low, high, size)


def padded(units: np.ndarray, lengths) -> int:
  """Samples that the units take when each is padded to the next length."""
  lengths = np.sort(lengths)
  return int(lengths[np.searchsorted(lengths, units)].sum())


def utterances(planned) -> list[int]:
  return [u for batch in planned for row in batch.rows for u in row]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(200, 90_000), min_size=1, max_size=9), st.integers(1, 4))
def test_bucket_lengths_are_the_best_there_are(sizes, buckets):
  units = np.array(sizes)
  found = plan._lengths(units, buckets)
  assert len(found) <= buckets and max(found) == units.max()
  assert found == sorted(set(found))
  others = sorted(set(sizes) - {units.max()})
  fewest = min(
    padded(units, [*chosen, units.max()])
    for count in range(min(buckets - 1, len(others)) + 1)
    for chosen in itertools.combinations(others, count)
  )
  assert padded(units, found) == fewest


@pytest.mark.parametrize("buckets", [2, 4, 8])
@pytest.mark.parametrize("spread", [0.3, 1.2])
def test_bucket_lengths_beat_buckets_of_equal_count(buckets, spread):
  rng = np.random.default_rng(buckets)
  units = (16_000 * rng.lognormal(1.0, spread, 2000)).astype(int)
  equal = np.quantile(units, np.linspace(0, 1, buckets + 1)[1:], method="higher")
  assert padded(units, plan._lengths(units, buckets)) <= padded(units, equal)


@pytest.mark.parametrize("join_seconds", [0.0, 2.0, 10.0])
def test_shapes_hold_the_seconds_of_a_batch(join_seconds):
  durations = durations_of(50)
  found = make_shapes(durations, batch_seconds=60.0, buckets=3, join_seconds=join_seconds)
  assert 1 <= len(found) <= 3
  assert list(found) == sorted(found, key=lambda s: s.samples)
  for shape in found:
    assert shape.samples % FRAME == 0
    assert shape.rows == 1 or shape.rows * shape.samples <= 60 * RATE
  assert found[-1].samples >= plan.samples_of(durations, 1.0).max()


def test_a_batch_has_at_least_one_row():
  (shape,) = make_shapes(np.array([30.0]), batch_seconds=1.0, buckets=1)
  assert shape.rows == 1


@pytest.mark.parametrize(
  ("room", "multiple", "rows", "strict"),
  [
    (19, 1, 19, 19),
    (19, 8, 16, 16),
    (23, 8, 24, 16),
    (19, 16, 16, 16),
    (11, 16, 11, 16),  # other batches by more than a fifth are filled up
    (3, 256, 3, 256),
    (0, 4, 1, 4),
  ],
)
def test_rows_are_a_multiple_of_the_devices_where_that_changes_little(room, multiple, rows, strict):
  assert plan._row_count(room + 0.5, multiple, strict=False) == rows
  assert plan._row_count(room + 0.5, multiple, strict=True) == strict


def test_rows_are_stretched_rather_than_given_a_second_shape():
  held = make_shapes(np.array([1.0, 7.0]), batch_seconds=60.0, buckets=2, join_seconds=6.0)
  assert len(held) == 1 and held[0].samples >= 7 * RATE
  apart = make_shapes(np.array([1.0, 20.0]), batch_seconds=60.0, buckets=2, join_seconds=6.0)
  assert len(apart) == 2 and apart[0].samples < 7 * RATE


CASES = st.fixed_dictionaries(
  dict(
    size=st.integers(1, 60),
    buckets=st.integers(1, 4),
    join_seconds=st.sampled_from([0.0, 1.0, 6.0, 20.0]),
    speeds=st.sampled_from([(1.0,), SPEEDS, (0.5, 2.0)]),
    seed=st.integers(0, 99),
  )
)


def planned_case(case, epoch: int = 0):
  durations = durations_of(case["size"], seed=case["seed"])
  labels = np.random.default_rng(case["seed"]).integers(1, 30, case["size"])
  shapes = make_shapes(
    durations,
    batch_seconds=40.0,
    buckets=case["buckets"],
    join_seconds=case["join_seconds"],
    labels_per_second=float(((labels + 1) / durations).max()),
    speeds=case["speeds"],
  )
  planned = plan.epoch_plan(
    durations,
    shapes,
    seed=case["seed"],
    epoch=epoch,
    speeds=case["speeds"],
    join=case["join_seconds"] > 0,
  )
  return durations, labels, shapes, planned


@settings(deadline=None, max_examples=80)
@given(CASES)
def test_every_utterance_once_in_a_row_that_holds_it(case):
  durations, _, shapes, planned = planned_case(case)
  assert sorted(utterances(planned)) == list(range(case["size"]))
  for batch in planned:
    assert batch.shape in shapes
    assert len(batch.rows) == len(batch.speeds) == batch.shape.rows
    assert any(batch.rows)
    for row, speeds in zip(batch.rows, batch.speeds, strict=True):
      assert len(row) == len(speeds) and set(speeds) <= set(case["speeds"])
      assert len(row) <= 1 or case["join_seconds"]
      samples = sum(np.ceil(durations[u] * RATE / s) for u, s in zip(row, speeds, strict=True))
      assert samples <= batch.shape.samples


def test_rows_apart_are_not_joined_and_come_in_any_order():
  durations = np.random.default_rng(0).uniform(1, 4, 200)
  apart = np.arange(200) % 3 == 0
  shapes = plan.shapes(
    durations, batch_seconds=60.0, buckets=1, frame_samples=FRAME, join_seconds=10.0
  )
  planned = plan.epoch_plan(durations, shapes, seed=0, epoch=0, join=True, apart=apart)
  assert sorted(utterances(planned)) == list(range(200))
  rows = [row for batch in planned for row in batch.rows if row]
  assert all(len({bool(apart[u]) for u in row}) == 1 for row in rows)
  mixed = [len({bool(apart[r[0]]) for r in batch.rows if r}) == 2 for batch in planned]
  assert sum(mixed) > len(mixed) / 2


@settings(deadline=None, max_examples=40)
@given(CASES)
def test_room_for_labels_is_short_only_where_frames_are(case):
  _, labels, _, planned = planned_case(case)
  for batch in planned:
    for row in batch.rows:
      # Texts are joined by a space.
      needed = labels[list(row)].sum() + max(0, len(row) - 1)
      assert needed <= batch.shape.labels or batch.shape.labels == batch.shape.samples // FRAME


@settings(deadline=None, max_examples=30)
@given(CASES)
def test_real_samples_fit_at_every_speed(case):
  durations, _, shapes, _ = planned_case(case)
  for speed in case["speeds"]:
    assert np.ceil(durations.max() * RATE / speed) <= shapes[-1].samples


def test_plan_depends_on_seed_and_epoch_alone():
  case = dict(size=40, buckets=2, join_seconds=6.0, speeds=SPEEDS, seed=3)
  first = list(planned_case(case)[3])
  assert first == list(planned_case(case)[3]) and first != list(planned_case(case, epoch=1)[3])
  durations, _, shapes, planned = planned_case(case)
  other = plan.epoch_plan(durations, shapes, seed=4, epoch=0, speeds=SPEEDS, join=True)
  assert list(other) != list(planned)


def test_company_and_speed_change_between_epochs():
  case = dict(size=40, buckets=1, join_seconds=6.0, speeds=SPEEDS, seed=0)
  drawn = []
  for epoch in range(2):
    planned = planned_case(case, epoch)[3]
    rows = [pair for b in planned for pair in zip(b.rows, b.speeds, strict=True)]
    speeds = {u: s for row, factors in rows for u, s in zip(row, factors, strict=True)}
    drawn.append(({frozenset(row) for row, _ in rows if len(row) > 1}, speeds))
  assert len(drawn[0][0] & drawn[1][0]) < 5
  assert drawn[0][1] != drawn[1][1]


def test_joined_rows_are_nearly_full():
  durations = durations_of(400, 0.5, 3.0)
  shapes = make_shapes(durations, batch_seconds=60.0, buckets=1, join_seconds=10.0)
  planned = plan.epoch_plan(durations, shapes, seed=0, epoch=0, join=True)
  assert planned.padding_rate(durations) < 0.1
  alone = plan.epoch_plan(durations, shapes, seed=0, epoch=0)
  assert planned.padding_rate(durations) < alone.padding_rate(durations)


def test_padding_rate_counts_filler_rows_and_speed():
  durations = np.array([1.0, 2.0])
  alone = (plan.Shape(2, 2 * RATE, 0),)
  one = plan.evaluation_plan(durations[:1], alone)
  assert len(one[0].rows) == 2 and one.padding_rate(durations) == pytest.approx(0.75)
  shape = (plan.Shape(2, 3 * RATE, 0),)
  faster = plan.evaluation_plan(durations, shape, speed=2.0)
  assert faster.padding_rate(durations) == pytest.approx(0.75)
  found = plan.epoch_plan(
    durations_of(50), make_shapes(durations_of(50), batch_seconds=40.0, buckets=3), seed=0, epoch=0
  )
  real = sum(plan.seconds_of(batch, durations_of(50)) for batch in found)
  room = sum(batch.shape.rows * batch.shape.seconds for batch in found)
  assert found.padding_rate(durations_of(50)) == pytest.approx(1 - real / room)


@settings(deadline=None, max_examples=80)
@given(CASES, st.booleans())
def test_plans_are_those_of_the_slow_search(case, mixed):
  durations, _, shapes, _ = planned_case(case)
  apart = np.random.default_rng(1).random(len(durations)) < 0.4 if mixed else None
  options = dict(
    seed=case["seed"], epoch=2, speeds=case["speeds"], join=case["join_seconds"] > 0, apart=apart
  )
  found = list(plan.epoch_plan(durations, shapes, **options))
  assert found == reference.epoch_plan(durations, shapes, **options)


def test_a_part_of_a_plan_and_other_numbers():
  durations = durations_of(30)
  shapes = make_shapes(durations / 0.5, batch_seconds=20.0, buckets=2)
  planned = plan.evaluation_plan(durations, shapes, 0.5)
  assert sorted(utterances(planned)) == list(range(30))
  assert list(planned[2:]) == list(planned)[2:] and planned[-1] == list(planned)[-1]
  chosen = np.arange(30) * 3 + 1
  for batch, theirs in zip(planned, planned.of(chosen), strict=True):
    assert theirs.rows == tuple(tuple(int(chosen[i]) for i in row) for row in batch.rows)
    assert (theirs.shape, theirs.speeds) == (batch.shape, batch.speeds)


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("buckets", [1, 2])
def test_evaluation_is_every_utterance_alone_and_unchanged(size, buckets):
  durations = durations_of(size, seed=size)
  shapes = make_shapes(durations, batch_seconds=80.0, buckets=buckets)
  planned = plan.evaluation_plan(durations, shapes)
  assert sorted(utterances(planned)) == list(range(size))
  for batch in planned:
    assert all(len(row) <= 1 for row in batch.rows)
    assert all(speeds in ((), (1.0,)) for speeds in batch.speeds)
    assert all(durations[u] * RATE <= batch.shape.samples for row in batch.rows for u in row)
  order = durations[utterances(planned)]
  assert (np.diff(order) >= 0).all()


@pytest.mark.parametrize("speed", [0.9, 0.95, 1.05, 1.2])
def test_shapes_are_rounded_as_rows_are(speed):
  for samples in range(64_200, 64_400):
    durations = np.array([samples / RATE])
    (shape,) = plan.shapes(durations / speed, batch_seconds=80.0, buckets=2, frame_samples=1)
    assert utterances(plan.evaluation_plan(durations, (shape,), speed)) == [0]


def test_a_row_that_fits_no_shape_is_an_error():
  durations = np.array([1.0, 3.0])
  shapes = make_shapes(durations[:1], batch_seconds=20.0, buckets=2)
  with pytest.raises(ValueError, match="fits no shape"):
    plan.evaluation_plan(durations, shapes)


def test_shapes_made_for_two_splits_hold_both():
  dev, test = durations_of(9, 1, 2), durations_of(9, 3, 4)
  shapes = make_shapes(np.concatenate([dev, test]), batch_seconds=80.0, buckets=2)
  for split in (dev, test):
    assert len(utterances(plan.evaluation_plan(split, shapes))) == len(split)


@pytest.mark.parametrize("frame_samples", [320, 640, 1280])
def test_room_for_labels_is_that_of_the_models_frames(frame_samples):
  """120 labels in 4 s have a path in frames of 20 ms, and none in longer ones."""
  (shape,) = plan.shapes(
    np.array([4.0]),
    batch_seconds=1.0,
    buckets=1,
    frame_samples=frame_samples,
    labels_per_second=30.0,
  )
  frames = shape.samples // frame_samples
  assert shape.samples % frame_samples == 0
  assert shape.labels == min(frames, math.ceil(30 * shape.seconds))
  assert (shape.labels >= 120) == (frame_samples == 320)
