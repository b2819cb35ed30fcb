"""Train steps at full size, compiled for TPUs that need not be there: memory, traffic, time."""

import dataclasses
import importlib.util
import itertools
import math
import os
import pathlib
import re
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxkd import config as config_lib
from jaxkd import console
from jaxkd.data import plan
from jaxkd.devices import flops, hlo, mesh, sharding
from jaxkd.devices.chips import GIB, TPUS, Chip, topology_names
from jaxkd.errors import UserError
from jaxkd.labels import Vocabulary, characters
from jaxkd.models import blueprint
from jaxkd.models.huggingface import known
from jaxkd.models.huggingface import weights as port
from jaxkd.training import assembly as build
from jaxkd.training import optim
from jaxkd.training import step as step_lib
from jaxkd.types import SAMPLE_RATE_HZ

# Recipe -> hours of its training data, and seconds of the longest utterance, rounded up.
# Panayotov et al. 2015, table 1 and section 4 (cut to at most 35 s); Rousseau et al. 2014 (TED-LIUM
# 2; the length is an assumption).
CORPORA = {"librispeech": (960.9, 35.0), "tedlium": (207.0, 25.0)}
_BOUNDS = ("arithmetic", "HBM", "the interconnect")
_LABELS_PER_SECOND = 20.0  # characters; the fastest utterance decides


@dataclasses.dataclass(frozen=True)
class Step:
  """One train step to compile.

  Attributes:
    name: for people.
    block: the config's block that says how it trains.
    config: of the run that it belongs to.
    student, like, frozen: structure and abstract parameters of what it trains, and the parts that
      it does not.
    teacher, teacher_like: of the frozen model beside it, or None.
    labels: classes of both.
  """

  name: str
  block: str
  config: ConfigDict
  student: object
  like: object
  frozen: tuple[str, ...]
  teacher: object
  teacher_like: object
  labels: Vocabulary


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled step; all of one chip.

  Attributes:
    arguments, outputs, temporaries, code: bytes of HBM; outputs without those that take the place
      of arguments.
    in_place: bytes of those.
    flops: of matrix products and convolutions, over all chips.
    cost: of a run.
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


def show(config: ConfigDict, topology: str, lengths: Sequence[float], hours: float | None) -> None:
  """Compiles a config's steps and prints what they need.

  Args:
    config: of a run.
    topology: of the slice, as in "v5e:2x4".
    lengths: of the rows of a batch, in seconds; each is compiled.
    hours: of audio in an epoch; None for the corpus's, where it is known.

  Raises:
    UserError: no such slice, no libtpu, or what does not fit and what helps.
  """
  chip, devices = slice_of(topology)
  where = mesh.make_mesh(config.mesh.fsdp, devices)
  _say(
    f"{config.variant}:{config.recipe} on {where.size} × {topology.partition(':')[0]} "
    f"({topology}), mesh: data {where.shape['data']} × fsdp {where.shape['fsdp']}, "
    f"{config.dtype}"
  )
  refused = []
  for step, seconds in itertools.product(steps_of(config), lengths):
    shape = shape_of(step.config, seconds)
    _say(_title(step, shape, where))
    program = compiled(step, shape, where)
    of_data = _known_hours(step.config) if hours is None else hours
    for line in _lines(step, program, shape, chip, where, of_data):
      _say(f"  {line}")
    if program.refusal or program.hbm > chip.hbm:
      refused.append(f"{step.name} {_advice(step, program, shape, where)}")
  if refused:
    raise UserError(f"on {topology}, " + "; ".join(refused))


def _known_hours(config: ConfigDict) -> float | None:
  """Of the training data; None for another than the recipe's, such as a part of the corpus."""
  whole = config.data.train == config_lib.base(config.recipe).data.train
  data, _ = config_lib.parts(config.recipe)
  return CORPORA[data][0] if whole and data in CORPORA else None


def _say(line: str) -> None:
  console.out.print(line, highlight=False, markup=False, soft_wrap=True)


def slice_of(topology: str) -> tuple[Chip, list]:
  """The chip of a slice such as "v5e:2x4", and its devices, one a chip.

  Raises:
    UserError: no such slice, or no libtpu.
  """
  found = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", topology)
  wrong = f"--topology={topology}: it must be CHIP:SHAPE, such as {', '.join(topology_names())}"
  if not found or found[1] not in TPUS:
    raise UserError(wrong)
  if importlib.util.find_spec("libtpu") is None:
    raise UserError("libtpu is not installed: pip install 'jaxkd[tpu]'")
  # libtpu compiles only: it must not look for chips, nor for the services of a TPU's machine, nor
  # mind a process that uses them.
  jax.config.update("jax_platforms", "cpu")
  for name, value in {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_LOG_DIR": "disabled",
  }.items():
    os.environ.setdefault(name, value)
  sizes = [int(n) for n in found[2].split("x")]
  options = {"chips_per_host_bounds": (min(sizes[0], 2), min(sizes[1], 2), 1)}
  if found[1] == "v4":
    options["chip_config_name"] = "megacore"  # the two cores of a chip are one device
  try:
    described = topologies.get_topology_desc(topology, "tpu", **options)
  except (jax.errors.JaxRuntimeError, ValueError) as error:
    raise UserError(f"{wrong} ({' '.join(str(error).split())[:200]})") from error
  return TPUS[found[1]], described.devices


