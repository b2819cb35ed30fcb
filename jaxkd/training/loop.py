"""The loop: next batch, update, log, evaluate, save. No maths."""

import contextlib
import dataclasses
import logging
import pathlib
import signal
import time
from concurrent import futures
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxkd import buckets, console
from jaxkd.data import plan as plan_lib
from jaxkd.devices import flops, observe, programs, sharding, stopping
from jaxkd.devices import mesh as mesh_lib
from jaxkd.errors import Interrupted, UserError
from jaxkd.inference import priors, scoring
from jaxkd.inference.frames import Remembered
from jaxkd.models import kept, parameters, registry
from jaxkd.models.acoustic import AcousticModel
from jaxkd.teacher import sources as teachers
from jaxkd.teacher.stored import Stored
from jaxkd.training import assembly, cache, checkpoint, results, workdir
from jaxkd.training import step as step_lib
from jaxkd.training.assembly import Plan
from jaxkd.training.run import Run

log = logging.getLogger(__name__)
_LOG_EVERY_STEPS = 25
_HOPELESS_UPDATES = 5
_COMPILED_AT_ONCE = 4  # each takes a core, and memory


@dataclasses.dataclass
class Position:
  """Where a run stands, saved with every checkpoint.

  Attributes:
    epoch, batch: the next global batch.
    to_evaluate: whether the epoch before is evaluated first: it was saved before that.
    wall_seconds: spent so far, over all sittings.
    selected, frames: selected and real frames of the current epoch.
    selected_rate: of the last whole epoch.
    infeasible: CTC rows without a path in the current epoch, then of the last whole one.
    skipped: updates whose loss or gradient was no finite number.
    broken: id → reason of training utterances that could not be decoded.
  """

  epoch: int = 0
  batch: int = 0
  to_evaluate: bool = False
  wall_seconds: float = 0.0
  selected: float = 0.0
  frames: float = 0.0
  selected_rate: float | None = None
  infeasible: float = 0.0
  infeasible_rows: int = 0
  skipped: int = 0
  broken: dict = dataclasses.field(default_factory=dict)


def run(config: ConfigDict, folder: pathlib.Path) -> dict:
  """Trains (the teacher first where the config says so), evaluates, and writes the results.

  A run that was interrupted goes on from its last checkpoint; a finished one only returns.

  Args:
    config: any config; it is checked here.
    folder: the workdir.

  Returns:
    What `results.json` holds.

  Raises:
    UserError: a mistake in config, data or workdir; before training where it can be known.
    Interrupted: SIGINT or SIGTERM came; the state is saved.
  """
  return carry_out(assembly.plan_run(config, folder))


def carry_out(plan: Plan, *, wait: bool = False) -> dict:
  """Trains what was planned; see `run`.

  Args:
    plan: of the run.
    wait: for another process that works in the same folder, instead of raising.
  """
  folder, epochs = plan.folder, plan.config.training.epochs
  with _claimed(plan, wait):
    if (found := mesh_lib.agreed(workdir.finished(folder, epochs))) is not None:
      log.info("%s is finished", folder)
      return found
    teacher, source = _teacher(plan)
    started = time.monotonic()
    prepared = assembly.prepare(plan, teacher, source)
    if mesh_lib.is_first():
      prepared.blueprint.save(folder)
    found = _Loop(prepared, started).run()
    mesh_lib.wait_for_all("results are written")
    return found


@contextlib.contextmanager
def _claimed(plan: Plan, wait: bool):
  """`workdir.claim` by the first process, for all of them."""
  with contextlib.ExitStack() as stack:
    claim = workdir.claim(plan.folder, plan.config, plan.facts(), plan.vocabulary, wait=wait)
    mesh_lib.by_first(lambda: stack.enter_context(claim))
    yield


def _teacher(plan: Plan):
  """The teacher, trained first if need be, and where it lies."""
  found = plan.teacher
  if found is None:
    return None, ""
  if isinstance(found, Stored):
    return found, found.source
  if isinstance(found, Plan):
    log.info("teacher: %s", found.folder)
    # Variants that start together share one teacher: the first of them trains it.
    carry_out(found, wait=True)
    block = plan.config.teacher
    found = teachers.find(str(found.folder), pool=block.pool, dtype=plan.config.dtype)
  if plan.config.teacher.cache:
    return cache.stored(plan, found), found.source
  return found.load(plan.devices), found.source


