"""What a compiled program costs: bytes from and to HBM and other chips, and cycles.

Read from the text of XLA's optimised HLO (`compiled.as_text()`), whose own totals take the body of
a loop once; here it counts as often as it runs.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator

from jaxkd.errors import UserError

_ARRAY = re.compile(r"([a-z]+[0-9a-z]*)\[([\d,]*)\](?:\{([^}]*)\})?")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%(\S+) = (.*)")
_OPCODE = re.compile(r"\s*([a-z][a-z0-9-]*)\(")
_NAME = re.compile(r"%([^\s,(){}]+)")
_CALLED = re.compile(r"(?:calls|to_apply)=%([^\s,(){}]+)")
_BRANCHES = re.compile(
  r"branch_computations=\{([^}]*)\}|true_computation=(\S+), false_comp\w+=(\S+)"
)
_WHILE = re.compile(r"condition=%([^\s,]+), body=%([^\s,]+)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_SOURCE = re.compile(r'op_name="([^"]*)"')
# Lines that are no instruction: between computations, and the tables of source lines.
_OTHER = re.compile(
  r"\s*\}?\s*$|HloModule |(FileNames|FunctionNames|FileLocations|StackFrames)$|\d+ [\"{]"
)
_TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")
_FRAME = re.compile(r"stack_frame_id=(\d+)")
_TRIPS = re.compile(r'known_trip_count[^\d}]*"?n"?:"?(\d+)')
_COLLECTIVES = (
  "all-gather",
  "reduce-scatter",
  "all-reduce",
  "all-to-all",
  "collective-permute",
)
_BITS = {"pred": 8, "c64": 64, "c128": 128, "token": 0, "opaque": 0}
# What moves nothing itself.
_FREE = frozenset(
  [
    "parameter",
    "constant",
    "get-tuple-element",
    "tuple",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "add-dependency",
    "copy-done",
    "slice-done",
    "async-done",
    "async-update",
  ]
  + [f"{kind}-done" for kind in _COLLECTIVES]
)
_FREE_CALLS = ('"AllocateBuffer"', '"ConcatBitcast"', '"Sharding"', '"SPMDFullToShardShape"')
# What engines of their own move, beside the core: their bytes count as traffic, their cycles not.
_TRANSFERS = ("copy-start", "slice-start")
_SLICES = ("dynamic-slice", "slice", "gather")
_VIEWS = ("bitcast", "reshape", "convert", "copy", "transpose")


@dataclasses.dataclass(frozen=True)
class Cost:
  """What one run of a program on one chip costs.

  Attributes:
    hbm: bytes read from HBM and written to it, without the padding of tiles.
    collectives: kind, such as all-gather, → bytes of the whole arrays: those that are gathered,
      or that are reduced.
    cycles: of the core, as TPU's compiler expects them of each instruction; 0 of other compilers.
    unknown: operation, such as "gather (take_along_axis)", → bytes that it makes: those that work
      on more than single numbers and of which the compiler tells no cycles. Where there are any,
      `cycles` is a lower bound.
  """

  hbm: float = 0.0
  collectives: dict[str, float] = dataclasses.field(default_factory=dict)
  cycles: float = 0.0
  unknown: dict[str, float] = dataclasses.field(default_factory=dict)

  def __add__(self, other: "Cost") -> "Cost":
    return Cost(
      self.hbm + other.hbm,
      _sums(self.collectives, other.collectives),
      self.cycles + other.cycles,
      _sums(self.unknown, other.unknown),
    )

  def __mul__(self, times: int) -> "Cost":
    often = lambda kinds: {k: times * n for k, n in kinds.items()}
    return Cost(times * self.hbm, often(self.collectives), times * self.cycles, often(self.unknown))

  @property
  def sent(self) -> float:
    """Bytes over the interconnect: an all-reduce sends everything twice, as a ring would."""
    return sum(n * (2 if kind == "all-reduce" else 1) for kind, n in self.collectives.items())


def _sums(a: dict[str, float], b: dict[str, float]) -> dict[str, float]:
  return {k: a.get(k, 0.0) + b.get(k, 0.0) for k in a | b}


@dataclasses.dataclass(frozen=True)
class _Array:
  nbytes: float
  in_hbm: bool
  size: int  # elements


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  opcode: str
  arrays: tuple[_Array, ...]  # of the result
  operands: tuple[str, ...]
  rest: str  # what follows the opcode

  @property
  def nbytes(self) -> float:
    return sum(a.nbytes for a in self.arrays)

  @property
  def hbm(self) -> float:
    return sum(a.nbytes for a in self.arrays if a.in_hbm)


class _Computation(dict):
  """Name → instruction, in order; `root` is the last one's name."""

  root = ""

  @functools.cached_property
  def users(self) -> dict[str, list[_Instruction]]:
    found = collections.defaultdict(list)
    for instruction in self.values():
      for name in instruction.operands:
        found[name].append(instruction)
    return found

  @functools.cached_property
  def parameters(self) -> list[str]:
    given = {int(i.rest.split(")")[0]): i.name for i in self.values() if i.opcode == "parameter"}
    return [given[i] for i in sorted(given)]


