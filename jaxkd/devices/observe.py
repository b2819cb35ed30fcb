"""How fast a run is and what it waits for: figures for the log, and traces of chosen steps."""

import pathlib
import time
from collections.abc import Iterable, Iterator

import jax

from jaxkd.devices.chips import PEAK_FLOPS


class Profile:
  """Writes an XLA trace of some updates, for xprof, TensorBoard or Perfetto."""

  def __init__(self, folder: pathlib.Path, steps: tuple[int, int] | None):
    self._folder, self._steps, self._on = folder, steps, False

  def before(self, step: int) -> None:
    """Starts before the first of the updates, or of those that are left of a resumed run."""
    if self._steps and not self._on and self._steps[0] <= step <= self._steps[1]:
      jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
      self._on = True

  def after(self, step: int, state) -> None:
    """Ends when the last of them is computed."""
    if self._on and step >= self._steps[1]:
      jax.block_until_ready(state)
      self.close()

  def close(self) -> None:
    """Ends a trace that is still on."""
    if self._on:
      jax.profiler.stop_trace()
      self._on = False


class Meter:
  """Audio, time and waiting since the last reading."""

  def __init__(self):
    self._restart()

  def _restart(self) -> None:
    self._started = time.monotonic()
    self._waited = self._real = self._room = self._flops = 0.0

  def waiting_for(self, batches: Iterable) -> Iterator:
    """The same batches; the time until each of them is there counts as waiting."""
    iterator = iter(batches)
    while True:
      before = time.monotonic()
      batch = next(iterator, None)
      self._waited += time.monotonic() - before
      if batch is None:
        return
      yield batch

  def add(self, audio_seconds: float, room_seconds: float, flops: float = 0.0) -> None:
    """One global batch: its real audio, with padding, and the operations of its update."""
    self._real += audio_seconds
    self._room += room_seconds
    self._flops += flops

  def read(self) -> dict[str, float]:
    """Figures since the last call; the device must have finished.

    audio_per_second: seconds of real audio a second, over all devices. padding: share of the
    samples. input_wait: share of the time that this process waited for batches. device_gib: peak of
    memory on the first device, where it is known. teraflops: of products and convolutions a second,
    over all devices. utilisation: its share of the devices' peak in bfloat16, where that is known.
    """
    seconds = max(time.monotonic() - self._started, 1e-9)
    row = {
      "audio_per_second": round(self._real / seconds, 2),
      "padding": round(1 - self._real / max(self._room, 1e-9), 4),
      "input_wait": round(self._waited / seconds, 4),
    }
    if self._flops:
      row["teraflops"] = round(self._flops / seconds / 1e12, 4)
    if peak := PEAK_FLOPS.get(jax.local_devices()[0].device_kind):
      row["utilisation"] = round(self._flops / seconds / (peak * jax.device_count()), 4)
    memory = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if memory is not None:
      row["device_gib"] = round(memory / 2**30, 3)
    self._restart()
    return row
