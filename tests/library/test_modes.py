"""Every function of the library in every way that JAX may run it, against plain jit."""

import contextlib
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import eight_devices
from jaxkd import losses, masks, selection
from jaxkd.inference import alignment
from jaxkd.inference.search.greedy import best_path
from jaxkd.inference.search.prefix import prefix_beam

pytestmark = pytest.mark.usefixtures("quick_to_compile")
ROWS, FRAMES, CLASSES, LABELS = 8, 9, 5, 3
BLANK = 4
SPLIT = PartitionSpec("data")


class Arrays(NamedTuple):
  """One batch; the fields are the arguments of that name."""

  student: jax.Array
  teacher: jax.Array
  logit_len: jax.Array
  labels: jax.Array
  label_len: jax.Array
  mask: jax.Array
  weights: jax.Array


class Function(NamedTuple):
  """A function of the library.

  Attributes:
    call: of `Arrays`, to a tree of arrays.
    sums: whether it sums over the rows; else its results have them as first axis.
    differentiable: in `student`.
  """

  call: Callable
  sums: bool = False
  differentiable: bool = False


def make_arrays(rows=ROWS, frames=FRAMES) -> Arrays:
  """Rows that have a path, one that has none, and one without a real frame or label."""
  rng = np.random.default_rng(0)
  student, teacher = 2 * rng.normal(size=(2, rows, frames, CLASSES)).astype(np.float32)
  logit_len = np.resize([9, 7, 2, 0, 8, 9, 6, 9], rows).clip(max=frames).astype(np.int32)
  mask = np.arange(frames) < logit_len[:, None]
  return Arrays(
    student=student,
    teacher=teacher,
    logit_len=logit_len,
    labels=rng.integers(0, BLANK, (rows, LABELS)).astype(np.int32),
    label_len=np.resize([3, 2, 3, 0, 1, 3, 2, 0], rows).astype(np.int32),
    mask=mask,
    weights=(mask * rng.random(mask.shape)).astype(np.float32),
  )


def of_targets(function, which="student"):
  return lambda x: function(getattr(x, which), x.logit_len, x.labels, x.label_len, blank_id=BLANK)


def of_teacher(function, **options):
  return Function(lambda x: function(x.teacher, x.mask, blank_id=BLANK, **options))


