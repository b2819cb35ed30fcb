"""Config → a run, in one pass: each part is made by one function, in the order of the flow.

`plan_run` checks everything and opens the data, before anything is trained: devices, teacher,
architecture, data, vocabulary. `prepare` makes what asks a teacher that is there: hypotheses,
prior, objective, batches, schedule.
"""

import dataclasses
import hashlib
import json
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxkd import buckets
from jaxkd import config as config_lib
from jaxkd.data import decoding, plan, texts
from jaxkd.data.corpora import Options
from jaxkd.data.sources import NO_LIMITS, Limits, Source, check_spec, open_source
from jaxkd.data.texts import Spelling
from jaxkd.devices import mesh
from jaxkd.errors import UserError
from jaxkd.inference import hypotheses as hypotheses_lib
from jaxkd.inference import priors
from jaxkd.inference.frames import evaluation_shapes
from jaxkd.inference.hypotheses import Hypotheses
from jaxkd.labels import Choice, Vocabulary, choose, normalise
from jaxkd.models import kept, parameters, registry, rounding
from jaxkd.models.acoustic import AcousticModel
from jaxkd.models.registry import Architecture
from jaxkd.teacher import sources as teachers
from jaxkd.teacher.stored import Stored
from jaxkd.training import advice, batches, optim, workdir
from jaxkd.training import objective as objective_lib
from jaxkd.training.objective import Objective
from jaxkd.training.run import Blueprint, Data, Run
from jaxkd.training.terms import INNER_HEADS, TEACHER_ENCODINGS, TEACHER_FRAMES
from jaxkd.types import HYPOTHESES, SAMPLE_RATE_HZ, TRANSCRIPTS

log = logging.getLogger(__name__)
NBEST = "nbest.jsonl"
_LONGEST_SECONDS = 600.0  # of an utterance that is heard at once


@dataclasses.dataclass(frozen=True)
class Plan:
  """A run that is checked and whose data is open; nothing is trained or loaded yet.

  Attributes:
    config: of the run; read here alone, and kept in the workdir.
    folder: the workdir.
    devices: mesh.
    teacher: one that is there, the plan of one that is trained first, or None.
    architecture: of the model that is trained.
    data: the opened splits.
    vocabulary: the classes of both models.
  """

  config: ConfigDict
  folder: pathlib.Path
  devices: jax.sharding.Mesh
  teacher: "teachers.Found | Stored | Plan | None"
  architecture: Architecture
  data: Data
  vocabulary: Vocabulary

  def facts(self) -> dict:
    """Split → name, utterances, seconds, fingerprint and the broken ones, JSON-able.

    And "teacher" → name and fingerprint of one that is there.
    """
    splits = self.data.splits()
    if isinstance(self.teacher, Plan):
      splits["teacher_train"] = self.teacher.data.train
    found = {name: _facts(source) for name, source in splits.items()}
    if isinstance(self.teacher, teachers.Found):
      source = self.teacher.source
      found["teacher"] = {"name": source, "fingerprint": teachers.fingerprint(source)}
    return found


def plan_run(config: ConfigDict, folder: pathlib.Path, opened: dict | None = None) -> Plan:
  """Checks a config, opens the data and decides all that needs no training.

  Args:
    config: any.
    folder: the workdir.
    opened: splits that other runs have opened; what this one opens is added.

  Raises:
    UserError: a mistake in the config; a teacher that cannot be used; frames or classes that do not
      go together; a split that is absent, malformed, broken as a whole, or lacks transcripts that
      are needed; transcripts that the classes cannot write.
  """
  config_lib.check(config)
  _check_specs(config)
  decoding.use(config.data.workers)
  mesh.by_first(lambda: workdir.check_usable(folder))
  if buckets.url(folder):  # others would not see what is saved in a copy of what is there
    mesh.check_one_host(f"--workdir={folder}")
  opened = {} if opened is None else opened
  devices = mesh.make_mesh(config.mesh.fsdp)
  teacher = _teacher(config, folder, opened)
  architecture = registry.architecture(
    config.student, config.features, dtype=config.dtype, remat=config.training.remat
  )
  if isinstance(teacher, Stored):
    teacher = _at_frame_length(teacher, architecture)
  _check_frames(teacher, architecture, config)
  taught = None if teacher is None else (_name(teacher), teacher.vocabulary)
  choice = choose(config.labels, teacher=taught, head=architecture.head)
  data, vocabulary = _transcribed(config, _open_data(config, opened), choice, architecture)
  _check_init(config.student.init, architecture, vocabulary)
  if isinstance(teacher, Stored):
    _check_stored(teacher, config, data.train)
  return Plan(config, folder, devices, teacher, architecture, data, vocabulary)


