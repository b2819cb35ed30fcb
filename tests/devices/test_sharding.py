"""Rules of sharding, and one training on meshes of one and of eight devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

import objectives
from jaxkd.config import recipes
from jaxkd.data import pipeline
from jaxkd.data.plan import Shape, epoch_plan
from jaxkd.devices import mesh as mesh_lib
from jaxkd.devices import sharding
from jaxkd.errors import UserError
from jaxkd.models.conformer import ConformerConfig, ConformerCTC
from jaxkd.models.features import LogMel
from jaxkd.models.huggingface import families
from jaxkd.models.huggingface import weights as port
from jaxkd.models.wav2vec2 import Wav2Vec2CTC
from jaxkd.training import advice, optim
from jaxkd.training import step as step_lib
from jaxkd.types import Batch

pytestmark = pytest.mark.usefixtures("quick_to_compile")
CLASSES, LAYERS, STEPS = 12, 3, 5
MESHES = [(1, 1), (8, 1), (2, 4)]
TEACHER = dict(
  model_type="hubert",
  hidden_size=64,
  num_hidden_layers=LAYERS,
  num_attention_heads=4,
  intermediate_size=256,
  conv_dim=(32,) * 7,
  num_conv_pos_embeddings=16,
  num_conv_pos_embedding_groups=4,
  feat_extract_norm="layer",
  do_stable_layer_norm=True,
)


@pytest.mark.parametrize(
  ("shape", "fsdp", "expected"),
  [
    ((64, 256), 8, PartitionSpec(None, "fsdp")),
    ((256, 64), 8, PartitionSpec("fsdp")),
    ((64, 64), 8, PartitionSpec(None, "fsdp")),
    ((30, 256), 8, PartitionSpec(None, "fsdp")),
    ((64, 30, 3), 4, PartitionSpec("fsdp")),
    ((63, 255), 8, PartitionSpec()),  # nothing divides
    ((64, 63), 8, PartitionSpec()),  # too small
    ((64, 256), 1, PartitionSpec()),
    ((), 8, PartitionSpec()),
  ],
)
def test_the_largest_axis_that_divides_is_split(shape, fsdp, expected):
  assert sharding.spec(shape, fsdp) == expected


def test_the_axis_of_layers_is_never_split():
  mesh = make(1, 8)
  tree = {"blocks": {"kernel": jnp.zeros((4096, 64, 128))}, "head": jnp.zeros((4096, 8))}
  found = sharding.of_state(mesh, tree)
  assert found["blocks"]["kernel"].spec == PartitionSpec(None, None, "fsdp")
  assert found["head"].spec == PartitionSpec("fsdp")


def make(data: int, fsdp: int) -> Mesh:
  return Mesh(np.array(jax.devices()[: data * fsdp]).reshape(data, fsdp), sharding.AXES)


def student_model():
  block = recipes.conformer(LAYERS, 64, 4, 0.1, (4, 4, 4, 4), ((2, 2), (2, 2)))
  config = ConformerConfig(**{k: v for k, v in block.items() if k not in ("name", "init")})
  return ConformerCTC(config, LogMel(mels=16), CLASSES, rngs=nnx.Rngs(params=0))


def teacher_model():
  description = {"config": TEACHER, "preprocessor": {"return_attention_mask": True}}
  config = families.model_config(description, "", pool=2)
  return port.structure(config, CLASSES)[0], nnx.state(
    Wav2Vec2CTC(config, CLASSES, rngs=nnx.Rngs(1))
  )


def batch_on(mesh: Mesh) -> Batch:
  """Six rows: on eight devices two are filled up."""
  rng = np.random.default_rng(0)
  audio = rng.integers(-9000, 9000, (6, 9600)).astype(np.int16)
  audio_len = np.array([9600, 9000, 8000, 9600, 4000, 6000], np.int32)
  labels = rng.integers(1, CLASSES, (6, 4)).astype(np.int32)
  batch = Batch(audio, audio_len, labels, np.array([4, 3, 4, 2, 1, 0], np.int32))
  more = -6 % mesh.size
  filled = lambda x: np.pad(x, [(0, more)] + [(0, 0)] * (x.ndim - 1))
  return mesh_lib.put_rows(jax.tree.map(filled, batch), mesh)


@functools.cache
def trained(data: int, fsdp: int):
  """Compiled update, states after every step (on the host), and the last one on the devices."""
  mesh = make(data, fsdp)
  graphdef, params = nnx.split(student_model())
  teacher_graphdef, teacher_params = teacher_model()
  selection = dict(name="random_blanks", ratio=2.0)
  objective = objectives.make(0, scale=0.5, selection=selection, spec_augment=True)
  optimizer = optim.make_optimizer(
    "adamw", lambda step: 1e-3, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.01, clip_norm=1.0
  )
  state = step_lib.TrainState.fresh(params, optimizer.init(params), objective)
  where = sharding.of_state(mesh, state)
  state = mesh_lib.put(state, where)
  teacher_params = mesh_lib.put(teacher_params, sharding.of_state(mesh, teacher_params))
  update = step_lib.make_train_step(
    graphdef, teacher_graphdef, objective, optimizer, mesh=mesh, state_shardings=where
  )
  everywhere = sharding.replicated(mesh)
  key = jax.jit(lambda: jax.random.key(3), out_shardings=everywhere)()
  rest = batch_on(mesh), mesh_lib.put(np.int32(0), everywhere), key
  compiled = update.lower(state, teacher_params, *rest).compile()
  losses = []
  for _ in range(STEPS):
    state = compiled(state, teacher_params, *rest)
    losses.append(float(state.terms["loss"].total))
  return compiled, np.diff([0.0, *losses]), state, teacher_params


@pytest.mark.slow
@pytest.mark.parametrize("shape", MESHES[1:], ids=str)
def test_meshes_train_to_the_same_numbers(shape):
  _, losses, state, _ = trained(*shape)
  _, expected_losses, expected, _ = trained(1, 1)
  np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
  for a, b in zip(*map(jax.tree.leaves, (state.params, expected.params)), strict=True):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=2e-5)
  for name, term in expected.terms.items():
    np.testing.assert_allclose(state.terms[name].weight, term.weight, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("shape", MESHES[2:], ids=str)
def test_each_device_holds_its_share(shape):
  _, _, state, teacher_params = trained(*shape)
  split = [
    x for x in jax.tree.leaves((state, teacher_params)) if not x.sharding.is_fully_replicated
  ]
  whole = sum(x.nbytes for x in split)
  total = sum(x.nbytes for x in jax.tree.leaves((state, teacher_params)))
  assert whole > 0.9 * total  # what is small stays everywhere
  held = [sum(s.data.nbytes for x in split for s in x.addressable_shards if s.device == d)
          for d in jax.devices()]  # fmt: skip
  np.testing.assert_allclose(held, whole / shape[1], rtol=1e-6)


@pytest.mark.slow
def test_no_stack_of_layers_is_gathered_at_once():
  compiled = trained(1, 8)[0]
  gathered = re.findall(r"= \(?f32\[([\d,]+)\]\S* all-gather", compiled.as_text())
  sizes = [tuple(map(int, found.split(","))) for found in gathered]
  assert (64, 256) in [s[-2:] for s in sizes] or (256, 64) in [s[-2:] for s in sizes]
  wide = [s for s in sizes if len(s) == 3 and s[0] == LAYERS and np.prod(s) >= LAYERS * 64 * 64]
  assert not wide, wide


def gathers(lowered) -> int:
  return lowered.compile().as_text().count("all-gather(")


@pytest.mark.parametrize("context", [sharding.on, jax.set_mesh], ids=["on", "set_mesh"])
def test_the_context_is_in_the_key_of_jit_and_no_more_than_a_context(context):
  mesh = make(2, 4)
  kernel = mesh_lib.put(np.ones((64, 256), np.float32), sharding.of_state(mesh, np.ones((64, 256))))
  traced = []

  @jax.jit
  def whole(kernel):
    traced.append(None)
    return sharding.layer(kernel)

  before = whole(kernel)
  with context(mesh):
    assert whole(kernel).sharding.is_fully_replicated
    assert gathers(whole.lower(kernel)) == 1
  after = whole(kernel)
  assert before.sharding == after.sharding == kernel.sharding and len(traced) == 2


def test_the_context_may_be_opened_while_tracing_and_gradients_lie_like_parameters():
  mesh = make(2, 4)
  kernel = mesh_lib.put(np.ones((64, 256), np.float32), sharding.of_state(mesh, np.ones((64, 256))))

  def loss(kernel, inside):
    with sharding.on(mesh if inside else None):
      return (jax.jit(sharding.layer)(kernel) ** 2).sum()

  grad = jax.jit(jax.grad(loss), static_argnums=1)
  assert gathers(grad.lower(kernel, True)) == 1 and gathers(grad.lower(kernel, False)) == 0
  found = grad(kernel, True)
  assert found.sharding.is_equivalent_to(kernel.sharding, 2)
  np.testing.assert_array_equal(found, np.full((64, 256), 2.0))


@pytest.mark.parametrize("names", [(), ("rows",)], ids=str)
def test_a_mesh_without_the_axis_changes_nothing(names):
  layer = {"kernel": jnp.ones((64, 256))}
  context = jax.set_mesh(Mesh(np.array(jax.devices()), names)) if names else sharding.on(None)
  with context:
    jaxpr = jax.make_jaxpr(sharding.layer)(layer)
  assert not jaxpr.eqns


def test_mesh_must_divide_the_devices():
  assert mesh_lib.make_mesh(4).shape == {"data": 2, "fsdp": 4}
  with pytest.raises(UserError, match="config.mesh.fsdp is 3: it must divide the 8 devices"):
    mesh_lib.make_mesh(3)


class Chip:
  """A device of a slice, such as TPUs are."""

  platform, device_kind = "other", "chip"

  def __init__(self, number: int, slice_index: int):
    self.id, self.slice_index, self.process_index = number, slice_index, 0


def chips(*counts: int) -> list[Chip]:
  slices = [i for i, count in enumerate(counts) for _ in range(count)]
  return [Chip(number, i) for number, i in enumerate(slices)]


@pytest.mark.parametrize("fsdp", [1, 2, 4])
def test_parameters_are_split_inside_of_slices(fsdp):
  mixed = chips(4, 4, 4)[::-1]
  found = mesh_lib.make_mesh(fsdp, mixed).devices
  assert found.shape == (12 // fsdp, fsdp)
  assert all(len({d.slice_index for d in row}) == 1 for row in found)
  assert [d.slice_index for d in found[:, 0]] == sorted(d.slice_index for d in found[:, 0])


def test_slices_that_do_not_match():
  with pytest.raises(UserError, match="do not match: 4 in slice 0, 2 in slice 1 devices"):
    mesh_lib.make_mesh(1, chips(4, 2))
  with pytest.raises(UserError, match="fsdp is 8: .* the 4 devices of each of the 2 slices: 1, 2"):
    mesh_lib.make_mesh(8, chips(4, 4))


@pytest.mark.parametrize("slices", [(8,), (4, 4)])
def test_devices_without_a_ring_are_taken_as_they_are_numbered(monkeypatch, slices):
  def refuse(*args, **options):
    raise NotImplementedError("Failed to find assignment for logical_axis_index 1")

  for name in ("create_device_mesh", "create_hybrid_device_mesh"):
    monkeypatch.setattr(mesh_lib.mesh_utils, name, refuse)
  found = mesh_lib.make_mesh(2, chips(*slices)).devices
  assert [d.id for d in found.reshape(-1)] == list(range(8))


@pytest.mark.parametrize("shards", [1, 2, 3, 8])
def test_shards_load_the_rows_of_the_plan_and_nothing_twice(shards):
  class Tones:
    ids = [str(i) for i in range(7)]

    def read(self, index):
      return np.full(1600, index + 1, np.int16)

  shape = Shape(5, 3200, 0)
  planned = epoch_plan(np.full(7, 0.1), (shape,), seed=0, epoch=0)
  whole = list(pipeline.batches(Tones(), planned))
  parts = [list(pipeline.batches(Tones(), planned, shards=((i,), shards))) for i in range(shards)]
  for number, batch in enumerate(whole):
    audio = np.concatenate([part[number].batch.audio for part in parts])
    np.testing.assert_array_equal(audio[:5], batch.batch.audio)
    assert not audio[5:].any() and len(audio) % shards == 0
    names = [name for part in parts for name in part[number].ids]
    assert tuple(names[:5]) == batch.ids and not any(names[5:])


@pytest.mark.parametrize(
  ("rows", "devices", "said"), [(10, 8, True), (8, 8, False), (15, 8, False)]
)
def test_batches_that_are_mostly_filler_are_spoken_of(caplog, rows, devices, said):
  advice.filler((Shape(rows, 160_000, 0), Shape(80, 16_000, 0)), devices)
  lines = [record.getMessage() for record in caplog.records]
  assert lines == [LINE] * said


LINE = (
  "batches of 10 rows of 10.0 s are filled up to 16, one for each device at least: "
  "config.training.batch_seconds=160 fills them with audio"
)