PRIOR = np.log(np.array([0.1, 0.1, 0.1, 0.1, 0.6], np.float32))
KEY = jax.random.key(3)
FUNCTIONS = {
  "ctc_loss": Function(of_targets(losses.ctc_loss), differentiable=True),
  "ctc_is_feasible": Function(lambda x: losses.ctc_is_feasible(x.logit_len, x.labels, x.label_len)),
  "kd_kl": Function(
    lambda x: losses.kd_kl(x.student, x.teacher, x.weights, temperature=2.0),
    sums=True,
    differentiable=True,
  ),
  "delayed_kl": Function(
    lambda x: losses.delayed_kl(x.student, x.teacher, x.weights, x.mask, temperature=2.0),
    sums=True,
    differentiable=True,
  ),
  "delay_of_row": Function(
    lambda x: losses.delayed_kl(
      x.student, x.teacher, x.weights, x.mask, temperature=2.0, delays=(0, 1), of_row=True
    ),
    sums=True,
    differentiable=True,
  ),
  "split_kl": Function(
    lambda x: losses.split_kl(
      x.student, x.teacher, x.mask, x.weights, x.mask, temperature=2.0, blank_id=BLANK
    ),
    sums=True,
    differentiable=True,
  ),
  "split_delayed": Function(
    lambda x: losses.split_kl(
      *(x.student, x.teacher, x.mask, x.weights, x.mask),
      **dict(temperature=2.0, blank_id=BLANK, delays=(-1, 0, 1), softness=0.1),
    ),
    sums=True,
    differentiable=True,
  ),
  "guided_ctc": Function(
    lambda x: losses.guided_ctc(x.student, x.teacher, x.weights), sums=True, differentiable=True
  ),
  "soft_cross_entropy": Function(
    lambda x: losses.soft_cross_entropy(x.student, x.teacher, x.weights),
    sums=True,
    differentiable=True,
  ),
  "ctc_occupancy": Function(of_targets(losses.ctc_occupancy)),
  "cosine_distance": Function(
    lambda x: losses.cosine_distance(x.student, x.teacher, x.mask), sums=True, differentiable=True
  ),
  "viterbi": Function(of_targets(alignment.viterbi)),
  "spike_offsets": Function(
    lambda x: alignment.spike_offsets(
      x.teacher, x.student, x.logit_len, x.labels, x.label_len, blank_id=BLANK
    ),
    sums=True,
  ),
  "prefix_beam": of_teacher(prefix_beam, beam=3),
  "best_path": of_teacher(best_path),
  "length_mask": Function(lambda x: masks.length_mask(x.logit_len, FRAMES)),
  "dilate": Function(lambda x: masks.dilate(x.mask, before=1, after=2)),
  "all_frames": of_teacher(selection.all_frames),
  "nonblank": of_teacher(selection.nonblank),
  "prior": of_teacher(selection.nonblank, log_prior=PRIOR, prior_scale=0.5),
  "trim": of_teacher(selection.trim),
  "keep": of_teacher(selection.keep, before=1, after=0),
  "symmetric": of_teacher(selection.symmetric, n=1),
  "threshold": of_teacher(selection.threshold, min_label_prob=0.9),
  "soft": of_teacher(selection.soft, min_weight=0.1),
  "occupancy": of_teacher(selection.occupancy, delta=1.0),
  "random_blanks": of_teacher(selection.random_blanks, ratio=0.7, key=KEY),
  "shuffled": of_teacher(selection.shuffled, n=1, key=KEY),
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


def results(name: str, arrays: Arrays, wrap=lambda call: call):
  """What a function returns, and the gradient of its finite parts where it has one."""
  function = FUNCTIONS[name]
  call = wrap(function.call)
  if not function.differentiable:
    return call(arrays), None

  def total(student):
    out = call(arrays._replace(student=student))
    first = jax.tree.leaves(out)[0]
    return jnp.where(jnp.isfinite(first), first, 0).sum(), out

  gradient, out = jax.grad(total, has_aux=True)(jnp.asarray(arrays.student))
  return out, gradient


@functools.cache
def expected(name: str, rows: int = ROWS, frames: int = FRAMES):
  return jax.device_get(jax.jit(results, static_argnums=0)(name, make_arrays(rows, frames)))


def check(got, wanted, dtypes=True):
  """Equal shapes, numbers, and dtypes but for those of the gradient."""
  (got, gradient), (wanted, wanted_gradient) = jax.device_get(got), wanted
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
    assert a.shape == b.shape
    assert not dtypes or a.dtype == b.dtype
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  if wanted_gradient is not None:
    np.testing.assert_allclose(gradient, wanted_gradient, atol=1e-5)


def explicit_mesh():
  eight_devices.found()
  return jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))


def auto_mesh(shape=(8,), names=("data",)):
  eight_devices.found()
  return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names))


def run(name, arrays):
  return jax.jit(results, static_argnums=0)(name, arrays)


def wide(arrays: Arrays) -> Arrays:
  widest = {"f": np.float64, "i": np.int64, "b": bool}
  return Arrays(*(x.astype(widest[x.dtype.kind]) for x in arrays))


def in_x64(name, arrays):
  with jax.enable_x64(True):
    return run(name, arrays)


def in_x64_strict_and_wide(name, arrays):
  with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
    got, gradient = run(name, Arrays(*map(jnp.asarray, wide(arrays))))
    assert gradient is None or gradient.dtype == jnp.float64
    return got, gradient


def strict_and_half(name, arrays):
  half = lambda x: x.astype(jnp.bfloat16) if x.dtype == np.float32 else x
  with jax.numpy_dtype_promotion("strict"):
    return run(name, Arrays(*map(half, arrays)))


def lists(name, arrays):
  """Nested lists wherever they may be."""
  nested = Arrays(*(x.tolist() for x in arrays))
  return jax.jit(lambda: results(name, nested))()


def integers(name, arrays):
  """Of other sizes than int32, as NumPy has them."""
  small = arrays._replace(
    logit_len=arrays.logit_len.astype(np.int64),
    labels=arrays.labels.astype(np.uint8),
    label_len=arrays.label_len.astype(np.int8),
  )
  return jax.jit(lambda: results(name, small))()


def checkpointed(name, arrays):
  wrapped = functools.partial(results, wrap=jax.checkpoint)
  return jax.jit(wrapped, static_argnums=0)(name, arrays)


