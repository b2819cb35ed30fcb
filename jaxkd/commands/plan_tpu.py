"""jaxkd plan-tpu: what the train steps of a config need of TPUs or GPUs that need not be there."""

import itertools
from collections.abc import Sequence

from ml_collections import ConfigDict

from jaxkd import config as config_lib
from jaxkd import console
from jaxkd.commands import line, train
from jaxkd.config import overrides
from jaxkd.devices import chips
from jaxkd.devices.chips import GIB
from jaxkd.errors import UserError

UTTERANCE_SECONDS = 15.0  # where nothing is known of the corpus
# Data -> hours of its training split, and seconds of the longest utterance, rounded up.
# Panayotov et al. 2015, table 1 and section 4 (cut to at most 35 s); Rousseau et al. 2014 (TED-LIUM
# 2; the length is an assumption).
CORPORA = {"librispeech": (960.9, 35.0), "tedlium": (207.0, 25.0)}
_SMALL_BYTES = 1e6  # of an operation that is not named on its own
_BOUNDS = ("arithmetic", "HBM", "the interconnect")


def add_arguments(parser) -> None:
  """Adds what the command line may say."""
  parser.epilog = """\
Compiles the train step of the student, and of the teacher where the config
trains it, at full size; libtpu's compiler runs on any machine. Reads no data
and fetches nothing. Prints memory, arithmetic, traffic and time. Status 2 where
it does not fit. Needs pip install 'jaxkd[tpu]'. For GPUs (h100:8) it tells
memory and arithmetic, and needs JAX's plugin for CUDA but no driver.

Fields that decide whether it fits (the teacher's: --config.teacher.training.…):
  --config.training.batch_seconds=300  of audio in a batch, over all chips
  --config.training.remat=True         layers computed again for the gradient
  --config.mesh.fsdp=8                 chips that parameters are split over

example: %(prog)s --config=symmetric:tedlium --topology=v5e:2x4"""
  parser.add_argument("--config", metavar="VARIANT:RECIPE", required=True, help="as for train")
  parser.add_argument(
    "--topology",
    metavar="CHIP:SHAPE",
    required=True,
    help=f"of the slice, in chips: {', '.join(chips.topology_names())}, ...",
  )
  parser.add_argument(
    "--utterance_seconds",
    metavar="LIST",
    type=line.several(line.number(0.1, 3600)),
    help="lengths of the rows of a batch, with commas between; each is compiled (default the "
    f"corpus's longest utterance, else {UTTERANCE_SECONDS:g})",
  )
  parser.add_argument(
    "--hours",
    type=line.number(0),
    help="of audio in an epoch (default the corpus's, where it is known); without, no time for the "
    "whole recipe",
  )
  parser.add_fields("as for train")


def run(args) -> int:
  """Compiles and prints; returns the exit status."""
  config, _ = overrides.parse(train.as_config_flags(args))
  known = CORPORA.get(config_lib.parts(config.recipe)[0], (None, UTTERANCE_SECONDS))[1]
  show(config, args.topology, args.utterance_seconds or (known,), args.hours)
  return 0


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
  from jaxkd.devices import mesh, slices
  from jaxkd.training import ahead

  chip, devices = slices.slice_of(topology)
  where = mesh.make_mesh(config.mesh.fsdp, devices)
  _say(
    f"{config.variant}:{config.recipe} on {where.size} × {topology.partition(':')[0]} "
    f"({topology}), mesh: data {where.shape['data']} × fsdp {where.shape['fsdp']}, "
    f"{config.dtype}"
  )
  refused = []
  for step, seconds in itertools.product(ahead.steps_of(config), lengths):
    shape = ahead.shape_of(step, seconds, where.size)
    _say(_title(step, shape, where))
    program = ahead.compiled(step, shape, where)
    of_data = _known_hours(step.config) if hours is None else hours
    for text in _lines(step, program, shape, chip, where, of_data):
      _say(f"  {text}")
    if program.refusal or program.hbm > chip.hbm:
      refused.append(f"{step.name} {_advice(step, program, shape, where)}")
  if refused:
    raise UserError(f"on {topology}, " + "; ".join(refused))


