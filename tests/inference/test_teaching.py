"""What a teacher says, stored: against the teacher itself, in evaluation and in batches."""

import dataclasses
import functools
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxkd import losses
from jaxkd.data import pipeline, plan
from jaxkd.data.audio import BrokenAudio
from jaxkd.data.sources import Source
from jaxkd.devices import mesh as mesh_lib
from jaxkd.errors import UserError
from jaxkd.inference import hypotheses, priors, scoring, teaching
from jaxkd.inference.frames import frames
from jaxkd.labels import characters
from jaxkd.masks import length_mask, strided_len
from jaxkd.models.acoustic import AcousticModel
from jaxkd.teacher import sources, store, stored
from jaxkd.types import FrameOutput, StoredFrames

pytestmark = pytest.mark.usefixtures("quick_to_compile")
FRAME, CLASSES = 640, 12
VOCABULARY = characters("abcdefghijk")


class Linear(nnx.Module):
  """A frame's logits are a linear map of a few of its samples: neighbours do not matter."""

  def __init__(self, seed: int):
    self.kernel = nnx.Param(jax.random.normal(jax.random.key(seed), (4, CLASSES)))

  def __call__(self, audio, audio_len):
    samples = audio.reshape(len(audio), -1, FRAME)[:, :, ::160].astype(jnp.float32)
    mask = length_mask(strided_len(audio_len, FRAME), samples.shape[1])
    logits = 4 * samples @ self.kernel[...]
    return FrameOutput(logits.at[..., -1].add(15 * (samples[..., 0] > 0)), mask)


def model(seed: int = 0) -> AcousticModel:
  return AcousticModel(*nnx.split(Linear(seed)), VOCABULARY, FRAME)


def noise(count: int, name: str = "noise", broken=()) -> Source:
  """Utterances of 3 to 20 frames and a rest."""
  rng = np.random.default_rng(count)
  audio = [
    rng.uniform(-0.5, 0.5, FRAME * n + 100).astype(np.float32) for n in rng.integers(3, 21, count)
  ]

  def read(index: int) -> np.ndarray:
    if index in broken:
      raise BrokenAudio("half of it is gone")
    return audio[index]

  durations = np.array([len(x) / 16_000 for x in audio])
  return Source(name, [f"{name}{i}" for i in range(count)], durations, ["ab"] * count, [], read)


def write(folder, wanted, *, teacher=model, devices=1, **options):
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:devices])
  wanted = [teaching.Wanted(*pair) for pair in wanted]
  load = lambda devices: teacher()
  found = sources.Found("linear", VOCABULARY, FRAME, *nnx.split(Linear(0)), load)
  totals = teaching.write(found, wanted, folder, mesh, **{"temperature": 2.0} | options)
  return totals, stored.find(str(folder))


def outputs(of, source: Source, mesh) -> dict[str, np.ndarray]:
  """Utterance → f32[T, V], log probabilities."""
  found = {}
  for spoken in frames({"it": of}, source, mesh):
    out = spoken.my_rows("it")
    for ids, logits, mask in zip(spoken.host.ids, out.logits, out.mask, strict=True):
      if ids:
        found[ids[0]] = np.asarray(jax.nn.log_softmax(logits[mask]))
  return found


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(
  ("options", "tolerance"), [({"dtype": "float32"}, 1e-6), ({}, 2e-3), ({"top": 4}, 0.1)]
)
def test_a_store_says_what_its_teacher_says(tmp_path, devices, options, tolerance):
  source, mesh = noise(23), mesh_lib.make_mesh(devices=jax.devices()[:devices])
  totals, found = write(tmp_path / "store", [(source, (1.0,))], devices=devices, **options)
  assert totals["utterances"] == 23 and found.frame_samples == FRAME
  live, kept = outputs(model(), source, mesh), outputs(found, source, mesh)
  assert live.keys() == kept.keys()
  for name, expected in live.items():
    np.testing.assert_allclose(np.exp(kept[name]), np.exp(expected), atol=tolerance)
  heard, largest = teaching.differences(found, model(), source, mesh, 5)
  assert heard == 5 and largest <= tolerance
  assert teaching.differences(found, model(1), source, mesh, 5)[1] > 0.3


