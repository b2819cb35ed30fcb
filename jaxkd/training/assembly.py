"""Config → the objects and numbers of a run. The only reader of config values."""

import dataclasses
import hashlib
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from ml_collections import ConfigDict

from jaxkd import config as config_lib
from jaxkd import console, files, selection
from jaxkd import labels as labels_lib
from jaxkd import teacher as teacher_lib
from jaxkd.data import pipeline, plan
from jaxkd.data.corpora import Options
from jaxkd.data.sources import Source, open_source
from jaxkd.devices import mesh, sharding
from jaxkd.errors import UserError
from jaxkd.inference import hypotheses as hypotheses_lib
from jaxkd.inference.hypotheses import Hypotheses
from jaxkd.labels import Vocabulary
from jaxkd.models import blueprint
from jaxkd.models.augment import SpecAugment
from jaxkd.models.blueprint import Blueprint
from jaxkd.models.features import SAMPLE_RATE_HZ
from jaxkd.teacher import Teacher
from jaxkd.training import optim, workdir
from jaxkd.training import step as step_lib

LOG_PRIOR = "log_prior.json"  # of a workdir's own model
TEACHER_LOG_PRIOR = "teacher_log_prior.json"  # where the teacher has none beside it
NBEST = "nbest.jsonl"
_SPLITS = ("train", "teacher_train", "dev", "test")
# Convolutions without padding lose what is shorter than their window.
_FRAME_SLACK = 2


@dataclasses.dataclass(frozen=True)
class Data:
  """The opened splits, None where the config names none, and the classes of the run."""

  train: Source
  teacher_train: Source | None
  dev: Source | None
  test: Source | None
  labels: Vocabulary

  def facts(self) -> dict:
    """Split → name, utterances, seconds, fingerprint and the broken ones, JSON-able."""
    splits = {name: getattr(self, name) for name in _SPLITS}
    return {name: _facts(source) for name, source in splits.items() if source is not None}


def _facts(source: Source) -> dict:
  lines = zip(source.ids, source.durations.round(3).tolist(), source.texts, strict=True)
  digest = hashlib.sha256(json.dumps(list(lines)).encode()).hexdigest()
  return {
    "name": source.name,
    "utterances": len(source),
    "seconds": round(float(source.durations.sum()), 1),
    "fingerprint": digest[:16],
    "broken": [{"id": i, "reason": r} for i, r in source.skipped],
  }


@dataclasses.dataclass(frozen=True)
class Run:
  """Everything that training needs; nothing in it reads the config again.

  Attributes:
    blueprint: of the student.
    teacher: frozen, or None.
    objective, optimizer, schedule: what `step` and the log need.
    data: the opened splits.
    shapes: of training batches.
    eval_shapes: of evaluation batches.
    profile: first and last update that are traced, or None.
    epochs, eval_every_epochs, save_every_steps: of the loop.
    average: best checkpoints in the final student.
    reads_text: whether the student's objective reads transcripts.
    hypotheses: of the training data, where they are learnt from.
  """

  workdir: pathlib.Path
  seed: int
  mesh: jax.sharding.Mesh
  blueprint: Blueprint
  teacher: Teacher | None
  objective: step_lib.Objective
  optimizer: optax.GradientTransformation
  schedule: optax.Schedule
  data: Data
  shapes: tuple[plan.Shape, ...]
  eval_shapes: tuple[plan.Shape, ...]
  profile: tuple[int, int] | None
  epochs: int
  eval_every_epochs: int
  save_every_steps: int
  average: int
  workers: int
  reads_text: bool
  hypotheses: Hypotheses | None
  plan_options: dict
  noise_db: tuple[float, float] | None

  def epoch_plan(self, epoch: int) -> list[plan.PlannedBatch]:
    """Global batches of an epoch; the same in every process and after a resume."""
    return plan.epoch_plan(
      self.data.train.durations, self.shapes, seed=self.seed, epoch=epoch, **self.plan_options
    )

  def train_batches(self, epoch: int, planned, start: int):
    """HostBatches of an epoch's plan from batch `start` on."""
    return pipeline.batches(
      self.data.train,
      planned,
      labels=self.blueprint.labels if self.reads_text else None,
      hypotheses=self.hypotheses,
      seed=self.seed,
      epoch=epoch,
      noise_db=self.noise_db,
      start=start,
      workers=self.workers,
      shards=mesh.my_shards(self.mesh),
    )

  def batch_struct(self, shape: plan.Shape):
    """Shapes of a global training batch."""
    return mesh.batch_struct(
      shape.rows,
      shape.samples,
      shape.labels if self.reads_text else 0,
      self.mesh,
      hypothesis=shape.labels if self.hypotheses else None,
    )

  def init_state(self) -> step_lib.TrainState:
    """A fresh student and optimiser, laid out on the mesh."""
    key = jax.random.fold_in(jax.random.key(self.seed), 0x57D)
    where = self.state_shardings
    params = mesh.put(self.blueprint.params(key), where.params)
    opt_state = jax.jit(self.optimizer.init, out_shardings=where.opt_state)(params)
    state = step_lib.TrainState.fresh(params, opt_state)
    rest = mesh.put(state[2:], sharding.replicated(self.mesh))
    return step_lib.TrainState(params, opt_state, *rest)

  @property
  def state_shardings(self) -> step_lib.TrainState:
    """Where every array of the training state lies."""
    like = self.blueprint.like
    opt_state = jax.eval_shape(self.optimizer.init, like)
    return sharding.of_state(self.mesh, step_lib.TrainState.fresh(like, opt_state))


