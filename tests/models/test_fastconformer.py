"""FastConformer against transformers' Parakeet, each utterance alone; padding; what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import hf_models
import padding
from hf_models import torch, transformers
from jaxkd import teacher as teacher_lib
from jaxkd.errors import UserError
from jaxkd.models import fastconformer
from jaxkd.models.features import log_mel
from jaxkd.models.huggingface import families
from jaxkd.models.huggingface import folder as huggingface

pytestmark = pytest.mark.usefixtures("quick_to_compile")

LENGTHS = np.array([16_000, 9_999, 4_321], np.int32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """(**over) → a tiny model's folder and itself; each is made once."""

  @functools.cache
  def get(**over):
    folder = tmp_path_factory.mktemp("model")
    return folder, hf_models.make_parakeet(folder, **over)

  return get


def make_audio(lengths=LENGTHS, seed=0):
  """i16[B, S] of noise that changes its loudness, in the padding too."""
  rng = np.random.default_rng(seed)
  audio = rng.normal(size=(len(lengths), max(lengths))) * rng.uniform(200, 3000, max(lengths))
  return np.round(audio).astype(np.int16)


def as_float(audio, lengths):
  """f32[B, S] of full scale 1, NaN in the padding."""
  real = padding.length_masks(lengths, audio.shape[1])
  return np.where(real, audio / np.float32(32768), np.float32(np.nan))


def alone(model, audio, samples: int):
  """transformers' logits f32[T, V] of the first real samples of i16[S], without any padding."""
  front = hf_models.parakeet_extractor(model.config.encoder_config.num_mel_bins)
  inputs = front(audio[:samples] / np.float32(32768), sampling_rate=16_000, return_tensors="pt")
  with torch.no_grad():
    logits = model(**inputs).logits[0].numpy()
  return logits[: int(model._get_subsampling_output_length(inputs.attention_mask.sum(-1))[0])]