def cost(text: str) -> Cost:
  """What a program costs.

  Loops count as often as they run, of a conditional the branch that moves most. A loop whose number
  of rounds is not in the text counts once. What is kept in the core's own memory is no traffic;
  of an array that is sliced where it is used, only the slice is read.

  Args:
    text: optimised HLO.

  Raises:
    UserError: a line that is not understood.
  """
  return _Program(text).cost()


def cycles_by(text: str, part_of: Callable[[str, list[str]], str]) -> dict[str, float]:
  """Part of a program → its cycles.

  Args:
    text: optimised HLO.
    part_of: (what follows an instruction's opcode, such as its metadata; "file.py:function" of the
      calls that it came from, innermost first) → a part's name.

  Raises:
    UserError: a line that is not understood.
  """
  program, calls, found = _Program(text), _calls(text), collections.Counter()
  for instruction, times in program.runs(program.entry):
    if cycles := _CYCLES.search(instruction.rest):
      frame = _FRAME.search(instruction.rest)
      part = part_of(instruction.rest, calls.get(frame[1], []) if frame else [])
      found[part] += times * float(cycles[1])
  return dict(found)


def _calls(text: str) -> dict[str, list[str]]:
  """Number of a stack frame → "file.py:function" of its calls, innermost first."""
  tables, table = collections.defaultdict(dict), {}
  for line in text.splitlines():
    table = tables[line] if line in _TABLES else table if line else {}
    number, _, rest = line.partition(" ")
    table[number] = rest
  numbers = lambda rest: dict(re.findall(r"(\w+)=(\d+)", rest))
  found = {}
  for number, rest in tables["StackFrames"].items():
    if frame := numbers(rest):
      place = numbers(tables["FileLocations"][frame["file_location_id"]])
      file = tables["FileNames"][place["file_name_id"]].strip('"').rpartition("/")[2]
      function = tables["FunctionNames"][place["function_name_id"]].strip('"')
      outer = str(int(frame.get("parent_frame_id", 1)) - 1)  # 1 is none
      found[number] = [f"{file}:{function}", *found.get(outer, [])]
  return found


