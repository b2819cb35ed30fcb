"""Value and gradient of the CTC loss: jaxkd, optax and torch, alternating in one run.

  python benchmarks/ctc.py
  python benchmarks/ctc.py --device=cuda --full              # cuDNN takes no padded rows

Times are milliseconds, minimum and median over the rounds. Losses are summed over the rows;
errors are against torch in float64, of each row's loss (relative) and of the gradient (absolute).
JAX computes on its default device.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd.losses import ctc_loss

try:
  import torch
except ImportError:
  torch = None

SHAPES = ((16, 400, 80, 60), (32, 800, 32, 150), (8, 1500, 1000, 200))
BLANK = 0


def make_batch(shape, full, seed=0):
  """logits f32[B, T, V], lengths, labels i32[B, U], lengths of about 3/4 to 1 of the maximum."""
  b, t, v, u = shape
  rng = np.random.default_rng(seed)
  logits = rng.normal(size=(b, t, v)).astype(np.float32)
  logit_len = np.full(b, t, np.int32) if full else rng.integers(3 * t // 4, t + 1, b)
  labels = rng.integers(1, v, (b, u)).astype(np.int32)
  label_len = rng.integers(3 * u // 4, u + 1, b).astype(np.int32)
  return logits, logit_len.astype(np.int32), labels, label_len


def jax_contestant(loss, batch):
  batch = jax.device_put(batch)

  @jax.jit
  def both(logits, *rest):
    def total(logits):
      rows = loss(logits, *rest)
      return rows.sum(), rows

    (_, rows), gradient = jax.value_and_grad(total, has_aux=True)(logits)
    return rows, gradient

  return lambda: jax.block_until_ready(both(*batch))


def ours(batch):
  return jax_contestant(lambda *a: ctc_loss(*a, blank_id=BLANK), batch)


def theirs(batch):
  def loss(logits, logit_len, labels, label_len):
    frames = jnp.arange(logits.shape[1]) >= logit_len[:, None]
    padding = jnp.arange(labels.shape[1]) >= label_len[:, None]
    return optax.ctc_loss(logits, frames * 1.0, labels, padding * 1.0, blank_id=BLANK)

  return jax_contestant(loss, batch)


def torch_contestant(batch, device="cpu", dtype=None, cudnn=False):
  """torch's own loss, on CUDA with the targets there; cuDNN's where they are i32 on the CPU."""
  logits, *targets = (torch.tensor(x) for x in batch)
  logits = logits.to(device, dtype or torch.float32).requires_grad_()
  if not cudnn:
    targets = [x.long().to(device) for x in targets]
  else:
    real = torch.arange(targets[1].shape[1]) < targets[2][:, None]
    targets[1] = targets[1][real]
  logit_len, labels, label_len = targets

  def both():
    logits.grad = None
    log_probs = logits.log_softmax(-1).transpose(0, 1)
    rows = torch.nn.functional.ctc_loss(
      log_probs, labels, logit_len, label_len, blank=BLANK, reduction="none"
    )
    rows.sum().backward()
    if device == "cuda":
      torch.cuda.synchronize()
    return rows.detach(), logits.grad

  return both


def on_host(outputs):
  return [np.asarray(x.cpu() if hasattr(x, "cpu") else x, np.float64) for x in outputs]


def measure(contestants, rounds):
  """name → seconds of each round; the contestants take turns."""
  times = {name: [] for name in contestants}
  for _ in range(rounds):
    for name, run in contestants.items():
      start = time.perf_counter()
      run()
      times[name].append(time.perf_counter() - start)
  return times


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rounds", type=int, default=15)
  parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of torch")
  parser.add_argument("--full", action="store_true", help="every row has all T frames")
  args = parser.parse_args()
  print("jax", jax.__version__, "on", jax.local_devices()[0].device_kind)
  for shape in SHAPES:
    batch = make_batch(shape, args.full)
    contestants = {"jaxkd": ours(batch), "optax": theirs(batch)}
    if torch is not None:
      contestants["torch"] = torch_contestant(batch, args.device)
      loss, gradient = on_host(torch_contestant(batch, dtype=torch.float64)())
      if args.device == "cuda" and args.full:
        contestants["cudnn"] = torch_contestant(batch, args.device, cudnn=True)
    outputs = {name: on_host(run()) for name, run in contestants.items()}
    times = measure(contestants, args.rounds)
    print("B, T, V, U =", shape)
    for name, seconds in times.items():
      line = f"  {name:6} min {min(seconds) * 1e3:8.2f}  median {np.median(seconds) * 1e3:8.2f}"
      line += f"  over jaxkd {np.median(seconds) / np.median(times['jaxkd']):6.2f}"
      if torch is not None:
        rows, grads = outputs[name]
        line += f"  loss error {np.max(np.abs(rows - loss) / loss):.1e}"
        line += f"  gradient error {np.max(np.abs(grads - gradient)):.1e}"
      print(line)


if __name__ == "__main__":
  main()
