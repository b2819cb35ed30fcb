"""Layers and the Conformer against NumPy, plain JAX, and longer padding."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.random import threefry_2x32

import padding
import reference
from jaxkd.masks import length_mask
from jaxkd.models import conformer, draws, frontend, layers
from jaxkd.models.augment import SpecAugment
from jaxkd.models.features import LogMel
from jaxkd.types import FrameOutput

pytestmark = pytest.mark.usefixtures("quick_to_compile")

CONFIG = conformer.ConformerConfig(
  layers=2,
  width=16,
  heads=2,
  ff_mult=2,
  conv_kernel=5,
  dropout=0.1,
  rel_clip=3,
  frontend_channels=(3, 4, 4, 2),
  frontend_pool=((2, 2), (2, 1)),
)
FEATURES = LogMel(mels=12)
WIDTH, HEADS = CONFIG.width, CONFIG.heads
LENGTHS = (19, 0, 7, 1, 12)


def rngs(seed=0):
  return nnx.Rngs(params=seed)


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def make_audio(lengths=(9600, 0, 4321, 1, 6500), size=9600, seed=0):
  """i16[B, S] of noise, with noise in the padding too, and i32[B]."""
  audio = np.random.default_rng(seed).integers(-(2**15), 2**15, (len(lengths), size))
  return audio.astype(np.int16), np.array(lengths, np.int32)


@functools.cache
def model(**changes):
  """Graphdef and noisy parameters of a small Conformer."""
  config = dataclasses.replace(CONFIG, **changes)
  return padding.randomised(conformer.ConformerCTC(config, FEATURES, 7, rngs=rngs()))


@functools.partial(jax.jit, static_argnums=(0,), static_argnames="spec_augment")
def run(graphdef, params, audio, audio_len, **options):
  return nnx.merge(graphdef, params)(audio, audio_len, **options)


# name → module, and how it is called without dropout.
MODULES = {
  "linear": (
    lambda: layers.Linear(WIDTH, 5, rngs=rngs()),
    lambda module, x, mask: module(x),
  ),
  "layer_norm": (lambda: layers.LayerNorm(WIDTH), lambda module, x, mask: module(x)),
  "feed_forward": (
    lambda: layers.FeedForward(WIDTH, 24, rngs=rngs()),
    lambda module, x, mask: module(x, 0.0, None),
  ),
  "conv": (
    lambda: layers.ConvModule(WIDTH, 5, rngs=rngs()),
    lambda module, x, mask: module(x, mask, 0.0, None),
  ),
  "attention": (
    lambda: layers.RelativeAttention(WIDTH, HEADS, 3, rngs=rngs()),
    lambda module, x, mask: module(x, mask, 0.0, None),
  ),
  "block": (
    lambda: conformer.Block(CONFIG, rngs=rngs()),
    lambda module, x, mask: module(x, mask, None),
  ),
}


@pytest.mark.parametrize("name", MODULES)
def test_padding_is_not_read(name):
  make, call = MODULES[name]
  graphdef, params = padding.randomised(make())
  apply = lambda params, x, mask: call(nnx.merge(graphdef, params), x, mask)
  mask = padding.length_masks(LENGTHS, 19)
  # Inside a model padding is finite, since the front-end removes what is not.
  padding.check(apply, params, 2 * normal(5, 19, WIDTH), mask, gradient_garbage=1e3)


@pytest.mark.parametrize("pools", [((2, 2), (2, 1)), ((1, 2), (3, 2))])
def test_front_end_does_not_read_padding(pools):
  front_end = frontend.FrontEnd(12, (3, 4, 4, 2), pools, WIDTH, rngs=rngs())
  graphdef, params = padding.randomised(front_end)

  def apply(params, x, mask):
    frames, lengths = nnx.merge(graphdef, params)(x, mask.sum(1))
    return frames, length_mask(lengths, frames.shape[1])

  mask = padding.length_masks((22, 0, 9, 1, 13), 22)
  padding.check(apply, params, 2 * normal(5, 22, 12), mask, longer=11)


@pytest.mark.slow
def test_model_does_not_read_padding():
  graphdef, params = model()

  def apply(params, audio, mask):
    return tuple(nnx.merge(graphdef, params)(audio, mask.sum(1)))

  audio, lengths = make_audio()
  padding.check(
    apply,
    params,
    audio / np.float32(32768),
    padding.length_masks(lengths, audio.shape[1]),
    longer=1000,
    atol=1e-4,
    gradient_rtol=1e-3,
  )


def test_model_does_not_read_int16_padding():
  graphdef, params = model()
  audio, lengths = make_audio()
  silent = np.where(padding.length_masks(lengths, audio.shape[1]), audio, np.int16(0))
  assert (silent != audio).any()
  noisy, clean = (run(graphdef, params, x, lengths) for x in (audio, silent))
  np.testing.assert_array_equal(noisy.mask, clean.mask)
  np.testing.assert_allclose(noisy.logits[clean.mask], clean.logits[clean.mask], atol=1e-5)


def test_relative_attention_equals_a_loop():
  frames, clip = 9, 3
  module = layers.RelativeAttention(WIDTH, HEADS, clip, rngs=rngs())
  graphdef, params = padding.randomised(module)
  module = nnx.merge(graphdef, params)
  x = normal(2, frames, WIDTH)
  got = module(x, jnp.ones((2, frames), bool), 0.0, None)
  get = lambda p: np.asarray(p[...], np.float64)
  for row in range(2):
    mixed = reference.relative_attention(
      get(module.norm.scale) * _standardise(x[row]) + get(module.norm.bias),
      (get(module.qkv.kernel), get(module.qkv.bias)),
      get(module.positions),
      get(module.content_bias),
      get(module.position_bias),
      clip,
    )
    expected = mixed @ get(module.out.kernel) + get(module.out.bias)
    np.testing.assert_allclose(got[row], expected, atol=2e-5)


def _standardise(x):
  x = np.float64(x)
  return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def test_layer_norm_equals_its_formula():
  module = nnx.merge(*padding.randomised(layers.LayerNorm(WIDTH)))
  x = 5 + 3 * normal(4, WIDTH)
  expected = np.asarray(module.scale[...]) * _standardise(x) + np.asarray(module.bias[...])
  np.testing.assert_allclose(module(x), expected, atol=1e-5)
  half = module(jnp.array(x, jnp.bfloat16))
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(half.astype(jnp.float32), expected, atol=0.1)


@pytest.mark.parametrize("frames, clip", [(1, 3), (4, 3), (9, 3), (6, 1)])
def test_gradient_of_spread_equals_that_of_a_gather(frames, clip):
  i = np.arange(frames)
  distance = np.clip(i[:, None] - i, -clip, clip) + clip
  plain = lambda scores: scores[..., i[:, None], distance]
  scores, weights = normal(2, 3, frames, 2 * clip + 1), normal(2, 3, frames, frames, seed=1)
  np.testing.assert_array_equal(layers.spread(scores, frames, clip), plain(scores))
  by_shifts = layers._spread_by_shifts(jnp.array(scores), frames, clip)  # as on TPU
  np.testing.assert_array_equal(by_shifts, plain(scores))
  got, expected = (
    jax.grad(lambda s, f=f: (f(s) * weights).sum())(jnp.array(scores))
    for f in (lambda s: layers.spread(s, frames, clip), plain)
  )
  np.testing.assert_allclose(got, expected, atol=1e-5)


def test_the_front_end_in_the_shapes_of_a_tpu_is_the_same():
  front_end = frontend.FrontEnd(8, (2, 3, 3, 2), ((2, 1), (2, 1)), WIDTH, rngs=rngs())
  graphdef, params = padding.randomised(front_end)
  x, lengths = normal(2, 11, 8), jnp.array([11, 6])

  @functools.partial(jax.jit, static_argnums=1)
  def run(params, name):
    def loss(params):
      frames, frame_len = getattr(nnx.merge(graphdef, params), name)(x, lengths)
      frames = jnp.where(length_mask(frame_len, frames.shape[1])[..., None], frames, 0)
      return (frames**2).sum(), (frames, frame_len)

    return jax.grad(loss, has_aux=True)(params)

  found, expected = (jax.tree.leaves(run(params, name)) for name in ("folded", "plain"))
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("taps, frames", [(1, 5), (5, 12), (31, 9)])
def test_depthwise_equals_a_grouped_convolution(taps, frames):
  x, kernel = normal(2, frames, 6), normal(taps, 6, seed=1)
  expected = jax.lax.conv_general_dilated(
    x, kernel[:, None], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=6
  )
  np.testing.assert_allclose(layers.depthwise(x, kernel), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_convolution_of_one_channel_is_that_of_many(dtype):
  """On CPU the one channel has a loop of its own; here the other channel's kernel is 0."""
  draw = jax.random.split(jax.random.key(3), 3)
  x = jax.random.normal(draw[0], (2, 7, 5, 1)).astype(dtype)
  kernel = jax.random.normal(draw[1], (3, 3, 1, 4))
  cotangent = jax.random.normal(draw[2], (2, 7, 5, 4)).astype(dtype)
  both = jnp.concatenate([x, x], -1), jnp.concatenate([kernel, 0 * kernel], 2)
  got, gradient = jax.vjp(frontend.conv3x3, x, kernel)
  expected, its = jax.vjp(frontend.conv3x3, *both)
  options = dict(rtol=1e-2, atol=1e-2) if dtype == "bfloat16" else dict(rtol=1e-5, atol=1e-5)
  compare = functools.partial(np.testing.assert_allclose, **options)
  as_float = lambda y: np.asarray(y, np.float32)
  assert got.dtype == x.dtype
  compare(as_float(got), as_float(expected))
  for a, b, axis in zip(gradient(cotangent), its(cotangent), (3, 2), strict=True):
    compare(as_float(a), as_float(b.take(jnp.array([0]), axis)))


