"""The paper's three-part learning-rate schedule and its optimisers."""

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict


def three_part_schedule(rates, parts, total_steps: int) -> optax.Schedule:
  """Learning rate, piecewise linear between four values.

  The paper: 7e-6 → 5e-4 → 5e-5 → 1e-7.

  Args:
    rates: four learning rates.
    parts: three shares of the steps, one for each line; they add up to 1.
    total_steps: updates in the whole run.

  Returns:
    A function of the step (int or i32[]) to f32[].
  """
  knots = total_steps * jnp.array([0.0, parts[0], parts[0] + parts[1], 1.0], jnp.float32)
  return lambda step: jnp.interp(jnp.float32(step), knots, jnp.array(rates, jnp.float32))


def make_optimizer(
  name: str,
  schedule: optax.Schedule,
  *,
  b1: float,
  b2: float,
  eps: float,
  weight_decay: float,
  clip_norm: float,
  accumulate: int = 1,
  frozen: tuple[str, ...] = (),
) -> optax.GradientTransformation:
  """RAdam (Liu et al. 2020; the paper's) or AdamW, both with decoupled weight decay.

  Args:
    name: "radam" or "adamw".
    schedule: update → learning rate.
    b1, b2, eps: moments' decay rates and the denominator's addend.
    weight_decay: multiplied by the learning rate.
    clip_norm: global gradient norm above which gradients are scaled down; 0 for none.
    accumulate: batches whose gradients are averaged into one update.
    frozen: top-level parts of the parameters that do not change.
  """
  scale = {"radam": optax.scale_by_radam, "adamw": optax.scale_by_adam}[name]
  clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
  update = optax.chain(
    clip,
    scale(b1=b1, b2=b2, eps=eps),
    optax.add_decayed_weights(weight_decay),
    optax.scale_by_learning_rate(schedule),
  )
  if frozen:
    part = lambda path, _: "frozen" if path[0].key in frozen else "trained"
    update = optax.partition(
      {"trained": update, "frozen": optax.set_to_zero()},
      lambda params: jax.tree_util.tree_map_with_path(part, params),
    )
  if accumulate > 1:
    update = optax.MultiSteps(update, accumulate).gradient_transformation()
  return update


def of_training(
  training: ConfigDict, batches: int, frozen: tuple[str, ...]
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """The optimiser of a `config.training` block, and batch → learning rate.

  Args:
    training: the block.
    batches: in an epoch.
    frozen: top-level parts of the parameters that do not change.
  """
  updates = max(1, training.epochs * batches // training.accumulate)
  schedule = three_part_schedule(training.lr, training.lr_parts, updates)
  optimizer = make_optimizer(
    training.optimizer,
    schedule,
    frozen=frozen,
    **{k: training[k] for k in ("b1", "b2", "eps", "weight_decay", "clip_norm", "accumulate")},
  )
  return optimizer, lambda step: schedule(step // training.accumulate)
