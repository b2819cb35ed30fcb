"""Small files are whole or not there, and stay untouched where nothing changes."""

import json
import os
import subprocess
import sys

import pytest

import corpus
from jaxkd import files
from jaxkd.errors import UserError

# Writes two versions of a file in turn until it is killed.
WRITER = """
import pathlib, sys
from jaxkd import files
path, size = pathlib.Path(sys.argv[1]), 1 << 20
print("writing", flush=True)
while True:
  files.write_bytes(path, b"a" * size)
  files.write_bytes(path, b"b" * size)
"""


def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path):
  path = tmp_path / "deep" / "x.bin"
  for _ in range(5):
    line = [sys.executable, "-c", WRITER, str(path)]
    process = subprocess.Popen(line, cwd=corpus.ROOT, stdout=subprocess.PIPE)
    process.stdout.readline()
    while not path.exists():
      assert process.poll() is None
    process.kill()
    process.communicate()
    found = path.read_bytes()
    assert len(found) == 1 << 20 and len(set(found)) == 1
  files.write_json(path, [1])
  assert files.read_json(path) == [1]


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
  path = tmp_path / "x.json"
  files.write_json(path, {"a": 1})

  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(OSError, match="No space left"):
    files.write_json(path, {"a": 2})
  assert files.read_json(path) == {"a": 1} and os.listdir(tmp_path) == ["x.json"]


def test_the_same_content_is_not_written(tmp_path):
  path = tmp_path / "x.json"
  files.write_json(path, {"a": "ü"})
  before = path.stat()
  files.write_json(path, {"a": "ü"})
  assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
  files.write_json(path, {"a": "u"})
  assert path.stat().st_ino != before.st_ino


def test_json_lines_keep_what_looks_like_the_end_of_a_line(tmp_path):
  rows = [
    {"text": "one\u2028two\x85three\r\nfour"},
    {"text": "\ud83d from a name of another encoding"},
  ]
  path = tmp_path / "folder" / "x.jsonl"
  files.write_jsonl(path, rows)
  assert files.read_jsonl(path) == rows
  assert path.read_text(encoding="utf-8").count("\n") == 2
  files.write_json(path, rows)
  assert json.loads(path.read_text(encoding="utf-8")) == rows


def test_a_growing_file_may_be_cut_anywhere(tmp_path):
  rows = [{"text": "über", "n": 1}, {"text": "für", "n": 22}]
  path = tmp_path / "x.jsonl"
  files.write_jsonl(path, rows)
  whole = path.read_bytes()
  first = whole.index(b"\n") + 1
  for length in range(len(whole) + 1):
    path.write_bytes(whole[:length])
    wanted = rows[: (length >= first - 1) + (length >= len(whole) - 1)]
    assert files.read_jsonl(path, growing=True) == wanted
  path.write_bytes(whole[: first + 5])
  with pytest.raises(UserError, match=r"x\.jsonl, line 2: "):
    files.read_jsonl(path)
  path.write_bytes(whole[5:])
  with pytest.raises(UserError, match=r"x\.jsonl, line 1: "):
    files.read_jsonl(path, growing=True)


@pytest.mark.parametrize(
  ("content", "words"),
  [
    (b'{"a": ', r"x\.json cannot be read: Expecting value"),
    (b"\xff\xff\xff\xff", r"x\.json cannot be read: .*utf-8"),
    (b"[1]", r"x\.json must hold a JSON object"),
    (None, r"x\.json cannot be read: No such file"),
  ],
)
def test_what_cannot_be_read_is_named(tmp_path, content, words):
  path = tmp_path / "x.json"
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(UserError, match=words):
    files.read_json(path, kind=dict)
