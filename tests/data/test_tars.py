"""Tar files of other toolkits, indexed as they lie."""

import gzip
import io
import json
import os
import pathlib
import shutil
import subprocess
import tarfile

import numpy as np
import pytest
import soundfile

from corpus import tone
from jaxkd.commands import line
from jaxkd.data import audio, index, listings, packing, shards, sources, tars
from jaxkd.data.corpora import Options
from jaxkd.errors import UserError

SAID = ["a", "ab", "abc", "cab"]


def recording(text: str) -> bytes:
  file = io.BytesIO()
  soundfile.write(file, tone(text), 16_000, format="FLAC", subtype="PCM_16")
  return file.getvalue()


def tar(path: pathlib.Path, members: dict[str, bytes]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, "w") as opened:
    for name, data in members.items():
      member = tarfile.TarInfo(name)
      member.size = len(data)
      opened.addfile(member, io.BytesIO(data))


def webdataset(folder: pathlib.Path) -> None:
  for number in range(2):
    members = {}
    for i in (2 * number, 2 * number + 1):
      told = (
        {"txt": SAID[i].encode()} if i % 2 else {"json": json.dumps({"text": SAID[i]}).encode()}
      )
      members |= {f"u{i}.{kind}": data for kind, data in told.items()}
      members[f"u{i}.flac"] = recording(SAID[i])
    tar(folder / f"{number:06}.tar", members)


def nemo(folder: pathlib.Path) -> None:
  rows = []
  for i, text in enumerate(SAID[:3]):
    row = {"audio_filepath": f"u{i}.flac", "duration": 0.2 * len(text), "text": text}
    rows.append(row | {"shard_id": i % 2})
  # Two utterances of one recording, as NeMo names them.
  both = {"shard_id": 1, "duration": 0.4, "text": "ca"}
  rows.append({"audio_filepath": "u3.flac", **both})
  rows.append({"audio_filepath": "u3-sub1.flac", **both, "offset": 0.4, "text": "b"})
  rows[-1]["duration"] = 0.2
  for number in range(2):
    there = [i for i in range(4) if (i % 2 if i < 3 else 1) == number]
    tar(folder / f"audio_{number}.tar", {f"u{i}.flac": recording(SAID[i]) for i in there})
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  (folder / "tarred_audio_manifest.json").write_text(lines)


def shar(folder: pathlib.Path) -> None:
  for number in range(2):
    members, cuts = {}, []
    for i in (2 * number, 2 * number + 1):
      members |= {f"u{i}.flac": recording(SAID[i]), f"u{i}.json": b'{"id": "r"}'}
      seconds = 0.2 * len(SAID[i])
      cuts.append({"id": f"u{i}", "start": 0, "duration": seconds, "type": "MonoCut"})
      cuts[-1]["supervisions"] = [{"text": SAID[i], "start": 0}]
    tar(folder / f"recording.{number:06}.tar", members)
    with gzip.open(folder / f"cuts.{number:06}.jsonl.gz", "wt") as file:
      file.write("".join(json.dumps(cut) + "\n" for cut in cuts))


def indexed(folder: pathlib.Path, *flags: str) -> sources.Source:
  status = line.main(["shard", str(folder), f"--out={folder.parent / 'index'}", *flags])
  assert status == 0
  return sources.open_source(str(folder.parent / "index"), Options())


@pytest.mark.parametrize("make", [webdataset, nemo, shar])
def test_tars_are_read_where_they_lie(tmp_path, make, capsys):
  make(tmp_path / "tars")
  found = indexed(tmp_path / "tars")
  texts = dict(zip(found.ids, found.texts, strict=True))
  wanted = {f"u{i}{'.flac' if make is nemo else ''}": text for i, text in enumerate(SAID)}
  if make is nemo:
    wanted |= {"u3.flac": "ca", "u3-sub1.flac": "b"}
  assert texts == wanted and found.skipped == []
  assert json.loads(capsys.readouterr().out)["utterances"] == len(wanted)
  for i, (name, text) in enumerate(texts.items()):
    assert found.durations[i] == pytest.approx(0.2 * len(text))
    part = tone(SAID[3])[6400:] if name == "u3-sub1.flac" else tone(text)
    np.testing.assert_allclose(found.read(i), part, atol=2**-15)
  assert not [p for p in (tmp_path / "index").rglob("*") if p.suffix == ".array_record"]
  assert packing.verify(tmp_path / "index")[1] == []
  # What is indexed can be packed, too.
  packing.write(found, tmp_path / "packed", longest=40.0)
  packed = sources.open_source(str(tmp_path / "packed"), Options())
  assert list(packed.ids) == list(found.ids)
  np.testing.assert_array_equal(packed.read(len(found) - 1), found.read(len(found) - 1))


