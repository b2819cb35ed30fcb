"""Sources packed into shards are the same sources."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import tarfile
from concurrent import futures

import numpy as np
import pytest
import soundfile

from corpus import make_split, tone, write_manifest
from jaxkd import files
from jaxkd.commands import line
from jaxkd.data import audio, encoded, index, packing, pipeline, plan, shards, sources
from jaxkd.data.corpora import Options
from jaxkd.data.sources import Limits
from jaxkd.errors import UserError

FORMS = {"flac": "PCM_16", "wav": "PCM_24", "ogg": "OPUS", "mp3": "MPEG_LAYER_III"}


def opened(path, limits=sources.NO_LIMITS) -> sources.Source:
  return sources.open_source(str(path), Options(), limits)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
  """Recordings of several kinds, rates and channels; parts of one; some with transcripts."""
  folder = tmp_path_factory.mktemp("mixed")
  rng, rows = np.random.default_rng(0), []
  for number, (form, subtype) in enumerate(FORMS.items()):
    for rate, channels in ((16_000, 1), (48_000, 2)):
      name = f"{number}-{rate}.{form}"
      samples = np.stack([tone("abc", rate, 0.3)] * channels, -1)
      samples += 1e-2 * rng.standard_normal(samples.shape, dtype=np.float32)
      soundfile.write(str(folder / name), samples, rate, subtype=subtype)
      text = {"text": f"ä {number}"} if number % 2 else {}
      rows.append({"audio_filepath": name, "duration": 0.9} | text)
  long = tone("abcabcabca", seconds=0.5)
  long[30_000:34_000] *= 1e-3
  soundfile.write(str(folder / "long.flac"), long, 16_000)
  parts = [(0.0, 1.0), (1.0, 2.25)]
  rows += [{"audio_filepath": "long.flac", "offset": o, "duration": d} for o, d in parts]
  rows += [{"audio_filepath": "long.flac", "text": "all of it"}, {"audio_filepath": "gone.flac"}]
  return write_manifest(folder / "mixed.jsonl", rows)


@pytest.fixture(scope="module")
def packed(mixed, tmp_path_factory):
  folder = tmp_path_factory.mktemp("packed") / "shards"
  packing.write(opened(mixed), folder, longest=40.0, shard_seconds=3.0)
  return folder


def assert_same(found: sources.Source, wanted: sources.Source) -> None:
  assert list(found.ids) == list(wanted.ids) and list(found.texts) == list(wanted.texts)
  np.testing.assert_array_equal(found.durations, wanted.durations)
  assert sorted(found.skipped) == sorted(wanted.skipped)
  assert found.fingerprint() == wanted.fingerprint()
  for i in range(len(wanted)):
    try:
      samples = wanted.read(i)
    except audio.BrokenAudio as error:
      with pytest.raises(audio.BrokenAudio) as raised:
        found.read(i)
      assert str(raised.value) == str(error)
    else:
      np.testing.assert_array_equal(found.read(i), samples)


@pytest.mark.parametrize("limits", [sources.NO_LIMITS, Limits(0.95, 2.0), Limits(0.1, 1.3)])
def test_packed_is_the_same_as_the_manifest(mixed, packed, limits):
  assert len(shards.Index(packed).header["shards"]) > 2
  found, wanted = opened(packed, limits), opened(mixed, limits)
  assert_same(found, wanted)
  assert_same(found.only([2, 0]), wanted.only([2, 0]))
  assert_same(found.without({1: "x"}), wanted.without({1: "x"}))
  copy = pickle.loads(pickle.dumps(found))
  np.testing.assert_array_equal(copy.read(1), wanted.read(1))


def test_batches_are_the_same(mixed, packed):
  wanted = opened(mixed)
  shapes = plan.shapes(wanted.durations, batch_seconds=6, buckets=2, frame_samples=640)
  planned = plan.epoch_plan(wanted.durations, shapes, seed=0, epoch=0)
  first, found = [list(pipeline.batches(s, planned)) for s in (wanted, opened(packed))]
  assert [host.ids for host in found] == [host.ids for host in first]
  for a, b in zip(first, found, strict=True):
    np.testing.assert_array_equal(a.batch.audio, b.batch.audio)


def test_joined_sources_and_shards_themselves_can_be_packed(mixed, packed, tmp_path):
  both = f"{packed},{mixed}"
  packing.write(opened(both), tmp_path, longest=40.0)
  assert_same(opened(tmp_path), opened(both))


def test_long_recordings_are_cut_where_it_is_quiet(mixed, tmp_path):
  longs = tmp_path / "longs"
  longs.mkdir()
  (longs / "long.flac").write_bytes((mixed.parent / "long.flac").read_bytes())
  packing.write(opened(longs), tmp_path / "cut", longest=2.4)
  found, wanted = opened(tmp_path / "cut"), opened(longs).read(0)
  assert found.durations.max() <= 2.4 and len(found) == 3
  assert 30_000 < round(found.durations[0] * 16_000) < 34_000
  assert found.ids[:2] == ["long.flac@0.00s", f"long.flac@{found.durations[0]:.2f}s"]
  np.testing.assert_array_equal(np.concatenate([found.read(i) for i in range(3)]), wanted)


@pytest.mark.parametrize("gain", [0.5, 3.0])
def test_samples_are_encoded_without_loss_where_that_is_possible(gain):
  exact = np.random.default_rng(0).integers(-4000, 4000, 4000).astype(np.float32) / 32768
  for samples in (exact, exact / 256, gain * exact[:, None].repeat(9, 1)):
    found = audio.read(encoded.of_samples(samples, 16_000))
    np.testing.assert_array_equal(found, samples.reshape(4000, -1)[:, 0])
  lossy = gain * np.sin(np.arange(4000, dtype=np.float32) / 9)
  found = audio.read(encoded.of_samples(lossy, 16_000))
  np.testing.assert_allclose(found, lossy, rtol=0, atol=2**-16)


PACK = """
import sys
from jaxkd.data import audio, encoded, index, packing, pipeline, plan, shards, sources
from jaxkd.data.corpora import Options
packing.write(sources.open_source(sys.argv[1], Options()), packing.pathlib.Path(sys.argv[2]),
             longest=40.0, shard_seconds=1.0)