VARIANTS = {
  "as published": dict(),
  "without biases": dict(attention_bias=False, convolution_bias=False, scale_input=False),
  "frames of 40 ms": dict(factor=4, conv_kernel_size=5, hidden_act="relu"),
  "frames of 20 ms": dict(factor=2, hidden_act="gelu", num_attention_heads=2),
  "frames of 160 ms": dict(factor=16),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_of_a_padded_row_equal_transformers_alone(saved, name):
  folder, model = saved(**VARIANTS[name])
  teacher = teacher_lib.from_huggingface(folder)
  audio = make_audio()
  out = teacher(as_float(audio, LENGTHS), LENGTHS)
  assert np.isfinite(out.logits).all() and out.logits.dtype == jnp.float32
  for row, samples in enumerate(LENGTHS):
    expected = alone(model, audio[row], samples)
    got = np.asarray(out.logits[row][out.mask[row]])
    assert got.shape == expected.shape and np.abs(expected).max() > 0.5
    np.testing.assert_allclose(got, expected, atol=2e-5)
  if name == "as published":
    ints = teacher(audio, LENGTHS)
    np.testing.assert_allclose(ints.logits[out.mask], out.logits[out.mask], atol=1e-6)
    assert teacher.frame_ms == 80 and teacher.blank_id == 0
    assert teacher.labels == hf_models.SYMBOLS


@pytest.mark.parametrize("mels", [16, 80, 128])
def test_features_equal_the_feature_extractor(mels):
  audio = make_audio()
  settings = fastconformer.LogMel("nemo", mels=mels)
  features, mask = jax.jit(log_mel, static_argnums=2)(as_float(audio, LENGTHS), LENGTHS, settings)
  for row, samples in enumerate(LENGTHS):
    real = audio[row, :samples] / np.float32(32768)
    found = hf_models.parakeet_extractor(mels)(real, sampling_rate=16_000, return_tensors="np")
    expected = found.input_features[0][found.attention_mask[0].astype(bool)]
    np.testing.assert_allclose(features[row][mask[row]], expected, atol=2e-4)


def test_frames_are_counted_as_in_transformers(saved):
  lengths = np.arange(0, 4000, 7)
  for factor in (2, 4, 8, 16):
    folder, model = saved(factor=factor) if factor != 8 else saved()
    config = config_of(folder)
    expected = model._get_subsampling_output_length(torch.tensor(lengths // 160)).numpy()
    np.testing.assert_array_equal(config.frame_len(jnp.array(lengths)), expected)
    np.testing.assert_array_equal(config.frame_len(lengths), expected)
    assert [config.frame_len(int(n)) for n in lengths] == expected.tolist()


@pytest.mark.parametrize("samples", [320, 1279, 1280, 1281, 1440, 2720])
def test_short_audio(saved, samples):
  folder, model = saved()
  teacher, audio = teacher_lib.from_huggingface(folder), make_audio((samples,))
  out = teacher(audio, np.array([samples], np.int32))
  expected = alone(model, audio[0], samples)
  np.testing.assert_allclose(out.logits[0][out.mask[0]], expected, atol=2e-5)


def test_less_than_a_hop_has_no_frame(saved):
  """One feature frame has no deviation: transformers divides by 0 there."""
  teacher = teacher_lib.from_huggingface(saved()[0])
  lengths = np.array([160, 159, 0], np.int32)
  out = teacher(as_float(make_audio(lengths), lengths), lengths)
  np.testing.assert_array_equal(out.mask, [[True], [False], [False]])
  assert np.isfinite(out.logits).all()


def config_of(folder):
  return families.model_config(huggingface.read_description(folder), "")


# Layers.


def split(module):
  return padding.randomised(module)


CONFIG = fastconformer.FastConformerConfig(
  mels=16,
  layers=2,
  width=16,
  heads=2,
  ff_width=24,
  conv_kernel=5,
  subsampling=8,
  subsampling_channels=4,
)


def test_subsampling_does_not_read_padding():
  graphdef, params = split(fastconformer.Subsampling(CONFIG, rngs=nnx.Rngs(params=0)))

  def apply(params, x, mask):
    frames, lengths = nnx.merge(graphdef, params)(x, mask.sum(1))
    return frames, fastconformer.length_mask(lengths, frames.shape[1])

  x = np.random.default_rng(0).normal(size=(4, 43, 16)).astype(np.float32)
  padding.check(apply, params, x, padding.length_masks((43, 0, 17, 30), 43), longer=11)


def test_block_does_not_read_padding():
  graphdef, params = split(fastconformer.Block(CONFIG, rngs=nnx.Rngs(params=0)))
  # A variance is no number below 0.
  params["conv"]["inner_norm"]["variance"] = abs(params["conv"]["inner_norm"]["variance"]) + 0.1

  def apply(params, x, mask):
    table = fastconformer.distances(x.shape[1], 16, x.dtype)
    return nnx.merge(graphdef, params)(x, mask, table, None)

  x = np.random.default_rng(0).normal(size=(4, 13, 16)).astype(np.float32)
  mask = padding.length_masks((13, 0, 7, 1), 13)
  # What comes out of the block before is finite; the gradient of the keys' bias is 0.
  padding.check(apply, params, x, mask, garbage=1e3, gradient_rtol=2e-3)


def test_by_distance_equals_a_loop():
  scores = np.random.default_rng(0).normal(size=(2, 3, 5, 9)).astype(np.float32)
  got = fastconformer.by_distance(jnp.array(scores))
  for i in range(5):
    for j in range(5):
      np.testing.assert_array_equal(got[:, :, i, j], scores[:, :, i, 4 - (i - j)])


def test_pooled_frames(saved):
  folder = saved()[0]
  teacher = teacher_lib.from_huggingface(folder, pool=2)
  assert teacher.frame_ms == 160
  out = teacher(make_audio(), LENGTHS)
  np.testing.assert_array_equal(out.mask.sum(1), -(-config_of(folder).frame_len(LENGTHS) // 2))


def test_bfloat16_is_near(saved):
  folder, audio = saved()[0], make_audio()
  exact = teacher_lib.from_huggingface(folder)(audio, LENGTHS)
  half = teacher_lib.from_huggingface(folder, dtype="bfloat16")(audio, LENGTHS)
  assert half.logits.dtype == jnp.float32
  difference = jax.nn.log_softmax(half.logits) - jax.nn.log_softmax(exact.logits)
  assert 0 < np.abs(difference[exact.mask]).mean() < 0.03


# What is refused.


@pytest.mark.parametrize(
  ("file", "change", "words"),
  [
    ("config", {"hidden_act": "tanh"}, "hidden_act is 'tanh'"),
    ("config", {"subsampling_factor": 6}, "subsampling_factor is 6: it must be one of 2, 4, 8, 16"),
    ("config", {"subsampling_conv_kernel_size": 5}, "subsampling_conv_kernel_size is 5"),
    ("config", {"conv_kernel_size": 8}, "conv_kernel_size is 8: it must be odd"),
    ("config", {"num_mel_bins": 20}, "num_mel_bins is 20: it must be a multiple of 8"),
    ("config", {"head_dim": 4}, "head_dim is 4"),
    ("preprocessor", {"hop_length": 200}, "hop_length is 200: only 160 is there"),
    ("preprocessor", {"feature_size": 80}, "feature_size is 80: only 16 is there"),
    ("preprocessor", {"preemphasis": None}, "preemphasis is None"),
    ("preprocessor", {"sampling_rate": 8000}, "sampling_rate is 8000"),
  ],
)
def test_what_is_not_here_is_refused(saved, file, change, words):
  description = huggingface.read_description(saved()[0])
  changed = dict(description[file])
  if file == "config":
    changed["encoder_config"] = changed["encoder_config"] | change
  with pytest.raises(UserError) as error:
    families.model_config(description | {file: changed | change}, "folder")
  assert words in str(error.value) and "\n" not in str(error.value)


def test_defaults_are_those_of_transformers():
  theirs = transformers.ParakeetEncoderConfig()
  config = families.model_config({"config": {"model_type": "parakeet_ctc"}, "preprocessor": {}}, "")
  assert config.width == theirs.hidden_size and config.layers == theirs.num_hidden_layers
  assert config.heads == theirs.num_attention_heads and config.mels == theirs.num_mel_bins
  assert config.ff_width == theirs.intermediate_size and config.bias == theirs.attention_bias
  assert config.conv_kernel == theirs.conv_kernel_size
  assert config.conv_bias == theirs.convolution_bias and config.activation == theirs.hidden_act
  assert config.subsampling == theirs.subsampling_factor
  assert config.subsampling_channels == theirs.subsampling_conv_channels
  assert config.scale_input == theirs.scale_input and config.frame_samples == 1280