def in_shards(name, arrays, check_vma=True, mesh=None):
  """Each device one row, or with a second axis its own share of them."""
  mesh = mesh or auto_mesh()
  split = PartitionSpec(tuple(mesh.axis_names))
  sums = FUNCTIONS[name].sums

  def shard(arrays):
    out, gradient = results(name, arrays)
    return (jax.tree.map(lambda x: x[None], out) if sums else out), gradient

  mapped = jax.shard_map(shard, mesh=mesh, in_specs=split, out_specs=split, check_vma=check_vma)
  out, gradient = jax.jit(mapped)(arrays)
  return (jax.tree.map(lambda x: x.sum(0, x.dtype), out) if sums else out), gradient


def on_explicit_axes(name, arrays, context=True, jitted=True):
  mesh = explicit_mesh()
  split = jax.device_put(arrays, NamedSharding(mesh, SPLIT))
  with jax.set_mesh(mesh) if context else contextlib.nullcontext():
    got, gradient = (run if jitted else results)(name, split)
    if not FUNCTIONS[name].sums:
      assert {jax.typeof(x).sharding.spec[0] for x in jax.tree.leaves(got)} == {"data"}
    return got, gradient


HAVE_TARGETS = (
  "ctc_loss",
  "ctc_occupancy",
  "ctc_is_feasible",
  "viterbi",
  "spike_offsets",
  "length_mask",
)
HAVE_GRADIENTS = tuple(name for name, function in FUNCTIONS.items() if function.differentiable)
MODES = {
  "x64": (in_x64, FUNCTIONS),
  "x64_strict_wide": (in_x64_strict_and_wide, FUNCTIONS),
  "lists": (lists, FUNCTIONS),
  "integers": (integers, HAVE_TARGETS),
  "checkpoint": (checkpointed, HAVE_GRADIENTS),
  "shard_map": (in_shards, FUNCTIONS),
  "shard_map_unchecked": (functools.partial(in_shards, check_vma=False), ("ctc_loss", "viterbi")),
  "explicit": (on_explicit_axes, FUNCTIONS),
  "explicit_eager": (functools.partial(on_explicit_axes, jitted=False), FUNCTIONS),
  "explicit_without_context": (
    functools.partial(on_explicit_axes, context=False),
    ("ctc_loss", "viterbi", "random_blanks"),
  ),
}


# Others say nearly as much in a fraction of the time.
SELDOM = ("x64", "explicit_eager", "explicit_without_context")


@pytest.mark.parametrize(
  ("mode", "name"),
  [
    pytest.param(mode, name, marks=pytest.mark.exhaustive if mode in SELDOM else ())
    for mode, (_, names) in MODES.items()
    for name in names
  ],
)
def test_equals_plain_jit(mode, name):
  check(MODES[mode][0](name, make_arrays()), expected(name))


def test_the_batch_has_every_kind_of_row():
  rows = expected("ctc_loss")[0]
  assert np.isinf(rows).any() and (rows == 0).any() and (np.isfinite(rows) & (rows > 0)).any()
  drawn, labels = (expected(name)[0] for name in ("random_blanks", "nonblank"))
  assert (drawn & ~labels).any() and (~drawn & make_arrays().mask).any()


@every_function
def test_half_precision_and_strict_promotion(name):
  got, gradient = strict_and_half(name, make_arrays())
  rounded = make_arrays()
  rounded = rounded._replace(
    **{
      field: np.asarray(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32))
      for field, x in rounded._asdict().items()
      if x.dtype == np.float32
    }
  )
  wanted, _ = jax.device_get(run(name, rounded))
  check((got, None), (wanted, None))
  assert gradient is None or gradient.dtype == jnp.bfloat16


