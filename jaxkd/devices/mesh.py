"""Devices and processes: the mesh, who holds which rows, and what processes tell each other."""

import functools
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Collection

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh

from jaxkd import console
from jaxkd.devices import programs, sharding, stopping
from jaxkd.errors import TRY_AGAIN, TryAgain, UserError
from jaxkd.types import Batch, batch_like

log = logging.getLogger(__name__)
# A process that is silent for so long is dead, and its run with it.
_HEARTBEAT_SECONDS = 30


def start_processes() -> None:
  """Joins the processes of a run, as the environment says; without it there is one.

  JAXKD_PROCESSES=N with JAXKD_PROCESS=I and JAXKD_COORDINATOR=HOST:PORT, or JAXKD_PROCESSES=auto
  where JAX finds them itself (Slurm, Cloud TPU, GKE). JAXKD_TIMEOUT: seconds to wait for all of
  them, 300 by default.

  The first line of the log says what the run has to work with.

  Raises:
    UserError: a variable that is missing or wrong, or no device of the kind that is asked for.
    TryAgain: a coordinator that is not reached.
  """
  if given := os.environ.get("JAXKD_PROCESSES"):
    _join(given)
  found = describe_devices()  # before all else, since nothing else says in a line that it has none
  if given:
    if not is_first():
      console.be_quiet()
    programs.check_shared(gather, is_first=is_first())
  if is_first():
    log.info("%s", found)


def describe_devices() -> str:
  """Such as "cpu: 8 devices, in 2 processes".

  Raises:
    UserError: JAX has no devices of the kind that is asked for.
  """
  try:
    devices = jax.devices()
  except (RuntimeError, AssertionError) as error:  # the latter where a plugin is missing
    asked = jax.config.jax_platforms or "any"
    reason = " ".join(str(error).split())[:200] or "it has no such backend here"
    raise UserError(
      f"JAX_PLATFORMS={asked}: JAX finds no device ({reason}): install its plugin, such as "
      "pip install 'jaxkd[cuda]' or 'jaxkd[tpu]', or set JAX_PLATFORMS=cpu"
    ) from error
  kind, backend = devices[0].device_kind, jax.default_backend()
  count = f"{len(devices)} device{'s' * (len(devices) > 1)}"
  named = "" if kind == backend else f" ({kind})"
  processes = jax.process_count()
  return f"{backend}: {count}{named}" + (f", in {processes} processes" if processes > 1 else "")


def _join(given: str) -> None:
  """Joins the other processes; `given` is JAXKD_PROCESSES."""
  timeout = _number("JAXKD_TIMEOUT", 1, 86_400, default=300)
  # JAX would abort with a stack of C++ when its own time is up.
  options = dict(initialization_timeout=2 * timeout, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS)
  coordinator = os.environ.get("JAXKD_COORDINATOR", "")
  if given != "auto":
    count = _number("JAXKD_PROCESSES", 1, 100_000)
    options |= dict(num_processes=count, process_id=_number("JAXKD_PROCESS", 0, count - 1))
    if not coordinator.rpartition(":")[2].isdigit() or not coordinator.rpartition(":")[0]:
      raise UserError(f"JAXKD_COORDINATOR is {coordinator!r}: it must be HOST:PORT of process 0")
    options["coordinator_address"] = coordinator
  alarm = threading.Timer(timeout, _give_up, [coordinator, timeout])
  alarm.daemon = True
  alarm.start()
  jax.config.update("jax_enable_preemption_service", True)
  try:
    jax.distributed.initialize(**options)
  except (RuntimeError, ValueError) as error:
    reason = " ".join(str(error).split())[:200]
    raise TryAgain(f"the processes of this run did not meet: {reason}") from error
  finally:
    alarm.cancel()
  stopping.listen()


def _give_up(coordinator: str, timeout: int) -> None:
  """Ends this process, whose main thread waits inside of JAX."""
  where = f" at {coordinator}" if coordinator else ""
  line = f"error: the other processes{where} were not reached in {timeout} s (JAXKD_TIMEOUT)"
  print(line, file=sys.stderr, flush=True)
  os._exit(TRY_AGAIN)


def _number(name: str, low: int, high: int, default: int | None = None) -> int:
  given = os.environ.get(name, "" if default is None else str(default))
  if not given.isdigit() or not low <= int(given) <= high:
    raise UserError(f"{name} is {given!r}: it must be a whole number from {low} to {high}")
  return int(given)


def is_first() -> bool:
  """Whether this process writes files and speaks to the user."""
  return jax.process_index() == 0


