"""Records against what was written, stores that were killed, damaged or moved, and no JAX."""

import json
import os
import pathlib
import pickle
import subprocess
import sys
import textwrap
from concurrent import futures

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkd.teacher import store, stored
from jaxkd.teacher.store import Settings, StoreError


def posteriors(frames: int, classes: int, *, blank: int = 0, seed: int = 0, peak: float = 14.0):
  """f32[T, V], log probabilities: half of the frames are surely blank."""
  rng = np.random.default_rng(seed)
  logits = 3 * rng.standard_normal((frames, classes))
  logits[:, blank] += np.where(rng.random(frames) < 0.5, peak + 8, 0)
  return (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
  frames=st.integers(0, 40),
  classes=st.sampled_from([2, 5, 30, 256, 257, 70_000]),
  top=st.sampled_from([0, 1, 4]),
  dtype=st.sampled_from(["float16", "float32"]),
  temperature=st.sampled_from([1.0, 2.0, 5.0]),
  seed=st.integers(0, 99),
)
def test_a_record_comes_back(frames, classes, top, dtype, temperature, seed):
  if classes > 1000:
    frames = min(frames, 4)
  blank, top = seed % classes, min(top, classes - 1)
  how = Settings(classes, blank, temperature, top, dtype)
  log_probs = posteriors(frames, classes, blank=blank, seed=seed)
  found = store.decode(store.encode(log_probs, 640 * frames, how), how)
  assert found.samples == 640 * frames and found.log_probs.shape == (frames, how.slots)
  ids = found.ids if top else np.broadcast_to(np.arange(classes), (frames, classes))
  known = np.isfinite(found.log_probs)
  expected = np.take_along_axis(log_probs, ids, 1)
  scale = 1e-3 if dtype == "float16" else 1e-6
  np.testing.assert_allclose(found.log_probs[known], expected[known], rtol=scale, atol=scale)
  # What is not there: its sums at both temperatures.
  kept = np.zeros((frames, classes), bool)
  np.put_along_axis(kept, np.where(known, ids, blank), True, 1)
  for column, t in enumerate((1.0, temperature)):
    sums = np.where(kept, 0, np.exp(log_probs.astype(np.float64) / t)).sum(-1)
    np.testing.assert_allclose(np.exp(found.tail[:, column]), sums, rtol=1e-2, atol=1e-7)
  if how.exact:
    np.testing.assert_array_equal(found.log_probs, log_probs)


def test_of_each_frame_the_most_probable_classes_are_kept():
  log_probs, how = posteriors(30, 40, blank=7, peak=-20), Settings(40, 7, top=5)
  found = store.decode(store.encode(log_probs, 0, how), how)
  others = np.delete(np.arange(40), 7)
  for row, ids, values in zip(log_probs, found.ids, found.log_probs, strict=True):
    best = others[np.argsort(-row[others])[:5]]
    kept = ids[1:][np.isfinite(values[1:])]
    assert ids[0] == 7 and set(kept) == {i for i in best if row[i] > np.log(1e-4)}


def test_a_frame_takes_few_bytes():
  how = Settings(80, 0, top=8)
  sure = np.full((800, 80), -20.0)
  sure[:, 0] = np.log1p(-79 * np.exp(-20.0))
  assert len(store.encode(sure, 0, how)) == 8 + 100 + 4 * 800
  flat = np.full((800, 80), np.log(1 / 80))
  assert len(store.encode(flat, 0, how)) == 8 + 100 + 800 * (1 + 2 + 8 * (1 + 2) + 4)
  two = np.full((800, 80), -30.0)
  two[:, :2] = np.log((1 - 78 * np.exp(-30.0)) / 2)
  assert len(store.encode(two, 0, how)) == 8 + 100 + 800 * (1 + 2 + (1 + 2) + 4)