def test_tar_that_was_read_is_not_read_again(tmp_path, monkeypatch):
  webdataset(tmp_path / "tars")
  indexed(tmp_path / "tars")
  monkeypatch.setattr(packing.tars, "contents", None)
  indexed(tmp_path / "tars")


def test_index_that_a_kill_has_left_unfinished_is_named(tmp_path, monkeypatch):
  webdataset(tmp_path / "tars")
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(packing, "_read_tar", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    indexed(tmp_path / "tars")
  with pytest.raises(UserError, match="index holds shards without an index: the jaxkd shard that"):
    sources.open_source(str(tmp_path / "index"), Options())
  assert len(indexed(tmp_path / "tars")) == len(SAID)


def test_tar_cut_short(tmp_path, capsys):
  webdataset(tmp_path / "tars")
  short = tmp_path / "tars" / "000001.tar"
  short.write_bytes(short.read_bytes()[:3000])
  with pytest.raises(UserError, match=f"{short} is cut short.* --drop leaves it out"):
    indexed(tmp_path / "tars")
  found = indexed(tmp_path / "tars", "--drop")
  assert len(found) == 2
  assert found.skipped == [(str(short), "a tar file that is cut short, compressed or none")]


def test_tar_that_was_replaced_or_is_gone(tmp_path):
  webdataset(tmp_path / "tars")
  source = indexed(tmp_path / "tars")
  first, second = sorted((tmp_path / "tars").glob("*.tar"))
  data = bytearray(first.read_bytes())
  data[int(shards.Index(tmp_path / "index").offset[0]) + 50] ^= 1
  first.write_bytes(data)
  with pytest.raises(UserError, match=f"{first}: u0 is not the recording"):
    sources.open_source(source.name, Options())
  second.unlink()
  with pytest.raises(UserError, match=f"{second}: No such file"):
    sources.open_source(str(tmp_path / "index"), Options())


def test_recording_that_is_listed_and_not_there(tmp_path):
  shar(tmp_path / "tars")
  tar(tmp_path / "tars" / "recording.000001.tar", {"u2.flac": recording("abc")})
  assert ("u3", "not in recording.000001.tar") in indexed(tmp_path / "tars").skipped


def test_tars_are_no_data_before_they_are_indexed(tmp_path):
  webdataset(tmp_path / "tars")
  with pytest.raises(UserError, match="2 tar files and no audio: jaxkd shard .* --out=DIR"):
    sources.open_source(str(tmp_path / "tars"), Options())
  # Compressed ones, too: the command says how they are made plain.
  for file in (tmp_path / "tars").glob("*.tar"):
    file.rename(f"{file}.gz")
  with pytest.raises(UserError, match="2 tar files and no audio: jaxkd shard .* --out=DIR"):
    sources.open_source(str(tmp_path / "tars"), Options())


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (["x"], "DATA and --out=DIR are needed"),
    (["x", "--verify=y"], "--verify=DIR takes --drop alone"),
    (["gone", "--out=z"], "gone: no such file or folder"),
    (["~nobody-of-that-name/x", "--out=z"], "no such file or folder"),
    ([",", "--out=z"], "data is ',': it must be the name"),
    (["--verify=gone"], "gone/index.json cannot be read"),
    (["shared", "--out=z", "--drop"], "--drop goes with"),
  ],
)
def test_mistakes_are_one_line(flags, words, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match=words):
    line.main(["shard", *flags])


def test_bytes_that_are_no_audio_say_so():
  with pytest.raises(audio.BrokenAudio, match="not readable as audio"):
    audio.read(b"no audio")


def texts_of(source: sources.Source) -> dict[str, str | None]:
  return dict(zip(source.ids, source.texts, strict=True))


