"""Large models: laid out on devices while they are read, kept as their arithmetic reads them."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import hf_models
from hf_folders import assert_same, leaves, load_params
from jaxkd import teacher as teacher_lib
from jaxkd.config import recipes
from jaxkd.devices import layout, mesh, sharding
from jaxkd.labels import characters
from jaxkd.models import registry
from jaxkd.models.acoustic import AcousticModel
from jaxkd.models.rounding import lightened, rounded
from jaxkd.teacher import sources

ROOT = pathlib.Path(__file__).parents[2]
AUDIO = np.random.default_rng(0).normal(size=(2, 9000)).astype(np.float32)
LENGTHS = np.array([9000, 7000], np.int32)


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="of Linux")
def test_the_host_holds_no_more_than_the_parameters_and_a_leaf():
  """By the benchmark, with 102 MB; with the whole tree on the host it would be twice as much."""
  command = [sys.executable, str(ROOT / "benchmarks" / "loading.py"), "--layers=6", "--width=512"]
  done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
  found = json.loads(done.stdout)
  assert found["held"] == 4 * found["parameters"] > 90e6
  assert found["peak"] < 1.65 * found["held"]


def test_each_device_gets_its_part(saved):
  folder, _ = saved(intermediate_size=160)
  devices = mesh.make_mesh(fsdp=4)
  whole, parts = load_params(folder), load_params(folder, devices=devices)
  assert_same(parts, whole)
  where = jax.tree.leaves(sharding.of_state(devices, whole))
  assert [x.sharding for x in jax.tree.leaves(parts)] == where
  kernel = parts["layers"]["inner"]["kernel"][...]
  assert kernel.shape == (3, 32, 160) and kernel.addressable_data(0).shape == (3, 32, 40)
  assert all(x.sharding.device_set == {jax.devices()[0]} for x in jax.tree.leaves(whole))


@pytest.mark.parametrize("spec", [(), (None, "fsdp"), ("fsdp",), ("data", None, "fsdp")])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("stacked", [True, False])
def test_an_array_is_filled_on_the_way(spec, dtype, stacked):
  given = np.random.default_rng(0).normal(size=(4, 6, 8))
  where = NamedSharding(mesh.make_mesh(fsdp=2), PartitionSpec(*spec))
  like = jax.ShapeDtypeStruct(given.shape, dtype)
  arrays = iter(given) if stacked else iter([given])
  for sharding_or_none in (where, None):
    made = layout.fill(like, sharding_or_none, arrays, stacked=stacked)
    np.testing.assert_array_equal(made, given.astype(dtype))
    assert made.dtype == dtype and (sharding_or_none is None or made.sharding == where)
    arrays = given if stacked else [given]


def test_rows_are_let_go():
  """One is read when the one before is in its place."""
  read = []

  def rows():
    for number in range(5):
      assert sum(row() is not None for row in read) <= 1
      row = np.full(2, number, np.float32)
      read.append(weakref.ref(row))
      yield row
      del row

  made = layout.fill(jax.ShapeDtypeStruct((5, 2), np.float32), None, rows(), stacked=True)
  assert made[:, 0].tolist() == [0, 1, 2, 3, 4]
  assert not any(row() is not None for row in read)


def test_a_student_is_laid_out_where_it_is_trained(saved):
  folder, _ = saved(head=False)
  made = registry.architecture(recipes.huggingface(str(folder)), None, dtype="float32")
  devices = mesh.make_mesh(fsdp=2)
  params = made.first_params(characters("ab"), devices=devices)(jax.random.key(0))
  where = sharding.of_state(devices, params)
  for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(layout.put(params, where)), strict=True):
    assert x is y and x.dtype == jnp.float32


# Frozen models whose arithmetic is bfloat16.


@pytest.mark.exhaustive
@pytest.mark.parametrize("family, norm", [("hubert", "layer"), ("wavlm", "group")])
def test_matrices_kept_in_bfloat16_change_no_bit(saved, family, norm):
  folder, _ = saved(family, norm)
  half, full = (teacher_lib.from_huggingface(folder, dtype=d) for d in ("bfloat16", "float32"))
  got = half(AUDIO, LENGTHS)
  as_before = dataclasses.replace(half, params=full.params)(AUDIO, LENGTHS)
  np.testing.assert_array_equal(got.logits, as_before.logits)
  full = leaves(full.params)
  for name, leaf in leaves(half.params).items():
    np.testing.assert_array_equal(leaf, full[name].astype(leaf.dtype), err_msg=name)


# What is computed with in float32, by its name: vectors, and the kernel of weight norm.
EXACT = ("bias", "norm", "gain", "gate_scale", "mask_embedding", "distances")


@pytest.mark.parametrize(
  "family, norm", [("hubert", "layer"), ("wavlm", "group"), ("data2vec-audio", "layer")]
)
def test_norms_and_biases_stay_as_they_are(saved, family, norm):
  exact = EXACT if family == "data2vec-audio" else (*EXACT, "positions")
  params = teacher_lib.from_huggingface(saved(family, norm)[0], dtype="bfloat16").params
  for name, leaf in leaves(params).items():
    is_exact = any(part in name for part in exact)
    assert leaf.dtype == (jnp.float32 if is_exact else jnp.bfloat16), name


def test_such_a_teacher_is_found_with_the_types_that_it_will_have(saved):
  """What compiling ahead of time counts with is what is loaded, on a mesh too."""
  folder, _ = saved()
  found = sources.find(str(folder), pool=2, dtype="bfloat16")
  model = found.load(mesh.make_mesh(fsdp=2))
  kinds = lambda tree: [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]
  assert kinds(found.like) == kinds(model.params)
  alone = teacher_lib.from_huggingface(folder, 2, dtype="bfloat16")
  got, expected = (np.asarray(m(AUDIO, LENGTHS).logits) for m in (model, alone))
  np.testing.assert_allclose(got, expected, atol=0.02)


class Uses(nnx.Module):
  """Matrices that are used in several ways."""

  def __init__(self):
    for name in ("rounded", "moved", "both", "exact", "scaled", "summed", "unused", "carried"):
      setattr(self, name, nnx.Param(jnp.ones((4, 4))))
    self.vector = nnx.Param(jnp.ones(4))
    self.layers = nnx.Param(jnp.ones((3, 4, 4)))
    self.blocks = nnx.Param(jnp.ones((3, 4)))

  def __call__(self, audio, audio_len):
    half = jnp.bfloat16
    x = audio[:, :4].astype(half)
    x = jax.jit(lambda x, w: x @ w.astype(half))(x, self.rounded[...])
    x = x @ self.both[...].astype(half) + self.both[...].sum().astype(half)
    x = (x @ self.exact[...]).astype(half) + self.vector[...].astype(half)[None]
    x = x @ (2 * self.scaled[...]).astype(half) + self.summed[...][0].sum().astype(half)
    x = x @ self.moved[...].T[::-1].astype(half) + self.moved[...][1][None].astype(half)

    def step(carried, layer):
      x, matrix = carried
      x = x @ matrix.astype(half) @ layer[0].astype(half) + layer[1].astype(half)[None]
      return (x, matrix.T), None

    stack = self.layers[...], self.blocks[...]
    return jax.lax.scan(step, (x, self.carried[...]), stack)[0][0]


def test_only_what_is_always_rounded_is_kept_so():
  graphdef, like = nnx.split(nnx.eval_shape(Uses))
  found = rounded(graphdef, like, jnp.bfloat16)
  half = {
    path[0].key for path, x in jax.tree_util.tree_leaves_with_path(found) if x.dtype == jnp.bfloat16
  }
  # Of what is not used at all nothing is known but that it does not matter.
  assert half == {"rounded", "moved", "layers", "unused"}
  assert found.keys() - half == {"both", "exact", "scaled", "summed", "carried", "vector", "blocks"}


@pytest.mark.usefixtures("quick_to_compile")
def test_a_teacher_of_ours_says_the_same_in_half_of_the_memory():
  block = recipes.conformer(1, 16, 2, 0.1, (4, 4, 4, 4), ((2, 2), (2, 2)))
  made = registry.architecture(block, dict(mels=16), dtype="bfloat16")
  vocabulary = characters("abc")
  graphdef, like = made.structure(len(vocabulary.symbols))
  draw = lambda x: jax.random.normal(jax.random.key(0), x.shape, x.dtype)
  model = AcousticModel(graphdef, jax.tree.map(draw, like), vocabulary, made.frame_samples)
  light = lightened(model, "bfloat16")
  for name in ("qkv", "positions", "out"):
    kernel = jax.tree.leaves(light.params["blocks"]["attention"][name])
    assert max(kernel, key=lambda x: x.ndim).dtype == jnp.bfloat16
  np.testing.assert_array_equal(light(AUDIO, LENGTHS).logits, model(AUDIO, LENGTHS).logits)
  assert jax.tree.leaves(lightened(model, "float32").params)[0].dtype == jnp.float32


def test_the_models_of_transformers_are_read_as_bfloat16(saved, tmp_path):
  """What is stored in half precision is rounded once."""
  folder = tmp_path / "half"
  model = hf_models.make(folder, "hubert", "layer").bfloat16()
  model.save_pretrained(folder)
  half = teacher_lib.from_huggingface(folder, dtype="bfloat16").params["head"]["kernel"][...]
  stored = model.lm_head.weight.detach().float().numpy().T
  assert half.dtype == jnp.bfloat16
  np.testing.assert_array_equal(np.float32(half), stored)