def _options(config: ConfigDict) -> Options:
  return Options(root=config.data.root, split_by=config.data.split_by)


def _check_specs(config: ConfigDict) -> None:
  """What can be said of the names of data before any is opened."""
  for field in ("train", "teacher_train", "dev", "test"):
    check_spec(f"data.{field}", config.data[field], _options(config))


def _teacher(
  config: ConfigDict, folder: pathlib.Path, opened: dict
) -> "teachers.Found | Stored | Plan | None":
  """The teacher that the config names, or the plan of the one that it trains."""
  source = config.teacher.source
  if source in ("none", "average"):
    return None
  if source != "train":
    options = dict(pool=config.teacher.pool, language=config.teacher.language)
    return teachers.find(source, dtype=config.dtype, **options)
  made = plan_run(config_lib.for_teacher(config), folder, opened)
  return dataclasses.replace(made, folder=_teacher_folder(made, folder))


def _teacher_folder(made: Plan, beside: pathlib.Path) -> pathlib.Path:
  """Where a teacher lies: beside the student's workdir, the same for all that share it."""
  binding, recipe = config_lib.binding(made.config), made.config.recipe
  prints = {split: facts["fingerprint"] for split, facts in made.facts().items()}
  prints["labels"] = made.vocabulary.fingerprint()
  key = json.dumps([binding, prints], sort_keys=True)
  digest = hashlib.sha256(key.encode()).hexdigest()[:8]
  found = workdir.find_teacher(beside, recipe, binding, prints)
  # Another process may see the folder earlier or later.
  return pathlib.Path(mesh.agreed(str(found or beside.parent / f"teacher-{recipe}-{digest}")))


def _name(teacher: "teachers.Found | Plan") -> str:
  return "the teacher to be trained" if isinstance(teacher, Plan) else teacher.source


def _at_frame_length(teacher: Stored, architecture: Architecture) -> Stored:
  """A store at the student's frame length; says so where that is another."""
  wanted, given = architecture.frame_samples, teacher.frame_samples
  if wanted != given:
    rule = "repeated" if given > wanted else "those with the least blank stay"
    log.info("%s: frames of %g ms become %g ms: %s", teacher.source, given / 16, wanted / 16, rule)
  return teacher.at(wanted)


def _check_stored(teacher: Stored, config: ConfigDict, train: Source) -> None:
  """UserError where a run asks a store for what it has not."""
  needs = objective_lib.needs(config.kd)
  if TEACHER_ENCODINGS in needs:
    raise UserError("config.kd.warmup asks for encodings of the teacher, and a store has none")
  frames = TEACHER_FRAMES in needs
  if config.kd.temperature_ramp and not teacher.settings.exact:
    raise UserError(
      f"config.kd.temperature_ramp is {config.kd.temperature_ramp}, and the store "
      f"{teacher.source} was written for one temperature: leave it (), or write the store with all "
      "classes"
    )
  temperature = config.kd.temperature if frames else teacher.settings.temperature
  heard = objective_lib.speeds_heard(config.kd, config.training.speeds)
  teacher.check(train, heard, temperature)


def _check_frames(teacher, architecture: Architecture, config: ConfigDict) -> None:
  """Student and teacher must speak of the same frames; stored ones can be made to."""
  if teacher is None:
    return
  there = teacher.architecture if isinstance(teacher, Plan) else teacher
  given, wanted = there.frame_samples, architecture.frame_samples
  if given == wanted or (config.teacher.cache and max(given, wanted) % min(given, wanted) == 0):
    return
  pool = teacher.config.student.get("pool", 1) if isinstance(teacher, Plan) else teacher.pool
  raise UserError(
    f"the teacher has a frame every {1000 * given / SAMPLE_RATE_HZ:g} ms and the student every "
    f"{1000 * wanted / SAMPLE_RATE_HZ:g} ms: {_same_frames(given // max(pool, 1), wanted, teacher)}"
  )


def _same_frames(given: int, wanted: int, teacher: "teachers.Found | Plan") -> str:
  """What to do about frames of other lengths, in samples; the teacher's before they are pooled."""
  planned = isinstance(teacher, Plan)
  block = "teacher.model" if planned else "teacher"
  pools = "pool" in teacher.config.student if planned else teacher.pool
  if wanted % given == 0 and pools:
    return f"config.{block}.pool={wanted // given} makes both as long"
  return (
    "config.teacher.cache=True stores the teacher's frames and repeats or chooses among them "
    "(beside config.teacher.pool=1), or take a student of its frame length, such as "
    "config.student.name=fastconformer"
  )


