"""Everything that training needs, as plain values and objects."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxkd import files
from jaxkd.data import pipeline, plan
from jaxkd.data.sources import Source
from jaxkd.data.texts import Spelling
from jaxkd.devices import layout, mesh, sharding
from jaxkd.inference.hypotheses import Hypotheses
from jaxkd.labels import Vocabulary
from jaxkd.models import kept, registry
from jaxkd.models.acoustic import AcousticModel
from jaxkd.models.registry import Architecture
from jaxkd.teacher.store import Settings
from jaxkd.teacher.stored import Stored, parts
from jaxkd.training import step as step_lib
from jaxkd.training.objective import Objective
from jaxkd.types import Batch


@dataclasses.dataclass(frozen=True)
class Data:
  """The opened splits; None where the config names none."""

  train: Source
  dev: Source | None
  test: Source | None

  def splits(self) -> dict[str, Source]:
    """Name → source of those that are there."""
    return {"train": self.train} | self.held_out()

  def held_out(self) -> dict[str, Source]:
    """The same without the training data."""
    found = {"dev": self.dev, "test": self.test}
    return {name: source for name, source in found.items() if source is not None}


@dataclasses.dataclass(frozen=True)
class Blueprint:
  """A model that is to be trained.

  Attributes:
    graphdef, like: its structure and abstract parameters (`nnx.split`).
    vocabulary: its classes.
    params: typed key → first parameters: drawn, or read from a folder.
    architecture: its sizes, what of it is not trained, and what a workdir keeps of a Hugging Face
      model.
  """

  graphdef: Any
  like: Any
  vocabulary: Vocabulary
  params: Callable[[jax.Array], Any]
  architecture: Architecture

  def save(self, folder: pathlib.Path) -> None:
    """Writes to a workdir what `kept.read` needs besides config, vocabulary and parameters."""
    if self.architecture.description is not None:
      files.write_json(folder / kept.DESCRIPTION, self.architecture.description)

  @functools.cached_property
  def _kept(self) -> Any:
    """The structure without what only training needs."""
    return self.architecture.structure(len(self.vocabulary.symbols))[0]

  def with_params(self, params) -> AcousticModel:
    """The model in evaluation mode, as it is kept."""
    params = registry.as_kept(params)
    frame_samples = self.architecture.frame_samples
    return AcousticModel(self._kept, params, self.vocabulary, frame_samples)


@dataclasses.dataclass(frozen=True)
class Run:
  """Everything that training needs.

  Attributes:
    workdir: where all is kept.
    facts: of results.json: variant, recipe, kd_scale, seed.
    seed: of all random numbers.
    mesh: devices.
    blueprint: of the model that is trained.
    teacher: frozen, stored, or None.
    teacher_source: where it lies; "" for none.
    spoken_for: splits that it has figures on, of dev and test: a store need not have both.
    objective, optimizer, schedule: what `step` and the log need.
    data: the opened splits.
    shapes: of training batches.
    eval_shapes: of evaluation batches.
    profile: first and last update that are traced, or None.
    epochs, eval_every_epochs, save_every_steps, save_every_minutes: of the loop.
    average: best checkpoints in the final model.
    hypotheses: of the training data, where they are learnt from.
    spelling: of its transcripts, where these are read.
    plan_options: of `plan.epoch_plan`.
    noise_db: (low, high), or None.
  """

  workdir: pathlib.Path
  facts: dict
  seed: int
  mesh: jax.sharding.Mesh
  blueprint: Blueprint
  teacher: AcousticModel | Stored | None
  teacher_source: str
  spoken_for: frozenset[str]
  objective: Objective
  optimizer: optax.GradientTransformation
  schedule: optax.Schedule
  data: Data
  shapes: tuple[plan.Shape, ...]
  eval_shapes: tuple[plan.Shape, ...]
  profile: tuple[int, int] | None
  epochs: int
  eval_every_epochs: int
  save_every_steps: int
  save_every_minutes: float
  average: int
  hypotheses: Hypotheses | None
  spelling: Spelling | None
  plan_options: dict
  noise_db: tuple[float, float] | None

  @property
  def taught(self) -> Stored | None:
    """The stored teacher whose frames are in the batches; None for one that runs, or for none."""
    is_stored = isinstance(self.teacher, Stored) and self.objective.asks_teacher
    return self.teacher if is_stored else None

  def teacher_on(self, split: str) -> AcousticModel | Stored | None:
    """What speaks for the teacher on dev or test data."""
    return self.teacher if split in self.spoken_for else None

  def epoch_plan(self, epoch: int) -> plan.Plan:
    """Global batches of an epoch; the same in every process and after a resume."""
    return plan.epoch_plan(
      self.data.train.durations, self.shapes, seed=self.seed, epoch=epoch, **self.plan_options
    )

  def train_batches(self, epoch: int, planned, start: int):
    """HostBatches of an epoch's plan from batch `start` on."""
    return pipeline.batches(
      self.data.train,
      planned,
      spelling=self.spelling,
      hypotheses=self.hypotheses,
      taught=self.taught,
      seed=self.seed,
      epoch=epoch,
      noise_db=self.noise_db,
      start=start,
      shards=mesh.my_shards(self.mesh),
    )

  def batch_struct(self, shape: plan.Shape):
    """Shapes of a global training batch."""
    stored_as = None if self.taught is None else self.taught.settings
    frame_samples = self.blueprint.architecture.frame_samples
    return batch_struct(shape, self.mesh, self.objective, stored_as, frame_samples)

  def init_state(self) -> step_lib.TrainState:
    """A fresh model and optimiser, laid out on the mesh."""
    key = jax.random.fold_in(jax.random.key(self.seed), 0x57D)
    where = self.state_shardings
    params = layout.put(self.blueprint.params(key), where.params)
    opt_state = jax.jit(self.optimizer.init, out_shardings=where.opt_state)(params)
    state = step_lib.TrainState.fresh(params, opt_state, self.objective)
    everywhere = sharding.replicated(self.mesh)
    put = lambda x: mesh.put(x, everywhere)
    return state._replace(
      step=put(state.step), terms=put(state.terms), last_skipped=put(state.last_skipped)
    )

  @property
  def state_shardings(self) -> step_lib.TrainState:
    """Where every array of the training state lies."""
    like = self.blueprint.like
    opt_state = jax.eval_shape(self.optimizer.init, like)
    return sharding.of_state(self.mesh, step_lib.TrainState.fresh(like, opt_state, self.objective))


def batch_struct(
  shape: plan.Shape,
  devices: jax.sharding.Mesh,
  objective: Objective,
  stored_as: Settings | None,
  frame_samples: int,
) -> Batch:
  """Shapes of a global training batch.

  Args:
    shape: its own.
    devices: mesh.
    objective: which asks for parts of it.
    stored_as: how the frames of a stored teacher are kept, where these are in it; else None.
    frame_samples: audio samples in a frame.
  """
  needs, sizes = objective.needs, {}
  if stored_as is not None:
    needs |= parts(stored_as)
    sizes = dict(frames=shape.samples // frame_samples, slots=stored_as.slots)
  return mesh.batch_struct(shape, devices, needs=needs, **sizes)