class _Program:
  """Parsed text, and what is known of its parts."""

  def __init__(self, text: str):
    self.computations: dict[str, _Computation] = {}
    self.entry, self.costs, self.channels = "", {}, set()
    current = None
    for number, line in enumerate(text.splitlines(), 1):
      if line.endswith("{") and line.startswith(("%", "ENTRY")):
        name = _NAME.search(line)[1]
        current = self.computations[name] = _Computation()
        self.entry = name if line.startswith("ENTRY") else self.entry
      elif current is not None and (found := _INSTRUCTION.match(line)):
        current[found[2]] = _instruction(found[2], found[3], number)
        if found[1]:
          current.root = found[2]
      elif not _OTHER.match(line):
        raise _not_understood(number, line)

  def cost(self, name: str = "") -> Cost:
    """What one run of a computation costs, by default of the whole program."""
    name = name or self.entry
    if name not in self.costs:
      computation = self.computations[name]
      parts = (self._of_instruction(computation, i) for i in computation.values())
      self.costs[name] = sum(parts, Cost())
    return self.costs[name]

  def runs(self, name: str, times: int = 1) -> Iterator[tuple[_Instruction, int]]:
    """All instructions of a computation that run, in loops and branches too, and how often."""
    for instruction in self.computations[name].values():
      opcode, rest = instruction.opcode, instruction.rest
      if opcode == "while":
        condition, body = _WHILE.search(rest).groups()
        yield from self.runs(body, times * _rounds(rest, self.computations[condition]))
      elif opcode == "conditional":
        yield from self.runs(self._dearest(rest), times)
      elif opcode in ("call", "async-start"):
        yield from self.runs(_CALLED.search(rest)[1], times)
      else:
        yield instruction, times

  def _dearest(self, rest: str) -> str:
    """The branch of a conditional that moves most."""
    names = _NAME.findall(" ".join(g for g in _BRANCHES.search(rest).groups() if g))
    return max(names, key=lambda name: self.cost(name).hbm + self.cost(name).sent)

  def _of_instruction(self, computation: _Computation, instruction: _Instruction) -> Cost:
    opcode, rest = instruction.opcode, instruction.rest
    if opcode == "while":
      condition, body = _WHILE.search(rest).groups()
      return self.cost(body) * _rounds(rest, self.computations[condition])
    if opcode == "conditional":
      return self.cost(self._dearest(rest))
    if opcode in ("call", "async-start"):
      return self.cost(_CALLED.search(rest)[1])
    if opcode in _FREE or (opcode == "custom-call" and any(t in rest for t in _FREE_CALLS)):
      return Cost()
    if opcode == "fusion":
      fused = self.computations[_CALLED.search(rest)[1]]
      sent = sum((self._collective(fused, inner) for inner in fused.values()), Cost())
      moved = self._fusion(computation, instruction, fused)
    else:
      sent = self._collective(computation, instruction)
      moved = _traffic(computation, instruction)
    return sent + Cost(moved) + self._of_core(computation, instruction)

  def _of_core(self, computation: _Computation, instruction: _Instruction) -> Cost:
    """Cycles of an instruction, or that they are not known."""
    if found := _CYCLES.search(instruction.rest):
      return Cost(cycles=float(found[1]))
    inside, opcode = [instruction], instruction.opcode
    if opcode == "fusion":
      fused = self.computations[_CALLED.search(instruction.rest)[1]]
      inside, opcode = list(fused.values()), f"fusion to {fused[fused.root].opcode}"
    beside = (*_TRANSFERS, *_COLLECTIVES, *(f"{kind}-start" for kind in _COLLECTIVES))
    values = [*instruction.arrays]
    for name in instruction.operands:
      values += computation[name].arrays
    if any(i.opcode in beside for i in inside) or all(array.size <= 1 for array in values):
      return Cost()
    source = _SOURCE.search(instruction.rest)
    of = [part for part in re.split(r"[/;]", source[1]) if part] if source else []
    where = f" ({'/'.join(of[-2:])})" if of else ""
    return Cost(unknown={opcode + where: instruction.nbytes})

  def _collective(self, computation: _Computation, instruction: _Instruction) -> Cost:
    """The cost of an instruction that may be a collective.

    One that runs in the background is in several fusions, each with a part of what is computed
    meanwhile; the channel tells that it is the same.
    """
    kind = instruction.opcode.removesuffix("-start")
    channel = _CHANNEL.search(instruction.rest)
    if kind not in _COLLECTIVES or (channel and channel[1] in self.channels):
      return Cost()
    self.channels.add(channel[1] if channel else instruction.name)
    whole = sum(computation[n].nbytes for n in instruction.operands)
    if kind == "all-gather":
      given = whole if instruction.opcode.endswith("-start") else 0
      whole = instruction.nbytes - given
    return Cost(collectives={kind: whole})

  def _fusion(self, computation, instruction, fused: _Computation) -> float:
    """Bytes of HBM that a fusion reads and writes."""
    read = sum(
      min(computation[name].hbm, self._used(fused, parameter))
      for name, parameter in zip(instruction.operands, fused.parameters, strict=True)
    )
    roots = [fused.root]
    if fused[fused.root].opcode == "tuple":
      roots = list(fused[fused.root].operands)
    written = sum(
      _written(fused, root, array)
      for root, array in zip(roots, instruction.arrays, strict=False)
      if array.in_hbm
    )
    return read + written

  def _used(self, fused: _Computation, name: str) -> float:
    """Bytes of a value in a fusion that are read: of one that is only sliced, the slices."""
    total = 0.0
    for user in fused.users[name]:
      if user.opcode in _SLICES and user.operands[0] == name:
        total += user.nbytes
      elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
        continue  # in place
      elif user.opcode in _VIEWS and user.name != fused.root:
        total += self._used(fused, user.name)
      elif user.opcode == "fusion":
        inner = self.computations[_CALLED.search(user.rest)[1]]
        for operand, parameter in zip(user.operands, inner.parameters, strict=True):
          if operand == name:
            total += self._used(inner, parameter)
      else:
        return math.inf
    return total