def _open_data(config: ConfigDict, opened: dict) -> Data:
  """The splits that the run reads."""
  options = _options(config)

  def split(spec: str, limits: Limits = NO_LIMITS) -> Source | None:
    key = (spec, options, limits)
    if spec and key not in opened:
      opened[key] = open_source(spec, options, limits)
    return opened[key] if spec else None

  limits = Limits(config.data.min_seconds, config.data.max_seconds)
  train = split(config_lib.train_data(config), limits)
  _check_longest(train, limits)
  advice.size(config.recipe, train)
  return Data(train, split(config.data.dev), split(config.data.test))


def _check_longest(train: Source, limits: Limits) -> None:
  """Training hears an utterance at once, and its memory grows with the square of its length."""
  longest = float(train.durations.max())
  if longest > _LONGEST_SECONDS:
    raise UserError(
      f"config.data.max_seconds is {limits.max_seconds:g}, and {train.name} has an utterance of "
      f"{longest:.0f} s, which training would hear at once: at most {_LONGEST_SECONDS:g} s; with a "
      "lower one, what is longer is left out, or heard in pieces where it has no transcript"
    )


def _transcribed(
  config: ConfigDict, data: Data, choice: Choice, architecture: Architecture
) -> tuple[Data, Vocabulary]:
  """The data without what cannot be learnt, and the classes that its transcripts are written in."""
  _check_held_out(data)
  if not config_lib.reads_transcripts(config.kd):
    return data, choice(())
  all_needed = not config_lib.distils(config.kd)
  train, transcripts = texts.transcripts(data.train, all_needed=all_needed)
  vocabulary = choice(transcripts)
  train = texts.check_texts(train, vocabulary, architecture.frame_len, config.labels.missing)
  return dataclasses.replace(data, train=train), vocabulary


def _check_held_out(data: Data) -> None:
  """Says what makes figures on dev and test worth little."""
  for name in ("dev", "test"):
    source = getattr(data, name)
    if source is None:
      continue
    same = len(source) == len(data.train) and set(source.ids) == set(data.train.ids)
    if same and source.fingerprint() == data.train.fingerprint():
      log.warning("data.%s and data.train are the same utterances: its figures are too good", name)
    told = [text for text in source.texts if text is not None]
    if told and not any(map(normalise, told)):
      log.warning("%s: every transcript is empty: its error rates say nothing", source.name)


def _facts(source: Source) -> dict:
  return {
    "name": source.name,
    "utterances": len(source),
    "seconds": round(float(source.durations.sum()), 1),
    "fingerprint": source.fingerprint(),
    "broken": [{"id": i, "reason": r} for i, r in source.skipped],
  }


def _check_init(init: str, architecture: Architecture, vocabulary: Vocabulary) -> None:
  """A model can start from the parameters of a finished run."""
  if not init:
    return
  there = kept.read(buckets.here(init))
  if there.vocabulary != vocabulary:
    raise UserError(
      f"config.student.init is {init!r}, whose classes are not this run's: give the config.labels "
      "of that run"
    )
  like = architecture.structure(len(vocabulary.symbols))[1]
  parameters.check_params(there.folder / kept.FINAL, like)


def prepare(made: Plan, teacher: AcousticModel | Stored | None, teacher_source: str) -> Run:
  """All that training needs, from a plan and the teacher that is there now.

  Args:
    made: of the run.
    teacher: frozen, stored, or None.
    teacher_source: where it lies; "" for none.
  """
  config, devices, data = made.config, made.devices, made.data
  training = config.training
  if isinstance(teacher, AcousticModel):
    teacher = rounding.lightened(teacher, config.dtype)
  spoken_for = frozenset(data.held_out())
  if isinstance(teacher, Stored):
    spoken_for = advice.spoken_for(teacher, data)
  objective = _objective(made, teacher, teacher_source)
  blueprint = _blueprint(made, objective, teacher)
  nbest = None
  if HYPOTHESES in objective.needs:
    path, count = made.folder / NBEST, config.kd.hypotheses
    nbest = hypotheses_lib.find(teacher, data.train, path, devices, count=count)
  spelling = None
  if TRANSCRIPTS in objective.needs:
    spelling = Spelling.of(made.vocabulary, data.train.texts)
  shapes, plan_options, updates = _batches(made, isinstance(teacher, Stored), spelling, nbest)
  optimizer, schedule = optim.of_training(training, updates, made.architecture.frozen)
  return Run(
    workdir=made.folder,
    facts=dict(
      variant=config.get("variant", ""),
      recipe=config.recipe,
      kd_scale=config.kd.scale,
      seed=config.seed,
    ),
    seed=config.seed,
    mesh=devices,
    blueprint=blueprint,
    teacher=teacher,
    teacher_source=teacher_source,
    spoken_for=spoken_for,
    objective=objective,
    optimizer=optimizer,
    schedule=schedule,
    data=data,
    shapes=shapes,
    eval_shapes=_eval_shapes(data, devices, made.architecture.frame_samples),
    profile=config_lib.profile_steps(config.profile),
    epochs=training.epochs,
    eval_every_epochs=training.eval_every_epochs,
    save_every_steps=config.checkpoint.every_steps,
    save_every_minutes=config.checkpoint.every_minutes,
    average=training.average,
    hypotheses=nbest,
    spelling=spelling,
    plan_options=plan_options,
    noise_db=tuple(training.noise_db) or None,
  )


