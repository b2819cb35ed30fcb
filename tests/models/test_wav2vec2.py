"""HuBERT, wav2vec 2.0, WavLM and data2vec-audio against transformers; padding; training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import hf_models
import padding
from hf_models import torch
from jaxkd import teacher as teacher_lib
from jaxkd.models import wav2vec2, waveform
from jaxkd.models.huggingface import families
from jaxkd.models.huggingface import folder as huggingface
from jaxkd.models.wav2vec2 import ACTIVATIONS, Wav2Vec2CTC

pytestmark = pytest.mark.usefixtures("quick_to_compile")

LENGTHS = np.array([9000, 6400, 3000], np.int32)
KEY = jax.random.key(0)
# Logits are of order 1; float32 sums in another order differ by about 2e-6.
ATOL = 1e-5


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """(family, norm, **over) → a tiny model's folder and itself; each is made once."""

  @functools.cache
  def get(family, norm, front=(), **over):
    folder = tmp_path_factory.mktemp("model")
    return folder, hf_models.make(folder, family, norm, front=dict(front), **over)

  return get


def make_audio(lengths=LENGTHS, size=9000, seed=0):
  """i16[B, S] of noise, in the padding too."""
  audio = np.random.default_rng(seed).normal(size=(len(lengths), size))
  return np.round(3000 * audio).astype(np.int16)


def as_float(audio, lengths=None):
  """f32[B, S] in [-1, 1]; with lengths, NaN is in the padding."""
  audio = audio / np.float32(32768)
  if lengths is None:
    return audio
  return np.where(padding.length_masks(lengths, audio.shape[1]), audio, np.float32(np.nan))


def config_of(saved_model) -> wav2vec2.Wav2Vec2Config:
  return families.model_config(huggingface.read_description(saved_model[0]), "")


def check_parity(saved_model, *, masked: bool, types=("float32",), audio=None):
  """The teacher from a folder gives transformers' logits at real frames, and its frame counts.

  Args:
    saved_model: folder and torch model.
    masked: whether transformers gets the attention mask.
    types: of the audio.
    audio: i16[3, S].

  Returns:
    The logits.
  """
  folder, model = saved_model
  audio = make_audio() if audio is None else audio
  inputs = hf_models.normalised(as_float(audio), LENGTHS)
  expected = hf_models.call(model, inputs, LENGTHS if masked else None).logits.numpy()
  frames = model._get_feat_extract_output_lengths(torch.tensor(LENGTHS)).numpy()
  teacher = teacher_lib.from_huggingface(folder)
  for dtype in types:
    out = teacher(audio if dtype == "int16" else as_float(audio, LENGTHS), LENGTHS)
    assert out.logits.shape == expected.shape and out.logits.dtype == jnp.float32
    np.testing.assert_array_equal(out.mask.sum(1), frames)
    np.testing.assert_allclose(out.logits[out.mask], expected[out.mask], atol=ATOL)
  return np.asarray(out.logits)


@pytest.mark.parametrize("family, norm", hf_models.MODELS)
def test_logits_equal_transformers(saved, family, norm):
  types = ("float32", "int16") if family == "hubert" else ("float32",)
  check_parity(saved(family, norm), masked=norm == "layer", types=types)


@pytest.mark.parametrize("family", ["hubert", "wavlm"])
def test_front_end_says_whether_group_norm_models_get_a_mask(saved, family):
  front = (("return_attention_mask", True),)
  with_mask = check_parity(saved(family, "group", front=front), masked=True)
  without = check_parity(saved(family, "group"), masked=False)
  np.testing.assert_allclose(with_mask[0], without[0], atol=ATOL)  # row 0 has no padding
  assert np.abs(with_mask[1] - without[1])[:19].max() > 0.01


