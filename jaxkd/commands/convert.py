"""jaxkd convert: model folders in the form that the other commands and transformers read."""

import pathlib
import shutil

from jaxkd import console
from jaxkd.errors import UserError


def add_arguments(parser) -> None:
  """Adds what the command line may say."""
  parser.epilog = """\
SOURCE is one of two:
  a finished workdir of the variant teacher: its model is written in Hugging
    Face's layout, for transformers and for others
  a folder with pytorch_model.bin, or with pytorch_model.bin.index.json and its
    shards: the weights are written as model.safetensors; needs torch

example: %(prog)s runs/teacher-manifest"""
  parser.add_argument("source", metavar="SOURCE", type=pathlib.Path, help="a folder; see below")
  parser.add_argument(
    "target",
    metavar="TARGET",
    type=pathlib.Path,
    nargs="?",
    help="a folder (default SOURCE/huggingface for a workdir, else SOURCE)",
  )


def run(args) -> int:
  """Converts and says where to; returns the exit status."""
  source, target = (path and path.expanduser() for path in (args.source, args.target))
  if (source / "results.json").exists():
    target = target or source / "huggingface"
    export(source, target)
  elif weights := _pickles(source):
    target = target or source
    from_pickles(source, weights, target)
  else:
    raise UserError(
      f"{source} is neither a finished workdir (results.json) nor a folder with pytorch_model.bin "
      "or pytorch_model.bin.index.json"
    )
  console.out.print(str(target), highlight=False, markup=False, soft_wrap=True)
  return 0


def _pickles(source: pathlib.Path) -> list[pathlib.Path]:
  """PyTorch's files of weights in a folder."""
  if not any(source.glob("pytorch_model.bin*")):
    return []
  from jaxkd.models.huggingface.weights import stored

  return stored(source, "pytorch_model.bin")


def export(source: pathlib.Path, target: pathlib.Path) -> None:
  """Writes the model of a finished workdir in Hugging Face's layout.

  Raises:
    UserError: it is no model of a Hugging Face family, or it cannot be read.
  """
  from jaxkd.devices import mesh
  from jaxkd.models import kept
  from jaxkd.models.huggingface import folder as huggingface

  found = kept.read(source)
  if found.architecture.description is None:
    raise UserError(f"{source} holds a Conformer: Hugging Face's layout has none of this kind")
  if (kind := found.vocabulary.kind) not in ("characters", "tokens"):
    raise UserError(f"{source} holds a model of {kind}: Hugging Face's layout has characters only")
  model, architecture = found.load(mesh.make_mesh()), found.architecture
  huggingface.save(
    target, architecture.description, architecture.settings, model.params, found.vocabulary
  )


def from_pickles(source: pathlib.Path, weights: list[pathlib.Path], target: pathlib.Path) -> None:
  """Writes PyTorch's pickled weights as safetensors; nothing but tensors is unpickled.

  Raises:
    UserError: no torch, or a file that holds something else than tensors.
  """
  try:
    import torch
    from safetensors.torch import save_file
  except ImportError as error:
    raise UserError(f"{weights[0]} is read with torch: pip install torch 'jaxkd[hf]'") from error
  tensors = {}
  for path in weights:
    try:
      found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's and torch's many kinds
      reason = " ".join(str(error).split())[:200]
      raise UserError(f"{path} cannot be read as tensors alone: {reason}") from error
    if not isinstance(found, dict) or not all(isinstance(t, torch.Tensor) for t in found.values()):
      raise UserError(f"{path} does not hold tensors by name")
    tensors |= {name: tensor.clone().contiguous() for name, tensor in found.items()}
  target.mkdir(parents=True, exist_ok=True)
  unfinished = target / "model.safetensors.unfinished"
  save_file(tensors, str(unfinished), metadata={"format": "pt"})
  unfinished.replace(target / "model.safetensors")
  if target != source:
    for path in source.glob("*.json"):
      if not path.name.endswith(".index.json"):
        shutil.copy(path, target)