ROW = '{"audio_filepath": "u0.flac", "duration": 0.2, "text": "a"}'


@pytest.mark.parametrize(
  ("line_", "words"),
  [
    ('{"audio_filepath": "u1.flac", "dura', "not JSON"),
    ('{"audio_filepath": "u1.flac", "offset": "zero"}', "\"offset\" is 'zero'"),
    ('{"audio_filepath": "u1.flac", "text": 7}', '"text" is 7'),
    ('{"text": "a"}', "audio_filepath"),
  ],
)
@pytest.mark.parametrize("first", [True, False])
def test_broken_line_of_a_manifest_beside_tars_is_named(tmp_path, line_, words, first):
  tar(tmp_path / "t" / "audio_0.tar", {"u0.flac": recording("a"), "u1.flac": recording("b")})
  lines = [line_, ROW] if first else [ROW, line_]
  (tmp_path / "t" / "tarred_audio_manifest.json").write_text("\n".join(lines))
  wanted = f"tarred_audio_manifest.json:{1 if first else 2}: .*{words}"
  with pytest.raises(UserError, match=wanted):
    indexed(tmp_path / "t")


def test_json_of_other_kinds_beside_tars_is_passed_over(tmp_path):
  webdataset(tmp_path / "tars")
  (tmp_path / "tars" / "notes.json").write_text('{\n  "name": "x",\n  "audio_filepath": "y"\n}')
  (tmp_path / "tars" / "deep.json").write_text("[" * 100_000)
  assert len(indexed(tmp_path / "tars")) == len(SAID)


def test_transcript_that_cannot_be_read_leaves_its_utterance_out(tmp_path):
  told = {
    "bom.txt": b"\xef\xbb\xbfcaf\xc3\xa9",
    "latin.txt": b"caf\xe9",
    "cut.json": b'{"text": "a',
    "number.json": b'{"text": 7}',
    "half.json": b'{"text": "\\ud800"}',
    "long.json": b'{"text": "a", "duration": 1' + b"0" * 400 + b"}",
    "UPPER.TXT": b"a",
  }
  sound = {f"{name.split('.')[0]}.FLAC": recording("a") for name in told}
  tar(tmp_path / "t" / "0.tar", told | sound | {"README": b"x", "u.cls": b"1"})
  found = indexed(tmp_path / "t")
  assert texts_of(found) == {"bom": "café", "long": "a", "UPPER": "a"}
  reasons = dict(found.skipped)
  assert set(reasons) == {"latin", "cut", "number", "half"}
  assert "its .txt or .json cannot be read" in reasons["latin"]
  assert '"text" is 7' in reasons["number"] and "surrogate" in reasons["half"]


def test_members_that_are_not_decoded_are_left_out_and_counted(tmp_path):
  members = {"u0.flac": recording("a"), "u1.m4a": b"x", "u2.json": b"{}", "u3.xyz": b"x"}
  tar(tmp_path / "t" / "audio_0.tar", members)
  rows = [{"audio_filepath": f"u{i}.{kind}", "shard_id": 0} for i, kind in enumerate(SUFFIXES)]
  rows.append({"audio_filepath": "far.flac", "shard_id": 7})
  (tmp_path / "t" / "tarred_audio_manifest.json").write_text("\n".join(map(json.dumps, rows)))
  assert dict(indexed(tmp_path / "t").skipped) == {
    "u1.m4a": ".m4a is not read: make FLAC of these, with ffmpeg -i x.m4a x.flac",
    "u2.flac": "not in audio_0.tar",
    "u3.xyz": ".xyz is not read: make FLAC of these, with ffmpeg -i x.xyz x.flac",
    "far.flac": "there is no tar file of its shard_id, 7",
  }
  tar(tmp_path / "web" / "t" / "0.tar", members)
  (tmp_path / "index" / "index.json").unlink()
  status = line.main(["shard", str(tmp_path / "web"), f"--out={tmp_path / 'two'}"])
  found = sources.open_source(str(tmp_path / "two"), Options())
  assert status == 0 and [name for name, _ in found.skipped] == ["u1", "u2.json"]


SUFFIXES = ("flac", "m4a", "flac", "xyz")