@every_function
def test_vmap(name):
  arrays = make_arrays()
  pairs = jax.tree.map(lambda x: x.reshape(2, ROWS // 2, *x.shape[1:]), arrays)
  one = jax.jit(lambda x: results(name, x))
  halves = [jax.device_get(one(jax.tree.map(lambda x, i=i: x[i], pairs))) for i in range(2)]
  wanted = jax.tree.map(lambda *x: np.stack(x), *halves)
  check(jax.jit(jax.vmap(lambda x: results(name, x)))(pairs), wanted)


@every_function
@pytest.mark.parametrize(("rows", "frames"), [(ROWS, 0), (0, FRAMES), (0, 0)])
def test_nothing_to_do(name, rows, frames):
  """No frames or no rows: shapes and dtypes are those of others; losses are those of no frame."""
  arrays = make_arrays(rows, frames)
  got, gradient = jax.device_get(run(name, arrays))
  wanted = jax.eval_shape(FUNCTIONS[name].call, make_arrays(rows, frames))
  assert [x.shape for x in jax.tree.leaves(got)] == [x.shape for x in jax.tree.leaves(wanted)]
  full = jax.tree.leaves(expected(name)[0])
  assert [x.dtype for x in jax.tree.leaves(got)] == [x.dtype for x in full]
  if gradient is not None:
    assert gradient.shape == arrays.student.shape and not gradient.any()
  if FUNCTIONS[name].sums:
    assert all(not x.any() for x in jax.tree.leaves(got)[:3])
  elif name == "ctc_loss":
    np.testing.assert_array_equal(got, np.where(arrays.label_len == 0, 0, np.inf))
  elif name == "viterbi":
    np.testing.assert_array_equal(got.score, np.where(arrays.label_len == 0, 0, -np.inf))
  elif name == "prefix_beam":
    np.testing.assert_array_equal(got[2], np.tile([0, -np.inf, -np.inf], (rows, 1)))


@pytest.mark.parametrize("check_vma", [True, False])
def test_lots_of_shards_over_two_axes_are_those_of_the_whole_batch(check_vma):
  """Rows in the order of the mesh's axes; equal rows, so that only the lots differ."""
  arrays = make_arrays()
  teacher = np.zeros_like(arrays.teacher)
  teacher[..., BLANK], teacher[:, ::3, 0] = 1, 2
  arrays = arrays._replace(teacher=teacher, mask=np.ones_like(arrays.mask))
  whole = jax.device_get(run("random_blanks", arrays))
  assert len(np.unique(whole[0], axis=0)) > 3
  for shape in ((4, 2), (2, 4), (8, 1)):
    mesh = auto_mesh(shape, ("data", "model"))
    check(in_shards("random_blanks", arrays, check_vma, mesh), whole)


def test_lots_of_a_second_axis_that_has_copies_of_the_rows():
  arrays = make_arrays()
  mesh = auto_mesh((4, 2), ("data", "model"))
  call = FUNCTIONS["random_blanks"].call
  mapped = jax.shard_map(call, mesh=mesh, in_specs=SPLIT, out_specs=SPLIT)
  np.testing.assert_array_equal(jax.jit(mapped)(arrays), expected("random_blanks")[0])


@pytest.mark.parametrize("name", ["ctc_loss", "viterbi", "spike_offsets", "kd_kl"])
def test_labels_that_are_the_same_in_all_shards(name):
  """Logits that vary over an axis that the other arrays do not know: gradients too."""
  arrays = jax.tree.map(lambda x: x[:1], make_arrays())

  def shard(student):
    student = student * (1 + jax.lax.axis_index("data").astype(jnp.float32))
    out, gradient = results(name, arrays._replace(student=student))
    return jax.tree.map(lambda x: x[None], (out, gradient))

  mapped = jax.shard_map(shard, mesh=auto_mesh(), in_specs=PartitionSpec(), out_specs=SPLIT)
  got = jax.jit(mapped)(arrays.student)
  for factor in (1, 5):
    wanted = jax.device_get(run(name, arrays._replace(student=factor * arrays.student)))
    check(jax.tree.map(lambda x, i=factor - 1: x[i], got), wanted)


def test_traced_options_on_explicit_axes():
  """Replicated arrays beside those that are split."""
  mesh = explicit_mesh()
  arrays = make_arrays()
  split = jax.device_put(arrays, NamedSharding(mesh, SPLIT))
  one = lambda x: jax.device_put(x, NamedSharding(mesh, PartitionSpec()))
  with jax.set_mesh(mesh):
    got = [
      jax.jit(selection.symmetric)(split.teacher, split.mask, blank_id=BLANK, n=one(np.int32(1))),
      jax.jit(selection.random_blanks)(
        split.teacher, split.mask, blank_id=one(np.int32(BLANK)), ratio=0.7, key=one(KEY)
      ),
      selection.nonblank(
        split.teacher, split.mask, blank_id=BLANK, log_prior=one(PRIOR), prior_scale=0.5
      ),
    ]
    kd = jax.jit(losses.kd_kl)(
      split.student, split.teacher, split.weights, temperature=one(np.float32(2))
    )
  for x, name in zip(got, ("symmetric", "random_blanks", "prior"), strict=True):
    np.testing.assert_array_equal(x, expected(name)[0])
  np.testing.assert_allclose(kd.total, expected("kd_kl")[0].total, rtol=1e-5)
