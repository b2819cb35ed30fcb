"""The schedule's corners, and the optimisers against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd.training import optim

RATES, PARTS = (7e-6, 5e-4, 5e-5, 1e-7), (0.44, 0.44, 0.12)


def test_schedule_corners_and_lines():
  schedule = optim.three_part_schedule(RATES, PARTS, 1000)
  for step, rate in [(0, 7e-6), (440, 5e-4), (880, 5e-5), (1000, 1e-7), (5000, 1e-7)]:
    np.testing.assert_allclose(schedule(step), rate, rtol=1e-5)
  np.testing.assert_allclose(schedule(220), (7e-6 + 5e-4) / 2, rtol=1e-5)
  np.testing.assert_allclose(jax.jit(schedule)(jnp.int32(660)), (5e-4 + 5e-5) / 2, rtol=1e-5)


@pytest.mark.parametrize("name", ["radam", "adamw"])
def test_optimizer_equals_torch(name):
  torch = pytest.importorskip("torch")
  rng = np.random.default_rng(0)
  start, gradients = rng.normal(size=7), rng.normal(size=(30, 7))
  ours = optim.make_optimizer(
    name, lambda step: 1e-2, b1=0.9, b2=0.98, eps=1e-8, weight_decay=0.1, clip_norm=0.0
  )
  w = torch.nn.Parameter(torch.tensor(start))
  options = dict(lr=1e-2, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1)
  theirs = (
    torch.optim.RAdam([w], decoupled_weight_decay=True, **options)
    if name == "radam"
    else torch.optim.AdamW([w], **options)
  )
  params = jnp.array(start, jnp.float32)
  state = ours.init(params)
  for gradient in gradients:
    updates, state = ours.update(jnp.array(gradient, jnp.float32), state, params)
    params = params + updates
    w.grad = torch.tensor(gradient)
    theirs.step()
  np.testing.assert_allclose(params, w.detach().numpy(), rtol=2e-4, atol=2e-4)


def test_clipping_bounds_the_global_norm():
  seen = optim.make_optimizer(
    "adamw", lambda step: 1.0, b1=0.0, b2=0.0, eps=1e6, weight_decay=0.0, clip_norm=1.0
  )
  params = {"a": jnp.zeros(3), "b": jnp.zeros(4)}
  gradients = {"a": jnp.full(3, 100.0), "b": jnp.full(4, -100.0)}
  updates, _ = seen.update(gradients, seen.init(params), params)
  # With eps far above the gradient, the update is gradient / eps.
  norm = jnp.sqrt(sum((u**2).sum() for u in updates.values())) * 1e6
  np.testing.assert_allclose(norm, 1.0, rtol=1e-3)


def make(**options):
  usual = dict(b1=0.9, b2=0.98, eps=1e-8, weight_decay=0.1, clip_norm=1.0)
  return optim.make_optimizer("radam", lambda step: 1e-2 / (1 + step), **usual | options)


def follow(optimizer, params, gradients):
  state = optimizer.init(params)
  for gradient in gradients:
    updates, state = optimizer.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
  return params


def test_accumulated_gradients_are_one_update_of_their_mean():
  rng = np.random.default_rng(0)
  params = {"a": jnp.array(rng.normal(size=5), jnp.float32)}
  gradients = [{"a": jnp.array(rng.normal(size=5), jnp.float32)} for _ in range(12)]
  means = [jax.tree.map(lambda *g: sum(g) / 3, *gradients[i : i + 3]) for i in range(0, 12, 3)]
  found = follow(make(accumulate=3), params, gradients)
  np.testing.assert_allclose(found["a"], follow(make(), params, means)["a"], rtol=1e-5)
  unchanged = follow(make(accumulate=3), params, gradients[:2])
  np.testing.assert_array_equal(unchanged["a"], params["a"])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_frozen_parts_neither_move_nor_decay(accumulate):
  params = {"conv": {"kernel": jnp.ones(3)}, "head": jnp.ones(3)}
  gradients = [jax.tree.map(jnp.ones_like, params)] * 4
  found = follow(make(frozen=("conv",), accumulate=accumulate), params, gradients)
  np.testing.assert_array_equal(found["conv"]["kernel"], 1.0)
  assert (found["head"] < 1).all()