def test_tars_behind_links_and_beside_audio(tmp_path, caplog):
  webdataset(tmp_path / "disk")
  folder = tmp_path / "here"
  folder.mkdir()
  (folder / "linked").symlink_to(tmp_path / "disk")
  assert len(indexed(folder)) == len(SAID)
  soundfile.write(str(folder / "stray.wav"), tone("a"), 16_000)
  assert not packing.is_tars(folder)
  assert sources.open_source(str(folder), Options()).ids == ["stray.wav"]
  assert "not read: 2 tar files beside recordings" in caplog.text


def test_names_of_members_need_be_no_utf8(tmp_path):
  tar(tmp_path / "t" / "0.tar", {"caf\udce9.flac": recording("a"), "caf\udce9.txt": b"a"})
  assert texts_of(indexed(tmp_path / "t")) == {"caf\\xe9": "a"}


def test_cuts_that_are_damaged_are_one_line(tmp_path):
  shar(tmp_path / "tars")
  cuts = tmp_path / "tars" / "cuts.000001.jsonl.gz"
  data = bytearray(cuts.read_bytes())
  data[12:40] = bytes(28)
  wrong = (bytes(data), gzip.compress(b"[" * 100_000), gzip.compress(b"[]"))
  for content in (*wrong, gzip.compress(b'{"id": "x", "start": 1' + b"0" * 400 + b"}")):
    cuts.write_bytes(content)
    with pytest.raises(UserError, match=r"cuts.000001.jsonl.gz cannot be read as Lhotse's cuts"):
      indexed(tmp_path / "tars")


def manifest(path: pathlib.Path, *rows: dict) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_manifest_speaks_for_the_tar_files_of_its_own_folder(tmp_path):
  for bucket, text in (("bucket1", "a"), ("bucket2", "ab")):
    tar(tmp_path / "t" / bucket / "audio_0.tar", {"u0.flac": recording(text)})
    row = {"audio_filepath": "u0.flac", "shard_id": 0, "duration": 0.2 * len(text), "text": text}
    manifest(tmp_path / "t" / bucket / "tarred_audio_manifest.json", row)
    manifest(tmp_path / "t" / bucket / "sharded_manifests" / "manifest_0.json", row)
  manifest(tmp_path / "t" / "all.json", row | {"text": "of all"})
  assert texts_of(indexed(tmp_path / "t")) == {"u0.flac": "a", "u0.flac#2": "ab"}
  one = tmp_path / "t" / "bucket1" / "audio_0.tar"
  assert line.main(["shard", str(one), f"--out={tmp_path / 'one'}"]) == 0
  opened = sources.open_source(str(tmp_path / "one"), Options())
  assert texts_of(opened) == {"u0.flac": "a"}


def test_a_manifest_speaks_for_folders_below_that_have_none(tmp_path):
  rows = []
  for i, text in enumerate(SAID):
    tar(tmp_path / "t" / "tars" / f"part{i % 2}" / f"audio_{i}.tar", {"u.flac": recording(text)})
    rows.append({"audio_filepath": "u.flac", "shard_id": i, "text": text})
  manifest(tmp_path / "t" / "train.jsonl", *rows, rows[0] | {"shard_id": 9})
  found = indexed(tmp_path / "t")
  assert sorted(found.texts) == sorted(SAID)
  assert found.skipped == [("u.flac", "there is no tar file of its shard_id, 9")]


def test_a_manifest_of_another_folder_is_not_read_and_said(tmp_path, caplog):
  webdataset(tmp_path / "t")
  manifest(tmp_path / "t" / "other" / "dev.jsonl", {"audio_filepath": "u0", "text": "wrong"})
  found = indexed(tmp_path / "t")
  assert list(found.texts) == SAID and found.skipped == []
  assert "not read: 1 manifests" in caplog.text and "dev.jsonl the first" in caplog.text


