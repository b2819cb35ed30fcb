"""A config's train steps at full size, compiled for devices that need not be there."""

import dataclasses
import math
import re
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxkd import config as config_lib
from jaxkd import files
from jaxkd.data import plan
from jaxkd.devices import flops, hlo, sharding
from jaxkd.devices.slices import COMPILER_OPTIONS
from jaxkd.errors import UserError
from jaxkd.labels import BLANK, Vocabulary, choose
from jaxkd.models import registry, rounding
from jaxkd.models.huggingface import known
from jaxkd.models.registry import Architecture
from jaxkd.teacher import sources as teachers
from jaxkd.teacher import store
from jaxkd.teacher.stored import Stored
from jaxkd.training import batches, objective, optim
from jaxkd.training import step as step_lib
from jaxkd.training.objective import Objective
from jaxkd.training.run import batch_struct
from jaxkd.training.terms import INNER_HEADS, TEACHER_ENCODINGS
from jaxkd.types import HYPOTHESES, TRANSCRIPTS

_LABELS_PER_SECOND = 20.0  # characters; the fastest utterance decides


@dataclasses.dataclass(frozen=True)
class Step:
  """One train step to compile.

  Attributes:
    name: for people.
    block: the config's block that says how it trains.
    config: of the run that it belongs to.
    graphdef, like: structure and abstract parameters of what it trains.
    teacher, teacher_like: of the frozen model beside it, or None.
    stored_as: of the stored teacher whose frames are in the batches, or None.
    join_seconds: of rows of joined utterances, or 0.
    objective, optimizer: of the step.
    frame_samples: audio samples in an output frame.
  """

  name: str
  block: str
  config: ConfigDict
  graphdef: Any
  like: Any
  teacher: Any
  teacher_like: Any
  stored_as: store.Settings | None
  join_seconds: float
  objective: Objective
  optimizer: optax.GradientTransformation
  frame_samples: int


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled step; all of one chip.

  Attributes:
    arguments, outputs, temporaries, code: bytes of HBM; outputs without those that take the place
      of arguments.
    in_place: bytes of those.
    flops: of matrix products and convolutions, over all chips.
    cost: of a run; None of GPUs, whose compiler counts no cycles.
    compile_seconds: it took on this machine.
    refusal: the compiler's reason where it does not fit, else "".
  """

  arguments: float
  flops: float
  compile_seconds: float
  outputs: float = 0.0
  in_place: float = 0.0
  temporaries: float = 0.0
  code: float = 0.0
  cost: hlo.Cost | None = None
  refusal: str = ""

  @property
  def hbm(self) -> float:
    return self.arguments + self.outputs + self.temporaries + self.code


def steps_of(config: ConfigDict) -> list[Step]:
  """The train steps of a config: the student's, and the teacher's where it is trained here.

  Raises:
    UserError: a model whose structure is not known without fetching it, or cannot be used.
  """
  steps, teacher, source = [], None, config.teacher.source
  if source == "train":
    trained = config_lib.for_teacher(config)
    teacher = _model(trained, "teacher.model")
    steps = [_step("teacher", "teacher.training", trained, teacher, None)]
  elif source not in ("none", "average"):
    if not files.expanded(source).is_dir():
      raise UserError(
        f"config.teacher.source is {source!r}: nothing is fetched here, so it must be a folder, "
        "train or none"
      )
    options = dict(pool=config.teacher.pool, language=config.teacher.language)
    teacher = teachers.find(source, dtype=config.dtype, **options)
  model = _model(config, "student", teacher)
  return [*steps, _step("student", "training", config, model, teacher)]


def _stored_as(config: ConfigDict, teacher) -> store.Settings | None:
  """How the frames of a run's teacher are stored; None for one that runs beside its student."""
  if isinstance(teacher, Stored):
    return teacher.settings
  if not config.teacher.cache or teacher is None:
    return None
  classes = len(teacher.vocabulary.symbols)
  blank_id, top = teacher.vocabulary.blank_id, store.top_of(classes)
  return store.Settings(classes, blank_id, config.kd.temperature, top)


class _Model(NamedTuple):
  """A model that is trained, and its vocabulary."""

  architecture: Architecture
  vocabulary: Vocabulary
  graphdef: Any
  like: Any


def _model(config: ConfigDict, path: str, teacher=None) -> _Model:
  """The model of `config.student`, which stood at `path`."""
  block, description = config.student, None
  if block.name == "huggingface" and not files.expanded(block.source).is_dir():
    if block.source not in known.DESCRIPTIONS:
      raise UserError(
        f"config.{path}.source is {block.source!r}: nothing is fetched here, so it must be a "
        f"folder in Hugging Face's layout, or one of {', '.join(known.DESCRIPTIONS)}"
      )
    description = known.DESCRIPTIONS[block.source]
  architecture = registry.architecture(
    block,
    config.features,
    dtype=config.dtype,
    remat=config.training.remat,
    description=description,
  )
  vocabulary = teacher.vocabulary if teacher else _vocabulary(config.labels, architecture.head)
  width = None
  if TEACHER_ENCODINGS in objective.needs(config.kd):
    if _stored_as(config, teacher):
      raise UserError("config.kd.warmup asks for encodings of the teacher, and a store has none")
    width = registry.encoder_width(teacher.graphdef, teacher.like)
  inner = INNER_HEADS in objective.needs(config.kd)
  structure = architecture.structure(len(vocabulary.symbols), width, inner_heads=inner)
  return _Model(architecture, vocabulary, *structure)


