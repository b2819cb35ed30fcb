"""Decoders: threads or processes that take one utterance at a time, and are kept between epochs."""

import atexit
import functools
import itertools
import os
import pathlib
import pickle
import shutil
import signal
import tempfile
import threading
import weakref
from collections.abc import Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process

import numpy as np
import soxr

from jaxkd.data import audio
from jaxkd.data.audio import BrokenAudio
from jaxkd.data.sources import Source
from jaxkd.errors import TryAgain
from jaxkd.types import SAMPLE_RATE_HZ

_numbers = itertools.count()
_lock = threading.Lock()
_workers = 0
_names: weakref.WeakKeyDictionary[Source, str] = weakref.WeakKeyDictionary()
_opened: dict[str, Source] = {}  # in a worker process, by the file that it was read from


def use(workers: int) -> None:
  """Has audio decoded by so many processes from now on; by a thread for each core where it is 0.

  A setting of the process, as the pool is: whatever reads audio has the same.
  """
  global _workers
  _workers = workers


def decoded(source: Source, wanted: Sequence[tuple[int, float]]) -> list:
  """The samples of utterances at speed factors, in their order; BrokenAudio in the place of some.

  Args:
    source: of the utterances.
    wanted: (utterance, speed) of each.

  Raises:
    TryAgain: a process has died.
    UserError: what reading raises.
  """
  with _lock:  # several batches begin at a time
    pool = _processes(_workers) if _workers else _threads()
    work = functools.partial(*((_by_name, _name(source)) if _workers else (_one, source)))
  try:
    waiting = [pool.submit(work, utterance, speed) for utterance, speed in wanted]
    return [future.result() for future in waiting]
  except BrokenProcessPool as error:
    _processes.cache_clear()  # who goes on in this process gets new ones
    raise TryAgain(
      "a process that decodes audio (config.data.workers) has died, perhaps for want of memory: "
      f"{' '.join(str(error).split())} The same command goes on from the last save"
    ) from error


@functools.cache
def _threads() -> futures.ThreadPoolExecutor:
  return futures.ThreadPoolExecutor(audio.cores(), "decode")


@functools.lru_cache(maxsize=1)
def _processes(workers: int) -> futures.ProcessPoolExecutor:
  return futures.ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (_folder(),))


def _start_worker(folder: pathlib.Path) -> None:
  """Ctrl-C is for the process that started this one; where that dies, this one ends."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)

  def end_with_parent() -> None:
    parent_process().join()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)

  threading.Thread(target=end_with_parent, daemon=True).start()


@functools.cache
def _folder() -> pathlib.Path:
  folder = pathlib.Path(tempfile.mkdtemp(prefix="jaxkd-sources-"))
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  return folder


def _name(source: Source) -> str:
  """The file by which worker processes know a source; it is written once.

  A message to them, as multiprocessing would send it with every utterance: it is read by nobody
  else, and lies in a folder that nobody else can write in.
  """
  if source not in _names:
    path = _folder() / f"{next(_numbers)}.pickle"
    path.write_bytes(pickle.dumps(source))
    _names[source] = str(path)
    weakref.finalize(source, path.unlink, missing_ok=True)
  return _names[source]


def _by_name(name: str, utterance: int, speed: float):
  if name not in _opened:
    for gone in [other for other in _opened if not os.path.exists(other)]:
      del _opened[gone]  # nothing of it is asked for again
    _opened[name] = pickle.loads(pathlib.Path(name).read_bytes())
  return _one(_opened[name], utterance, speed)


def _one(source: Source, utterance: int, speed: float) -> np.ndarray | BrokenAudio:
  try:
    return _at_speed(source.read(utterance), speed)
  except BrokenAudio as error:
    return error


def _at_speed(samples: np.ndarray, speed: float) -> np.ndarray:
  """f32[S], played `speed` times as fast: pitch and tempo change together."""
  if speed == 1.0:
    return samples
  return soxr.resample(samples, SAMPLE_RATE_HZ * speed, SAMPLE_RATE_HZ, quality="LQ")
