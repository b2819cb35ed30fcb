"""Where compiled programs are kept, and what is said where they are not."""

import contextlib
import hashlib
import logging
import os
import pathlib
import threading
from concurrent import futures
from types import SimpleNamespace

import jax
import pytest

from jaxkd import files
from jaxkd.devices import programs

OF_JAX = "JAX_COMPILATION_CACHE_DIR"


@pytest.fixture(autouse=True)
def told_nothing(monkeypatch):
  # What is put into the environment is taken out again.
  monkeypatch.setenv(OF_JAX, "")
  for name in (OF_JAX, "JAXKD_PROGRAMS"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(programs, "_ours", False)


def test_they_are_kept_in_the_users_cache(tmp_path):
  programs.keep(lambda: tmp_path)
  folder = pathlib.Path(os.environ[OF_JAX])
  assert folder.is_dir() and folder.parent == tmp_path / "programs"


@pytest.mark.parametrize(
  ("name", "value", "kept"),
  [
    ("JAXKD_PROGRAMS", "off", None),
    ("JAXKD_PROGRAMS", "gs://mine/programs", "gs://mine/programs"),
    (OF_JAX, "/told", "/told"),
  ],
)
def test_where_it_is_said(monkeypatch, name, value, kept):
  monkeypatch.setenv(name, value)
  programs.keep(lambda: pytest.fail("not asked"))
  assert os.environ.get(OF_JAX) == kept


def test_a_folder_that_cannot_be_written_is_one_line(monkeypatch, caplog, tmp_path):
  (tmp_path / "file").touch()
  monkeypatch.setenv("JAXKD_PROGRAMS", str(tmp_path / "file"))
  programs.keep(lambda: tmp_path)
  assert OF_JAX not in os.environ
  (record,) = caplog.records
  assert "are not kept (Not a directory): JAXKD_PROGRAMS=FOLDER" in record.getMessage()


@pytest.mark.parametrize("kept", [True, False])
def test_what_two_want_is_compiled_by_one_at_a_time(kept, tmp_path):
  events, both = [], threading.Barrier(2)

  class Lowered:
    as_text = staticmethod(lambda: "the same")

    def compile(self):
      events.append("begins")
      with contextlib.suppress(threading.BrokenBarrierError):
        both.wait(0.3)  # there at once only where nobody waits
      events.append("ends")
      return "program"

  before = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", str(tmp_path) if kept else None)
  try:
    with futures.ThreadPoolExecutor(2) as pool:
      found = [f.result() for f in [pool.submit(programs.compiled, Lowered()) for _ in range(2)]]
  finally:
    jax.config.update("jax_compilation_cache_dir", before)
  assert found == ["program"] * 2
  assert events == ["begins", "ends"] * 2 if kept else events[:2] == ["begins"] * 2


def test_nobody_waits_for_ever(tmp_path, monkeypatch, caplog):
  caplog.set_level("INFO")
  monkeypatch.setattr(programs, "_LONGEST_WAIT_SECONDS", 0.3)
  lowered = SimpleNamespace(as_text=lambda: "held", compile=lambda: "program")
  name = hashlib.sha256(b"held").hexdigest()[:3]
  before = jax.config.jax_compilation_cache_dir
  jax.config.update("jax_compilation_cache_dir", str(tmp_path))
  try:
    with files.locked(tmp_path / f".{name}.lock"):
      assert programs.compiled(lowered) == "program"
  finally:
    jax.config.update("jax_compilation_cache_dir", before)
  assert "another process is compiling this program" in caplog.text
  monkeypatch.setattr(programs, "_MOST_BYTES", -1)
  programs._tidy(tmp_path)
  assert (tmp_path / f".{name}.lock").exists()  # which others may hold


def test_the_oldest_go(monkeypatch, tmp_path):
  for age, name in enumerate("abc"):
    (tmp_path / name).write_bytes(bytes(10))
    os.utime(tmp_path / name, (1000 - age, 1000 - age))
  monkeypatch.setattr(programs, "_MOST_BYTES", 20)
  programs._tidy(tmp_path)
  assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_what_another_process_has_removed_is_no_mistake(monkeypatch, tmp_path):
  for name in ("gone", "there"):
    (tmp_path / name).write_bytes(b"x")
  listed = list(os.scandir(tmp_path))
  (tmp_path / "gone").unlink()
  monkeypatch.setattr(os, "scandir", lambda folder: listed)
  monkeypatch.setattr(programs, "_MOST_BYTES", 0)
  programs._tidy(tmp_path)
  assert not (tmp_path / "there").exists()


def test_processes_on_cpu_keep_none_but_what_jax_was_told(monkeypatch):
  changed = []
  config = SimpleNamespace(jax_compilation_cache_dir="a", update=lambda *what: changed.append(what))
  monkeypatch.setattr(jax, "config", config)
  for ours in (False, True):
    monkeypatch.setattr(programs, "_ours", ours)
    programs.check_shared(lambda value: pytest.fail("not asked"), is_first=True)
    assert changed == [("jax_compilation_cache_dir", None)] * ours


@pytest.mark.parametrize(
  ("places", "kept"),
  [
    (("a", "a"), True),
    (("a", "b"), False),
    (("a", ""), False),
    (("", ""), None),
    (("gs://b/c", "gs://b/c"), None),
  ],
)
def test_processes_keep_them_where_all_see_one_folder(monkeypatch, caplog, tmp_path, places, kept):
  caplog.set_level(logging.INFO)
  for name in "ab":
    (tmp_path / name).mkdir()
  barrier, said, local = threading.Barrier(2), [None, None], threading.local()

  class Config:
    """Of two processes, which are threads here."""

    @property
    def jax_compilation_cache_dir(self):
      place = places[local.number]
      return str(tmp_path / place) if place and "://" not in place else place

    def update(self, name, value):
      changed.append((local.number, name, value))

  def gather(value):
    said[local.number] = value
    barrier.wait(5)
    found = list(said)
    barrier.wait(5)
    return found

  def process(number):
    local.number = number
    programs.check_shared(gather, is_first=number == 0)

  changed = []
  monkeypatch.setattr(jax, "config", Config())
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  monkeypatch.setattr(programs, "_ours", True)
  threads = [threading.Thread(target=process, args=(number,)) for number in (0, 1)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  off = [(number, "jax_compilation_cache_dir", None) for number in (0, 1)]
  assert sorted(changed) == (off if kept is False else [])
  said_of = [r for r in caplog.records if r.name == programs.__name__]
  assert len(said_of) == 2 * (kept is False)
  assert not list(tmp_path.glob("*/*"))