def _known_hours(config: ConfigDict) -> float | None:
  """Hours of the recipe's training data; None for other data, such as a part of it."""
  whole = config.data.train == config_lib.base(config.recipe).data.train
  data, _ = config_lib.parts(config.recipe)
  return CORPORA[data][0] if whole and data in CORPORA else None


def _say(line: str) -> None:
  console.out.print(line, highlight=False, markup=False, soft_wrap=True)


def _title(step, shape, devices) -> str:
  import jax

  from jaxkd.devices.mesh import padded_rows

  rows = padded_rows(shape.rows, devices.size)
  seconds = shape.seconds
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
  memory = (
    f"HBM           {gib(program.hbm)} of {gib(chip.hbm)} GiB: arguments {gib(program.arguments)}, "
    f"temporaries {gib(program.temporaries)}, outputs {gib(program.outputs)} (and "
    f"{gib(program.in_place)} in place of arguments), code {gib(program.code)}"
  )
  arithmetic = (
    f"arithmetic    {program.flops / 1e12:.3g} TFLOP, {of_chip / 1e12:.3g} a chip: "
    f"{short(of_chip / chip.flops)}"
  )
  if cost is None:
    return [memory, arithmetic, f"compiled in {program.compile_seconds:.0f} s"]
  kinds = ", ".join(f"{k} {n / 1e9:.3g} GB" for k, n in sorted(cost.collectives.items())) or "none"
  times = of_chip / chip.flops, cost.hbm / chip.hbm_bandwidth, cost.sent / chip.interconnect
  least, scheduled = max(times), cost.cycles / chip.clock_hz + times[2]
  lines = [
    memory,
    arithmetic,
    f"HBM traffic   {cost.hbm / 1e9:.3g} GB a chip: {short(times[1])}",
    f"interconnect  {kinds} a chip: {short(times[2])}",
    f"a step        {short(least)} at least, bound by {_BOUNDS[times.index(least)]}; "
    f"{short(scheduled)} by the compiler's count of cycles",
  ]
  if cost.unknown:
    lines.append(f"not counted   {_unknown(cost.unknown)}: the count of cycles is a lower bound")
  if hours is not None:
    epochs = step.config.training.epochs
    steps = epochs * hours * 3600 / (shape.rows * shape.seconds)
    lines.append(
      f"the recipe    {epochs} epochs of {hours:g} h, {steps:,.0f} such steps: "
      f"{steps * least / 3600:.3g} h at least, {steps * scheduled / 3600:.3g} h by the compiler"
    )
  return [*lines, f"compiled in {program.compile_seconds:.0f} s"]


def _unknown(kinds: dict[str, float]) -> str:
  """Operations of which the compiler tells no cycles, by the bytes that they make."""
  ordered = sorted(kinds, key=kinds.get, reverse=True)
  named = [f"{name} {kinds[name] / 1e6:.3g} MB" for name in ordered if kinds[name] >= _SMALL_BYTES]
  if rest := [kinds[name] for name in ordered if kinds[name] < _SMALL_BYTES]:
    named.append(f"{len(rest)} kinds of less than 1 MB each")
  return ", ".join(named)


def _advice(step, program, shape, devices) -> str:
  """What does not fit, and what helps."""
  why = program.refusal or f"{program.hbm / GIB:.2f} GiB are more than a chip has"
  help_ = []
  if not step.config.training.remat:
    help_.append(f"--config.{step.block}.remat=True")
  if devices.shape["fsdp"] < devices.size:
    help_.append(f"--config.mesh.fsdp={devices.size}")
  if shape.rows > devices.size:
    seconds = devices.size * shape.seconds
    help_.append(f"--config.{step.block}.batch_seconds={seconds:.0f}")
  help_.append("shorter utterances (--utterance_seconds)")
  return f"does not fit ({why}): try {', '.join(help_)}"