def test_everything_that_asks_a_teacher_asks_a_store(tmp_path):
  source, mesh = noise(9), mesh_lib.make_mesh()
  found = write(tmp_path / "store", [(source, (1.0,))], dtype="float32")[1]
  student = model(3)
  results = [
    scoring.evaluate(student, teacher, source, mesh, spikes=True) for teacher in (model(), found)
  ]
  assert results[0].figures == results[1].figures
  assert results[0].kl == pytest.approx(results[1].kl, rel=1e-5)
  assert results[0].spike_offsets == results[1].spike_offsets
  np.testing.assert_allclose(
    priors.log_prior(model(), source, mesh), priors.log_prior(found, source, mesh), atol=1e-5
  )
  lists = [
    hypotheses.find(teacher, source, tmp_path / name, mesh, count=2)
    for name, teacher in (("live", model()), ("stored", found))
  ]
  for of_one, of_other in zip(*(found.labels for found in lists), strict=True):
    for a, b in zip(of_one, of_other, strict=True):
      np.testing.assert_array_equal(a, b)


def test_an_utterance_without_hypotheses_is_no_target(tmp_path):
  """And not silence: what could not be read when the teacher listened may be read later."""
  source, mesh = noise(4), mesh_lib.make_mesh()
  path = tmp_path / "nbest.jsonl"
  found = hypotheses.find(model(), noise(4, broken=(2,)), path, mesh, count=2)
  assert [bool(labels) for labels in found.labels] == [True, True, False, True]
  shape = plan.Shape(3, 60 * FRAME, 64)
  planned = [plan.PlannedBatch(shape, ((0,), (2,), (1, 2)), ((1.0,), (1.0,), (1.0, 1.0)))]
  (host,) = pipeline.batches(source, planned, hypotheses=found)
  assert host.batch.hypothesis_len[0] >= 0 and host.batch.hypothesis_len[1:].tolist() == [-1, -1]
  damaged = dataclasses.replace(model(), params=jax.tree.map(lambda x: x * np.nan, model().params))
  with pytest.raises(UserError, match="noise.: a model says no numbers of it"):
    hypotheses.find(damaged, source, tmp_path / "others.jsonl", mesh, count=2)
  assert not (tmp_path / "others.jsonl").exists()


def batches(source: Source, taught, *, speeds=(1.0,), noise_db=None):
  shapes = plan.shapes(
    source.durations,
    batch_seconds=6,
    buckets=2,
    frame_samples=taught.frame_samples,
    speeds=speeds,
  )
  planned = plan.epoch_plan(source.durations, shapes, seed=0, epoch=0, speeds=speeds)
  return pipeline.batches(source, planned, taught=taught, noise_db=noise_db)


@functools.partial(jax.jit, static_argnums=1)
def as_logits(frames, how):
  return stored.as_logits(frames, how)


