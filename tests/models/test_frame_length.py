"""A frame's length, as each architecture says it, is what its outputs have."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jaxkd.models.conformer import ConformerConfig, ConformerCTC
from jaxkd.models.fastconformer import FastConformerConfig, FastConformerCTC
from jaxkd.models.features import LogMel
from jaxkd.models.huggingface import families, weights
from jaxkd.teacher.ensemble import Ensemble


def of_conformer(*time_pools: int):
  pools = tuple((time, 2) for time in time_pools)
  config = ConformerConfig(1, 16, 2, 4, 3, 0.1, 4, (4, 4, 4, 4), pools)
  make = lambda: ConformerCTC(config, LogMel(mels=16), 5, rngs=nnx.Rngs(params=0))
  return config, nnx.split(nnx.eval_shape(make))


def of_fastconformer(subsampling: int, pool: int = 1):
  config = FastConformerConfig(
    mels=16,
    layers=1,
    width=16,
    heads=2,
    ff_width=16,
    conv_kernel=3,
    subsampling=subsampling,
    subsampling_channels=4,
    pool=pool,
  )
  make = lambda: FastConformerCTC(config, 5, rngs=nnx.Rngs(params=0))
  return config, nnx.split(nnx.eval_shape(make))


def of_folder(pool: int, **fields):
  """With the published convolutions unless they are given."""
  sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
  fields = dict(conv_dim=(8,) * 7, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2) | (
    sizes | fields
  )
  config = families.model_config(
    {"config": {"model_type": "hubert"} | fields, "preprocessor": {}}, "", pool=pool
  )
  return config, weights.structure(config, 5)


def frames(graphdef, params, samples: int) -> int:
  audio = jax.ShapeDtypeStruct((1, samples), jnp.int16)
  apply = lambda params, audio, audio_len: nnx.merge(graphdef, params)(audio, audio_len)
  out = jax.eval_shape(apply, params, audio, jax.ShapeDtypeStruct((1,), jnp.int32))
  assert out.mask.shape == out.logits.shape[:2]
  return out.mask.shape[1]


FEW = dict(conv_dim=(8, 8), conv_kernel=(10, 8), conv_stride=(10, 8))


@pytest.mark.parametrize(
  ("made", "expected"),
  [
    (lambda: of_conformer(2, 2), 640),
    (lambda: of_conformer(1, 3), 480),
    (lambda: of_fastconformer(8), 1280),
    (lambda: of_fastconformer(4, 3), 1920),
    (lambda: of_folder(1), 320),
    (lambda: of_folder(2), 640),
    (lambda: of_folder(3, **FEW), 240),
  ],
  ids=[
    "conformer",
    "conformer-1-3",
    "fastconformer",
    "fastconformer-pooled",
    "hubert",
    "hubert-2",
    "strides",
  ],
)
def test_so_many_samples_more_are_one_frame_more(made, expected):
  config, structure = made()
  assert config.frame_samples == expected
  for samples in (16_000, 16_500):
    start = frames(*structure, samples)
    assert abs(start - samples / expected) <= 1.5
    for more in (1, 7):
      assert frames(*structure, samples + more * expected) == start + more


def test_an_ensemble_has_the_frames_of_its_members():
  made = of_conformer(2, 2), of_folder(2)
  both = nnx.split(Ensemble([nnx.merge(*structure) for _, structure in made]))
  for samples in (16_000, 16_640, 22_400):
    assert frames(*both, samples) == min(frames(*structure, samples) for _, structure in made)