def open_data(config: ConfigDict, opened: dict | None = None) -> Data:
  """Opens every split that the run reads and checks transcripts where they are needed.

  Args:
    config: of the run.
    opened: splits that other runs have opened; what this one opens is added.

  Raises:
    UserError: a teacher that cannot be used; a split that is absent, malformed, broken as a whole,
      or lacks needed transcripts; transcripts that the classes cannot write.
  """
  given = _check_models(config)
  train = config_lib.train_data(config)
  specs = {"train": train, "dev": config.data.dev, "test": config.data.test}
  if config.teacher.source == "train":
    specs["teacher_train"] = config.data.teacher_train
  opened = {} if opened is None else opened
  where = lambda spec: (spec, config.data.root, config.data.split_by)
  for spec in specs.values():
    if spec and where(spec) not in opened:
      opened[where(spec)] = open_split(config, spec)
  splits = {name: opened.get(where(specs.get(name, ""))) for name in _SPLITS}
  trains_teacher = config.teacher.source == "train"
  labels = given
  if given is None:
    first = config_lib.for_teacher(config) if trains_teacher else config
    source = splits["teacher_train" if trains_teacher else "train"]
    labels = blueprint.own_labels(first, pipeline.transcripts(source))
  for name, is_read in (("teacher_train", trains_teacher), ("train", config.kd.scale < 1)):
    if is_read:
      splits[name] = pipeline.check_texts(splits[name], labels, config.labels.missing)
  return Data(**splits, labels=labels)


def _check_models(config: ConfigDict) -> Vocabulary | None:
  """The classes where the teacher is there already; student and teacher must fit.

  Raises:
    UserError: a teacher that is not there or cannot be used; other classes; frames that are not
      those of the same 40 ms.
  """
  source = config.teacher.source
  if source == "none":
    blueprint.untrained_labels(config)
    return None
  if source == "train":
    teacher = config_lib.for_teacher(config)
    labels = blueprint.untrained_labels(teacher)
    model = blueprint.make(teacher, labels)
    structure = model.graphdef, model.like
  else:
    labels, *structure = blueprint.teacher_structure(
      source, pool=config.teacher.pool, dtype=config.dtype
    )
    labels = blueprint.taught_labels(config, labels)
  if (head := blueprint.head_labels(config)) is not None:
    name = "the teacher to be trained" if source == "train" else source
    labels_lib.check_same(labels, head, name, config.student.source)
  student = blueprint.make(config, labels)
  frames = _frames(*structure), _frames(student.graphdef, student.like)
  if abs(frames[0] - frames[1]) > _FRAME_SLACK:
    raise UserError(
      f"in 10 s the teacher has {frames[0]} frames and the student {frames[1]}: set "
      f"config.teacher.{'model.pool' if source == 'train' else 'pool'} so that both are as long "
      "(2 for a teacher of 20 ms and a student of 40 ms)"
    )
  return None if source == "train" else labels


def _frames(graphdef, params) -> int:
  """Output frames of 10 s."""
  audio = jax.ShapeDtypeStruct((1, 10 * SAMPLE_RATE_HZ), jnp.int16)
  audio_len = jax.ShapeDtypeStruct((1,), jnp.int32)
  run = lambda params, *audio: nnx.merge(graphdef, params)(*audio).mask
  return jax.eval_shape(run, params, audio, audio_len).shape[1]


def open_split(config: ConfigDict, spec: str) -> Source:
  """Opens a manifest, a folder of audio or corpus:split."""
  options = Options(root=config.data.root, split_by=config.data.split_by)
  return open_source(spec, options=options)


def for_teacher(config: ConfigDict, data: Data) -> tuple[ConfigDict, Data]:
  """Config and data of the run that trains the teacher."""
  splits = dataclasses.replace(data, train=data.teacher_train, teacher_train=None)
  return config_lib.for_teacher(config), splits