def steps_of(config: ConfigDict) -> list[Step]:
  """The train steps of a config: the student's, and the teacher's where it is trained here.

  Raises:
    UserError: a model whose structure is not known without fetching it, or cannot be used.
  """
  steps = []
  if config.teacher.source == "train":
    trained = config_lib.for_teacher(config)
    labels = _labels(trained)
    made = _structure(trained, labels, "teacher.model")
    steps = [Step("teacher", "teacher.training", trained, *made, None, None, labels)]
    teacher = made[:2]
  elif config.teacher.source == "none":
    labels, *teacher = _labels(config), None, None
  else:
    if not pathlib.Path(config.teacher.source).expanduser().is_dir():
      raise UserError(
        f"config.teacher.source is {config.teacher.source!r}: nothing is fetched here, so it must "
        "be a folder, train or none"
      )
    labels, *teacher = blueprint.teacher_structure(
      config.teacher.source, pool=config.teacher.pool, dtype=config.dtype
    )
  width = blueprint.encoder_width(*teacher) if build.warmup_epochs(config.kd) else None
  if not build.asks_teacher(config.kd):
    teacher = None, None
  student = _structure(config, labels, "student", width)
  return [*steps, Step("student", "training", config, *student, *teacher, labels)]


def _is_elsewhere(block: ConfigDict) -> bool:
  """Whether a model is on Hugging Face's hub and not in a folder."""
  return block.name == "huggingface" and not pathlib.Path(block.source).expanduser().is_dir()


def _labels(config: ConfigDict) -> Vocabulary:
  if config.labels.name == "auto" and _is_elsewhere(config.student):
    return characters(config.labels.alphabet)  # those that are known are pre-trained only
  return blueprint.untrained_labels(config)


def _structure(config: ConfigDict, labels: Vocabulary, path: str, project_to: int | None = None):
  """Structure, abstract parameters and frozen parts of `config.student`, which stood at `path`."""
  block = config.student
  if not _is_elsewhere(block):
    made = blueprint.make(config, labels, project_to)
    return made.graphdef, made.like, made.frozen
  if block.source not in known.DESCRIPTIONS:
    raise UserError(
      f"config.{path}.source is {block.source!r}: nothing is fetched here, so it must be a folder "
      f"in Hugging Face's layout, or one of {', '.join(known.DESCRIPTIONS)}"
    )
  settings = blueprint.huggingface_config(config, known.DESCRIPTIONS[block.source], block.source)
  frozen = ("conv",) if block.freeze_conv else ()
  return *port.structure(settings, len(labels.symbols)), frozen


def shape_of(config: ConfigDict, seconds: float) -> plan.Shape:
  """Of a batch whose rows hold utterances of so many seconds, or are joined up to that."""
  training = config.training
  shapes = plan.shapes(
    np.array([seconds]),
    batch_seconds=training.batch_seconds,
    buckets=1,
    join_seconds=training.join_seconds,
    labels_per_second=_LABELS_PER_SECOND if _reads_labels(config.kd) else 0.0,
    speeds=tuple(training.speeds),
  )
  return shapes[-1]


def _reads_labels(kd: ConfigDict) -> bool:
  return kd.scale < 1 or build.takes_hypotheses(kd)


def trace(step: Step, shape: plan.Shape, devices: Mesh):
  """A step traced for a batch shape (`jax.stages.Traced`), and the shapes of its arguments."""
  training, kd = step.config.training, step.config.kd
  optimizer = optim.make_optimizer(
    training.optimizer,
    optim.three_part_schedule(training.lr, training.lr_parts, 1),
    frozen=step.frozen,
    **{k: training[k] for k in ("b1", "b2", "eps", "weight_decay", "clip_norm", "accumulate")},
  )
  fresh = lambda params: step_lib.TrainState.fresh(params, optimizer.init(params))
  state = jax.eval_shape(fresh, step.like)
  where = sharding.of_state(devices, state)
  everywhere = sharding.replicated(devices)
  place = lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to)
  teacher = jax.tree.map(place, step.teacher_like, sharding.of_state(devices, step.teacher_like))
  arguments = (
    jax.tree.map(place, state, where),
    teacher,
    mesh.batch_struct(
      shape.rows,
      shape.samples,
      shape.labels if kd.scale < 1 else 0,
      devices,
      hypothesis=shape.labels if build.takes_hypotheses(kd) else None,
    ),
    place(jnp.int32(0), everywhere),
    place(jax.eval_shape(lambda: jax.random.key(0)), everywhere),
  )
  update = step_lib.make_train_step(
    step.student,
    step.teacher,
    _objective(step.config, step.labels),
    optimizer,
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
    program = traced.lower().compile()
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
    cost=hlo.cost(program.as_text()),
  )