def test_links_and_sparse_files_in_tar_files(tmp_path):
  folder = tmp_path / "loose"
  folder.mkdir()
  for name in ("u0.flac", "u0.txt"):
    (folder / name).write_bytes(recording("ab") if name.endswith("flac") else b"ab")
    os.link(folder / name, folder / name.replace("u0", "u1"))
    (folder / name.replace("u0", "u2")).symlink_to(name)
  (folder / "README").symlink_to("u0.txt")
  with (folder / "u3.flac").open("wb") as file:
    file.truncate(1 << 20)
    file.seek(0)
    file.write(recording("a"))
  (tmp_path / "t").mkdir()
  names = sorted(path.name for path in folder.iterdir())
  pack = ["tar", "--sparse", "--format=gnu", "-cf", tmp_path / "t" / "0.tar", "-C", folder, *names]
  subprocess.run(pack, check=True)
  found = indexed(tmp_path / "t")
  assert texts_of(found) == {"u0": "ab", "u1": "ab"}
  np.testing.assert_array_equal(found.read(0), found.read(1))
  assert [name for name, _ in found.skipped] == ["u2", "u2.txt", "u3"]
  assert [reason[:15] for _, reason in found.skipped] == [
    *["a symbolic link"] * 2,
    "a sparse file, ",
  ]


def test_a_hard_link_out_of_the_tar_file_is_left_out(tmp_path):
  (tmp_path / "t").mkdir()
  tar(tmp_path / "t" / "0.tar", {"u0.flac": recording("a")})
  with tarfile.open(tmp_path / "t" / "0.tar", "a") as opened:
    entry = tarfile.TarInfo("u1.flac")
    entry.type, entry.linkname = tarfile.LNKTYPE, "elsewhere.flac"
    opened.addfile(entry)
  found = indexed(tmp_path / "t")
  reason = "a hard link to elsewhere.flac, which is not before it in the tar file"
  assert found.ids == ["u0"] and found.skipped == [("u1", reason)]


@pytest.mark.parametrize("named", ["", ".train"])
def test_lhotse_shar_without_numbers(tmp_path, named):
  shar(tmp_path / "t")
  for kind in ("recording.000000.tar", "cuts.000000.jsonl.gz"):
    (tmp_path / "t" / kind).rename(tmp_path / "t" / kind.replace(".000000", named))
  assert sorted(indexed(tmp_path / "t").texts) == sorted(SAID)


def test_lhotse_shar_without_its_cuts(tmp_path):
  shar(tmp_path / "t")
  (tmp_path / "t" / "cuts.000001.jsonl.gz").unlink()
  words = r"recording.000001.tar: its cuts, cuts.000001.jsonl.gz, are not beside it: --drop"
  with pytest.raises(UserError, match=words):
    indexed(tmp_path / "t")
  found = indexed(tmp_path / "t", "--drop")
  lost = str(tmp_path / "t" / "recording.000001.tar")
  assert len(found) == 2
  assert found.skipped == [(lost, "its cuts are not there or cannot be read")]


def test_keys_of_webdataset_end_at_the_first_dot(tmp_path):
  members = {f"d.x/{name}.flac": recording("a") for name in ("u0.mono", "u1.1", "u1.2", "u2")}
  texts = {"d.x/u0.txt": b"ab", "d.x/u1.1.txt": b"a", "d.x/u1.2.json": b'{"text": "b"}'}
  unused = {"d.x/u2.en.txt": b"a", "d.x/u3.txt": b"a"}
  tar(tmp_path / "t" / "0.tar", members | texts | {"d.x/u0.meta.json": b"{}"} | unused)
  found = indexed(tmp_path / "t")
  told = {"d.x/u0.mono": "ab", "d.x/u1.1": "a", "d.x/u1.2": "b", "d.x/u2": None}
  assert texts_of(found) == told
  assert found.skipped == [
    (name, "no recording in its tar file is named as it is") for name in unused
  ]


def test_compressed_tar_files_are_named_with_the_cure(tmp_path, caplog):
  webdataset(tmp_path / "t")
  first, second = sorted((tmp_path / "t").iterdir())
  packed = first.with_name("000000.tar.gz")
  packed.write_bytes(gzip.compress(first.read_bytes()))
  assert len(indexed(tmp_path / "t")) == len(SAID)  # what was unpacked is not missed
  shutil.rmtree(tmp_path / "index")
  first.unlink()
  found = indexed(tmp_path / "t")
  assert len(found) == 2 and found.skipped == [(str(packed), "compressed: gunzip")]
  assert "1 compressed tar files are not read, 000000.tar.gz the first: gunzip" in caplog.text
  second.rename(second.with_suffix(".tgz"))
  for given in (tmp_path / "t", packed):
    with pytest.raises(UserError, match="no plain tar file: . compressed tar files .* gunzip"):
      line.main(["shard", str(given), f"--out={tmp_path / 'index'}"])