@pytest.mark.parametrize("speeds", [(1.0,), (0.9, 1.1)])
def test_rows_have_what_the_teacher_says_of_them(tmp_path, speeds):
  source = noise(17)
  found = write(tmp_path / "store", [(source, speeds)], dtype="float32")[1]
  rows = 0
  for host in batches(source, found, speeds=speeds):
    batch = host.batch
    expected = model()(batch.audio, batch.audio_len)  # of frames that do not know each other
    out = as_logits(batch.taught, found.settings)
    mask = np.asarray(out.mask)
    assert mask.shape == batch.audio.shape[:1] + (batch.audio.shape[1] // FRAME,)
    assert (mask <= np.asarray(expected.mask)).all()
    # A last frame that is cut at the end of an utterance has silence behind it in both.
    theirs = jax.nn.log_softmax(expected.logits)[mask]
    np.testing.assert_allclose(out.logits[mask], theirs, atol=1e-4)
    np.testing.assert_array_equal(mask, np.asarray(expected.mask))
    for ids, row, length in zip(host.ids, mask, batch.audio_len, strict=True):
      assert row.sum() == -(-length // FRAME) if ids else not row.any()
      rows += bool(ids)
  assert rows == len(source)


def test_noise_is_for_the_student_alone(tmp_path):
  source = noise(5)
  found = write(tmp_path / "store", [(source, (1.0,))], dtype="float32")[1]
  with_noise, without = (
    next(iter(batches(source, found, noise_db=db))).batch for db in ((-10, -10), None)
  )
  assert np.abs(with_noise.audio - without.audio).max() > 0.01
  np.testing.assert_array_equal(with_noise.taught.log_probs, without.taught.log_probs)


def kl_of(teacher_logits, student_logits, temperature: float) -> float:
  selected = jnp.ones(teacher_logits.shape[:2], bool)
  found = losses.kd_kl(student_logits, teacher_logits, selected, temperature=temperature)
  return float(found.mean())


def kept_of(log_probs: np.ndarray, how: store.Settings) -> StoredFrames:
  """f32[T, V] as a batch of one row."""
  kept = store.decode(store.encode(log_probs, 0, how), how)
  mask = np.ones((1, len(log_probs)), bool)
  return StoredFrames(kept.log_probs[None], kept.tail[None], mask, kept.ids[None])


def many_classes(seed: int = 0) -> np.ndarray:
  """f32[300, 200], log probabilities of which eight are most but not all."""
  logits = np.random.default_rng(seed).gamma(0.7, 4.0, (300, 200)).astype(np.float32)
  return np.asarray(jax.nn.log_softmax(logits))


def test_the_kl_is_that_over_what_was_kept_and_the_rest_as_one():
  how = store.Settings(200, 3, 2.0, 8, "float32")
  teacher, student = many_classes(), many_classes(1)
  taught = kept_of(teacher, how)
  found = kl_of(stored.softened(taught, how, student[None]), student[None], 2.0)
  p, q = (np.exp(x / 2, dtype=np.float64) for x in (teacher, student))
  p, q = (x / x.sum(-1, keepdims=True) for x in (p, q))
  known = np.zeros(p.shape, bool)
  np.put_along_axis(known, taught.ids[0], True, -1)
  rest = [np.where(known, 0, x).sum(-1) for x in (p, q)]
  expected = np.where(known, p * np.log(p / q), 0).sum(-1) + rest[0] * np.log(rest[0] / rest[1])
  assert found == pytest.approx(4 * expected.mean(), rel=1e-4)


def test_without_the_tail_at_the_temperature_of_training_the_loss_is_biased():
  """Of the student that is the teacher, whose loss is 0: top 8 of 200 classes, temperature 2."""
  how, teacher = store.Settings(200, 3, 2.0, 8, "float32"), many_classes()
  taught = kept_of(teacher, how)
  both = kl_of(stored.softened(taught, how, teacher[None]), teacher[None], 2.0)
  without = np.where(stored.as_logits(taught, how).logits == teacher[None], teacher[None], -1e4)
  assert both == pytest.approx(0, abs=1e-5)
  assert kl_of(stored.as_logits(taught, how).logits, teacher[None], 2.0) > 0.5  # the tail at 1
  assert kl_of(without, teacher[None], 2.0) > 0.2


def loss_of(student, taught: StoredFrames, how: store.Settings):
  """Of all frames but the last, which the student has not."""
  student = student[:, :-1]
  logits, mask = stored.softened(taught, how, student), jnp.asarray(taught.mask[:, :-1])
  return losses.kd_kl(student, logits, mask, temperature=2.0).total


@pytest.mark.parametrize("top", [0, 3])
def test_nan_in_padding_changes_nothing(tmp_path, top):
  source = noise(7)
  found = write(tmp_path / "store", [(source, (1.0,))], top=top)[1]
  taught, how = next(iter(batches(source, found))).batch.taught, found.settings
  hole = ~taught.mask[..., None]
  spoilt = taught._replace(
    log_probs=np.where(hole, np.nan, taught.log_probs), tail=np.where(hole, np.nan, taught.tail)
  )
  shape = (*taught.mask.shape, CLASSES)
  student = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
  both = [
    jax.value_and_grad(loss_of)(jnp.asarray(np.where(hole, fill, student)), x, how)
    for fill, x in ((0, taught), (np.nan, spoilt))
  ]
  assert both[0][0] == both[1][0] > 0
  np.testing.assert_array_equal(both[0][1], both[1][1])
  assert not np.asarray(both[0][1])[~taught.mask].any()
  out, other = (as_logits(x, how).logits for x in (taught, spoilt))
  np.testing.assert_array_equal(out[taught.mask], other[taught.mask])


def test_every_utterance_is_stored_at_every_speed(tmp_path):
  """Of 64296 samples at 0.95 one is the longest, of 67680.0 or 67680.00000000001 samples."""
  audio = np.random.default_rng(0).uniform(-0.5, 0.5, 64_296).astype(np.float32)
  names = ["a", "b", "c"]
  source = Source("fixed", names, np.full(3, 64_296 / 16_000), [None] * 3, [], lambda _: audio)
  totals, found = write(tmp_path / "store", [(source, (0.95, 1.0))])
  assert (totals["records"], totals["left_out"]) == (6, [])
  assert found.positions.keys() == {(name, speed) for name in names for speed in (0.95, 1.0)}


class Stopped(Exception):
  pass


def test_one_that_was_stopped_hears_only_the_rest(tmp_path, monkeypatch):
  source, heard = noise(40), []
  add = store.Writer.add

  def stops(self, utterance, *args, **options):
    heard.append(utterance)
    if len(heard) == 25:
      raise Stopped
    add(self, utterance, *args, **options)

  monkeypatch.setattr(store.Writer, "add", stops)
  with pytest.raises(Stopped):
    write(tmp_path / "store", [(source, (1.0,))])
  with pytest.raises(UserError, match="not complete"):
    stored.find(str(tmp_path / "store"))
  totals, found = write(tmp_path / "store", [(source, (1.0,))])
  assert totals["records"] == 40 and len(heard) == 25 + 16
  assert stored.damaged(found.store) == []
  # Nothing is left, so no teacher is loaded; more speeds are added.
  absent = lambda: pytest.fail("the teacher was loaded")
  assert write(tmp_path / "store", [(source, (1.0,))], teacher=absent)[0] == totals
  assert write(tmp_path / "store", [(source, (1.0, 1.1))])[0]["records"] == 80


def test_what_is_left_out_is_counted_and_named(tmp_path, caplog):
  totals, found = write(tmp_path / "store", [(noise(9, broken=(2, 5)), (1.0,))])
  assert totals["utterances"] == 7
  assert totals["left_out"] == [
    ["noise2", "half of it is gone"],
    ["noise5", "half of it is gone"],
  ]
  # It cannot be heard, so it is not lacking: another writing would not add it, unless it can be.
  still = noise(9, broken=(2, 5))
  assert found.has(still) and not found.has(noise(9)) and not found.has(noise(10))
  caplog.set_level("WARNING")
  found.check(still, (1.0,), 2.0)
  assert "2 of noise's 9 utterances could not be heard when it was written" in caplog.text
  with pytest.raises(UserError, match="noise2 at speed 1 .half of it is gone when it was written"):
    found.frames("noise2", 1.0, np.zeros(17, np.float32))


def test_what_was_left_out_before_is_still_named(tmp_path):
  write(tmp_path / "store", [(noise(9, broken=(2, 5)), (1.0,))])
  totals, _ = write(tmp_path / "store", [(noise(4, "others", broken=(0,)), (1.0,))])
  assert [name for name, _ in totals["left_out"]] == ["noise2", "noise5", "others0"]
  totals, found = write(tmp_path / "store", [(noise(9, broken=(5,)), (1.0,))])
  assert [name for name, _ in totals["left_out"]] == ["noise5", "others0"]
  assert totals["utterances"] == 8 + 3 and ("noise2", 1.0) in found.positions


def test_a_second_writer_waits_and_hears_nothing_again(tmp_path, caplog):
  caplog.set_level("INFO")
  heard, source = [], noise(5)

  def slow():
    heard.append(threading.get_ident())
    if len(heard) == 1:
      second.start()
      while "waiting for another process" not in caplog.text:
        time.sleep(0.01)
    return model()

  found = {}
  again = lambda: found.update(
    zip(("totals", "store"), write(tmp_path / "store", [(source, (1.0,))], teacher=slow))  # noqa: B905
  )
  second = threading.Thread(target=again)
  write(tmp_path / "store", [(source, (1.0,))], teacher=slow)
  second.join()
  assert found["totals"]["records"] == 5 and len(heard) == 1
  assert stored.damaged(found["store"].store) == []


def test_what_a_store_lacks_is_one_line(tmp_path):
  source = noise(6)
  found = write(tmp_path / "store", [(source, (1.0,))])[1]
  with pytest.raises(UserError, match="lacks 2 of noise's 8 utterances at speed 1, such as noise6"):
    longer = noise(8)
    longer.ids[:6] = source.ids
    found.check(longer, (1.0,), 2.0)
  with pytest.raises(UserError, match="at speed 1.1.*--speeds"):
    found.check(source, (1.0, 1.1), 2.0)
  with pytest.raises(UserError, match="temperature is 3, and .* was written for 2"):
    found.check(source, (1.0,), 3.0)
  with pytest.raises(UserError, match="had .* samples .* and has 17"):
    found.frames("noise1", 1.0, np.zeros(17, np.float32))
  with pytest.raises(UserError, match="nothing of other"):
    found.frames("other", 1.0, np.zeros(17, np.float32))
  with pytest.raises(UserError, match="40 ms and the student every 30 ms"):
    found.at(480)
  exact = write(tmp_path / "exact", [(source, (1.0,))], dtype="float32")[1]
  exact.check(source, (1.0,), 3.0)


def test_two_utterances_of_one_name_are_refused(tmp_path):
  one, other = noise(4), noise(5)
  with pytest.raises(UserError, match="have an utterance noise0 each"):
    write(tmp_path / "store", [(one, (1.0,)), (other, (1.0,))])
  totals, _ = write(tmp_path / "store", [(one, (1.0,)), (one, (1.0, 1.1))])
  assert totals["records"] == 8
  as_long = noise(4)
  as_long._read = lambda index: one.read(index)[::-1]
  with pytest.raises(UserError, match="have an utterance noise0 each, .* other audio"):
    write(tmp_path / "other", [(one, (1.0,)), (as_long, (1.0,))])
  with pytest.raises(UserError, match="has noise0 at speed 1 of other audio"):
    write(tmp_path / "store", [(as_long, (1.0,))])


def test_noise_on_the_way_to_the_student_is_not_other_audio(tmp_path):
  source = noise(5)
  found = write(tmp_path / "store", [(source, (0.9, 1.1))])[1]
  assert all(row.heard for row in found.store.rows)
  for host in batches(source, found, speeds=(0.9, 1.1), noise_db=(-10, -10)):
    assert host.batch.taught.mask.any()


def test_a_teacher_that_says_no_numbers_is_one_line(tmp_path):
  broken = model()
  broken = AcousticModel(
    broken.graphdef, jax.tree.map(lambda x: x * np.nan, broken.params), VOCABULARY, FRAME
  )
  with pytest.raises(UserError, match="noise.: what the teacher says cannot be stored"):
    write(tmp_path / "store", [(noise(3), (1.0,))], teacher=lambda: broken)


def test_other_frame_lengths_in_a_batch(tmp_path):
  source = noise(6)
  found = write(tmp_path / "store", [(source, (1.0,))], dtype="float32")[1]
  for wanted in (320, 1280):
    taught = found.at(wanted)
    host = next(iter(batches(source, taught)))
    frames_of = host.batch.audio.shape[1] // wanted
    assert host.batch.taught.mask.shape[1] == frames_of
    for ids, row in zip(host.ids, host.batch.taught.mask, strict=True):
      if ids:
        stored_frames = len(found.store.read(found.positions[ids[0], 1.0]).log_probs)
        expected = stored_frames * 2 if wanted == 320 else -(-stored_frames // 2)
        assert row.sum() == min(expected, frames_of)
