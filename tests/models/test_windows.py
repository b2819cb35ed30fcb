"""Long audio is heard in windows whose middles fit together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxkd.labels import characters
from jaxkd.masks import length_mask, strided_len
from jaxkd.models import acoustic
from jaxkd.models.acoustic import AcousticModel
from jaxkd.types import FrameOutput

FRAME = 640


class Local(nnx.Module):
  """Classes by the mean of a frame and its neighbours: what is far away changes nothing."""

  def __init__(self, short: int):
    self.scale = nnx.Param(jnp.arange(1.0, 4.0))
    self.short = short  # frames that the last of a window lacks, as with unpadded convolutions

  def __call__(self, audio, audio_len):
    size = audio.shape[1] // FRAME
    real = length_mask(audio_len, audio.shape[1])
    means = jnp.where(real, audio, 0)[:, : size * FRAME].reshape(-1, size, FRAME).mean(-1)
    padded = jnp.pad(means, ((0, 0), (1, 1)))
    means = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    mask = length_mask(strided_len(audio_len, FRAME) - self.short, size)
    logits = means[..., None] * self.scale[...][None, None]
    return FrameOutput(logits[:, : size - self.short], mask[:, : size - self.short])


def model(short: int) -> AcousticModel:
  graphdef, params = nnx.split(Local(short))
  return AcousticModel(graphdef, params, characters("ab"), FRAME)


def test_lengths_are_of_any_integers_and_other_input_gets_one_line():
  audio, lengths = np.ones((2, 5 * FRAME), np.float32), [5 * FRAME - 1, 0]
  for dtype in (np.int32, np.uint32, np.int64):
    found = model(0)(audio, np.array(lengths, dtype))
    np.testing.assert_array_equal(found.mask.sum(1), [5, 0])
  np.testing.assert_array_equal(strided_len(np.array([5, 4, 0], np.uint32), 2), [3, 2, 0])
  assert model(0)(audio.tolist(), lengths).mask.sum() == 5
  for wrong in (audio[:0], audio[:, :0], audio[0]):
    with pytest.raises(ValueError, match=r"it must be \[B, S\]"):
      model(0)(wrong, np.zeros(len(wrong), np.int32))
  with pytest.raises(ValueError, match="audio_len has shape"):
    model(0)(audio, np.zeros(3, np.int32))


@pytest.mark.parametrize("short", [0, 1])
def test_windows_give_what_the_whole_gives(monkeypatch, short):
  """Rows that end in a margin, in a middle, at once, in the first window, and one without audio."""
  monkeypatch.setattr(acoustic, "_WINDOW_SECONDS", 0.8)  # 20 frames
  monkeypatch.setattr(acoustic, "_MARGIN_SECONDS", 0.16)  # 4 on each side
  rng = np.random.default_rng(0)
  frames = np.array([83, 80, 45, 44, 17, 16, 1, 0, 31])
  audio = rng.standard_normal((len(frames), 83 * FRAME), dtype=np.float32)
  lengths = (frames * FRAME).astype(np.int32)
  whole = model(short)(audio, lengths)
  monkeypatch.setattr(acoustic, "LONGEST_SECONDS", 1.0)
  jax.clear_caches()
  pieced = model(short)(audio, lengths)
  size = whole.mask.shape[1]
  np.testing.assert_array_equal(pieced.mask[:, :size], whole.mask)
  assert not pieced.mask[:, size:].any()
  real = np.asarray(whole.mask)
  np.testing.assert_allclose(pieced.logits[:, :size][real], whole.logits[real], atol=1e-6)


def test_a_minute_is_heard_as_a_whole():
  audio = jax.ShapeDtypeStruct((1, 60 * 16_000), jnp.float32)
  length = jax.ShapeDtypeStruct((1,), jnp.int32)
  text = jax.jit(lambda *x: model(0)(*x)).lower(audio, length).as_text()
  assert "while" not in text
