"""A Conformer on audio that comes bit by bit, against the same one on the whole under masks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import padding
from jaxkd.config.meaning import STREAMED
from jaxkd.models import conformer, features, layers, streaming

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
  frontend_pool=((2, 1), (2, 1)),
)
CHUNKS, LEFTS = (1, 2, 3, 8), (0, 2, 7)
LENGTHS, SIZE = (14_111, 0, 7_000, 1, 14_400, 641), 14_400


@functools.cache
def split(kind="sherpa", **changes):
  config = dataclasses.replace(CONFIG, **changes)
  settings = features.LogMel(kind, mels=12)
  rngs = nnx.Rngs(params=0)
  return padding.randomised(conformer.ConformerCTC(config, settings, 7, rngs=rngs))


def model(kind="sherpa", **changes):
  return nnx.merge(*split(kind, **changes))


def make_audio(lengths=LENGTHS, size=SIZE, seed=0, fill=np.nan):
  audio = 0.3 * np.random.default_rng(seed).normal(size=(len(lengths), size)).astype(np.float32)
  lengths = np.array(lengths, np.int32)
  return np.where(np.arange(size) < lengths[:, None], audio, fill).astype(np.float32), lengths


@functools.partial(jax.jit, static_argnums=0)
def masked(net, params, audio, audio_len, chunk, left):
  rows = lambda x: jnp.full(len(audio_len), x, jnp.int32)
  heard = layers.Heard(rows(chunk), rows(left))
  return nnx.merge(net, params)(audio, audio_len, heard=heard)


def assert_same(found, wanted, atol=1e-5):
  size = min(found.mask.shape[1], wanted.mask.shape[1])
  assert not found.mask[:, size:].any() and not wanted.mask[:, size:].any()
  np.testing.assert_array_equal(found.mask[:, :size], wanted.mask[:, :size])
  of = lambda x: np.where(found.mask[:, :size, None], x.logits[:, :size], 0)
  np.testing.assert_allclose(of(found), of(wanted), atol=atol)


@pytest.mark.parametrize(("kind", "chunk"), [("kaldi", 2), *(("sherpa", c) for c in CHUNKS)])
def test_a_stream_tells_what_the_masked_whole_tells(kind, chunk):
  audio, audio_len = make_audio()
  for left in LEFTS if chunk in (2, 3) else LEFTS[1:2]:
    found = jax.jit(model(kind).stream(chunk, left).whole)(audio, audio_len)
    assert_same(found, masked(*split(kind), audio, audio_len, chunk, left))
  assert wide_apart(kind, chunk)


def wide_apart(kind, chunk):
  """Whether the masks matter: what is told of everything differs."""
  audio, audio_len = make_audio()
  one, other = (masked(*split(kind), audio, audio_len, c, 7).logits[0] for c in (chunk, 2**30))
  return float(abs(one - other).max()) > 1e-2


@pytest.mark.parametrize("seed", range(2))
def test_any_cut_into_packets_gives_the_same_frames(seed):
  rng = np.random.default_rng(seed)
  audio, audio_len = make_audio((14_111, 9_000))
  stream = model().stream(2, 5)
  step = jax.jit(stream.step)
  state, told = stream.init(2), []
  sizes, place = rng.choice((160, 777, 2_000, 5_000), 3, replace=False), 0
  while place < SIZE:
    size = int(rng.choice(sizes))
    packet = np.full((2, size), np.nan, np.float32)
    rest = min(size, SIZE - place)
    packet[:, :rest] = audio[:, place : place + rest]
    state, output = step(state, packet, np.clip(audio_len - place, 0, size))
    count = output.mask.any(0).sum()
    told.append(jax.tree.map(lambda x, n=count: x[:, :n], output))
    place += size
  told.append(jax.jit(stream.finish)(state))
  found = jax.tree.map(lambda *x: jnp.concatenate(x, 1), *told)
  assert_same(found, masked(*split(), audio, audio_len, 2, 5))


def test_frames_come_as_soon_as_their_latency_says():
  stream = model().stream(3, 4)
  assert stream.latency_ms == 3 * 40 + 60 + 7.5
  samples = int(stream.latency_ms * 16)
  state, output = stream.step(stream.init(1), jnp.zeros((1, samples - 1)))
  assert not output.mask.any()
  assert stream.step(state, jnp.zeros((1, 1)))[1].mask.sum() == 3


@pytest.mark.parametrize("kind", STREAMED)
def test_no_sample_behind_the_lookahead_changes_a_frame(kind):
  chunk, net = 2, split(kind)
  stream = model(kind).stream(chunk, 7)
  audio = jnp.asarray(make_audio((SIZE,), fill=0)[0])
  of = lambda audio, frame: masked(*net, audio, jnp.full(1, SIZE), chunk, 7).logits[0, frame]
  for frame in (0, 5, 6, 11):
    last = (frame // chunk + 1) * chunk * CONFIG.frame_samples + stream.lookahead
    gradient = jax.grad(lambda x, frame=frame: of(x, frame).sum())(audio)
    assert not gradient[0, last:].any()
    assert gradient[0, last - 200 : last].any()  # a window is 0 at its very ends
    np.testing.assert_allclose(of(audio.at[0, last:].add(0.1), frame), of(audio, frame), atol=1e-5)
    assert (
      abs(of(audio.at[0, last - 200 : last].multiply(3), frame) - of(audio, frame)).max() > 1e-4
    )


def test_one_chunk_for_everything_is_the_model_as_it_was():
  audio, audio_len = make_audio(fill=0)
  net, params = split()
  plain = jax.jit(lambda params, *audio: nnx.merge(net, params)(*audio))(params, audio, audio_len)
  assert_same(masked(net, params, audio, audio_len, 2**30, 2**30), plain, atol=1e-6)


def test_rows_may_hear_differently():
  audio, audio_len = make_audio((14_111, 14_111))
  audio[1] = audio[0]
  heard = layers.Heard(jnp.array([2, 2**30]), jnp.array([7, 2**30]))
  found = model()(audio, audio_len, heard=heard)
  for row, (chunk, left) in enumerate(((2, 7), (2**30, 2**30))):
    wanted = masked(*split(), audio[:1], audio_len[:1], chunk, left)
    assert_same(jax.tree.map(lambda x, row=row: x[row : row + 1], found), wanted)


def test_a_stream_goes_on_under_scan():
  audio, audio_len = make_audio((14_400,))
  stream = model().stream(2, 5)
  packets = audio.reshape(-1, 1, 1_600)
  state, told = jax.jit(lambda x: jax.lax.scan(stream.step, stream.init(1), x))(packets)
  frames = told.logits.reshape(-1, 7)[np.asarray(told.mask).ravel()]
  rest = stream.finish(state)
  frames = np.concatenate([frames, rest.logits[0][rest.mask[0]]])
  wanted = masked(*split(), audio, audio_len, 2, 5)
  np.testing.assert_allclose(frames, wanted.logits[0][wanted.mask[0]], atol=1e-5)


@pytest.mark.parametrize(
  "settings",
  [features.LogMel("logmel", mels=12), features.LogMel("sherpa", mels=12, normalise="utterance")],
)
def test_features_of_the_whole_utterance_are_refused(settings):
  net = conformer.ConformerCTC(CONFIG, settings, 7, rngs=nnx.Rngs(params=0))
  with pytest.raises(ValueError, match="over the whole utterance"):
    net.stream(2, 5)
  assert streaming.unfit(settings)


@pytest.mark.parametrize(("chunk", "left"), [(0, 1), (1, -1)])
def test_sizes_out_of_range_are_refused(chunk, left):
  with pytest.raises(ValueError, match="at least 1 and 0 frames"):
    model().stream(chunk, left)