def _vocabulary(block: ConfigDict, head) -> Vocabulary:
  """As many classes as the run has; of sentencepiece, whose transcripts are not read, only that."""
  choice = choose(block, head=head)
  if block.name != "sentencepiece":
    return choice(())
  pieces = tuple(f"<piece {i}>" for i in range(block.size - 1))
  return Vocabulary((*pieces, BLANK), len(pieces))


def _step(name: str, block: str, config: ConfigDict, model: _Model, teacher) -> Step:
  """A step, with the objective and optimiser of its config; a prior has no data behind it."""
  classes = len(model.vocabulary.symbols)
  prior = jnp.zeros(classes) if objective.needs_log_prior(config.kd) else None
  made = objective.of_config(config, blank_id=model.vocabulary.blank_id, log_prior=prior)
  stored_as = _stored_as(config, teacher)
  asked = teacher if made.asks_teacher and stored_as is None else None
  frozen = asked and rounding.rounded(asked.graphdef, asked.like, config.dtype)
  return Step(
    name=name,
    block=block,
    config=config,
    graphdef=model.graphdef,
    like=model.like,
    teacher=asked and asked.graphdef,
    teacher_like=frozen,
    stored_as=stored_as if made.asks_teacher else None,
    join_seconds=batches.join_seconds(config.training, stored_as is not None),
    objective=made,
    optimizer=optim.of_training(config.training, 1, model.architecture.frozen)[0],
    frame_samples=model.architecture.frame_samples,
  )


def shape_of(step: Step, seconds: float, devices: int) -> plan.Shape:
  """The shape of a batch whose rows are utterances of so many seconds, or joined up to that.

  Args:
    step: of a config.
    seconds: of its utterances.
    devices: that the run begins with.
  """
  training = step.config.training
  reads_labels = step.objective.needs & {TRANSCRIPTS, HYPOTHESES}
  shapes = plan.shapes(
    np.array([seconds]),
    buckets=1,
    frame_samples=step.frame_samples,
    join_seconds=step.join_seconds,
    labels_per_second=_LABELS_PER_SECOND if reads_labels else 0.0,
    speeds=tuple(training.speeds),
    **batches.of_config(training, devices)._asdict(),
  )
  return shapes[-1]


def trace(step: Step, shape: plan.Shape, devices: Mesh):
  """A step traced for a batch shape (`jax.stages.Traced`), and the shapes of its arguments."""
  fresh = lambda params: step_lib.TrainState.fresh(
    params, step.optimizer.init(params), step.objective
  )
  state = jax.eval_shape(fresh, step.like)
  where = sharding.of_state(devices, state)
  everywhere = sharding.replicated(devices)
  place = lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to)
  teacher = jax.tree.map(place, step.teacher_like, sharding.of_state(devices, step.teacher_like))
  arguments = (
    jax.tree.map(place, state, where),
    teacher,
    batch_struct(shape, devices, step.objective, step.stored_as, step.frame_samples),
    place(jnp.int32(0), everywhere),
    place(jax.eval_shape(lambda: jax.random.key(0)), everywhere),
  )
  update = step_lib.make_train_step(
    step.graphdef,
    step.teacher,
    step.objective,
    step.optimizer,
    stored_as=step.stored_as,
    mesh=devices,
    state_shardings=where,
  )
  return update.trace(*arguments), arguments


def compiled(step: Step, shape: plan.Shape, devices: Mesh) -> Program:
  """Compiles a step for a batch shape on devices that need not be there."""
  started = time.monotonic()
  traced, arguments = trace(step, shape, devices)
  found = dict(arguments=_nbytes(arguments), flops=flops.count(traced.jaxpr))
  elapsed = lambda: time.monotonic() - started
  try:
    gpus = devices.devices.flat[0].platform == "gpu"
    program = traced.lower().compile(compiler_options=COMPILER_OPTIONS if gpus else None)
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return Program(**found, compile_seconds=elapsed(), refusal=_first_line(error))
  memory = program.memory_analysis()
  return Program(
    **found,
    compile_seconds=elapsed(),
    outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
    in_place=memory.alias_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    code=memory.generated_code_size_in_bytes,
    cost=None if gpus else hlo.cost(program.as_text()),
  )


def _first_line(error: Exception) -> str:
  text = str(error).removeprefix("RESOURCE_EXHAUSTED: ").splitlines()[0]
  return re.sub(r"(\d)G\b", r"\1 GiB", text.rstrip("."))


def _nbytes(tree) -> float:
  """Bytes of a tree's arrays on one device; keys are a few."""
  arrays = [x for x in jax.tree.leaves(tree) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in arrays)
