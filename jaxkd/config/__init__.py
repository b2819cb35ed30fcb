"""The config of a run: one table of fields, recipes, the check, and configs on disk.

A variant in `configs/` is `base(recipe)` with one or two fields changed.
"""

from typing import Any, NamedTuple

from ml_collections import ConfigDict

from jaxkd.config.check import check, profile_steps
from jaxkd.config.fields import ALPHABET, AUTO, FIELDS, LABELS, SELECTIONS
from jaxkd.config.meaning import (
  average_decay,
  distils,
  reads_hypotheses,
  reads_transcripts,
  scales,
)
from jaxkd.config.recipes import DATA, RECIPES, SIZES, base, parts
from jaxkd.config.schema import Block, Field, allowed
from jaxkd.config.upgrade import SCHEMA, binding, flat, stored, upgrade

__all__ = [
  "ALPHABET",
  "AUTO",
  "DATA",
  "LABELS",
  "RECIPES",
  "SCHEMA",
  "SELECTIONS",
  "SIZES",
  "Row",
  "average_decay",
  "base",
  "binding",
  "check",
  "describe",
  "distils",
  "flat",
  "for_teacher",
  "parts",
  "profile_steps",
  "reads_hypotheses",
  "reads_transcripts",
  "scales",
  "stored",
  "train_data",
  "upgrade",
]


def train_data(config: ConfigDict) -> str:
  """What the student trains on: `data.train`, or where that is "auto" a split of the corpus.

  That is the untranscribed one where nothing but the teacher is learnt from (kd.scale is 1).
  """
  if config.data.train != "auto":
    return config.data.train
  return f"{parts(config.recipe)[0]}:{'train' if reads_transcripts(config.kd) else 'unlabelled'}"


def for_teacher(config: ConfigDict) -> ConfigDict:
  """The config of the run that trains the teacher: CTC alone on `data.teacher_train`."""
  teacher = base(config.recipe).copy_and_resolve_references().unlock()
  for name in ("seed", "dtype", "labels", "features", "checkpoint", "mesh"):
    teacher[name] = config[name]
  teacher.variant = "teacher"
  teacher.data = config.data.copy_and_resolve_references()
  teacher.data.train = config.data.teacher_train
  teacher.student = config.teacher.model
  teacher.training = config.teacher.training
  teacher.teacher.source = "none"
  teacher.kd.update(scale=0.0)
  return teacher.lock()


class Row(NamedTuple):
  """A field for a reader.

  Attributes:
    name: dotted, as on the command line after `--config.`.
    default: of the recipe.
    unit: "" for none.
    allowed: range or choices in words.
    about: a sentence.
  """

  name: str
  default: Any
  unit: str
  allowed: str
  about: str


def describe(recipe: str = "demo") -> list[Row]:
  """All fields with a recipe's defaults; of blocks of several kinds, the fields of each kind.

  Raises:
    UserError: an unknown recipe.
  """
  return list(_rows(FIELDS, base(recipe), ""))


def _rows(block: Block, given: ConfigDict, prefix: str):
  for name, node in block.fields.items():
    path = prefix + name
    if isinstance(node, Field):
      reader = f"{prefix}{block.switch}={' or '.join(node.read_by)}" if node.read_by else ""
      yield _row(path, node, given.get(name, node.default), reader)
    elif isinstance(node, Block):
      yield from _rows(node, given[name], f"{path}.")
    else:
      yield _row(f"{path}.name", node.name, given[name].name)
      for kind, inner in node.kinds.items():
        own = given[name] if given[name].name == kind else {}
        for field, entry in inner.items():
          default = own.get(field, entry.default)
          yield _row(f"{path}.{field}", entry, default, f"{path}.name={kind}")


def _row(path: str, field: Field, default, reader: str = "") -> Row:
  about = f"{field.about} ({reader})" if reader else field.about
  return Row(path, default, field.unit, allowed(field), about)
