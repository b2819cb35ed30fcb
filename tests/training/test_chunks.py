"""What a student that hears streams learns from: which chunks, and from itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import objectives
from jaxkd import losses
from jaxkd.masks import length_mask
from jaxkd.models import conformer, features
from jaxkd.models.layers import EVERYTHING
from jaxkd.training import objective
from jaxkd.training import step as step_lib
from jaxkd.training.terms import CHUNKS_BESIDE_WHOLE

pytestmark = pytest.mark.usefixtures("quick_to_compile")

BLANK = objectives.BLANK
SIZES = dict(chunk_frames=(0, 2, 3), left_frames=(4, 5))


def test_each_row_draws_a_chunk_and_what_is_before_it():
  made = objectives.make(BLANK, **SIZES)
  draw = jax.jit(lambda key: made.draw_heard(key, 600))
  heard = draw(jax.random.key(0))
  for found, values in ((heard.chunk, (EVERYTHING, 2, 3)), (heard.left, (4, 5))):
    counts = [int((found == value).sum()) for value in values]
    assert sum(counts) == 600 and min(counts) > 600 / len(values) * 0.8
  again, other = draw(jax.random.key(0)), draw(jax.random.key(1))
  assert (again.chunk == heard.chunk).all() and (other.chunk != heard.chunk).any()


def test_beside_the_whole_every_second_row_hears_a_chunk():
  made = objectives.make(BLANK, co_teacher=0.5, **SIZES)
  assert made.views == 2
  heard = made.draw_heard(jax.random.key(0), 100)
  assert (heard.chunk[::2] == EVERYTHING).all() and set(heard.chunk[1::2].tolist()) == {2, 3}


@pytest.mark.parametrize("chunks", [(), (0,)])
def test_without_chunks_everything_is_heard(chunks):
  made = objectives.make(BLANK, chunk_frames=chunks, left_frames=())
  assert made.draw_heard(jax.random.key(0), 4) is None


class Hearing(objectives.Frames):
  """Frames that weigh less where less is heard."""

  def __call__(self, audio, audio_len, *, heard, **options):
    output = super().__call__(audio, audio_len)
    weight = jnp.where(heard.chunk == EVERYTHING, 1.0, heard.chunk / 10)
    return output._replace(logits=output.logits * weight[:, None, None])


def test_chunks_learn_from_the_whole_and_not_the_other_way():
  batch = objectives.make_batch()
  made = objectives.make(BLANK, co_teacher=0.5, **SIZES)
  taught = step_lib.teach(objectives.Frames(2, objectives.WIDTH + 2), batch, made.needs)
  taught = step_lib.Taught(step_lib.twice(taught.output))
  views = step_lib.twice(batch)
  view = step_lib.observe(Hearing(1), taught, views, jax.random.key(0), jnp.int32(0), made)
  loss, terms = made(view)
  mask = length_mask(-(-batch.audio_len // objectives.FRAME), view.output.mask.shape[1])
  whole, chunks = view.output.logits[::2], view.output.logits[1::2]
  kl = losses.kd_kl(chunks, whole, mask, temperature=1.0).mean()
  np.testing.assert_allclose(terms["co_teacher"].mean(), kl, rtol=1e-5)
  np.testing.assert_allclose(loss, terms["kd/kl"].mean() + 0.5 * kl, rtol=1e-5)
  term = made.terms[-1]
  of = lambda logits: term.compute(view._replace(output=view.output._replace(logits=logits))).total
  gradient = jax.grad(of)(view.output.logits)
  assert not gradient[::2].any() and gradient[1::2].any()


def test_a_conformer_learns_both_modes_in_one_update():
  """Draws reach the model: the same parameters, told to hear chunks, have another gradient."""
  config = conformer.ConformerConfig(2, 8, 2, 2, 5, 0.0, 3, (2, 2, 2, 2), ((2, 2), (2, 2)))
  settings = features.LogMel("sherpa", mels=8)
  init = lambda key: conformer.ConformerCTC(
    config, settings, objectives.CLASSES, rngs=objectives.nnx.Rngs(params=key)
  )
  batch = objectives.make_batch()

  @functools.partial(jax.jit, static_argnums=0)
  def loss(chunk_frames):
    made = objectives.make(BLANK, chunk_frames=chunk_frames, left_frames=(1,))
    taught = step_lib.teach(objectives.Frames(2), batch, made.needs)
    model = init(jax.random.key(0))
    return made(step_lib.observe(model, taught, batch, jax.random.key(0), jnp.int32(0), made))[0]

  assert loss((0,)) == loss(()) and abs(loss((1,)) - loss(())) > 1e-4
  assert objective.needs(objectives.kd(co_teacher=0.1)) >= {CHUNKS_BESIDE_WHOLE}