"""


def test_kill_in_the_middle_and_resume(tmp_path):
  manifest, folder = make_split(tmp_path, "train", 40), tmp_path / "packed"
  line = [sys.executable, "-c", PACK, str(manifest), str(folder)]
  lists = lambda: sorted((folder / shards.SHARDS).glob("*.jsonl"))
  process = subprocess.Popen(line)
  while len(lists()) < 3:
    assert process.poll() is None
  process.send_signal(signal.SIGKILL)
  process.wait()
  whole = {path: path.stat().st_mtime_ns for path in lists()}
  with pytest.raises(UserError, match="shards without an index: the jaxkd shard that writes it"):
    opened(folder)
  packing.write(opened(manifest), folder, longest=40.0, shard_seconds=1.0)
  assert_same(opened(folder), opened(manifest))
  assert {path: path.stat().st_mtime_ns for path in whole} == whole and len(lists()) > len(whole)


@pytest.fixture
def damaged(packed, tmp_path):
  folder = shutil.copytree(packed, tmp_path / "copy")
  return folder, folder / shards.Index(folder).header["shards"][1]["path"]


def test_shard_cut_short_is_named_and_can_be_left_out(damaged, mixed):
  folder, path = damaged
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(UserError, match=f"{path} is cut short: .* --drop leaves"):
    opened(folder)
  before = len(shards.Index(folder))
  found, problems = packing.verify(folder, drop=True)
  lost = sum(reason == "its shard is damaged" for _, reason in opened(folder).skipped)
  assert len(problems) == 1 and found["utterances"] == len(opened(folder)) == before - lost
  packing.write(opened(mixed), folder, longest=40.0, shard_seconds=3.0)
  assert_same(opened(folder), opened(mixed))


def test_shard_of_other_data_is_known(damaged):
  folder, path = damaged
  data = bytearray(path.read_bytes())
  data[200] ^= 1
  path.write_bytes(data)
  source = opened(folder)
  with pytest.raises(UserError, match=f"{path}"):
    for i in range(len(source)):
      source.read(i)
  assert packing.verify(folder)[1] == [f"{path} has other bytes than were indexed"]


def test_replaced_shard_is_known(damaged):
  folder, path = damaged
  shutil.copy(folder / shards.Index(folder).header["shards"][0]["path"], path)
  with pytest.raises(UserError, match=f"{path} is (not what was indexed|cut short)"):
    opened(folder)


def test_columns_that_were_changed_are_known(packed, tmp_path):
  folder = tmp_path / "changed"
  shutil.copytree(packed, folder)
  path = folder / shards.Index(folder).header["folder"] / "texts.utf8"
  whole = path.read_bytes()
  path.write_bytes(whole.replace(b"all of it", b"all of us"))
  assert packing.verify(folder)[1] == [f"{path} has other bytes than were written"]
  with pytest.raises(UserError, match="texts.utf8 has other bytes .* writes the index again"):
    packing.verify(folder, drop=True)
  path.write_bytes(whole.replace(b"all of it", b"all \xff\xfe it"))
  with pytest.raises(UserError, match=f"texts.utf8 is damaged: jaxkd shard --verify={folder}"):
    list(opened(folder).texts)


def test_writing_the_same_again_touches_nothing(mixed, packed):
  stats = lambda: {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in packed.rglob("*.*")}
  before, source = stats(), opened(packed)
  packing.write(opened(mixed), packed, longest=40.0, shard_seconds=3.0)
  assert stats() == before and list(source.texts) == list(opened(packed).texts)


def test_index_without_a_fingerprint_is_not_complete(packed, tmp_path):
  folder = tmp_path / "killed"
  shutil.copytree(packed, folder)
  header = files.read_json(folder / index.HEADER)
  files.write_json(folder / index.HEADER, {k: v for k, v in header.items() if k != "fingerprint"})
  with pytest.raises(UserError, match="lacks fingerprint: the same jaxkd shard writes it again"):
    opened(folder)


def test_kill_before_the_header_leaves_the_old_index(packed, tmp_path, monkeypatch):
  folder = tmp_path / "killed"
  shutil.copytree(packed, folder)
  before, there = shards.Index(folder), shards.Index(folder)
  kept = [
    index.Row(*row, *where)
    for row, where in zip(
      zip(there.strings("ids"), there.seconds, there.strings("texts"), there.start, strict=True),
      zip(there.shard, there.offset, there.bytes, there.crc, strict=True),
      strict=True,
    )
  ][1:]
  facts = {name: there.header[name] for name in ("kind", "source", "left_out", "shards")}
  with monkeypatch.context() as patch:
    patch.setattr(index, "fingerprint", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      index.write(folder, kept, facts)
  assert list(opened(folder).ids) == list(before.strings("ids"))
  index.write(folder, kept, facts)
  assert list(opened(folder).ids) == list(before.strings("ids"))[1:]
  assert len(list(folder.glob("columns*"))) == 1


def test_other_data_is_not_written_into_a_folder_of_shards(packed, tmp_path):
  other = make_split(tmp_path, "other", 2)
  with pytest.raises(UserError, match="holds shards of other data or settings"):
    packing.write(opened(other), packed, longest=40.0)
  column = packed / shards.Index(packed).header["folder"] / "crc.bin"
  whole = column.read_bytes()
  column.write_bytes(whole[:-1])
  with pytest.raises(UserError, match="crc.bin has .* bytes and"):
    opened(packed)
  column.write_bytes(whole)


def test_recordings_that_were_replaced_are_other_data(tmp_path):
  for name in "abc":
    (tmp_path / name).mkdir()
    soundfile.write(str(tmp_path / name / "x.wav"), tone(name), 16_000)
  packing.write(opened(tmp_path / "a"), tmp_path / "out", longest=40.0)
  for again in (tmp_path / "b", f"{tmp_path / 'b'},{tmp_path / 'c'}"):
    with pytest.raises(UserError, match="holds shards of other data"):
      packing.write(opened(again).only([0]), tmp_path / "out", longest=40.0)
  packing.write(opened(tmp_path / "a"), tmp_path / "out", longest=40.0)
  os.utime(tmp_path / "a" / "x.wav", ns=(1, 1))
  with pytest.raises(UserError, match="holds shards of other data"):
    packing.write(opened(tmp_path / "a"), tmp_path / "out", longest=40.0)
  # Shards know what is in them, wherever they lie.
  packing.write(opened(tmp_path / "out"), tmp_path / "twice", longest=40.0)
  shutil.move(tmp_path / "out", tmp_path / "moved")
  packing.write(opened(tmp_path / "moved"), tmp_path / "twice", longest=40.0)


def test_a_second_process_waits_for_the_first(tmp_path, caplog):
  caplog.set_level("INFO")
  source, folder = opened(make_split(tmp_path, "some", 2)), tmp_path / "out"
  (folder / shards.SHARDS).mkdir(parents=True)
  write = lambda: packing.write(source, folder, longest=40.0)
  with futures.ThreadPoolExecutor() as pool, files.locked(folder / shards.SHARDS / shards.LOCK):
    writing = pool.submit(write)
    while "waiting for another process that writes" not in caplog.text:
      assert not writing.done()
    assert shards.is_unfinished(folder)
  assert writing.result()["utterances"] == 2


@pytest.mark.parametrize("out", ["file", "file/x"])
def test_folder_that_cannot_be_made_is_one_line(tmp_path, out):
  manifest = make_split(tmp_path, "some", 1)
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match=f"--out={tmp_path / out} (is a file|cannot be written)"):
    line.main(["shard", str(manifest), f"--out={tmp_path / out}"])


def test_folder_that_may_not_be_looked_into_is_one_line(tmp_path, monkeypatch):
  def refused(*_):
    raise PermissionError(13, "Permission denied")

  monkeypatch.setattr(packing, "_check_same", refused)
  with pytest.raises(UserError, match="out cannot be written: Permission denied"):
    packing.write(opened(make_split(tmp_path, "some", 1)), tmp_path / "out", longest=40.0)


def test_index_json_of_something_else(tmp_path):
  """Other programs' is no index of shards, and is not overwritten."""
  soundfile.write(str(tmp_path / "x.wav"), tone("a"), 16_000)
  (tmp_path / index.HEADER).write_text('{"name": "of a web page"}')
  source = opened(tmp_path)
  assert source.ids == ["x.wav"]
  with pytest.raises(UserError, match="index.json is of something else: give another --out"):
    packing.write(source, tmp_path, longest=40.0)
  with pytest.raises(UserError, match="index.json is no index of version 1"):
    packing.verify(tmp_path, drop=True)
  assert not (tmp_path / shards.SHARDS).exists()


