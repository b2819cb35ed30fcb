"""The encoder of the HuBERT family in training: padding, gradients, and what is random."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import padding
from jaxkd.models import wav2vec2
from jaxkd.models.huggingface import families
from jaxkd.models.layers import standardise
from jaxkd.models.wav2vec2 import Wav2Vec2CTC

pytestmark = pytest.mark.usefixtures("quick_to_compile")

LENGTHS = np.array([6400, 0, 4000, 399, 2300], np.int32)
FRAMES = [20, 0, 12, 1, 7]
KEY = jax.random.key(0)
RATES = ("dropout", "attention_dropout", "activation_dropout", "projection_dropout", "head_dropout")
# Every family, every norm, both kinds of positions.
FAMILIES = [("hubert", "layer"), ("wavlm", "group"), ("data2vec-audio", "layer")]


def model_config(family="hubert", norm="layer", **changes) -> wav2vec2.Wav2Vec2Config:
  """A small structure, with three convolutions and 320 samples a frame; nothing is random."""
  given = dict(
    model_type=family,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    conv_dim=(8, 8, 8),
    conv_kernel=(10, 8, 4),
    conv_stride=(10, 8, 4),
    num_conv_pos_embeddings=2 if family == "data2vec-audio" else 5,
    num_conv_pos_embedding_groups=2,
    conv_pos_kernel_size=5,
    do_stable_layer_norm=norm == "layer",
    feat_extract_norm=norm,
    conv_bias=True,
  )
  config = families.model_config({"config": given, "preprocessor": {}}, "")
  off = dict.fromkeys(RATES, 0.0) | dict(layer_drop=0.0, time_mask=(0.0, 4, 0))
  return dataclasses.replace(config, **off | dict(feature_mask=(0.0, 4, 0)) | changes)


@functools.cache
def small(family="hubert", norm="layer", **changes):
  """Graphdef and noisy parameters."""
  config = model_config(family, norm, **changes)
  return padding.randomised(Wav2Vec2CTC(config, 6, rngs=nnx.Rngs(params=0)))


def make_audio(size=6400):
  """i16[5, S] of noise, in the padding too."""
  audio = np.random.default_rng(0).normal(size=(len(LENGTHS), size))
  return np.round(3000 * audio).astype(np.int16)


def run(graphdef, params, audio=None, lengths=LENGTHS, **options):
  return _run(graphdef, params, make_audio() if audio is None else audio, lengths, **options)


@functools.partial(jax.jit, static_argnums=0)
def _run(graphdef, params, audio, lengths, **options):
  return nnx.merge(graphdef, params)(audio, lengths, **options)


@functools.partial(jax.jit, static_argnums=0)
def gradient(graphdef, params, lengths, **options):
  def total(params):
    logits, mask = nnx.merge(graphdef, params)(make_audio(), lengths, **options)
    return jnp.where(mask[..., None], jnp.sin(jnp.arange(6.0))[None, None] * logits**2, 0).sum()

  return jax.grad(total)(params)


def by_name(tree) -> dict[str, np.ndarray]:
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  name = lambda path: "/".join(str(p.key) for p in path if hasattr(p, "key"))
  return {name(path): np.asarray(leaf) for path, leaf in leaves}


# Padding.


@pytest.mark.slow
def test_layer_norm_models_do_not_read_padding():
  """WavLM has every part of HuBERT, and the bias."""
  # The keys' bias moves all scores of a query alike: its gradient is 0 but for rounding.
  is_bias = lambda path, _: path == ("layers", "key", "bias")
  graphdef, fixed, params = nnx.split(nnx.merge(*small("wavlm", pool=2)), is_bias, ...)

  def apply(params, audio, mask):
    return tuple(nnx.merge(graphdef, fixed, params)(audio, mask.sum(1)))

  audio = make_audio() / np.float32(32768)
  mask = padding.length_masks(LENGTHS, audio.shape[1])
  padding.check(apply, params, audio, mask, longer=1000, atol=1e-4, gradient_rtol=1e-3)


def test_rows_do_not_know_each_other():
  graphdef, params = small()
  whole = run(graphdef, params)
  np.testing.assert_array_equal(whole.mask.sum(1), FRAMES)
  order = np.array([3, 0, 4, 2, 1])
  moved = run(graphdef, params, make_audio()[order], LENGTHS[order])
  np.testing.assert_allclose(moved.logits, whole.logits[order], atol=1e-5)


# What is random.

RANDOM = {rate: {rate: 0.3} for rate in RATES} | {
  "layer_drop": dict(layer_drop=0.5),
  "time_mask": dict(time_mask=(0.5, 4, 1)),
  "feature_mask": dict(feature_mask=(0.5, 4, 1)),
}
ALL_RANDOM = functools.reduce(lambda a, b: a | b, RANDOM.values())


@pytest.mark.parametrize("name", RANDOM)
def test_key_reaches_every_rate(name):
  graphdef, params = small(**RANDOM[name])
  plain = np.asarray(run(*small()).logits)
  # Two layers of which half are dropped: four keys see more than one case.
  logits = [np.asarray(run(graphdef, params, key=k).logits) for k in jax.random.split(KEY, 4)]
  for row in (0, 2, 4):
    real = np.array([x[row, : FRAMES[row]] for x in logits])
    assert np.isfinite(real).all() and (real != real[0]).any(), row
    assert (real != plain[row, : FRAMES[row]]).any(), row


def test_same_key_same_logits_and_no_key_is_evaluation():
  graphdef, params = small(**ALL_RANDOM)
  one, two = jax.random.split(KEY)
  first, again, other = (run(graphdef, params, key=k).logits for k in (one, one, two))
  np.testing.assert_array_equal(first, again)
  assert (first != other).any()
  plain, evaluation = run(*small()), run(graphdef, params)
  np.testing.assert_allclose(evaluation.logits[plain.mask], plain.logits[plain.mask], atol=1e-6)


@pytest.mark.parametrize("family, norm", FAMILIES)
def test_training_without_anything_random_is_evaluation(family, norm):
  graphdef, params = small(family, norm)
  plain, trained = run(graphdef, params), run(graphdef, params, key=KEY)
  np.testing.assert_allclose(trained.logits[plain.mask], plain.logits[plain.mask], atol=1e-5)


@pytest.mark.parametrize("with_bias", [False, True])
def test_attention_that_drops_nothing_is_attention(with_bias):
  rng = np.random.default_rng(0)
  q, k, v = rng.normal(size=(3, 2, 7, 2, 4)).astype(np.float32)
  bias = rng.normal(size=(2, 2, 7, 7)).astype(np.float32) if with_bias else None
  for mask in (None, padding.length_masks([7, 4], 7)):
    plain = wav2vec2.attention(q, k, v, bias, mask, 0.1, None)
    # A rate this small is none of 2^16 values.
    training = wav2vec2.attention(q, k, v, bias, mask, 1e-6, KEY)
    np.testing.assert_allclose(training, plain, atol=1e-5)
    dropped = wav2vec2.attention(q, k, v, bias, mask, 0.1, KEY)
    assert np.abs(dropped - plain).max() > 0.01


@pytest.mark.parametrize("family, norm", FAMILIES)
def test_layer_drop_skips_layers_and_never_wavlms_first(family, norm):
  kept = int(family == "wavlm")
  graphdef, params = small(family, norm, layer_drop=1.0)
  got = run(graphdef, params, key=KEY)

  @jax.jit
  def expected(params):
    module = nnx.merge(graphdef, params)
    x = module.embed(module.conv_features(wav2vec2.waveform(make_audio(), LENGTHS, module.config)))
    x = jnp.where(got.mask[..., None], x, 0) if norm == "layer" else x
    y = x
    for layer in module.positions:
      y = layer(y)
    x = x + y
    x = x if module.config.pre_norm else module.norm(x)
    layer_graphdef, stacked = nnx.split(module.layers)
    for index in range(kept):
      layer = nnx.merge(layer_graphdef, jax.tree.map(lambda p, i=index: p[i], stacked))
      x = layer(x, None, wav2vec2.distance_bias(module.distances[...], x.shape[1], 800), None)
    return module.head(module.norm(x) if module.config.pre_norm else x)

  np.testing.assert_allclose(got.logits[got.mask], expected(params)[got.mask], atol=1e-5)
  whole = run(*small(family, norm))
  assert np.abs(whole.logits - got.logits)[got.mask].max() > 0.1


def test_augment_off_masks_nothing():
  graphdef, params = small(**RANDOM["time_mask"] | RANDOM["feature_mask"])
  plain = run(*small())
  off, on = (run(graphdef, params, key=KEY, augment_on=augment_on) for augment_on in (False, True))
  np.testing.assert_allclose(off.logits[plain.mask], plain.logits[plain.mask], atol=1e-5)
  assert np.abs(on.logits - off.logits)[plain.mask].max() > 0.1


def test_masked_frames_become_the_learnt_vector_and_masked_channels_zero():
  module = nnx.merge(*small(time_mask=(0.5, 4, 1), feature_mask=(0.3, 3, 1)))
  x = np.random.default_rng(0).normal(size=(5, 20, 16)).astype(np.float32)
  mask = padding.length_masks(FRAMES, 20)
  got = np.asarray(jax.jit(module._mask_spans)(x, mask, KEY))
  channels = (got == 0).all(1)
  assert not channels.all(1).any() and (channels.sum(1) >= 3).all()
  masked = (got != np.where(channels[:, None], 0, x)).any(-1)
  assert not masked[~mask].any() and (masked.sum(1) >= [4, 0, 4, 0, 4]).all()
  vector = np.broadcast_to(np.asarray(module.mask_embedding[...]), x.shape)
  np.testing.assert_array_equal(
    got, np.where(channels[:, None], 0, np.where(masked[..., None], vector, x))
  )


# Spans.

# frames, probability, length, least number
SPANS = [(60, 0.4, 5, 0), (60, 0.02, 10, 2), (37, 0.11, 4, 0), (12, 0.5, 10, 2), (30, 1.0, 3, 0)]


def draw(mask, probability, length, least, draws=4000):
  """bool[draws, M] of one row."""
  keys = jax.random.split(KEY, draws)
  one = lambda key: wav2vec2.spans(key, mask[None], probability, length, least)[0]
  return np.asarray(jax.jit(jax.vmap(one))(keys))


@pytest.mark.parametrize("frames, probability, length, least", SPANS)
def test_spans_are_distributed_as_in_transformers(frames, probability, length, least):
  pytest.importorskip("torch")
  hubert = pytest.importorskip("transformers.models.hubert.modeling_hubert")
  np.random.seed(0)
  options = dict(mask_prob=probability, mask_length=length, min_masks=least)
  one = lambda: hubert._compute_mask_indices((1, frames), **options)[0]
  expected = np.array([one() for _ in range(4000)])
  got = draw(np.ones(frames, bool), probability, length, least)
  assert expected.any()
  # Shares of 4,000 draws differ by 0.011 (one sigma) at most.
  np.testing.assert_allclose(got.mean(0), expected.mean(0), atol=0.045)
  count = lambda masks: np.bincount(masks.sum(1), minlength=frames + 1) / len(masks)
  np.testing.assert_allclose(count(got), count(expected), atol=0.045)


@pytest.mark.parametrize("frames, probability, length, least", SPANS)
def test_spans_are_long_and_many_enough_and_never_in_padding(frames, probability, length, least):
  masks = draw(padding.length_masks([frames], frames + 9)[0], probability, length, least, draws=500)
  assert not masks[:, frames:].any() and masks.any()
  for mask in masks:
    edges = np.flatnonzero(np.diff(np.pad(mask.astype(int), 1)))
    assert (edges[1::2] - edges[::2] >= length).all()
  most = max(np.ceil(probability * frames / length), least)
  assert masks.sum(1).max() <= most * length
  if least and frames >= least * length:
    assert masks.sum(1).min() >= length + least - 1  # with different first frames


def test_spans_of_rows_differ_and_do_not_depend_on_padding():
  mask = padding.length_masks([40, 40, 23, 9, 0], 40)
  masks = np.asarray(wav2vec2.spans(KEY, mask, 0.3, 10, 1))
  assert (masks[0] != masks[1]).any()
  assert masks[:3].any(1).all() and not masks[3:].any()  # the others have no room for a span
  longer = wav2vec2.spans(KEY, np.pad(mask, ((0, 0), (0, 17))), 0.3, 10, 1)
  np.testing.assert_array_equal(longer, np.pad(masks, ((0, 0), (0, 17))))


def test_probability_zero_masks_nothing():
  assert not wav2vec2.spans(KEY, np.ones((3, 40), bool), 0.0, 4, 2).any()


# Gradients.


@pytest.mark.parametrize("family, norm", FAMILIES)
def test_gradient_reaches_every_parameter(family, norm):
  graphdef, params = small(family, norm, **ALL_RANDOM | dict(layer_drop=0.0))
  found = by_name(gradient(graphdef, params, LENGTHS, key=KEY, augment_on=True))
  largest = max(np.abs(g).max() for g in found.values())
  assert len(found) > 30
  for name, g in found.items():
    assert np.isfinite(g).all(), name
    for part in g if name.startswith("layers") else g[None]:
      # What moves all scores of a query alike, or a channel before its mean is taken off.
      if name == "layers/key/bias" or (name == "conv/0/bias" and norm == "group"):
        assert np.abs(part).max() < 1e-5 * largest, name
      else:
        assert np.abs(part).max() > 1e-5 * largest, name
  unmasked = by_name(gradient(graphdef, params, LENGTHS, key=KEY, augment_on=False))
  assert not unmasked["mask_embedding"].any() and unmasked["head/bias"].any()
  # Rows without frames have none.
  short = np.array([0, 319, 1, 0, 17], np.int32)
  nothing = by_name(gradient(graphdef, params, short, key=KEY, augment_on=True))
  assert not any(g.any() for g in nothing.values())


def test_frozen_convolutions_have_no_gradient():
  found = by_name(gradient(*small(freeze_conv=True, time_mask=(0.3, 4, 1)), LENGTHS, key=KEY))
  assert {name for name, g in found.items() if not g.any()} == {
    name for name in found if name.startswith("conv/")
  }
  assert sum(name.startswith("conv/") for name in found) == 12


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_pool_equals_a_loop(size):
  x = np.random.default_rng(0).normal(size=(5, 7, 4)).astype(np.float32) - 3
  counts = [7, 0, 4, 1, 6]
  mask = padding.length_masks(counts, 7)
  got, got_mask = wav2vec2.max_pool_frames(np.where(mask[..., None], x, np.nan), mask, size)
  assert got.shape == (5, -(-7 // size), 4)
  for row, block in np.ndindex(got.shape[:2]):
    first, last = block * size, min((block + 1) * size, counts[row])
    assert got_mask[row, block] == (last > first)
    if last > first:
      np.testing.assert_array_equal(got[row, block], x[row, first:last].max(0))
    elif size > 1:
      assert not got[row, block].any()


@pytest.mark.parametrize("size", [2, 3])
def test_gradient_of_pool_goes_to_the_largest_frame(size):
  """Also where what is pooled is computed twice, with other roundings, as compilers do."""
  x = np.random.default_rng(0).normal(size=(2, 12, 16)).astype(np.float32)
  weights = np.random.default_rng(1).normal(size=(2, 12 // size, 16)).astype(np.float32)
  frames = lambda x: 1.3 * standardise(x) + 0.2

  def total(x, shift):
    pooled, _ = wav2vec2.max_pool_frames(frames(x) + shift, np.ones((2, 12), bool), size)
    return (pooled * weights).sum()

  got = jax.jit(jax.grad(total, argnums=1))(x, np.zeros_like(x))
  blocks = np.asarray(frames(x)).reshape(2, -1, size, 16)
  largest = np.arange(size)[:, None] == blocks.argmax(2)[:, :, None]
  expected = np.where(largest, weights[:, :, None], 0).reshape(x.shape)
  np.testing.assert_allclose(got, expected, atol=1e-6)


# The program.


def _equations(jaxpr) -> int:
  """Equations, those of inner functions included."""
  is_jaxpr = lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
  inner = [jax.tree.leaves(list(e.params.values()), is_leaf=is_jaxpr) for e in jaxpr.eqns]
  inside = [getattr(x, "jaxpr", x) for x in sum(inner, []) if is_jaxpr(x)]
  return len(jaxpr.eqns) + sum(_equations(x) for x in inside)


@pytest.mark.parametrize("family, norm", FAMILIES)
def test_size_of_the_program_does_not_grow_with_depth(family, norm):
  counts = []
  for depth in (2, 5):
    graphdef, params = small(family, norm, layers=depth, **ALL_RANDOM)
    loss = lambda p, g=graphdef: nnx.merge(g, p)(
      make_audio(), jnp.array(LENGTHS), key=KEY
    ).logits.sum()
    counts.append(_equations(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))
  assert counts[0] == counts[1] > 300


def test_layers_start_from_different_parameters():
  module = Wav2Vec2CTC(model_config(), 6, rngs=nnx.Rngs(params=0))
  kernels = np.asarray(module.layers.query.kernel[...])
  assert kernels.shape == (2, 16, 16) and (kernels[0] != kernels[1]).any()
