"""jaxkd convert: models as folders that the other commands, transformers and the hub take."""

import contextlib
import logging
import pathlib
import shutil

from jaxkd import buckets, console, files, workdirs
from jaxkd.errors import UserError

log = logging.getLogger(__name__)
_CARD = "README.md"


def add_arguments(parser) -> None:
  """Adds what the command line may say."""
  parser.in_buckets = ("",)
  parser.epilog = """\
SOURCE is one of two:
  a finished workdir: its model is written with its weights as safetensors and
    a model card, README.md, whose licence is to be filled in; of HuBERT and
    its like, and of a FastConformer, in Hugging Face's layout, for transformers
    and for others; of a Conformer for jaxkd
  a folder with pytorch_model.bin, or with pytorch_model.bin.index.json and its
    shards: the weights are written as model.safetensors. The other commands
    do so by themselves, into the cache

A card that is there already is kept. --push uploads the folder to the Hugging
Face hub, where `hf auth login` has logged in.

examples:
  %(prog)s runs/symmetric-demo
  %(prog)s runs/symmetric-demo --push=my-org/my-model --private"""
  add = parser.add_argument
  add("source", metavar="SOURCE", type=buckets.here, help="a folder; see below")
  add(
    "target",
    metavar="TARGET",
    nargs="?",
    help="a folder (default SOURCE/huggingface for a workdir, else SOURCE)",
  )
  add("--push", metavar="ORG/NAME", help="uploads it to this model of the hub")
  add("--private", action="store_true", help="a model that --push makes is not public")


def run(args) -> int:
  """Converts and says where to; returns the exit status."""
  source, target = args.source, args.target and buckets.output(args.target)
  if args.private and not args.push:
    raise UserError("--private is of what --push=ORG/NAME uploads")
  if args.push:
    from jaxkd.models.huggingface import hub

    hub.check_can_push(args.push)
  if workdirs.is_finished(source):
    target = target or buckets.output(source / "huggingface")
    written = share(source, target, args.push or "")
    if args.push:
      url = hub.push(target, written, args.push, private=args.private)
      console.out.print(url, highlight=False, markup=False, soft_wrap=True)
  elif weights := _pickles(source):
    if args.push:
      raise UserError(f"--push uploads the model of a finished workdir, and {source} is none")
    target = target or buckets.output(source)
    from_pickles(source, weights, target)
  else:
    raise UserError(
      f"{source} is neither a finished workdir (results.json) nor a folder with pytorch_model.bin "
      "or pytorch_model.bin.index.json"
    )
  console.out.print(buckets.name(target), highlight=False, markup=False, soft_wrap=True)
  return 0


def _pickles(source: pathlib.Path) -> list[pathlib.Path]:
  """PyTorch's files of weights in a folder."""
  if not any(source.glob("pytorch_model.bin*")):
    return []
  from jaxkd.models.huggingface import tensors

  return tensors.stored(source, "pytorch_model.bin")


def share(source: pathlib.Path, target: pathlib.Path, name: str) -> list[pathlib.Path]:
  """Writes the model of a finished workdir and its card; returns the files.

  Args:
    source: the workdir.
    target: a folder, made if absent.
    name: ORG/NAME on the hub, for the card; "" for none.

  Raises:
    UserError: the model cannot be read, has no such layout, or the target cannot be written.
  """
  from jaxkd.devices import mesh
  from jaxkd.models import kept, shared
  from jaxkd.models.huggingface import folder as huggingface
  from jaxkd.models.huggingface import students
  from jaxkd.report import card

  if workdirs.is_finished(target):
    raise UserError(f"{target} is a workdir, whose config.json would be lost: take another folder")
  found = kept.read(source)
  architecture, vocabulary = found.architecture, found.vocabulary
  kind = vocabulary.kind
  if architecture.description is not None and kind not in ("characters", "tokens"):
    raise UserError(f"{source} holds a model of {kind}: Hugging Face's layout has characters only")
  model = found.load(mesh.make_mesh())
  try:
    if architecture.is_ours:
      written = shared.save(target, found, model.params)
    elif architecture.description is None:
      written = students.save(target, architecture.settings, model.params, vocabulary)
    else:
      written = huggingface.save(
        target, architecture.description, architecture.settings, model.params, vocabulary
      )
    if (target / _CARD).exists():
      log.info("%s is kept as it is: take it away for a new one", target / _CARD)
    else:
      files.write_text(target / _CARD, card.text(found, model.parameter_count, name))
  except OSError as error:
    raise UserError(f"{target} cannot be written: {error.strerror}") from error
  return [*written, target / _CARD]


def from_pickles(source: pathlib.Path, weights: list[pathlib.Path], target: pathlib.Path) -> None:
  """Writes PyTorch's pickled weights as safetensors; nothing but tensors is unpickled.

  Raises:
    UserError: a file that holds something else than tensors, or the target cannot be written.
  """
  from jaxkd.models.huggingface import pickles, tensors

  found = pickles.read_all(weights)
  unfinished = target / "model.safetensors.unfinished"
  try:
    target.mkdir(parents=True, exist_ok=True)
    tensors.copy(found, unfinished)
    unfinished.replace(target / "model.safetensors")
    if target != source:
      for path in source.glob("*.json"):
        if not path.name.endswith(".index.json"):
          shutil.copy(path, target)
  except OSError as error:
    raise UserError(f"{target} cannot be written: {error.strerror}") from error
  finally:
    with contextlib.suppress(OSError):  # of a target that is no folder
      unfinished.unlink(missing_ok=True)