def _not_understood(number: int, line: str) -> UserError:
  return UserError(
    f"line {number} of the compiled program is not understood, so its cost is not known "
    f"({line.strip()[:120]!r}): another version of jax or libtpu may write it as before"
  )


def _instruction(name: str, text: str, number: int) -> _Instruction:
  end = _closing(text, 0) if text.startswith("(") else text.find(" ")
  opcode = _OPCODE.match(text, end)
  if end < 0 or not opcode:
    raise _not_understood(number, f"%{name} = {text}")
  close = _closing(text, opcode.end() - 1)
  arrays = tuple(_array(*found) for found in _ARRAY.findall(text[:end]))
  operands = tuple(_NAME.findall(text[opcode.end() : close]))
  return _Instruction(name, opcode[1], arrays, operands, text[opcode.end() :])


def _closing(text: str, start: int) -> int:
  """Index after the bracket that closes the one at `start`."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] == "(") - (text[i] == ")")
    if depth == 0:
      return i + 1
  return len(text)


def _array(kind: str, sizes: str, layout: str) -> _Array:
  digits = re.match(r"[a-z]+(\d+)", kind)
  bits = _BITS.get(kind, int(digits[1]) if digits else 0)
  space = re.search(r"S\((\d+)\)", layout)
  count = math.prod(int(n) for n in sizes.split(",") if n)
  return _Array(count * bits / 8, space is None or space[1] == "0", count)


def _traffic(computation: _Computation, instruction: _Instruction) -> float:
  """Bytes of HBM that an instruction outside of fusions reads and writes."""
  opcode = instruction.opcode
  if opcode in _TRANSFERS:
    source, target = instruction.arrays[:2]
    return target.nbytes * (source.in_hbm + target.in_hbm)
  if opcode in _SLICES:
    source = computation[instruction.operands[0]].arrays[0]
    return instruction.nbytes * source.in_hbm + instruction.hbm
  if opcode == "dynamic-update-slice":
    update = computation[instruction.operands[1]]
    return update.hbm + update.nbytes * instruction.arrays[0].in_hbm
  return sum(computation[n].hbm for n in instruction.operands) + instruction.hbm


def _rounds(rest: str, condition: _Computation) -> int:
  """Rounds of a loop that counts up from 0, as scans do."""
  if known := _TRIPS.search(rest):
    return int(known[1])
  root = condition[condition.root]
  limits = [condition[n].rest for n in root.operands if condition[n].opcode == "constant"]
  if root.opcode != "compare" or "direction=LT" not in root.rest or len(limits) != 1:
    return 1
  return int(limits[0].split(")")[0])


def _written(fused: _Computation, name: str, array: _Array) -> float:
  """Bytes of a result that are written: of one that is updated in place, the update."""
  instruction = fused[name]
  while instruction.opcode in _VIEWS:
    instruction = fused[instruction.operands[0]]
  if instruction.opcode == "dynamic-update-slice":
    return fused[instruction.operands[1]].nbytes
  return array.nbytes