@pytest.mark.parametrize("given, wanted", [(320, 640), (640, 320), (1280, 320), (320, 320)])
def test_frame_lengths(given, wanted):
  log_probs, how = posteriors(7, 5), Settings(5, 0, dtype="float32")
  frames = store.decode(store.encode(log_probs, 2240, how), how)
  found = stored.at_frame_length(frames, 0, given, wanted).log_probs
  if wanted <= given:
    expected = np.repeat(log_probs, given // wanted, axis=0)
  else:
    pairs = [log_probs[i : i + 2] for i in range(0, 7, 2)]
    expected = np.stack([pair[pair[:, 0].argmin()] for pair in pairs])
  np.testing.assert_array_equal(found, expected)


def opened(folder, **changes) -> store.Writer:
  given = dict(symbols="-abcd", blank_id=0, frame_samples=640) | changes
  return store.Writer(folder, **given)


def fill(writer: store.Writer, names) -> None:
  for name in names:
    if (name, 1.0) not in writer:
      count = 3 + int(name[1:]) % 5
      log_probs = posteriors(count, 5, seed=int(name[1:]))
      writer.add(name, log_probs, samples=640 * count)


NAMES = [f"u{i}" for i in range(20)]


def test_a_store_says_what_is_in_it(tmp_path):
  writer = opened(tmp_path, facts={"teacher": "someone"})
  fill(writer, NAMES)
  writer.add("u3", posteriors(2, 5), samples=1280, speed=1.1)
  totals = writer.close(left_out=[("u99", "broken")])
  found = store.Store(tmp_path)
  assert totals == found.header["complete"] and found.header["teacher"] == "someone"
  assert (totals["utterances"], totals["records"]) == (20, 21)
  assert totals["frames"] == sum(3 + i % 5 for i in range(20)) + 2
  assert totals["left_out"] == [["u99", "broken"]] and stored.damaged(found) == []
  positions = found.positions()
  again = pickle.loads(pickle.dumps(found))
  for name in NAMES:
    frames = again.read(positions[name, 1.0])
    expected = posteriors(3 + int(name[1:]) % 5, 5, seed=int(name[1:]))
    known = np.isfinite(frames.log_probs)
    np.testing.assert_allclose(frames.log_probs[known], expected[known], rtol=1e-3, atol=1e-6)
  assert len(again.read(positions["u3", 1.1]).log_probs) == 2


def test_one_that_was_killed_goes_on_after_its_last_whole_shard(tmp_path):
  writer = opened(tmp_path)
  fill(writer, NAMES[:5])
  writer.flush()
  fill(writer, NAMES[:9])  # killed: neither flushed nor closed
  cut = tmp_path / store.SHARDS / "0000-000007.array_record"
  cut.write_bytes(b"half of a shard")
  with pytest.raises(StoreError, match="not complete"):
    store.Store(tmp_path)
  writer = opened(tmp_path)
  assert ("u4", 1.0) in writer and ("u5", 1.0) not in writer
  fill(writer, NAMES)
  assert writer.close()["records"] == 20
  found = store.Store(tmp_path)
  assert sorted(found.positions()) == sorted((name, 1.0) for name in NAMES)
  assert stored.damaged(found) == []


def test_a_shard_that_is_less_than_its_list_says_is_written_again(tmp_path, caplog):
  writer = opened(tmp_path)
  for start in (0, 10):
    fill(writer, NAMES[start : start + 10])
    writer.flush()
  cut, gone = sorted((tmp_path / store.SHARDS).glob("*.array_record"))
  cut.write_bytes(cut.read_bytes()[:-1])
  gone.unlink()
  writer = opened(tmp_path)
  assert writer.there == {} and f"{cut} is cut short or gone: its 10 records" in caplog.text
  fill(writer, NAMES)
  assert writer.close(left_out=[("u1", "too long")])["left_out"] == []
  found = store.Store(tmp_path)
  assert len(found.positions()) == 20 and stored.damaged(found) == []


@pytest.mark.filterwarnings("error")
def test_more_shards_are_read_than_files_may_be_open(tmp_path, monkeypatch):
  monkeypatch.setattr(store, "_OPEN_FILES", 3)
  writer = opened(tmp_path)
  for name in NAMES:
    fill(writer, [name])
    writer.flush()
  writer.close()
  found = store.Store(tmp_path)
  positions = found.positions()
  many = [*NAMES, *reversed(NAMES)]
  with futures.ThreadPoolExecutor(4) as pool:
    read = list(pool.map(lambda name: found.read(positions[name, 1.0]), many))
  assert [len(frames.log_probs) for frames in read] == [3 + int(name[1:]) % 5 for name in many]
  assert len(found._files._readers) == 3


def test_several_parts_are_one_store(tmp_path):
  writers = [opened(tmp_path, part=part) for part in (0, 1)]
  for writer, names in zip(writers, (NAMES[::2], NAMES[1::2]), strict=True):
    fill(writer, names)
    writer.flush()
  assert writers[0].close()["utterances"] == 20


@pytest.mark.parametrize(
  ("use", "words"),
  [
    (lambda f: opened(f, blank_id=5), "blank_id is 5"),
    (lambda f: opened(f, top=5), "top is 5.*from 0 to 4"),
    (lambda f: opened(f, dtype="int8"), "float16 or float32"),
    (lambda f: opened(f, top=-1), "top is -1"),
    (lambda f: opened(f, blank_id="0"), "blank_id is '0': it must be a whole number from 0 to 4"),
    (lambda f: opened(f, frame_samples=640.0), "frame_samples is 640.0: it must be a whole"),
    (lambda f: opened(f, temperature=0), "above 0"),
    *(
      (
        lambda f, samples=samples: opened(f).add("u", posteriors(3, 5), samples=samples),
        rf"samples is {samples}: it must be a whole number from 0 to 4294967295",
      )
      for samples in (-1, 6400.0, 1 << 32)
    ),
    (lambda f: opened(f).close() and store.Store(f).read(0), "no record 0: it has 0"),
    (lambda f: opened(f, temperature=float("inf")), "above 0, and finite"),
    (lambda f: opened(f).add("u", np.zeros((3, 5)), samples=1), "add up to 1"),
    (lambda f: opened(f).add("u", np.full((3, 5), np.nan), samples=1), "add up to 1"),
    (lambda f: opened(f).add("u", posteriors(3, 4), samples=1), r"must be \[T, 5\]"),
    (lambda f: fill(opened(f), ["u1"]) or opened(f, symbols="-abcx"), "other settings .symbols"),
    (lambda f: fill(opened(f), ["u1"]) or opened(f, top=2), "other settings .top"),
    (lambda f: store.Store(f), "cannot be read"),
    (lambda f: store.decode(b"abc", Settings(5, 0)), "damaged"),
    (lambda f: store.decode(bytes(8) + b"x", Settings(5, 0)), "damaged"),
  ],
)
def test_what_cannot_be_is_one_line(tmp_path, use, words):
  with pytest.raises(StoreError, match=words) as error:
    use(tmp_path / "store")
  assert "\n" not in str(error.value)


def test_numbers_may_be_of_numpy(tmp_path):
  numbers = dict(blank_id=np.int64(0), frame_samples=np.int32(640), top=np.uint8(2))
  writer = opened(tmp_path, **numbers)
  writer.add("u1", posteriors(3, 5), samples=np.int64(1920))
  writer.close()
  found = store.Store(tmp_path)
  assert found.rows == [store.Row("u1", 1.0, 1920, 3)] and found.read(np.int64(0)).samples == 1920
  opened(tmp_path, **numbers)


@pytest.mark.parametrize("position", [-1, 20, 10**6])
def test_a_position_without_a_record_is_named(tmp_path, position):
  writer = opened(tmp_path)
  fill(writer, NAMES)
  writer.close()
  with pytest.raises(StoreError, match=f"no record {position}: it has 20"):
    store.Store(tmp_path).read(position)


@pytest.mark.parametrize("name", ["config.json", "results.json", "export.json", "index.json"])
def test_a_folder_of_something_else_stays_as_it_is(tmp_path, name):
  (tmp_path / name).write_text("{}")
  with pytest.raises(StoreError, match=f"it holds something else .{name}.: another folder"):
    opened(tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == [name]


def test_of_other_labels_nothing_is_written(tmp_path):
  opened(tmp_path)
  (tmp_path / store.HEADER).unlink()
  with pytest.raises(StoreError, match="other settings .symbols"):
    opened(tmp_path, symbols="-abcx")
  assert [path.name for path in tmp_path.iterdir()] == [store.LABELS]


def test_a_name_that_is_no_utf_8_is_refused_at_once(tmp_path):
  folder = pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b"/p\xe9"))
  with pytest.raises(StoreError, match=r"p\\xe9: its name must be UTF-8"):
    opened(folder)
  assert not folder.exists()