@pytest.mark.parametrize("time, mel", [(2, 2), (3, 2), (1, 4)])
def test_max_pool_keeps_a_smaller_last_block(time, mel):
  x = np.abs(normal(2, 7, 9, 3))
  got = frontend.max_pool(x, time, mel)
  assert got.shape == (2, -(-7 // time), -(-9 // mel), 3)
  for i, j in np.ndindex(got.shape[1:3]):
    block = x[:, i * time : (i + 1) * time, j * mel : (j + 1) * mel]
    np.testing.assert_array_equal(got[:, i, j], block.max((1, 2)))


def test_frames_are_a_quarter_of_the_features():
  graphdef, params = model()
  lengths = np.array([0, 1, 160, 161, 640, 641, 1280, 1281, 2401, 9599, 9600], np.int32)
  expected = [math.ceil(math.ceil(n / 160) / 4) for n in lengths]
  out = run(graphdef, params, np.zeros((len(lengths), 9600), np.int16), lengths)
  np.testing.assert_array_equal(out.mask.sum(1), expected)
  for samples, frames in zip(lengths[1:], expected[1:], strict=True):
    audio = jax.ShapeDtypeStruct((1, int(samples)), jnp.int16)
    out = jax.eval_shape(nnx.merge(graphdef, params), audio, lengths[:1])
    assert out.logits.shape == (1, frames, 7) and out.mask.shape == (1, frames)


def test_scan_equals_a_loop_over_blocks():
  graphdef, params = model(layers=3)
  x, mask = normal(5, 19, WIDTH), padding.length_masks(LENGTHS, 19)
  block_graphdef, stacked = nnx.split(nnx.merge(graphdef, params).blocks)
  apply = jax.jit(lambda params, x, key: nnx.merge(block_graphdef, params)(x, mask, key))
  encode = jax.jit(lambda p, x, key: nnx.merge(graphdef, p)._run_blocks(x, mask, key, ())[0])
  for key in (None, jax.random.key(0)):
    expected = x
    keys = (None,) * 3 if key is None else jax.random.split(key, 3)
    for layer in range(3):
      block = jax.tree.map(lambda p, i=layer: p[i], stacked)
      expected = apply(block, expected, keys[layer])
    got = encode(params, x, key)
    np.testing.assert_allclose(got[mask], expected[mask], atol=2e-5)


@pytest.mark.parametrize("key", [None, jax.random.key(1)])
def test_inner_heads_are_those_of_a_shallower_model(key):
  """And change nothing in what the whole model says, in training either."""
  deep = dataclasses.replace(CONFIG, layers=3, inner_layers=(1, 2))
  made = conformer.ConformerCTC(deep, FEATURES, 5, rngs=rngs(), inner_heads=True)
  audio, audio_len = make_audio()
  output, inner = made.with_inner(audio, audio_len, key=key)
  np.testing.assert_allclose(output.logits, made(audio, audio_len, key=key).logits, atol=1e-5)
  if key is None:
    for number, found in enumerate(inner):
      parts = nnx.to_pure_dict(nnx.state(made))
      parts["blocks"] = jax.tree.map(lambda x, n=number: x[: n + 1], parts["blocks"])
      heads = parts.pop("inner_heads")
      parts["head"] = jax.tree.map(lambda x, n=number: x[n], heads)
      shallow = dataclasses.replace(CONFIG, layers=number + 1)
      like = conformer.ConformerCTC(shallow, FEATURES, 5, rngs=rngs())
      nnx.update(like, parts)
      np.testing.assert_allclose(found.logits, like(audio, audio_len).logits, atol=1e-5)


def _equations(jaxpr) -> int:
  """Equations, those of inner functions included."""
  inner = [jax.tree.leaves(list(e.params.values()), is_leaf=_is_jaxpr) for e in jaxpr.eqns]
  inside = [getattr(x, "jaxpr", x) for x in sum(inner, []) if _is_jaxpr(x)]
  return len(jaxpr.eqns) + sum(_equations(x) for x in inside)


def _is_jaxpr(x) -> bool:
  return hasattr(x, "eqns") or hasattr(x, "jaxpr")


def test_size_of_the_program_does_not_grow_with_depth():
  counts = []
  for depth in (2, 5):
    graphdef, params = model(layers=depth)
    audio, lengths = make_audio()
    loss = lambda p, g=graphdef, a=audio, n=lengths: nnx.merge(g, p)(
      a, n, key=jax.random.key(0)
    ).logits.sum()
    counts.append(_equations(jax.make_jaxpr(jax.grad(loss))(params).jaxpr))
  assert counts[0] == counts[1] > 300


def test_blocks_start_from_different_parameters():
  module = conformer.ConformerCTC(CONFIG, FEATURES, 7, rngs=rngs())
  kernels = np.asarray(module.blocks.ff_first.inner.kernel[...])
  assert kernels.shape == (2, WIDTH, 2 * WIDTH) and (kernels[0] != kernels[1]).any()


def test_bfloat16_is_close_to_float32():
  graphdef, params = model()
  half_graphdef, _ = model(dtype="bfloat16")
  audio, lengths = make_audio()
  full, half = (run(g, params, audio, lengths) for g in (graphdef, half_graphdef))
  assert half.logits.dtype == full.logits.dtype == jnp.float32
  assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(params))
  difference = np.asarray(half.logits - full.logits)[full.mask]
  spread = np.asarray(full.logits)[full.mask].std()
  assert 0 < np.sqrt((difference**2).mean()) < 0.05 * spread


def test_bits_of_dropout_are_threefrys_and_each_is_used_once(monkeypatch):
  key, shape = jax.random.key(3), (3, 5, 7)
  monkeypatch.setattr(draws, "_ROUNDS", 20)
  numbers = jnp.arange(3 * 5 * 7, dtype=jnp.uint32)
  counters = jnp.concatenate([numbers, jnp.zeros_like(numbers)])
  expected = threefry_2x32(jax.random.key_data(key), counters).reshape(2, *shape)
  np.testing.assert_array_equal(jnp.stack(draws._words(key, shape)), expected)
  for shape in ((2, 3, 8), (2, 8, 3, 3), (6,), (2, 3, 3)):  # also where 4 does not divide
    bits = np.asarray(draws.sixteen_bits(key, shape))
    assert bits.shape == shape and bits.max() < 2**16
    assert len(np.unique(bits)) > 0.97 * bits.size


def test_dropout_rate_scale_and_key():
  x = np.ones((500, 400), np.float32)
  key = jax.random.key(0)
  for rate in (0.1, 0.5):
    out = np.asarray(layers.dropout(x, rate, key))
    np.testing.assert_allclose((out == 0).mean(), rate, atol=0.005)
    np.testing.assert_allclose(out[out != 0], 1 / (1 - rate), rtol=1e-6)
    # No row or column is dropped as one.
    assert (out != 0).any(0).all() and (out == 0).any(0).all()
    assert (out != 0).any(1).all() and (out == 0).any(1).all()
  np.testing.assert_array_equal(layers.dropout(x, 0.5, None), x)
  np.testing.assert_array_equal(layers.dropout(x, 0.0, key), x)
  np.testing.assert_array_equal(layers.dropout(x, 0.5, key), layers.dropout(x, 0.5, key))
  other = layers.dropout(x, 0.5, jax.random.key(1))
  assert (other != layers.dropout(x, 0.5, key)).any()
  assert layers.dropout(jnp.ones(4, jnp.bfloat16), 0.5, key).dtype == jnp.bfloat16


def test_no_key_is_evaluation():
  graphdef, params = model()
  audio, lengths = make_audio()
  settings = SpecAugment(10, 4)
  logits = lambda **options: np.asarray(run(graphdef, params, audio, lengths, **options).logits)
  plain = logits()
  np.testing.assert_array_equal(plain, logits())
  np.testing.assert_array_equal(plain, logits(spec_augment=settings))
  one, two = jax.random.split(jax.random.key(0))
  np.testing.assert_array_equal(logits(key=one), logits(key=one))
  assert (logits(key=one) != plain).any() and (logits(key=one) != logits(key=two)).any()


def test_key_reaches_dropout_and_spec_augment_alone():
  audio, lengths = make_audio()
  graphdef, params = model(dropout=0.0)
  settings, key = SpecAugment(10, 4), jax.random.key(0)
  logits = lambda **options: np.asarray(run(graphdef, params, audio, lengths, **options).logits)
  plain = logits()
  np.testing.assert_array_equal(logits(key=key), plain)
  off = logits(key=key, spec_augment=settings, augment_on=False)
  np.testing.assert_array_equal(off, plain)
  assert (logits(key=key, spec_augment=settings, augment_on=True) != plain).any()


def test_dropout_reaches_every_part_of_a_block():
  parts = {
    "ff": layers.FeedForward(WIDTH, 24, rngs=rngs()),
    "conv": layers.ConvModule(WIDTH, 5, rngs=rngs()),
    "attention": layers.RelativeAttention(WIDTH, HEADS, 3, rngs=rngs()),
  }
  x, mask = normal(5, 19, WIDTH), padding.length_masks(LENGTHS, 19)
  for name, part in parts.items():
    inputs = (x,) if name == "ff" else (x, mask)
    graphdef, params = nnx.split(part)
    apply = jax.jit(lambda p, g=graphdef, i=inputs: nnx.merge(g, p)(*i, 0.5, jax.random.key(0)))
    dropped = np.asarray(apply(params))
    # Half of the outputs, in rows where the rest is not 0 anyway.
    np.testing.assert_allclose((dropped[mask] == 0).mean(), 0.5, atol=0.08, err_msg=name)


def test_rows_without_audio_are_finite_without_gradient():
  graphdef, params = model()
  audio, _ = make_audio()

  def total(params, lengths):
    out: FrameOutput = nnx.merge(graphdef, params)(audio, lengths)
    return jnp.where(out.mask[..., None], out.logits, 0).sum(), out

  gradient, out = jax.jit(jax.grad(total, has_aux=True))(params, np.zeros(5, np.int32))
  assert np.isfinite(out.logits).all() and not out.mask.any()
  assert not any(np.asarray(g).any() for g in jax.tree.leaves(gradient))


def test_rows_do_not_know_each_other():
  graphdef, params = model()
  audio, lengths = make_audio()
  out = run(graphdef, params, audio, lengths)
  order = np.array([3, 0, 4, 2, 1])
  moved = run(graphdef, params, audio[order], lengths[order])
  np.testing.assert_allclose(moved.logits, out.logits[order], atol=1e-5)
