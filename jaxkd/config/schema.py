"""What a table of fields is made of, and how it says what a value must be."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

INT_LIMIT = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Field:
  """One value.

  Attributes:
    default: the paper's setup for TED-LIUM; its type is the one that values must have.
    about: what it is, a sentence without full stop.
    unit: of numbers, where they have one.
    low, high: range of a number, both included.
    above: whether `low` itself is left out.
    choices: the texts that there are; () for any.
    each: what every element of a tuple is.
    sizes: how many elements a tuple may have; () for one or more.
    read_by: values of the block's switch that read it; () for all.
    optional: whether a block may lack it.
    bound: whether a result depends on it and on nothing else that says the same.
  """

  default: Any
  about: str = ""
  unit: str = ""
  low: float = -math.inf
  high: float = math.inf
  above: bool = False
  choices: tuple[str, ...] = ()
  each: "Field | None" = None
  sizes: tuple[int, ...] = ()
  read_by: tuple[str, ...] = ()
  optional: bool = False
  bound: bool = True


@dataclasses.dataclass(frozen=True)
class Block:
  """A block with the same fields always.

  Attributes:
    fields: name → what is there.
    switch: the field whose value says which others are read; "" where all are.
  """

  fields: Mapping[str, "Field | Block | Kinds"]
  switch: str = ""


@dataclasses.dataclass(frozen=True)
class Kinds:
  """A block whose `name` says which other fields it has.

  Attributes:
    name: the default kind, the choices being the kinds.
    kinds: name → its fields.
    changes: defaults that differ from the kinds' own here.
  """

  name: Field
  kinds: Mapping[str, Mapping[str, Field]]
  changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def of(self, name: str) -> dict[str, Field]:
    """The fields of a kind, `name` first; of an unknown kind, that alone."""
    return {"name": self.name} | {
      k: dataclasses.replace(f, default=self.changes.get(k, f.default))
      for k, f in self.kinds.get(name, {}).items()
    }


def defaults(node: "Field | Block | Kinds", kind: str = "") -> Any:
  """The default value of a field, or of a block as a dict of its fields that must be there.

  Args:
    node: of the table.
    kind: of a block of several kinds; "" for its default.
  """
  if isinstance(node, Field):
    return node.default
  fields = node.of(kind or node.name.default) if isinstance(node, Kinds) else node.fields
  found = {
    name: defaults(inner)
    for name, inner in fields.items()
    if not (isinstance(inner, Field) and inner.optional)
  }
  return found | {"name": kind} if kind else found


def unbound(block: Block, prefix: str = "") -> Iterator[str]:
  """Dotted names of a block's fields that bind no result."""
  for name, node in block.fields.items():
    if isinstance(node, Block):
      yield from unbound(node, f"{prefix}{name}.")
    elif isinstance(node, Field) and not node.bound:
      yield prefix + name


def allowed(field: Field) -> str:
  """What a value must be: "an integer, 1 or more", "one of radam, adamw"."""
  if field.choices:
    return f"one of {', '.join(field.choices)}"
  return _described(field, many=False)


_NOUNS = {
  bool: ("True or False", "truth values"),
  int: ("an integer", "integers"),
  float: ("a number", "numbers"),
  str: ("text", "texts"),
  tuple: ("a tuple", "tuples"),
}
_COUNTS = {1: "one", 2: "two", 3: "three", 4: "four", 6: "six"}


def _described(field: Field, *, many: bool) -> str:
  noun = _NOUNS[type(field.default)][many]
  if field.each is None:
    return noun + _range(field)
  sizes = [n for n in field.sizes if n]
  if len(sizes) > 2:
    count = f"{_COUNTS[sizes[0]]} to {_COUNTS[sizes[-1]]}"
  else:
    count = " or ".join(_COUNTS[n] for n in sizes) or "one or more"
  empty = "() or " if 0 in field.sizes else ""
  return f"{empty}{noun} of {count} {_described(field.each, many=True)}"


def _range(field: Field) -> str:
  low, high = _number(field.low), _number(field.high)
  if field.low == -math.inf:
    return "" if field.high == math.inf else f" up to {high}"
  if field.high == INT_LIMIT:
    return f", {low} or more (below 2**31)"
  if field.above:
    return f" above {low}" + ("" if field.high == math.inf else f", up to {high}")
  return f", {low} or more" if field.high == math.inf else f" from {low} to {high}"


def _number(value: float) -> str:
  return str(int(value)) if math.isfinite(value) and value == int(value) else f"{value:g}"


def count(default: int, about: str, low: int = 0, high: float = INT_LIMIT, **more) -> Field:
  """A field that holds a whole number from `low` to `high`."""
  return Field(default, about, low=low, high=high, **more)


def share(default: float, about: str, high: float = 1.0, **more) -> Field:
  """A field that holds a number from 0 to `high`."""
  return Field(default, about, low=0.0, high=high, **more)