def test_an_utterance_is_added_once(tmp_path):
  writer = opened(tmp_path)
  fill(writer, ["u1"])
  with pytest.raises(StoreError, match="u1 at speed 1 already"):
    writer.add("u1", posteriors(3, 5), samples=1)


def damage(path: pathlib.Path) -> None:
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 0xFF
  path.write_bytes(bytes(data))


def test_damage_is_named(tmp_path):
  writer = opened(tmp_path)
  for start in (0, 10):
    fill(writer, NAMES[start : start + 10])
    writer.flush()
  writer.close()
  shards = sorted((tmp_path / store.SHARDS).glob("*.array_record"))
  damage(shards[1])
  assert stored.damaged(store.Store(tmp_path)) == [f"{shards[1]}: other bytes than were written"]
  shards[0].write_bytes(shards[0].read_bytes()[:-1])
  with pytest.raises(StoreError, match="cut short"):
    store.Store(tmp_path)
  shards[0].with_suffix(".json").write_text("{")
  with pytest.raises(StoreError, match="is damaged"):
    store.Store(tmp_path)


def test_a_newer_version_is_refused(tmp_path):
  opened(tmp_path).close()
  header = json.loads((tmp_path / store.HEADER).read_text())
  (tmp_path / store.HEADER).write_text(json.dumps(header | {"version": 2}))
  with pytest.raises(StoreError, match="no store of version 1"):
    store.Store(tmp_path)


def test_the_file_alone_writes_and_reads_without_jax(tmp_path):
  code = """
    import importlib.util, sys
    for name in ("jax", "flax", "jaxkd"):
      sys.modules[name] = None
    spec = importlib.util.spec_from_file_location("store", sys.argv[1])
    store = sys.modules["store"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(store)
    import numpy as np
    writer = store.Writer(sys.argv[2], symbols="-ab", blank_id=0, frame_samples=320)
    writer.add("one", np.log(np.full((4, 3), 1 / 3)), samples=1280)
    writer.close()
    found = store.Store(sys.argv[2])
    print(found.read(found.positions()["one", 1.0]).log_probs.shape)
  """
  line = [sys.executable, "-c", textwrap.dedent(code), store.__file__, str(tmp_path / "store")]
  done = subprocess.run(line, capture_output=True, text=True, timeout=60)
  assert done.stdout == "(4, 3)\n", done.stderr
