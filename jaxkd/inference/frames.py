"""What models say of every frame of a source: the one loop over batches outside of training."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxkd import console
from jaxkd.data import pipeline, plan
from jaxkd.data.pipeline import HostBatch
from jaxkd.data.sources import Source
from jaxkd.devices import mesh as mesh_lib
from jaxkd.devices import sharding
from jaxkd.errors import UserError
from jaxkd.models.acoustic import AcousticModel
from jaxkd.teacher.stored import Stored
from jaxkd.types import Batch, FrameOutput

# Audio in an evaluation batch, for each device.
_SECONDS = 80.0
# What a `Remembered` model keeps at most, in each process.
_MOST_BYTES = 2**30


class Spoken(NamedTuple):
  """What models say of a batch.

  Attributes:
    host: this process's rows: their ids, and what could not be decoded.
    outputs: model's name → output of the global batch, its rows split over the devices.
    seconds: that the models took, compiling left out; 0 where that was not asked for.
  """

  host: HostBatch
  outputs: dict[str, FrameOutput]
  seconds: float

  def my_rows(self, name: str) -> FrameOutput:
    """This process's rows of a model's output, as NumPy arrays."""
    return FrameOutput(*map(mesh_lib.my_rows, self.outputs[name]))


class Remembered:
  """A frozen model whose output on one source is computed once and kept in this host's memory."""

  def __init__(self, model: AcousticModel):
    self.model, self.frame_samples = model, model.frame_samples
    self._kept: dict[int, FrameOutput] = {}
    self._free = _MOST_BYTES

  def of_batch(
    self, number: int, host: HostBatch, batch: Batch, devices: jax.sharding.Mesh
  ) -> FrameOutput:
    """The output of the source's batch of that number."""
    del host
    if number in self._kept:
      return mesh_lib.put_rows(self._kept[number], devices)
    out = self.model(batch.audio, batch.audio_len)
    mine = FrameOutput(*map(mesh_lib.my_rows, out))
    size = sum(x.nbytes for x in mine)
    if size <= self._free:
      self._kept[number] = mine
      self._free -= size
    return out


def evaluation_shapes(
  durations: np.ndarray, devices: jax.sharding.Mesh, frame_samples: int
) -> tuple[plan.Shape, ...]:
  """Two shapes of batches, so that little is compiled, with as much audio for each device.

  Args:
    durations: f64[utterances], seconds, of all sources that are to share programs.
    devices: mesh.
    frame_samples: audio samples in an output frame of the models.
  """
  rows, seconds = len(durations), _SECONDS * devices.size
  found = plan.shapes(durations, batch_seconds=seconds, buckets=2, frame_samples=frame_samples)
  return tuple(shape._replace(rows=min(shape.rows, rows)) for shape in found)


def frames(
  models: Mapping[str, AcousticModel | Remembered | Stored],
  source: Source,
  devices: jax.sharding.Mesh,
  *,
  shapes: tuple[plan.Shape, ...] | None = None,
  planned: Sequence[plan.PlannedBatch] | None = None,
  timed: bool = False,
  description: str = "",
) -> Iterator[Spoken]:
  """What models say of every utterance of a source, one utterance a row, batch by batch.

  Args:
    models: name → model; all of them hear the same batches.
    source: of the utterances.
    devices: mesh; batches are split over all of it.
    shapes: of the batches; None for `evaluation_shapes` of this source.
    planned: the batches themselves; None for every utterance once, at its own speed.
    timed: whether the models' time is measured, which makes the host wait for the devices.
    description: beside the progress bar.
  """
  if shapes is None and planned is None:
    frame_samples = max(model.frame_samples for model in models.values())
    shapes = evaluation_shapes(source.durations, devices, frame_samples)
  if planned is None:
    planned = plan.evaluation_plan(source.durations, shapes)
  compiled = set()
  with console.progress(description or source.name, len(planned)) as update:
    hosts = pipeline.batches(source, planned, shards=mesh_lib.my_shards(devices))
    for number, host in enumerate(hosts):
      batch = mesh_lib.put_rows(host.batch, devices)
      with sharding.on(devices):
        if timed and batch.audio.shape not in compiled:
          jax.block_until_ready(_outputs(models, number, host, batch, devices))
          compiled.add(batch.audio.shape)
        started = time.perf_counter()
        outputs = _outputs(models, number, host, batch, devices)
        if timed:
          jax.block_until_ready(outputs)
      yield Spoken(host, outputs, time.perf_counter() - started if timed else 0.0)
      update()


def log_softmax(logits: np.ndarray) -> np.ndarray:
  """f[..., V]: log probabilities, on the host: rows of any length need no program of their own."""
  shifted = logits - logits.max(-1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def no_numbers(utterance: str) -> UserError:
  """The error of an utterance of which a model says NaN."""
  return UserError(
    f"{utterance}: a model says no numbers of it (NaN): its parameters are damaged, or "
    "config.dtype=bfloat16 is too little for them"
  )


def _outputs(models, number: int, host: HostBatch, batch: Batch, devices):
  return {
    name: model(batch.audio, batch.audio_len)
    if isinstance(model, AcousticModel)
    else model.of_batch(number, host, batch, devices)
    for name, model in models.items()
  }