def _batches(
  made: Plan, stored: bool, spelling: Spelling | None, nbest: Hypotheses | None
) -> tuple[tuple[plan.Shape, ...], dict, int]:
  """Shapes of training batches, options of `plan.epoch_plan`, and the updates of an epoch.

  Args:
    made: of the run.
    stored: whether the teacher's frames are.
    spelling, nbest: of the targets that are learnt; None for none.
  """
  training, train, devices = made.config.training, made.data.train, made.devices.size
  join_seconds = batches.join_seconds(training, stored)
  if join_seconds != training.join_seconds:
    log.info("each row is one utterance: that is how the stored teacher heard it")
  shapes = plan.shapes(
    train.durations,
    buckets=training.buckets,
    frame_samples=made.architecture.frame_samples,
    join_seconds=join_seconds,
    labels_per_second=_labels_per_second(train, spelling, nbest),
    speeds=tuple(training.speeds),
    **batches.of_run(training, devices, made.folder)._asdict(),
  )
  options = dict(speeds=tuple(training.speeds), join=join_seconds > 0)
  if spelling is not None and None in train.texts:
    options["apart"] = np.array([text is None for text in train.texts])
  first = plan.epoch_plan(train.durations, shapes, seed=made.config.seed, epoch=0, **options)
  if training.accumulate > (most := training.epochs * len(first)):
    raise UserError(
      f"config.training.accumulate is {training.accumulate}: it must be at most {most}, the "
      "batches of this run"
    )
  advice.padding(first.padding_rate(train.durations), training.buckets)
  advice.filler(shapes, devices)
  return shapes, options, len(first)


def _objective(
  made: Plan, teacher: AcousticModel | Stored | None, teacher_source: str
) -> Objective:
  """What an update minimises; the teacher's log prior is estimated where the selection asks."""
  blank_id, log_prior = made.vocabulary.blank_id, None
  if objective_lib.needs_log_prior(made.config.kd):
    path = priors.place(teacher_source, made.folder)
    log_prior = priors.kept_log_prior(teacher, made.data.train, path, made.devices)
  return objective_lib.of_config(made.config, blank_id=blank_id, log_prior=log_prior)


def _blueprint(made: Plan, objective: Objective, teacher: AcousticModel | None) -> Blueprint:
  """The model that is trained, with what only its objective asks for."""
  width = None
  if TEACHER_ENCODINGS in objective.needs:
    width = registry.encoder_width(teacher.graphdef, teacher.params)
  architecture, vocabulary = made.architecture, made.vocabulary
  inner = INNER_HEADS in objective.needs
  graphdef, like = architecture.structure(len(vocabulary.symbols), width, inner_heads=inner)
  return Blueprint(graphdef, like, vocabulary, _first_params(made, width, inner), architecture)


def _first_params(
  made: Plan, project_to: int | None, inner_heads: bool
) -> Callable[[jax.Array], Any]:
  """Typed key → parameters that training starts from."""
  fresh = made.architecture.first_params(
    made.vocabulary, project_to, made.devices, inner_heads=inner_heads
  )
  if not made.config.student.init:
    return fresh
  start = kept.read(buckets.here(made.config.student.init))
  log.info("starts from the parameters of %s", start.folder)
  # What only training needs, which no finished run keeps, is fresh.
  return lambda key: fresh(key) | start.load(made.devices).params


def _labels_per_second(source: Source, spelling: Spelling | None, nbest: Hypotheses | None):
  """Most labels, with a space, in a second of an utterance; 0 where none are read."""
  counts = np.zeros(len(source))
  if spelling is not None:
    counts = np.array([len(spelling([t])) + 1 if t is not None else 0 for t in source.texts])
  if nbest is not None:
    counts = np.maximum(counts, nbest.longest() + 1)
  return float((counts / source.durations).max())


def _eval_shapes(
  data: Data, devices: jax.sharding.Mesh, frame_samples: int
) -> tuple[plan.Shape, ...]:
  """Shapes that dev and test share."""
  durations = [source.durations for source in data.held_out().values()]
  if not durations:
    return ()
  return evaluation_shapes(np.concatenate(durations), devices, frame_samples)