def test_recordings_ahead_of_the_writer_are_few_hours():
  begun = []
  with futures.ThreadPoolExecutor(1) as pool:
    made = packing._in_order(pool, begun.append, range(99), lambda _: 3600.0)
    for place, _ in made:
      assert len(begun) <= place + 5
  assert begun == [*range(99)]


def test_strings_of_an_index(packed):
  there = index.Index(packed)
  ids, texts = there.strings("ids"), there.strings("texts")
  assert len(ids) == len(there) and ids[-1] == list(ids)[-1] and ids[1:3] == list(ids)[1:3]
  assert ids == list(ids) and ids != list(ids)[:-1] and ids.index(ids[2]) == 2
  assert None in texts and None not in texts.take(np.flatnonzero(there.told))
  with pytest.raises(IndexError):
    ids[len(ids)]


def test_a_stored_teacher_is_no_data(mixed, tmp_path):
  (tmp_path / "frames" / "shards").mkdir(parents=True)
  (tmp_path / "frames" / "store.json").write_text("{}")
  with pytest.raises(UserError, match=r"frames is a stored teacher: config.teacher.source"):
    opened(tmp_path / "frames")
  with pytest.raises(UserError, match=r"frames holds a stored teacher: give another --out"):
    packing.write(opened(mixed), tmp_path / "frames", longest=40.0)


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.zip"])
def test_an_archive_is_no_manifest(tmp_path, name):
  (tmp_path / name).write_bytes(b"\x80")
  with pytest.raises(UserError, match=f"{name} is no manifest: jaxkd shard .*{name} indexes a tar"):
    opened(tmp_path / name)


