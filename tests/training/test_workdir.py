"""What the files of a run say of the source that made it."""

import io
import subprocess
import sys
import tarfile

import corpus
from jaxkd.training import workdir


def git(*arguments: str) -> bytes:
  line = ["git", *arguments]
  return subprocess.run(line, cwd=corpus.ROOT, capture_output=True, check=True).stdout


def test_commit_is_known_in_an_archive_too(tmp_path):
  packed = git("archive", "HEAD", "jaxkd")
  with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
    archive.extractall(tmp_path, filter="data")
  ask = [sys.executable, "-c", "from jaxkd import workdir; print(workdir.commit())"]
  found = subprocess.run(ask, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
  head = git("rev-parse", "HEAD").decode()[:10]
  assert found.strip() == head
  assert workdir.commit() in (head, f"{head}-dirty")