class _Loop:
  """One sitting of a run."""

  def __init__(self, run: Run, started: float):
    self.run_ = run
    self.started = started
    self.everywhere = sharding.replicated(run.mesh)
    key = jax.random.fold_in(jax.random.key(run.seed), 0x7A1)
    self.key = jax.jit(lambda: key, out_shardings=self.everywhere)()
    asks = run.objective.asks_teacher and run.taught is None
    asked = run.teacher if asks else None
    self.teacher_params = asked.params if asked else None
    self.teacher_graphdef = asked.graphdef if asked else None
    self.checkpoints = checkpoint.Checkpoints(run.workdir / "checkpoints", keep_best=run.average)
    self.state = run.init_state()
    self.position = Position()
    if (found := self.checkpoints.restore(self.state)) is not None:
      self.state, self.position = found[0], Position(**found[1])
      log.info("resumed at epoch %d, step %d", self.position.epoch, int(self.state.step))
    self.wall_before = self.position.wall_seconds
    self.saved = time.monotonic()
    self.metrics = workdir.MetricsLog(
      run.workdir,
      step=int(self.state.step),
      writes=mesh_lib.is_first(),
      evaluated=not self.position.to_evaluate,
    )
    self.planner = futures.ThreadPoolExecutor(1, "plan")
    self.coming: tuple[int, futures.Future] | None = None  # plan of the next epoch
    self.stop: int | None = None
    traced = run.profile if mesh_lib.is_first() else None
    self.profile = observe.Profile(run.workdir / "profile", traced)
    self.flops: dict[plan_lib.Shape, float] = {}  # of an update
    self.broken: dict[str, str] = {}  # since the last save, by this process
    self.notes: dict[str, str] = {}  # beside the bar of an epoch
    self.bad = (0, 0)  # skipped updates, and all, since most were good
    runs = isinstance(run.teacher, AcousticModel)
    self.on_dev = Remembered(run.teacher) if runs else None

  def run(self) -> dict:
    """Trains to the end, evaluates the final student, writes the results."""
    try:
      with self._signals():
        self._train()
      params, steps = self._final_params()
      params = registry.as_kept(params)
      parameters.save_params(self.run_.workdir / kept.FINAL, params)
      self._keep_log_prior(params)
      evaluated = {
        split: self._evaluate(split, params, spikes=True)
        for split in ("dev", "test")
        if getattr(self.run_.data, split) is not None
      }
    finally:
      self.planner.shutdown(cancel_futures=True)
      self.profile.close()
      self.checkpoints.close()
      self.metrics.close()
    self.position.wall_seconds = self._wall()
    return results.write(self.run_, self.position, evaluated, steps)

  def _wall(self) -> float:
    return self.wall_before + time.monotonic() - self.started

  @contextlib.contextmanager
  def _signals(self):
    """SIGINT and SIGTERM ask for a save at the next step; a second SIGINT ends at once."""

    def ask(signum, frame):
      self.stop = signum
      signal.signal(signal.SIGINT, signal.default_int_handler)
      stopping.notice()

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
      yield
    finally:
      for signum, handler in before.items():
        signal.signal(signum, handler)

  def _train(self) -> None:
    run, position = self.run_, self.position
    if position.epoch < run.epochs:
      self.steps = self._compile()
    while position.epoch < run.epochs or position.to_evaluate:
      if not position.to_evaluate:
        self._epoch()
        self._save()
      if position.to_evaluate:
        self._evaluate_epoch()
        position.to_evaluate = False
      self._leave_if_asked()

  def _compile(self) -> dict:
    """The train step for every batch shape, ahead of time and side by side."""
    run = self.run_
    step = step_lib.make_train_step(
      run.blueprint.graphdef,
      self.teacher_graphdef,
      run.objective,
      run.optimizer,
      stored_as=run.taught and run.taught.settings,
      mesh=run.mesh,
      state_shardings=run.state_shardings,
    )
    started = time.monotonic()
    log.info(
      "compiling the update for batches of %s: once in each sitting, so that no epoch waits for it",
      _shape_names(run.shapes),
    )
    pool = futures.ThreadPoolExecutor(_COMPILED_AT_ONCE, "compile")
    under_way = {}
    try:
      for shape in run.shapes:
        batch = run.batch_struct(shape)
        args = (self.state, self.teacher_params, batch, self._epoch_number(), self.key)
        traced = step.trace(*args)
        self.flops[shape] = flops.count(traced.jaxpr)
        under_way[shape] = pool.submit(programs.compiled, traced.lower())
      with console.progress("compiling", len(run.shapes)) as update:
        for found in under_way.values():
          found.result()
          update()
          self._leave_if_asked()
    finally:
      pool.shutdown(wait=False, cancel_futures=True)
    log.info("compiled in %.0f s", time.monotonic() - started)
    return {shape: found.result() for shape, found in under_way.items()}

  def _epoch_number(self) -> jax.Array:
    return mesh_lib.put(np.int32(self.position.epoch), self.everywhere)

  def _plan(self, epoch: int) -> plan_lib.Plan:
    """The batches of an epoch; the next one's are planned while it trains."""
    coming, self.coming = self.coming, None
    if coming is None or coming[0] != epoch:
      coming = epoch, self.planner.submit(self.run_.epoch_plan, epoch)
    if epoch + 1 < self.run_.epochs:
      self.coming = epoch + 1, self.planner.submit(self.run_.epoch_plan, epoch + 1)
    return coming[1].result()

  def _epoch(self) -> None:
    """The rest of the current epoch."""
    run, position = self.run_, self.position
    planned = self._plan(position.epoch)
    first_step = int(self.state.step) - position.batch
    self.meter = observe.Meter()
    if position.epoch == 0:
      padding = planned.padding_rate(run.data.train.durations)
      log.info("%d batches an epoch, padding %.1f %%", len(planned), 100 * padding)
    epoch = self._epoch_number()
    name = f"epoch {position.epoch + 1}/{run.epochs}"
    with console.progress(name, len(planned), done=position.batch) as update:
      update(0, **self.notes)
      hosts = run.train_batches(position.epoch, planned, position.batch)
      for host in self.meter.waiting_for(hosts):
        number = first_step + position.batch
        self.profile.before(number)
        batch = mesh_lib.put_rows(host.batch, run.mesh)
        step = self.steps[planned[position.batch].shape]
        self.state = step(self.state, self.teacher_params, batch, epoch, self.key)
        self.profile.after(number, self.state)
        done = planned[position.batch]
        self._measure(done)
        self.broken.update(host.broken)
        position.batch += 1
        logs = len(planned) == position.batch or position.batch % _LOG_EVERY_STEPS == 0
        if logs:
          self.notes |= self._log(planned)
          update(0, **self.notes)
        if position.batch < len(planned):
          self._leave_if_asked()
          if int(position.batch) % run.save_every_steps == 0 or self._is_time_to_save(logs):
            self._save()
        update()
    self._end_epoch()

  def _measure(self, done: plan_lib.PlannedBatch) -> None:
    """Audio, room and arithmetic of a batch; rows that only fill up the devices are padding."""
    shape = done.shape
    rows = mesh_lib.padded_rows(shape.rows, self.run_.mesh.size)
    real = plan_lib.seconds_of(done, self.run_.data.train.durations)
    self.meter.add(real, rows * shape.seconds, self.flops[shape] * shape.rows / rows)

  def _end_epoch(self) -> None:
    position = self.position
    self._share_broken()
    if len(position.broken) >= len(self.run_.data.train):
      raise UserError(
        f"{self.run_.data.train.name}: no utterance could be decoded; the first: "
        + ": ".join(next(iter(position.broken.items())))
      )
    position.selected_rate = position.selected / position.frames if position.frames else None
    position.infeasible_rows = int(position.infeasible)
    position.selected = position.frames = position.infeasible = 0.0
    position.epoch += 1
    position.batch = 0
    due = position.epoch % self.run_.eval_every_epochs == 0
    position.to_evaluate = due or position.epoch == self.run_.epochs

  def _log(self, planned) -> dict:
    """Writes the means since the last call to metrics.jsonl and returns them for the bar."""
    terms = jax.device_get(self.state.terms)
    zero = mesh_lib.put(jax.tree.map(np.zeros_like, terms), self.everywhere)
    self.state = self.state._replace(terms=zero)
    position, step = self.position, int(self.state.step)
    if "selected" in terms:
      position.selected += float(terms["selected"].total)
      position.frames += float(terms["selected"].weight)
    if "infeasible" in terms:
      position.infeasible += float(terms["infeasible"].total)
    self._stop_if_hopeless(terms["skipped"], planned, step)
    row = {"step": step, "epoch": position.epoch, "lr": float(self.run_.schedule(step - 1))}
    for name, term in terms.items():
      if float(term.weight) > 0:
        row[name] = float(term.total / max(term.weight, 1))
    self.metrics.write(row)
    self.metrics.write({"step": step, "epoch": position.epoch} | self.meter.read(), "speed")
    shown = {"loss": f"{row['loss']:.3f}"} if "loss" in row else {}
    if "blank" in row:  # of all frames, those whose best class is the blank
      shown["blank frames"] = f"{console.percent(row['blank'])} %"
    return shown

  def _stop_if_hopeless(self, skipped, planned, step: int) -> None:
    """Raises where too many of the last updates gave no finite number."""
    position, count, of = self.position, int(skipped.total), int(skipped.weight)
    position.skipped += count
    if count:
      log.warning("%d of the last %d updates were no finite numbers and skipped", count, of)
    # Over log lines, of which short epochs have one each.
    count, of = count + self.bad[0], of + self.bad[1]
    self.bad = (count, of) if 2 * count > of else (0, 0)
    if self.bad[0] < _HOPELESS_UPDATES:
      return
    last = int(self.state.last_skipped)
    batch = planned[position.batch - (step - last)]
    ids = [self.run_.data.train.ids[u] for row in batch.rows for u in row]
    raise UserError(
      f"{count} of the last {of} updates were no finite numbers, the last of them in step {last} "
      f"with {', '.join(ids[:8])}{' and others' if len(ids) > 8 else ''}: listen to these, lower "
      "config.training.lr, or set config.dtype=float32"
    )

  def _evaluate(self, split: str, params, *, spikes: bool = False) -> scoring.SplitResult:
    run = self.run_
    return scoring.evaluate(
      run.blueprint.with_params(params),
      self.on_dev if split == "dev" and self.on_dev else run.teacher_on(split),
      getattr(run.data, split),
      run.mesh,
      shapes=run.eval_shapes,
      spikes=spikes,
      description=f"evaluating {split}",
    )

  def _evaluate_epoch(self) -> None:
    """Dev figures in the log, and the student offered as one of the best."""
    run, step, epoch = self.run_, int(self.state.step), self.position.epoch
    if run.data.dev is None:
      self.checkpoints.save_best(step, self.state.params, score=-float(step))
      log.info("epoch %d/%d", epoch, run.epochs)
      return
    found = self._evaluate("dev", self.state.params)
    self.checkpoints.save_best(step, self.state.params, score=found.score)
    figures = found.figures["student"] | {"kl": found.kl}
    row = {f"dev/{k}": v for k, v in figures.items() if v is not None and k != "words"}
    self.metrics.write({"step": step, "epoch": epoch - 1} | row)
    text = "  ".join(f"{k[4:]} {v:.3f}" for k, v in row.items())
    if "dev/wer" in row:
      self.notes["dev WER"] = f"{console.percent(row['dev/wer'])} %"
    if "dev/kl" in row:
      self.notes["dev KL"] = f"{row['dev/kl']:.3f}"
    log.info("epoch %d/%d  dev %s  (%.0f s)", epoch, run.epochs, text, self._wall())

  def _share_broken(self) -> None:
    """What any process could not decode is known to all."""
    for found in mesh_lib.gather(self.broken):
      self.position.broken |= found
    self.broken = {}

  def _is_time_to_save(self, logs: bool) -> bool:
    """By the first process's clock; several ask it where they wait for their devices anyway."""
    minutes = self.run_.save_every_minutes
    if minutes == 0 or (jax.process_count() > 1 and not logs):
      return False
    return mesh_lib.agreed(time.monotonic() - self.saved >= 60 * minutes)

  def _save(self) -> None:
    self.saved = time.monotonic()
    self.position.wall_seconds = self._wall()
    self._share_broken()
    self.checkpoints.save(int(self.state.step), self.state, dataclasses.asdict(self.position))
    if buckets.url(self.run_.workdir):
      self.checkpoints.wait()
      self.metrics.flush()
      mesh_lib.by_first(lambda: buckets.publish(self.run_.workdir, exact=True))

  def _leave_if_asked(self) -> None:
    """Saves and leaves after a signal; several processes agree after which batch."""
    stop = self.stop
    if jax.process_count() > 1:
      if not stopping.reached():
        return
      stop = max((s for s in mesh_lib.gather(stop) if s is not None), default=signal.SIGTERM)
    if stop is None:
      return
    self._save()
    raise Interrupted(stop)

  def _final_params(self) -> tuple[Any, list[int]]:
    """The average of the k best students, or the best one where dev says so; and their steps."""
    candidates = self.checkpoints.best(self.state.params)
    steps = [step for step, _ in candidates]
    mean = parameters.average([params for _, params in candidates])
    if self.run_.data.dev is None or len(candidates) == 1:
      return mean, steps
    single = candidates[0]
    scores = [self._evaluate("dev", params).score for params in (mean, single[1])]
    if scores[0] <= scores[1]:
      return mean, steps
    return single[1], [single[0]]

  def _keep_log_prior(self, params) -> None:
    """A model that learnt from transcripts may become a teacher: its prior lies beside it."""
    run = self.run_
    if run.teacher is None:
      model, path = run.blueprint.with_params(params), run.workdir / priors.OWN
      priors.keep_log_prior(model, run.data.train, path, run.mesh)


def _shape_names(shapes) -> str:
  return ", ".join(f"{s.rows} × {s.seconds:.1f} s" for s in shapes)
