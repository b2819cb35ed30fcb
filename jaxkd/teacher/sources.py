"""`config.teacher.source` → a teacher: what it is, and its parameters when they are needed."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from jaxkd import buckets, files, teacher, workdirs
from jaxkd.errors import UserError
from jaxkd.labels import Vocabulary, check_same
from jaxkd.models import kept, shared
from jaxkd.models.acoustic import AcousticModel
from jaxkd.models.huggingface import folder as huggingface
from jaxkd.models.huggingface import weights
from jaxkd.teacher import stored
from jaxkd.teacher.ensemble import Ensemble, ensemble
from jaxkd.teacher.stored import Stored

# Of a file of weights, at both ends.
_END_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True)
class Found:
  """A teacher whose parameters are not read yet.

  Attributes:
    source: where it lies; several with commas between.
    vocabulary: its classes.
    frame_samples: audio samples in an output frame.
    graphdef, like: its structure and abstract parameters.
    load: reads the parameters and lays them out on devices.
    pool: shorter frames in each, by the config; 0 for a model whose frames are not pooled by it.
  """

  source: str
  vocabulary: Vocabulary
  frame_samples: int
  graphdef: Any
  like: Any
  load: Callable[[jax.sharding.Mesh], AcousticModel]
  pool: int = 0


def find(
  source: str,
  *,
  pool: int,
  dtype: str,
  language: str = "",
  named: str = "config.teacher.source is ",
) -> Found | Stored:
  """The teacher at a source: a workdir, a folder to share, a store, or an ensemble of several.

  Args:
    source: a folder, or org/name on the hub; several with commas between.
    pool: 20 ms frames of a Hugging Face model that become one; a workdir has its own.
    dtype: of a Hugging Face model's arithmetic; a Conformer has its own.
    language: of Hugging Face models with an adapter for each; "" for others.
    named: where the source stands, for errors.

  Raises:
    UserError: no teacher there, one that cannot be used, or several that do not go together.
  """
  names = members(source, named)
  if stores := [name for name in names if stored.is_one(buckets.here(name))]:
    if len(names) > 1:
      raise UserError(f"{named}{source!r}: {stores[0]} is stored, and cannot be averaged")
    return stored.find(source)
  if len(names) > 1:
    options = dict(pool=pool, dtype=dtype, language=language, named=named)
    found = [find(name, **options) for name in names]
    return _together(source, found)
  is_run = not _is_huggingface(source, named)
  if is_run and language:
    raise UserError(f"{source} has one vocabulary, and none of the language {language!r}")
  if is_run:
    return _ours(source, kept.read(buckets.here(source)))
  folder = huggingface.folder_of(source, language)
  if shared.is_one(folder):
    return _ours(source, shared.read(folder))
  config, vocabulary = teacher.read_huggingface(folder, pool, dtype, language)
  structure = weights.structure(config, len(vocabulary.symbols), frozen=True)
  load = lambda devices: teacher.from_huggingface(
    folder, pool, dtype=dtype, language=language, devices=devices
  )
  return Found(source, vocabulary, config.frame_samples, *structure, load, pool)


def _ours(source: str, found: kept.Kept | shared.Shared) -> Found:
  frame_samples, structure = found.architecture.frame_samples, (found.graphdef, found.like)
  return Found(source, found.vocabulary, frame_samples, *structure, found.load)


def _together(source: str, found: list[Found]) -> Found:
  """An ensemble."""
  first, *others = found
  for other in others:
    check_same(first.vocabulary, other.vocabulary, first.source, other.source)
    if other.frame_samples != first.frame_samples:
      raise UserError(
        f"{first.source} has a frame every {first.frame_samples} samples, {other.source} every "
        f"{other.frame_samples}: teachers that are averaged must have frames of one length"
      )
  whole = lambda: Ensemble([nnx.merge(f.graphdef, f.like) for f in found])
  load = lambda devices: ensemble([f.load(devices) for f in found])
  structure = nnx.split(nnx.eval_shape(whole))
  return Found(source, first.vocabulary, first.frame_samples, *structure, load)


def fingerprint(source: str) -> str:
  """16 hexadecimal digits that are others where a teacher's files are, wherever they lie.

  Of weights their sizes and ends are read; of one on a hub only its name is known.
  """
  digest = hashlib.sha256()
  for name in members(source):
    folder = buckets.here(name)
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    there = [path for path in (folder / workdirs.RESULTS, *weights) if path.exists()]
    digest.update(repr([path.name for path in there] or name).encode())
    for path in there:
      with path.open("rb") as file:
        digest.update(file.read(_END_BYTES))
        size = file.seek(0, 2)
        file.seek(max(0, size - _END_BYTES))
        digest.update(file.read() + str(size).encode())
  return digest.hexdigest()[:16]


def members(source: str, named: str = "config.teacher.source is ") -> list[str]:
  """The teachers of a source, which are several where commas stand between.

  Raises:
    UserError: one of them is empty.
  """
  found = [part.strip() for part in source.split(",")]
  if not all(found):
    raise UserError(f"{named}{source!r}: teachers with single commas between")
  return found


def _is_huggingface(source: str, named: str) -> bool:
  """Whether a teacher's source is a Hugging Face model and not a workdir.

  Raises:
    UserError: it is neither.
  """
  folder = buckets.here(source)
  if workdirs.is_finished(folder):
    return False
  if not folder.is_dir():
    if source.count("/") == 1 and not folder.parent.is_dir():
      return True
    raise UserError(
      f"{named}{source!r}: no such folder; it must be the workdir of a finished run, or a model in "
      "Hugging Face's layout (a folder, or org/name on its hub)"
      + ("; or train, or none" if "config" in named else "")
    )
  config = folder / "config.json"
  if not config.exists() or "recipe" in files.read_json(config):
    raise UserError(
      f"{folder} is neither the workdir of a finished run (no results.json: run it to its end "
      "first) nor a model that jaxkd convert wrote, or in Hugging Face's layout (config.json, "
      "weights, vocab.json)"
    )
  return True