def teacher_workdir(config: ConfigDict, data: Data, beside: pathlib.Path) -> pathlib.Path:
  """Where the teacher of this config lies: the same for all variants that share it.

  Args:
    config: of the teacher's own run.
    data: of the teacher's own run.
    beside: the student's workdir.
  """
  made_from = workdir.binding(config.to_dict())
  read = [data.facts()["train"]["fingerprint"], data.labels.fingerprint()]
  key = json.dumps([made_from, *read], sort_keys=True)
  digest = hashlib.sha256(key.encode()).hexdigest()[:8]
  return beside.parent / f"teacher-{config.recipe}-{digest}"


def load_teacher(config: ConfigDict, source: str, devices: jax.sharding.Mesh) -> Teacher:
  """The frozen teacher at `source`, a workdir or a Hugging Face model.

  Raises:
    UserError: no teacher there, or one that cannot be used.
  """
  pool, dtype = config.teacher.pool, config.dtype
  return blueprint.load_teacher(source, pool=pool, dtype=dtype, devices=devices)


def build(
  config: ConfigDict,
  data: Data,
  teacher: Teacher | None,
  teacher_source: str | None,
  folder: pathlib.Path,
) -> Run:
  """Assembles a run.

  Args:
    config: checked.
    data: opened by `open_data`.
    teacher: frozen, or None where `teacher.source` is "none".
    teacher_source: where it lies.
    folder: the workdir.
  """
  devices = mesh.make_mesh(config.mesh.fsdp)
  labels = data.labels
  width = None
  if warmup_epochs(config.kd):
    width = blueprint.encoder_width(teacher.graphdef, teacher.params)
  student = blueprint.make(config, labels, project_to=width)
  reads_text = config.kd.scale < 1
  training = config.training
  hypotheses = None
  if takes_hypotheses(config.kd):
    hypotheses = find_hypotheses(config, data.train, teacher, folder, devices)
  rates = _labels_per_second(data.train, labels if reads_text else None, hypotheses)
  train_shapes, plan_options = _shapes(training, data.train, rates)
  first_plan = plan.epoch_plan(
    data.train.durations, train_shapes, seed=config.seed, epoch=0, **plan_options
  )
  log_prior = None
  if needs_log_prior(config):
    known = pathlib.Path(teacher_source) / LOG_PRIOR
    path = known if known.exists() else folder / TEACHER_LOG_PRIOR
    log_prior = estimate_log_prior(teacher, data.train, path, devices)
  updates = max(1, training.epochs * len(first_plan) // training.accumulate)
  schedule = optim.three_part_schedule(training.lr, training.lr_parts, updates)
  optimizer = optim.make_optimizer(
    training.optimizer,
    schedule,
    frozen=student.frozen,
    **{k: training[k] for k in ("b1", "b2", "eps", "weight_decay", "clip_norm", "accumulate")},
  )
  return Run(
    workdir=folder,
    seed=config.seed,
    mesh=devices,
    blueprint=student,
    teacher=teacher,
    objective=make_objective(config, labels.blank_id, log_prior),
    optimizer=optimizer,
    schedule=lambda step: schedule(step // training.accumulate),
    data=data,
    shapes=train_shapes,
    eval_shapes=_eval_shapes(data, devices),
    profile=config_lib.profile_steps(config.profile),
    epochs=training.epochs,
    eval_every_epochs=training.eval_every_epochs,
    save_every_steps=config.checkpoint.every_steps,
    average=training.average,
    workers=config.data.workers,
    reads_text=reads_text,
    hypotheses=hypotheses,
    plan_options=plan_options,
    noise_db=tuple(training.noise_db) or None,
  )


def find_hypotheses(
  config: ConfigDict,
  source: Source,
  teacher: Teacher,
  folder: pathlib.Path,
  devices: jax.sharding.Mesh,
) -> Hypotheses:
  """The teacher's N-best lists of a source, made once and kept in the workdir."""
  planned = plan.evaluation_plan(source.durations, eval_shapes(source.durations, devices))
  path, count = folder / NBEST, config.kd.hypotheses
  return hypotheses_lib.find(teacher, source, planned, path, devices, count=count)


def _labels_per_second(source: Source, labels: Vocabulary | None, hypotheses: Hypotheses | None):
  """Most labels, with a space, in a second of an utterance; 0 where none are read."""
  counts = np.zeros(len(source))
  if labels is not None:
    counts = np.array([len(labels.encode(text)) + 1 for text in source.texts])
  if hypotheses is not None:
    counts = np.maximum(counts, hypotheses.longest() + 1)
  return float((counts / source.durations).max())


def _shapes(training: ConfigDict, source: Source, per_second: float):
  """Shapes of training batches, and the other arguments of `plan.epoch_plan`."""
  shapes = plan.shapes(
    source.durations,
    batch_seconds=training.batch_seconds,
    buckets=training.buckets,
    join_seconds=training.join_seconds,
    labels_per_second=per_second,
    speeds=tuple(training.speeds),
  )
  return shapes, dict(speeds=tuple(training.speeds), join=training.join_seconds > 0)


def eval_shapes(durations: np.ndarray, devices) -> tuple[plan.Shape, ...]:
  """Two shapes, so that little is compiled for an evaluation."""
  return plan.shapes(durations, batch_seconds=80.0, buckets=2)


def _eval_shapes(data: Data, devices) -> tuple[plan.Shape, ...]:
  """Shapes that dev and test share."""
  durations = [s.durations for s in (data.dev, data.test) if s is not None]
  return eval_shapes(np.concatenate(durations), devices) if durations else ()


def asks_teacher(kd: ConfigDict) -> bool:
  """Whether an update needs the teacher's output."""
  return kd.scale > 0 and kd.loss == "kl"


def takes_hypotheses(kd: ConfigDict) -> bool:
  """Whether the teacher's transcripts are targets instead of its frames."""
  return kd.scale > 0 and kd.loss == "hypotheses"


def warmup_epochs(kd: ConfigDict) -> int:
  """First epochs that compare encoder outputs."""
  return kd.warmup if asks_teacher(kd) else 0


def needs_log_prior(config: ConfigDict) -> bool:
  """Whether the selection asks for the teacher's prior."""
  return config.kd.scale > 0 and config.kd.selection.get("prior_scale", 0.0) > 0


def make_objective(
  config: ConfigDict, blank_id: int, log_prior: jax.Array | None
) -> step_lib.Objective:
  """What an update minimises; `log_prior` f32[V] is the teacher's, where it is needed."""
  training = config.training
  masks = None
  if training.spec_augment:
    masks = SpecAugment(
      time_mask_frames=training.time_mask_frames, freq_mask_bins=training.freq_mask_bins
    )
  return step_lib.Objective(
    scale=config.kd.scale,
    temperature=config.kd.temperature,
    select=make_selector(config.kd, blank_id, log_prior) if asks_teacher(config.kd) else None,
    blank_id=blank_id,
    spec_augment=masks,
    spec_augment_from_epoch=training.spec_augment_from_epoch,
    by_labels=config.kd.normalization == "labels",
    warmup_epochs=warmup_epochs(config.kd),
    hypotheses=takes_hypotheses(config.kd),
  )


def estimate_log_prior(
  model: Teacher, source: Source, path: pathlib.Path, devices: jax.sharding.Mesh
) -> jax.Array:
  """f32[V]: log of a model's mean posterior over all frames of a source, kept in a JSON file."""
  if not mesh.agreed(path.exists()):
    planned = plan.evaluation_plan(source.durations, eval_shapes(source.durations, devices))
    with console.progress("log prior", len(planned)) as update:
      hosts = pipeline.batches(source, planned, shards=mesh.my_shards(devices))
      batches = (mesh.put_batch(host.batch, devices) for host in hosts if update() is None)
      prior = teacher_lib.log_prior(model, batches, sharding.replicated(devices))
    if mesh.is_first():
      files.write_json(path, prior.tolist())
    mesh.wait_for_all(f"{path} is written")
  return jnp.array(files.read_json(path), jnp.float32)


def make_selector(kd: ConfigDict, blank_id: int, log_prior=None) -> step_lib.Selector:
  """The selection of a `config.kd` block with its schedule.

  Before `start_epoch` and from `stop_epoch` on every frame is selected (the paper's "delayed");
  with `grow_epochs`, n is multiplied by epoch // grow_epochs (the paper's "growing"), epochs
  counted from 0.
  """
  fields = dict(kd.selection)
  name = fields.pop("name")
  pattern = getattr(selection, name)
  start, stop, grow = kd.start_epoch, kd.stop_epoch, kd.grow_epochs

  def select(logits, mask, key, epoch):
    options = dict(fields)
    if grow:
      options = {field: value * (epoch // grow) for field, value in options.items()}
    if name == "random_blanks":
      options["key"] = key
    if log_prior is not None:
      options["log_prior"] = log_prior
    chosen = pattern(logits, mask, blank_id=blank_id, **options)
    active = (epoch >= start) & ((epoch < stop) if stop else True)
    return jnp.where(active, chosen, mask)

  return select