def _first_line(error: Exception) -> str:
  text = str(error).removeprefix("RESOURCE_EXHAUSTED: ").splitlines()[0]
  return re.sub(r"(\d)G\b", r"\1 GiB", text.rstrip("."))


def _nbytes(tree) -> float:
  """Bytes of a tree's arrays on one device; keys are a few."""
  arrays = [x for x in jax.tree.leaves(tree) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]
  return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in arrays)


def _objective(config: ConfigDict, labels: Vocabulary) -> step_lib.Objective:
  """With a prior that has no data behind it."""
  log_prior = jnp.zeros(len(labels.symbols)) if build.needs_log_prior(config) else None
  return build.make_objective(config, labels.blank_id, log_prior)


def _title(step: Step, shape: plan.Shape, devices: Mesh) -> str:
  rows = plan.padded_rows(shape.rows, devices.size)
  seconds = shape.samples / SAMPLE_RATE_HZ
  text = f"{step.name}: {shape.rows} rows of {seconds:.1f} s"
  if rows > shape.rows:
    text += f", filled up to {rows} ({1 - shape.rows / rows:.0%} of the work is for nothing)"
  text += f", {rows // devices.size * seconds:.0f} s a chip"
  millions = lambda like: sum(x.size for x in jax.tree.leaves(like)) / 1e6
  text += f"; {millions(step.like):.1f} M parameters"
  if step.teacher_like is not None:
    text += f" beside a teacher of {millions(step.teacher_like):.1f} M"
  return text + ("; rematerialised" if step.config.training.remat else "")


def _lines(step, program, shape, chip, devices, hours) -> list[str]:
  gib = lambda n: f"{n / GIB:.2f}"
  short = lambda seconds: f"{seconds:.3g} s"
  if program.refusal:
    return [
      f"does not fit: {program.refusal}; arguments alone: {gib(program.arguments)} GiB",
      f"arithmetic    {program.flops / 1e12:.2f} TFLOP",
    ]
  of_chip, cost = program.flops / devices.size, program.cost
  kinds = ", ".join(f"{k} {n / 1e9:.3g} GB" for k, n in sorted(cost.collectives.items())) or "none"
  times = of_chip / chip.flops, cost.hbm / chip.hbm_bandwidth, cost.sent / chip.interconnect
  least, scheduled = max(times), cost.cycles / chip.clock_hz + times[2]
  lines = [
    f"HBM           {gib(program.hbm)} of {gib(chip.hbm)} GiB: arguments {gib(program.arguments)}, "
    f"temporaries {gib(program.temporaries)}, outputs {gib(program.outputs)} (and "
    f"{gib(program.in_place)} in place of arguments), code {gib(program.code)}",
    f"arithmetic    {program.flops / 1e12:.3g} TFLOP, {of_chip / 1e12:.3g} a chip: "
    f"{short(times[0])}",
    f"HBM traffic   {cost.hbm / 1e9:.3g} GB a chip: {short(times[1])}",
    f"interconnect  {kinds} a chip: {short(times[2])}",
    f"a step        {short(least)} at least, bound by {_BOUNDS[times.index(least)]}; "
    f"{short(scheduled)} by the compiler's count of cycles",
  ]
  if hours is not None:
    epochs = step.config.training.epochs
    steps = epochs * hours * 3600 / (shape.rows * shape.samples / SAMPLE_RATE_HZ)
    lines.append(
      f"the recipe    {epochs} epochs of {hours:g} h, {steps:,.0f} such steps: "
      f"{steps * least / 3600:.3g} h at least, {steps * scheduled / 3600:.3g} h by the compiler"
    )
  return [*lines, f"compiled in {program.compile_seconds:.0f} s"]


def _advice(step: Step, program: Program, shape: plan.Shape, devices: Mesh) -> str:
  """What does not fit, and what helps."""
  why = program.refusal or f"{program.hbm / GIB:.2f} GiB are more than a chip has"
  help_ = []
  if not step.config.training.remat:
    help_.append(f"--config.{step.block}.remat=True")
  if devices.shape["fsdp"] < devices.size:
    help_.append(f"--config.mesh.fsdp={devices.size}")
  if shape.rows > devices.size:
    seconds = devices.size * shape.samples / SAMPLE_RATE_HZ
    help_.append(f"--config.{step.block}.batch_seconds={seconds:.0f}")
  help_.append("shorter utterances (--utterance_seconds)")
  return f"does not fit ({why}): try {', '.join(help_)}"
