"""Planned batches → arrays."""

import gc
import json

import jax
import numpy as np
import pytest
import soundfile

from corpus import make_split, tone, write_manifest
from jaxkd import labels as labels_lib
from jaxkd.data import decoding, pipeline, plan, sources
from jaxkd.data.corpora import Options
from jaxkd.data.texts import Spelling
from jaxkd.devices import mesh
from jaxkd.types import HYPOTHESES, TRANSCRIPTS

LABELS = labels_lib.characters(" abc")
NOISE = (-30.0, -20.0)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  return open_manifest(make_split(tmp_path_factory.mktemp("corpus"), "train", 12))


def open_manifest(path) -> sources.Source:
  return sources.open_source(str(path), Options())


def batch_of(*rows, speeds=None, samples: int = 40_000, labels: int = 16) -> plan.PlannedBatch:
  speeds = speeds or tuple((1.0,) * len(row) for row in rows)
  return plan.PlannedBatch(plan.Shape(len(rows), samples, labels), rows, speeds)


def one(source, planned, **options) -> pipeline.HostBatch:
  (host,) = pipeline.batches(source, [planned], **options)
  return host


def assert_same(a: list, b: list) -> None:
  assert len(a) == len(b)
  for left, right in zip(a, b, strict=True):
    assert left.ids == right.ids and left.broken == right.broken
    for x, y in zip(left.batch, right.batch, strict=True):
      np.testing.assert_array_equal(x, y)


def test_alone_in_its_row(source):
  host = one(source, batch_of((3,), (), (5,)), spelling=Spelling(LABELS))
  audio, audio_len, labels, label_len = host.batch[:4]
  assert (audio.dtype, audio.shape) == (np.float32, (3, 40_000))
  assert (labels.dtype, labels.shape) == (np.int32, (3, 16))
  assert host.ids == ((source.ids[3],), (), (source.ids[5],)) and host.broken == []
  for row, utterance in ((0, 3), (2, 5)):
    wanted = source.read(utterance)
    assert audio_len[row] == len(wanted)
    np.testing.assert_array_equal(audio[row, : len(wanted)], wanted)
    assert not audio[row, len(wanted) :].any()
    assert LABELS.decode(labels[row, : label_len[row]]) == source.texts[utterance]


def test_filler_row_is_empty(source):
  batch = one(source, batch_of((0,), ()), spelling=Spelling(LABELS), noise_db=NOISE).batch[:4]
  for field in batch:
    assert not np.any(field[1])


def test_joined_row_is_one_after_the_other_with_a_space_between(source):
  batch = one(source, batch_of((2, 4, 1)), spelling=Spelling(LABELS)).batch
  parts = [source.read(u) for u in (2, 4, 1)]
  assert batch.audio_len[0] == sum(map(len, parts))
  start = 0
  for part in parts:
    found = batch.audio[0, start : start + len(part)].astype(float)
    np.testing.assert_allclose(found / np.abs(found).max(), part / np.abs(part).max(), atol=1e-6)
    start += len(part)
  text = " ".join(source.texts[u] for u in (2, 4, 1))
  assert LABELS.decode(batch.labels[0, : batch.label_len[0]]) == text


def test_joined_utterances_are_equally_loud(tmp_path):
  for name, gain in (("loud", 1.0), ("faint", 0.01)):
    soundfile.write(str(tmp_path / f"{name}.wav"), gain * tone("a"), 16_000)
  rows = [{"audio_filepath": f"{name}.wav"} for name in ("loud", "faint")]
  pair = open_manifest(write_manifest(tmp_path / "m.jsonl", rows))
  audio = one(pair, batch_of((0, 1))).batch.audio[0].astype(float)
  assert np.abs(audio[:3200]).max() == pytest.approx(np.abs(audio[3200:6400]).max(), rel=0.01)


def test_no_labels_are_read_without_classes(tmp_path):
  audio_only = open_manifest(make_split(tmp_path, "unlabelled", 3, text=False))
  batch = one(audio_only, batch_of((0, 1), (2,))).batch
  assert batch.labels is None and batch.label_len is None


def test_rows_without_transcript_say_so(source, tmp_path):
  untold = open_manifest(make_split(tmp_path, "unlabelled", 3, text=False))
  both = sources._joined("both", [source, untold])
  batch = one(both, batch_of((0,), (12, 13), ()), spelling=Spelling(LABELS)).batch
  assert batch.label_len.tolist() == [len(source.texts[0]), -1, 0]
  assert batch.audio_len[1] == sum(len(untold.read(i)) for i in (0, 1))


def test_no_space_between_transcripts_where_the_language_has_none(tmp_path):
  path = make_split(tmp_path, "train", 2)
  lines = path.read_text().splitlines()
  rows = [json.loads(line) | {"text": text} for line, text in zip(lines, "ab", strict=True)]
  source = open_manifest(write_manifest(path, rows))
  for texts, between in ((source.texts, ""), (["a b"], " ")):
    spelling = Spelling.of(LABELS, texts)
    batch = one(source, batch_of((0, 1)), spelling=spelling).batch
    assert LABELS.decode(batch.labels[0, : batch.label_len[0]]) == f"a{between}b"


class Drawn:
  """One label for every utterance."""

  def draw(self, utterances, rng):
    return np.zeros(len(utterances), np.int32)