def wait_for_all(what: str) -> None:
  """Returns when every process is here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(what)


def agreed(value):
  """The JSON-able value that the first process has."""
  return gather(value)[0]


def by_first(act: Callable[[], object]) -> None:
  """Lets the first process do something; a UserError there ends all of them at once."""
  problem = None
  if is_first():
    try:
      act()
    except UserError as error:
      problem = {"line": str(error), "may_pass": isinstance(error, TryAgain)}
  if (problem := agreed(problem)) is not None:
    raise (TryAgain if problem["may_pass"] else UserError)(problem["line"])


def check_one_host(shown: str) -> None:
  """Raises UserError where processes are on several machines, of which one would have a folder.

  Args:
    shown: the folder, as a person knows it.
  """
  if len(set(gather(socket.gethostname()))) > 1:
    raise UserError(
      f"{shown}: processes on several hosts need a folder that all of them see, such as a mounted "
      "bucket"
    )


def gather(value) -> list:
  """A JSON-able value from every process, in their order."""
  if jax.process_count() == 1:
    return [value]
  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = np.asarray(multihost_utils.process_allgather(np.int64(len(data)))).reshape(-1)
  padded = np.zeros(int(sizes.max()), np.uint8)
  padded[: len(data)] = data
  rows = np.asarray(multihost_utils.process_allgather(padded))
  return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def make_mesh(fsdp: int = 1, devices=None) -> Mesh:
  """All devices of all processes, or those that are given: `data` times `fsdp`.

  Of several slices, each has whole groups of `fsdp` devices: between slices, where the network is
  slow, only gradients are summed.

  Raises:
    UserError: `fsdp` does not divide them, or the slices are not alike.
  """
  devices = jax.devices() if devices is None else devices
  slices: dict[int, list] = {}
  for device in devices:
    slices.setdefault(getattr(device, "slice_index", 0) or 0, []).append(device)
  sizes = {number: len(slices[number]) for number in sorted(slices)}
  each = sizes[min(sizes)]
  if set(sizes.values()) != {each}:
    found = ", ".join(f"{n} in slice {number}" for number, n in sizes.items())
    raise UserError(
      f"the slices of this run do not match: {found} devices; all must be of one type and whole"
    )
  if each % fsdp:
    divisors = [str(n) for n in range(1, each + 1) if each % n == 0]
    of = "" if len(slices) == 1 else f" of each of the {len(slices)} slices"
    raise UserError(
      f"config.mesh.fsdp is {fsdp}: it must divide the {each} devices{of}: {', '.join(divisors)}"
    )
  found = _laid_out((each // fsdp, fsdp), slices)
  return Mesh(found, sharding.AXES, axis_types=(AxisType.Auto,) * 2)


def _laid_out(shape: tuple[int, int], slices: dict[int, list]) -> np.ndarray:
  """Devices of equal slices, so that neighbours on an axis are near each other.

  Args:
    shape: of a slice, (data, fsdp).
    slices: number → its devices.

  Returns:
    The slices one after the other along `data`.
  """
  ordered = [device for number in sorted(slices) for device in slices[number]]
  try:
    if len(slices) == 1:
      return mesh_utils.create_device_mesh(shape, ordered, allow_split_physical_axes=True)
    return mesh_utils.create_hybrid_device_mesh(
      shape, (len(slices), 1), ordered, allow_split_physical_axes=True
    )
  except (NotImplementedError, ValueError) as error:
    # Part of a slice, or a shape that its links make no rings of: right, and perhaps slower.
    reason = " ".join(str(error).split())[:200]
    log.info("devices are taken in the order of their numbers, no ring is found: %s", reason)
    return np.array(ordered, object).reshape(-1, shape[1])


def put(tree, shardings):
  """Arrays that every process has alike, laid out on the devices of all.

  Args:
    tree: arrays.
    shardings: a NamedSharding for all, or one for each.
  """

  def one(x, where):
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, where, lambda index: x[index])

  if isinstance(shardings, jax.sharding.Sharding):
    return jax.tree.map(lambda x: one(x, shardings), tree)
  return jax.tree.map(one, tree, shardings)


def my_shards(mesh: Mesh) -> tuple[tuple[int, ...], int]:
  """Which of the equal parts of a batch's rows this process loads, and how many there are."""
  devices = mesh.devices.reshape(-1)
  mine = jax.process_index()
  return tuple(i for i, d in enumerate(devices) if d.process_index == mine), len(devices)


def padded_rows(rows: int, shards: int) -> int:
  """Rows of the arrays of a batch: filled up so that every shard has as many."""
  return -(-rows // shards) * shards


def put_rows(tree, mesh: Mesh):
  """Global arrays, such as a batch's, from the rows (NumPy) that this process has of each."""
  where = sharding.split_rows(mesh)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(where, x), tree)


def my_rows(x: jax.Array) -> np.ndarray:
  """This process's rows of an array whose rows are split over all devices."""
  shards = {s.index[0].start or 0: s.data for s in x.addressable_shards}
  return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def batch_struct(shape, mesh: Mesh, *, needs: Collection[str], **sizes: int) -> Batch:
  """Shapes of a global batch, for compiling ahead of time.

  Args:
    shape: `plan.Shape` of its batch: rows, samples, labels.
    mesh: that its rows are split over, filled up so that they can be.
    needs: of the objective.
    **sizes: with stored frames: frames and slots.
  """
  where = sharding.split_rows(mesh)
  return batch_like(
    functools.partial(jax.ShapeDtypeStruct, sharding=where),
    needs,
    rows=padded_rows(shape.rows, mesh.size),
    samples=shape.samples,
    labels=shape.labels,
    **sizes,
  )
