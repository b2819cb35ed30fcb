"""Frames of a source on eight devices against each utterance alone, and what is remembered."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxkd import losses
from jaxkd.data.sources import Source
from jaxkd.devices import mesh as mesh_lib
from jaxkd.inference import scoring
from jaxkd.inference.frames import Remembered, evaluation_shapes, frames
from jaxkd.labels import characters
from jaxkd.masks import length_mask, strided_len
from jaxkd.models.acoustic import AcousticModel
from jaxkd.types import FrameOutput

pytestmark = pytest.mark.usefixtures("quick_to_compile")
FRAME = 640
VOCABULARY = characters("abc")


class Linear(nnx.Module):
  """A frame's logits are a linear map of a few of its samples."""

  def __init__(self, seed: int):
    self.kernel = nnx.Param(jax.random.normal(jax.random.key(seed), (4, 4)))

  def __call__(self, audio, audio_len):
    samples = audio.reshape(len(audio), -1, FRAME)[:, :, ::160].astype(jnp.float32) / 3000
    mask = length_mask(strided_len(audio_len, FRAME), samples.shape[1])
    return FrameOutput(samples @ self.kernel[...], mask)


def model(seed: int) -> AcousticModel:
  return AcousticModel(*nnx.split(Linear(seed)), VOCABULARY, FRAME)


def noise(count: int) -> Source:
  """Utterances of 3 to 40 frames."""
  rng = np.random.default_rng(count)
  audio = [
    rng.integers(-9000, 9000, FRAME * n).astype(np.int16) for n in rng.integers(3, 41, count)
  ]
  names = [f"u{i}" for i in range(count)]
  durations = np.array([len(x) / 16_000 for x in audio])
  return Source("noise", names, durations, ["ab"] * count, [], lambda i: audio[i])


def alone(of: AcousticModel, source: Source, index: int) -> np.ndarray:
  """f32[T, V] of an utterance by itself."""
  audio = source.read(index)
  return np.asarray(of(audio[None], np.array([len(audio)], np.int32)).logits[0])


@pytest.mark.parametrize("devices", [1, 8])
def test_frames_are_those_of_each_utterance_alone(devices):
  source, heard = noise(37), model(1)
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:devices])
  found = {}
  for spoken in frames({"it": heard}, source, mesh, timed=True):
    assert spoken.seconds > 0 and spoken.outputs["it"].logits.sharding.num_devices == devices
    for ids, logits, mask in zip(spoken.host.ids, *spoken.my_rows("it"), strict=True):
      if ids:
        found[ids[0]] = logits[mask]
      else:
        assert not mask.any()
  assert sorted(found) == sorted(source.ids)
  for index, name in enumerate(source.ids):
    np.testing.assert_allclose(found[name], alone(heard, source, index), rtol=1e-5, atol=1e-6)


def test_what_is_remembered_is_not_computed_again(monkeypatch):
  source, mesh, teacher = noise(20), mesh_lib.make_mesh(), Remembered(model(2))
  first = [s.my_rows("teacher") for s in frames({"teacher": teacher}, source, mesh)]
  monkeypatch.setattr(AcousticModel, "__call__", lambda *_: pytest.fail("computed again"))
  again = [s.my_rows("teacher") for s in frames({"teacher": teacher}, source, mesh)]
  jax.tree.map(np.testing.assert_array_equal, first, again)


def test_what_memory_does_not_hold_is_computed_again(monkeypatch):
  monkeypatch.setattr("jaxkd.inference.frames._MOST_BYTES", 1)
  source, mesh, teacher = noise(9), mesh_lib.make_mesh(), Remembered(model(2))
  both = [
    [s.my_rows("teacher") for s in frames({"teacher": teacher}, source, mesh)] for _ in range(2)
  ]
  jax.tree.map(np.testing.assert_array_equal, *both)
  assert not teacher._kept


def test_divergence_is_over_all_real_frames():
  source, student, teacher = noise(15), model(1), model(2)
  total = weight = 0.0
  for index in range(len(source)):
    pair = [alone(m, source, index) for m in (student, teacher)]
    found = losses.kd_kl(*pair, np.ones(len(pair[0]), bool), temperature=1.0)
    total, weight = total + float(found.total), weight + float(found.weight)
  mesh = mesh_lib.make_mesh()
  for given in (teacher, Remembered(teacher)):
    result = scoring.evaluate(student, given, source, mesh)
    assert result.kl == pytest.approx(total / weight, rel=1e-5)
  assert scoring.evaluate(student, None, source, mesh).kl is None


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_batches_grow_with_the_devices_and_not_beyond_the_data(devices):
  mesh = mesh_lib.make_mesh(devices=jax.devices()[:devices])
  many = evaluation_shapes(np.full(5000, 9.99), mesh, FRAME)
  assert [shape.rows for shape in many] == [8 * devices]
  few = evaluation_shapes(np.full(3, 9.99), mesh, FRAME)
  assert [shape.rows for shape in few] == [3]