@pytest.mark.parametrize("needs", [(), (TRANSCRIPTS,), (HYPOTHESES,), (TRANSCRIPTS, HYPOTHESES)])
def test_batches_are_what_steps_are_compiled_for(source, needs):
  """Fields, shapes, dtypes and where they lie, with rows that fill up the devices."""
  given = {TRANSCRIPTS: dict(spelling=Spelling(LABELS)), HYPOTHESES: dict(hypotheses=Drawn())}
  options = {key: value for need in needs for key, value in given[need].items()}
  planned, devices = batch_of((0, 1), (2,), (3,)), mesh.make_mesh()
  host = one(source, planned, shards=mesh.my_shards(devices), **options)
  batch = mesh.put_rows(host.batch, devices)
  found = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), batch)
  assert found == mesh.batch_struct(planned.shape, devices, needs=needs)
  assert batch.audio.shape == (8, 40_000)
  for need, field in ((TRANSCRIPTS, batch.labels), (HYPOTHESES, batch.hypothesis)):
    assert field is None if need not in needs else field.shape == (8, 16)


def test_more_labels_than_room_keep_their_true_count(source):
  batch = one(source, batch_of((0, 1), labels=2), spelling=Spelling(LABELS)).batch
  text = " ".join(source.texts[u] for u in (0, 1))
  assert batch.labels.shape == (1, 2) and batch.label_len[0] == len(text) > 2


@pytest.mark.parametrize("speed", [0.5, 0.9, 1.1, 2.0])
def test_speed_changes_length_and_pitch(source, speed):
  normal = one(source, batch_of((3,))).batch
  fast = one(source, batch_of((3,), speeds=((speed,),))).batch
  size = fast.audio_len[0]
  assert abs(size - normal.audio_len[0] / speed) <= 2
  assert size <= plan.samples_of(source.durations[3:4], speed)[0]

  def peak_hz(audio, size):
    return np.abs(np.fft.rfft(audio[:size].astype(float))).argmax() * 16_000 / size

  before = peak_hz(normal.audio[0], normal.audio_len[0])
  assert peak_hz(fast.audio[0], size) == pytest.approx(before * speed, rel=0.02)


def test_noise_is_as_loud_as_asked_and_only_on_real_samples(source):
  planned = batch_of((0,), (1, 2))
  clean = one(source, planned).batch
  noisy = one(source, planned, noise_db=(-20.0, -20.0)).batch
  np.testing.assert_array_equal(clean.audio_len, noisy.audio_len)
  for row in range(2):
    size = clean.audio_len[row]
    audio = clean.audio[row, :size].astype(float)
    noise = noisy.audio[row, :size] - audio
    assert 20 * np.log10(noise.std() / np.abs(audio).max()) == pytest.approx(-20, abs=0.5)
    assert not noisy.audio[row, size:].any()


def test_noise_depends_on_seed_epoch_batch_and_row_alone(source):
  planned = [batch_of((0,), (0,)), batch_of((0,), ()), batch_of((1, 2), (0,))]

  def run(**options):
    return list(pipeline.batches(source, planned, noise_db=NOISE, **options))

  first = run(seed=1, epoch=2)
  assert_same(run(seed=1, epoch=2), first)
  for start in (1, 2):
    assert_same(run(seed=1, epoch=2, start=start), first[start:])
  assert run(seed=1, epoch=2, start=3) == []
  size = first[0].batch.audio_len[0]
  same_utterance = [
    first[0].batch.audio[0],
    first[0].batch.audio[1],
    first[1].batch.audio[0],
    first[2].batch.audio[1],
    run(seed=1, epoch=3)[0].batch.audio[0],
    run(seed=2, epoch=2)[0].batch.audio[0],
  ]
  assert len({audio[:size].tobytes() for audio in same_utterance}) == len(same_utterance)


@pytest.fixture
def half_broken(tmp_path):
  path = make_split(tmp_path, "train", 4)
  source = open_manifest(path)
  (tmp_path / "audio" / "train-01.flac").write_bytes(b"not audio")
  (tmp_path / "audio" / "train-03.flac").unlink()
  return source


def test_broken_utterances_are_left_out_and_named(half_broken):
  host = one(half_broken, batch_of((0, 1, 2), (3,)), spelling=Spelling(LABELS), noise_db=NOISE)
  first, _, second, _ = half_broken.ids
  assert host.ids == ((first, second), ())
  assert [name for name, _ in host.broken] == [half_broken.ids[1], half_broken.ids[3]]
  assert all(reason for _, reason in host.broken)
  text = " ".join(half_broken.texts[u] for u in (0, 2))
  assert LABELS.decode(host.batch.labels[0, : host.batch.label_len[0]]) == text
  assert host.batch.label_len[1] == host.batch.audio_len[1] == 0
  assert not host.batch.audio[1].any()


def test_worker_processes_forget_sources_that_are_gone(tmp_path, monkeypatch):
  monkeypatch.setattr(decoding, "_opened", {})
  paths = [make_split(tmp_path, name, 1) for name in ("one", "two")]
  first = open_manifest(paths[0])
  gone = decoding._name(first)
  decoding._by_name(gone, 0, 1.0)
  assert list(decoding._opened) == [gone]
  del first
  gc.collect()
  second = open_manifest(paths[1])
  decoding._by_name(decoding._name(second), 0, 1.0)
  assert list(decoding._opened) == [decoding._name(second)]


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(half_broken, monkeypatch):
  planned = [batch_of((0, 1), (2,)), batch_of((3,), (2, 0)), batch_of((2,), ())]
  options = dict(spelling=Spelling(LABELS), noise_db=NOISE, seed=3, epoch=1)
  wanted = list(pipeline.batches(half_broken, planned, **options))
  monkeypatch.setattr(decoding, "_workers", 0)  # and as it was afterwards
  decoding.use(1)
  assert_same(list(pipeline.batches(half_broken, planned, **options)), wanted)
  decoding.use(2)
  assert_same(list(pipeline.batches(half_broken, planned, start=1, **options)), wanted[1:])
