"""jaxkd plan-tpu: what the train steps of a config need of TPUs that need not be there."""

from jaxkd.commands import line, train
from jaxkd.config import overrides
from jaxkd.devices import chips

UTTERANCE_SECONDS = 15.0  # where nothing is known of the corpus


def add_arguments(parser) -> None:
  """Adds what the command line may say."""
  parser.epilog = """\
Compiles the train step of the student, and of the teacher where the config
trains it, at full size; libtpu's compiler runs on any machine. Reads no data
and fetches nothing. Prints memory, arithmetic, traffic and time. Status 2 where
it does not fit. Needs pip install 'jaxkd[tpu]'.

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
  from jaxkd.commands import plan_tpu

  known = plan_tpu.CORPORA.get(config.recipe, (None, UTTERANCE_SECONDS))[1]
  plan_tpu.show(config, args.topology, args.utterance_seconds or (known,), args.hours)
  return 0