def test_a_name_that_is_no_utf_8_is_refused(mixed, tmp_path):
  out = os.fsdecode(os.fsencode(tmp_path) + b"/p\xe9")
  with pytest.raises(UserError, match=r"^--out=.*/p\\xe9: its name must be UTF-8"):
    line.main(["shard", str(mixed), f"--out={out}"])
  assert not os.path.exists(out)


@pytest.mark.parametrize(
  "flags", [["--longest=40"], ["--hours=10"], ["--root=x"], ["--longest=40", "--hours=10"]]
)
def test_what_would_be_ignored_is_refused(flags, tmp_path):
  named = " or ".join(flag.partition("=")[0] for flag in flags)
  with pytest.raises(UserError, match=f"--verify=DIR takes --drop alone, and no {named}$"):
    line.main(["shard", f"--verify={tmp_path}", *flags])
  with tarfile.open(tmp_path / "x.tar", "w"):
    pass
  with pytest.raises(UserError, match=f"x.tar: tar files are .* as they lie: leave out {named}$"):
    line.main(["shard", str(tmp_path / "x.tar"), f"--out={tmp_path / 'out'}", *flags])
  assert not (tmp_path / "out").exists()


def test_the_help_has_the_defaults(capsys):
  with pytest.raises(SystemExit):
    line.main(["shard", "--help"])
  told = " ".join(capsys.readouterr().out.split())
  assert "cut at silences (default 40.0)" in told and "GB of FLAC (default 10.0)" in told


def test_a_file_is_closed_after_the_names_of_its_module_are_gone(tmp_path, monkeypatch):
  (tmp_path / "x.tar").touch()
  file = shards._TarFile(tmp_path / "x.tar")
  number = file._file
  with monkeypatch.context() as patch:
    patch.setattr(shards, "os", None)
    file.__del__()
  del file._file  # so that it is not closed twice
  with pytest.raises(OSError, match="Bad file descriptor"):
    os.fstat(number)