# What a test of its own would repeat: (family, norm, fields of config.json).
VARIANTS = {
  "odd position kernel": ("wav2vec2", "layer", dict(num_conv_pos_embeddings=7)),
  "even position kernel of data2vec": ("data2vec-audio", "layer", dict(conv_pos_kernel_size=4)),
  "no norm before the projection": (
    "hubert",
    "group",
    dict(feat_proj_layer_norm=False, conv_bias=True),
  ),
  "convolutions with bias": ("wav2vec2", "layer", dict(conv_bias=True)),
  "activations": (
    "wavlm",
    "layer",
    dict(hidden_act="relu", feat_extract_activation="gelu_new"),
  ),
  "epsilon": ("hubert", "layer", dict(layer_norm_eps=0.1)),
  "other convolutions": (
    "wav2vec2",
    "group",
    dict(
      conv_dim=(8, 12, 20),
      conv_kernel=(10, 8, 5),
      conv_stride=(10, 8, 4),
      num_feat_extract_layers=3,
    ),
  ),
  "few buckets": ("wavlm", "group", dict(num_buckets=8, max_bucket_distance=12)),
  "no masked frames": ("hubert", "layer", dict(mask_time_prob=0.0)),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_the_structure_equal_transformers(saved, name):
  family, norm, over = VARIANTS[name]
  changed = saved(family, norm, **over)
  logits = check_parity(changed, masked=norm == "layer")
  if logits.shape[1] == 27 and name != "no masked frames":
    # The field matters: the same parameters without it, where they fit, give something else.
    plain = hf_models.make(changed[0] / "plain", family, norm)
    inputs = hf_models.normalised(as_float(make_audio()), LENGTHS)
    other = hf_models.call(plain, inputs, LENGTHS if norm == "layer" else None).logits
    assert np.abs(logits - other.numpy()).max() > 100 * ATOL


def test_activations_are_those_of_transformers():
  x = np.linspace(-6, 6, 241, dtype=np.float32)
  for name, ours in ACTIVATIONS.items():
    theirs = hf_models.transformers.activations.ACT2FN[name](torch.tensor(x))
    np.testing.assert_allclose(ours(x), theirs.numpy(), atol=2e-6, err_msg=name)


def test_frames_are_counted_as_in_transformers(saved):
  config, model = config_of(saved("hubert", "layer")), saved("hubert", "layer")[1]
  lengths = np.arange(4000)
  expected = model._get_feat_extract_output_lengths(torch.tensor(lengths)).numpy().clip(0)
  np.testing.assert_array_equal(config.frame_len(jnp.array(lengths)), expected)
  assert [config.frame_len(int(n)) for n in lengths] == expected.tolist()
  assert config.min_samples == 400 == np.argmax(expected > 0)
  for samples in (400, 719, 720, 16_000):
    features = model.hubert.feature_extractor(torch.zeros(1, samples))
    assert features.shape[-1] == config.frame_len(samples)


def test_frames_of_lengths_in_a_numpy_array(saved):
  config = config_of(saved("hubert", "layer"))
  np.testing.assert_array_equal(config.frame_len(np.array([0, 399, 400, 9000])), [0, 0, 1, 27])


@pytest.mark.parametrize("norm, size", [("layer", 1), ("group", 399), ("layer", 400)])
def test_less_than_a_frame_of_audio_has_no_frame(saved, norm, size):
  teacher = teacher_lib.from_huggingface(saved("wav2vec2", norm)[0])
  lengths = np.array([size, 0], np.int32)
  out = teacher(as_float(make_audio(lengths, size), lengths), lengths)
  assert out.logits.shape == (2, 1, len(hf_models.SYMBOLS)) and np.isfinite(out.logits).all()
  np.testing.assert_array_equal(out.mask, [[size >= 400], [False]])


def test_rows_without_frames_leave_the_others_alone(saved):
  teacher = teacher_lib.from_huggingface(saved("wavlm", "layer")[0])
  audio, lengths = make_audio(), np.array([9000, 0, 399], np.int32)
  out = teacher(as_float(audio, lengths), lengths)
  alone = teacher(as_float(audio[:1]), LENGTHS[:1])
  np.testing.assert_array_equal(out.mask.sum(1), [27, 0, 0])
  np.testing.assert_allclose(out.logits[0], alone.logits[0], atol=ATOL)


@pytest.mark.parametrize("do_normalize", [True, False])
def test_waveform_equals_the_feature_extractor(saved, do_normalize):
  extractor = hf_models.transformers.Wav2Vec2FeatureExtractor(do_normalize=do_normalize)
  config = config_of(saved("hubert", "layer", front=(("do_normalize", do_normalize),)))
  assert config.normalise == do_normalize
  audio = make_audio()
  audio[1] = np.clip(3 * audio[1] + np.float32(2000), -(2**15), 2**15 - 1)
  audio[2] = 500  # constant: no variance
  for given in (audio, as_float(audio, LENGTHS)):
    got = np.asarray(wav2vec2.waveform(given, LENGTHS, config))
    for row, length in enumerate(LENGTHS):
      real = as_float(audio)[row, :length]
      expected = extractor(real, sampling_rate=16_000, return_tensors="np").input_values[0]
      # A mean in float32 is off by some 1e-9, and a constant's deviation is over sqrt(1e-7).
      np.testing.assert_allclose(got[row, :length], expected, rtol=1e-4, atol=1e-5)
      assert not got[row, length:].any()


def test_convolutions_in_chunks_as_on_tpu_are_the_same():
  config = waveform.WaveformConfig(
    conv_activation="gelu",
    conv_channels=(4, 6, 3),
    conv_kernels=(10, 3, 2),
    conv_strides=(5, 2, 2),
    conv_bias=True,
    conv_norm="layer",
    normalise=True,
    pool=1,
  )
  layers = waveform.conv_layers(config, rngs=nnx.Rngs(0))
  ends = [config.min_samples, config.min_samples + 16 * 20]
  for samples in ends:  # a frame; a chunk and a frame
    audio = jax.random.normal(KEY, (2, samples))
    expected = waveform.frames(layers, audio, "float32")
    found = waveform.frames_in_chunks(list(layers), audio, "float32")
    np.testing.assert_allclose(found, expected, atol=ATOL)


def test_int16_and_float_waveforms_are_the_same(saved):
  config, audio = config_of(saved("hubert", "layer")), make_audio()
  int16, floats = (wav2vec2.waveform(a, LENGTHS, config) for a in (audio, as_float(audio, LENGTHS)))
  np.testing.assert_array_equal(int16, floats)
  assert int16.dtype == jnp.float32 and int16.shape == audio.shape


# Part by part.


def layer_at(module: Wav2Vec2CTC, index: int) -> wav2vec2.Layer:
  """One of the stacked layers."""
  graphdef, stacked = nnx.split(module.layers)
  return nnx.merge(graphdef, jax.tree.map(lambda p: p[index], stacked))


# Every family, and WavLM's two kinds of layers.
@pytest.mark.parametrize("family, norm", hf_models.MODELS[1:3] + hf_models.MODELS[4:])
def test_every_part_equals_that_of_transformers(saved, family, norm):
  folder, model = saved(family, norm)
  teacher, config = teacher_lib.from_huggingface(folder), config_of(saved(family, norm))
  base = model.base_model
  inputs = hf_models.normalised(as_float(make_audio()), LENGTHS)
  lengths = LENGTHS if norm == "layer" else None
  parts = dict(
    conv=base.feature_extractor,
    project=base.feature_projection,
    positions=base.encoder.pos_conv_embed,
    norm=base.encoder.layer_norm,
    head=model.lm_head,
    **{str(i): layer for i, layer in enumerate(base.encoder.layers)},
  )
  with hf_models.watched(**parts) as seen:
    hf_models.call(model, inputs, lengths)
  frames = seen["norm"][0].shape[1]
  mask = None
  if norm == "layer":
    mask = padding.length_masks([config.frame_len(int(n)) for n in LENGTHS], frames)

  @jax.jit
  def run(params, inputs):
    module = nnx.merge(teacher.graphdef, params)
    bias = None
    if family == "wavlm":
      bias = wav2vec2.distance_bias(module.distances[...], frames, config.max_distance)
    positions = inputs["positions"]
    for conv in module.positions:
      positions = conv(positions)
    return dict(
      conv=module.conv_features(inputs["conv"]),
      project=module.embed(inputs["project"]),
      positions=positions,
      norm=module.norm(inputs["norm"]),
      head=module.head(inputs["head"]),
      **{
        str(i): layer_at(module, i)(inputs[str(i)], mask, bias, None)
        for i in range(len(base.encoder.layers))
      },
    )

  # Every part reads what transformers' part has read.
  got = run(teacher.params, {name: first for name, (first, _) in seen.items()})
  assert seen.keys() == parts.keys()
  for name, (_, expected) in seen.items():
    expected = expected.swapaxes(1, 2) if name == "conv" else expected
    real = slice(None) if mask is None else mask
    np.testing.assert_allclose(got[name][real], expected[real], atol=ATOL, err_msg=name)
    assert np.std(expected[real]) > 0.01, name


@pytest.mark.parametrize("buckets, max_distance", [(320, 800), (32, 100), (8, 12)])
def test_distance_bias_equals_wavlm(buckets, max_distance):
  from transformers.models.wavlm.modeling_wavlm import WavLMAttention

  attention = WavLMAttention(8, 2, num_buckets=buckets, max_distance=max_distance)
  table = attention.rel_attn_embed.weight.detach().numpy()
  for frames in (1, 2, 83, 1500):
    with torch.no_grad():
      expected = attention.compute_bias(frames, frames).numpy()
    got = np.asarray(wav2vec2.distance_bias(jnp.array(table), frames, max_distance))
    np.testing.assert_array_equal(got, expected)
  # Every bucket is reached but one: no key is ahead by 0 frames.
  assert len(np.unique(got[0])) == buckets - 1


def test_gated_distance_bias_equals_wavlm(saved, monkeypatch):
  folder, model = saved("wavlm", "layer")
  teacher = teacher_lib.from_huggingface(folder)
  attentions = [layer.attention for layer in model.wavlm.encoder.layers]
  seen = []
  for attention in attentions:
    plain = attention.torch_multi_head_self_attention

    def watch(x, mask, bias, plain=plain):
      seen.append((x.numpy().copy(), bias.numpy().copy()))
      return plain(x, mask, bias)

    monkeypatch.setattr(attention, "torch_multi_head_self_attention", watch)
  inputs = hf_models.normalised(as_float(make_audio()), LENGTHS)
  hf_models.call(model, inputs, LENGTHS)
  module = nnx.merge(teacher.graphdef, teacher.params)
  assert len(seen) == len(attentions) == 3
  for index, (x, expected) in enumerate(seen):
    batch, frames, _ = x.shape
    heads = x.reshape(batch, frames, 4, -1)
    bias = wav2vec2.distance_bias(module.distances[...], frames, 800)
    got = layer_at(module, index)._gate(heads)[..., None] * bias[None]
    np.testing.assert_allclose(got.reshape(expected.shape), expected, atol=ATOL)
    assert np.std(expected) > 0.05


# Padding.


@pytest.mark.parametrize("family", ["hubert", "wavlm"])
def test_group_norm_models_change_with_padding_as_in_transformers(saved, family):
  plain, padded = with_and_without_padding(saved(family, "group"), masked=False)
  # The first layer's mean over time has changed, and frames of silence are attended to.
  assert np.abs(padded - plain).max() > 0.01


def test_data2vec_changes_with_padding_as_in_transformers(saved):
  plain, padded = with_and_without_padding(saved("data2vec-audio", "layer"), masked=True)
  # Only the first of its positional convolutions sees zeros in the padding.
  assert np.abs(padded - plain).max() > 0.01
  once = saved("data2vec-audio", "layer", num_conv_pos_embeddings=1)
  plain, padded = with_and_without_padding(once, masked=True)
  np.testing.assert_allclose(padded, plain, atol=ATOL)


@pytest.mark.parametrize("family", ["hubert", "wavlm"])
def test_layer_norm_models_do_not_change_with_padding(saved, family):
  plain, padded = with_and_without_padding(saved(family, "layer"), masked=True)
  np.testing.assert_allclose(padded, plain, atol=ATOL)


def with_and_without_padding(saved_model, *, masked: bool):
  """Logits of the row that fills the batch, and where the batch is longer; both as transformers."""
  longer = np.pad(make_audio(), ((0, 0), (0, 4000)))
  plain = check_parity(saved_model, masked=masked)[0]
  return plain, check_parity(saved_model, masked=masked, audio=longer)[0][: len(plain)]


# Pooling and arithmetic.


def test_pool_is_a_maximum_over_real_encoder_frames(saved):
  pool, (folder, model) = 2, saved("hubert", "layer")
  audio = make_audio()
  teacher = teacher_lib.from_huggingface(folder, pool)
  out = teacher(audio, LENGTHS)
  module = nnx.merge(teacher.graphdef, teacher.params)
  inputs = hf_models.normalised(as_float(audio), LENGTHS)
  with hf_models.watched(head=model.lm_head) as seen:
    hf_models.call(model, inputs, LENGTHS)
  frames = seen["head"][0]
  counts = [27, 19, 9]
  assert out.logits.shape == (3, -(-27 // pool), len(hf_models.SYMBOLS))
  np.testing.assert_array_equal(out.mask.sum(1), [-(-n // pool) for n in counts])
  for row, count in enumerate(counts):
    blocks = [frames[row, i : min(i + pool, count)].max(0) for i in range(0, count, pool)]
    kernel, bias = (np.asarray(p[...]) for p in (module.head.kernel, module.head.bias))
    expected = np.array(blocks) @ kernel + bias
    np.testing.assert_allclose(out.logits[row][: len(blocks)], expected, atol=ATOL)
    np.testing.assert_array_equal(out.mask[row], np.arange(out.mask.shape[1]) < len(blocks))


@pytest.mark.parametrize("family, norm", [("hubert", "layer"), ("wavlm", "group")])
def test_bfloat16_is_close_to_float32(saved, family, norm):
  audio = make_audio()
  full, half = (
    teacher_lib.from_huggingface(saved(family, norm)[0], dtype=dtype)
    for dtype in ("float32", "bfloat16")
  )
  full, half = full(audio, LENGTHS), half(audio, LENGTHS)
  assert half.logits.dtype == full.logits.dtype == jnp.float32
  difference = np.asarray(half.logits - full.logits)[full.mask]
  assert 0 < np.sqrt((difference**2).mean()) < 0.05 * np.asarray(full.logits)[full.mask].std()