def test_lengths_of_webdataset_are_those_of_the_audio(tmp_path):
  told = {f"u{i}.json": f'{{"text": "ab", "duration": {s}}}'.encode() for i, s in enumerate((9, 1))}
  tar(tmp_path / "t" / "0.tar", told | {f"u{i}.flac": recording("abc" * 4) for i in range(2)})
  np.testing.assert_allclose(indexed(tmp_path / "t").durations, 2.4)


@pytest.mark.parametrize("make", [nemo, shar])
def test_recording_that_is_shorter_than_is_said(tmp_path, make):
  make(tmp_path / "t")
  said = next(p for p in sorted((tmp_path / "t").iterdir()) if ".json" in p.name)
  lines = (gzip.decompress if make is shar else bytes)(said.read_bytes()).splitlines()
  row = json.loads(lines[0]) | {"duration": 0.8}
  past = json.loads(lines[-1]) | {"start": 5.0, "offset": 5.0}
  lines = [json.dumps(row).encode(), *lines[1:-1], json.dumps(past).encode()]
  said.write_bytes((gzip.compress if make is shar else bytes)(b"\n".join(lines)))
  found = indexed(tmp_path / "t")
  # A second of slack, as of manifests.
  assert found.durations[0] == 0.8 and len(found) == 4 - (make is shar)
  ((_, reason),) = found.skipped
  assert reason == f"is shorter than the {5.2 if make is nemo else 5.4:g} s that the manifest says"


def test_an_offset_beyond_the_recording_is_left_out(tmp_path):
  tar(tmp_path / "t" / "audio_0.tar", {"u0.flac": recording("a"), "u1.flac": recording("a")})
  rows = [{"audio_filepath": "u0.flac"}, {"audio_filepath": "u1.flac", "offset": 0.19}]
  manifest(tmp_path / "t" / "x.json", *rows, {"audio_filepath": "u0.flac", "offset": 10})
  reasons = [reason for _, reason in indexed(tmp_path / "t").skipped]
  assert reasons == [
    "is shorter than the 10 s that the manifest says",
    "empty or too short (0.01 s)",
  ]


def test_rows_are_walked_once_and_tar_files_read_once(tmp_path, monkeypatch):
  nemo(tmp_path / "t")
  there = tars.found(tmp_path / "t")
  told = listings.manifests(tmp_path / "t", there)
  assert [set(listings.of_tar(told[tar], tar).here) for tar in there] == [
    {"u0.flac", "u2.flac"},
    {"u1.flac", "u3.flac"},
  ]
  reads = []
  read = tars._Hashed.read
  monkeypatch.setattr(tars._Hashed, "read", lambda *args: reads.append(read(*args)) or reads[-1])
  found = tars.contents(there[0], listings.of_tar(told[there[0]], there[0]))
  assert b"".join(reads) == there[0].read_bytes()
  assert found.sha256 == index.digest(there[0])


def test_rows_without_a_shard_id_give_way_to_those_with_one(tmp_path):
  nemo(tmp_path / "t")
  manifest(tmp_path / "t" / "dev.json", {"audio_filepath": "u0.flac", "text": "of another"})
  assert texts_of(indexed(tmp_path / "t"))["u0.flac"] == "a"


def test_tar_that_is_gone_after_opening_names_the_folder_of_the_index(tmp_path):
  webdataset(tmp_path / "t")
  (tmp_path / "index" / "deep").mkdir(parents=True)
  out = tmp_path / "index" / "deep" / "er"
  assert line.main(["shard", str(tmp_path / "t"), f"--out={out}"]) == 0
  there = shards.opened(out, sources.NO_LIMITS)
  for path in (tmp_path / "t").iterdir():
    path.unlink()
  with pytest.raises(UserError, match=f"000000.tar cannot be read .* --verify={out}$"):
    there.read(0)
