"""A HuBERT-large forward and a whole distillation step: jaxkd and PyTorch in one run.

  python benchmarks/step.py                                  # float32, 2 × 8 s of audio
  python benchmarks/step.py --dtype=bfloat16 --rows=16 --seconds=15 --device=cuda --tflops=989

Both teach a Conformer of 12 layers, 384 wide (the paper's TED-LIUM student) from random weights by
symmetric selection: teacher forward, selection, KL, gradient, RAdam. PyTorch has transformers'
HuBERT and its Conformer encoder behind the same front-end; on CUDA they are compiled, with the
frozen teacher's weights in its dtype and its own choice of flash attention. Each contestant has a
process of its own, so that its peak of memory is its own; they take turns. Printed: parameters,
seconds of audio a second (median and range over all rounds), arithmetic a second (of matrix
products and convolutions), memory, and the ratio of the medians. "stored" is jaxkd's step with the
teacher's frames in the batch (eight classes of each), where no teacher runs.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np

from jaxkd.models.huggingface import known

HUBERT_LARGE = dict(known.HUBERT_LARGE, vocab_size=80)
WIDTH, LAYERS, HEADS, KERNEL, DROPOUT = 384, 12, 8, 31, 0.2
CHANNELS, MELS, NEIGHBOURS, TEMPERATURE = (32, 64, 64, 32), 80, 2, 2.0
RATE_HZ = 16_000
LEARNING_RATE, EPS, DECAY = 1e-4, 1e-16, 0.01


def make_audio(args):
  """i16[B, S] of noise and i32[B] of samples, the last row a quarter shorter."""
  samples = int(args.seconds * RATE_HZ)
  audio = np.random.default_rng(0).integers(-8000, 8000, (args.rows, samples)).astype(np.int16)
  audio_len = np.full(args.rows, samples, np.int32)
  audio_len[-1] = samples * 3 // 4
  return audio, audio_len


def stored_frames(args, how):
  """What a store of these settings gives of the batch: random posteriors, half of them blank."""
  from jaxkd.teacher import store
  from jaxkd.types import StoredFrames

  frames = int(args.seconds * 25)
  rng = np.random.default_rng(0)
  logits = 3 * rng.standard_normal((args.rows, frames, how.classes))
  logits[..., how.blank_id] += np.where(rng.random((args.rows, frames)) < 0.5, 20, 0)
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  rows = [store.decode(store.encode(row, 0, how), how) for row in log_probs]
  values, ids, tail = (
    np.stack([getattr(r, n) for r in rows]) for n in ("log_probs", "ids", "tail")
  )
  return StoredFrames(values, tail, np.ones(tail.shape[:2], bool), ids)


def gflop(args):
  """Of matrix products and convolutions in a teacher forward, and in the whole step."""
  teacher, frames = HUBERT_LARGE, 50 * args.seconds
  width, ff = teacher["hidden_size"], teacher["intermediate_size"]
  layer = 2 * (4 * width**2 + 2 * width * ff) + 4 * frames * width
  position = 2 * 128 * width**2 / 16
  outputs_hz, kernels = np.array([1600, 800, 400, 200, 100, 50]), np.array([3, 3, 3, 3, 2, 2])
  convolutions = 2 * 512**2 * (outputs_hz * kernels).sum() + 3200 * 2 * 10 * 512
  forward = frames * (teacher["num_hidden_layers"] * layer + position)
  forward = args.rows * (forward + args.seconds * convolutions)
  block = 2 * WIDTH**2 * (2 * 8 + 4 + 3) + 2 * WIDTH * KERNEL + 6 * frames / 2 * WIDTH
  sizes = (1, *CHANNELS)
  front = sum(2 * 9 * MELS * sizes[i] * sizes[i + 1] * (100, 100, 50, 50)[i] for i in range(4))
  student = 25 * (LAYERS * block + 2 * MELS * CHANNELS[-1] * WIDTH) + front
  # The gradient costs twice the forward.
  stored = 3 * args.rows * args.seconds * student
  return {"forward": forward / 1e9, "step": (forward + stored) / 1e9, "stored": stored / 1e9}


def timed(run, wait, rounds):
  """Seconds of each round, after one that is not counted."""
  wait(run())
  times = []
  for _ in range(rounds):
    start = time.perf_counter()
    wait(run())
    times.append(time.perf_counter() - start)
  return times


def ours(args):
  """Times and facts of jaxkd."""
  import jax
  import jax.numpy as jnp
  from flax import nnx

  from jaxkd.config import base, recipes
  from jaxkd.models.conformer import ConformerConfig, ConformerCTC
  from jaxkd.models.features import LogMel
  from jaxkd.models.huggingface import families
  from jaxkd.models.huggingface import weights as port
  from jaxkd.models.wav2vec2 import Wav2Vec2CTC
  from jaxkd.teacher import store
  from jaxkd.training import objective as objective_lib
  from jaxkd.training import optim
  from jaxkd.training.step import TrainState, make_train_step
  from jaxkd.types import Batch

  classes = HUBERT_LARGE["vocab_size"]
  description = {"config": HUBERT_LARGE, "preprocessor": {"return_attention_mask": True}}
  settings = families.model_config(description, "", pool=2, dtype=args.dtype)
  teacher_graphdef = port.structure(settings, classes)[0]
  draw = lambda: nnx.state(Wav2Vec2CTC(settings, classes, rngs=nnx.Rngs(0)))
  teacher_params = jax.jit(draw)()
  block = recipes.conformer(LAYERS, WIDTH, HEADS, DROPOUT, CHANNELS, ((2, 1), (2, 1)))
  sizes = {k: v for k, v in block.items() if k not in ("name", "init")}
  config = ConformerConfig(dtype=args.dtype, **sizes)
  make = lambda: ConformerCTC(config, LogMel(mels=MELS), classes, rngs=nnx.Rngs(1))
  graphdef = nnx.split(nnx.eval_shape(make))[0]
  params = jax.jit(lambda: nnx.state(make()))()
  recipe = base("tedlium").copy_and_resolve_references().unlock()
  recipe.kd.update(scale=1.0, temperature=TEMPERATURE)
  recipe.kd.selection = dict(name="symmetric", n=NEIGHBOURS)
  recipe.training.update(
    spec_augment=True, spec_augment_from_epoch=0, time_mask_frames=20, freq_mask_bins=8
  )
  objective = objective_lib.make(recipe.kd, recipe.training, blank_id=0, log_prior=None)
  optimizer = optim.make_optimizer(
    "radam",
    lambda step: LEARNING_RATE,
    b1=0.9,
    b2=0.999,
    eps=EPS,
    weight_decay=DECAY,
    clip_norm=0,
  )
  audio, audio_len = map(jnp.asarray, make_audio(args))
  batch = Batch(audio, audio_len)
  state = TrainState.fresh(params, optimizer.init(params), objective)
  step = make_train_step(graphdef, teacher_graphdef, objective, optimizer)
  epoch, key = jnp.int32(0), jax.random.key(0)
  compiled = step.lower(state, teacher_params, batch, epoch, key).compile()
  forward = jax.jit(lambda p, *a: nnx.merge(teacher_graphdef, p)(*a).logits)
  forward = forward.lower(teacher_params, audio, audio_len).compile()
  found = {"forward": timed(lambda: forward(teacher_params, audio, audio_len), wait, args.rounds)}

  def update(compiled, teacher_params, batch):
    nonlocal state
    state = compiled(state, teacher_params, batch, epoch, key)
    return state.step

  found["step"] = timed(lambda: update(compiled, teacher_params, batch), wait, args.rounds)
  how = store.Settings(classes, 0, TEMPERATURE, top=8)
  taught = batch._replace(taught=jax.tree.map(jnp.asarray, stored_frames(args, how)))
  step = make_train_step(graphdef, None, objective, optimizer, stored_as=how)
  compiled = step.lower(state, None, taught, epoch, key).compile()
  found["stored"] = timed(lambda: update(compiled, None, taught), wait, args.rounds)
  count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
  device = jax.local_devices()[0]
  memory = (device.memory_stats() or {}).get("peak_bytes_in_use")
  return found | {
    "parameters": [count(teacher_params), count(params)],
    "memory": memory,
    "name": f"jax {jax.__version__}",
    "device": device.device_kind,
  }


def wait(x):
  import jax

  jax.block_until_ready(x)


def theirs(args):
  """Times and facts of PyTorch."""
  import torch
  import transformers

  transformers.logging.set_verbosity_error()
  device = torch.device(args.device)
  dtype = getattr(torch, args.dtype)
  config = transformers.HubertConfig(**HUBERT_LARGE)
  teacher = transformers.HubertModel(config).eval().to(device)
  head = torch.nn.Linear(HUBERT_LARGE["hidden_size"], HUBERT_LARGE["vocab_size"]).to(device)
  student = torch_student(HUBERT_LARGE["vocab_size"]).to(device).train()
  if device.type == "cuda":
    torch.set_float32_matmul_precision("high")  # the tensor cores' float32, as in jax
    teacher, head = teacher.to(dtype), head.to(dtype)
    for layer in (*teacher.encoder.layers, *student.encoder.layers):
      layer.compile()  # one by one, so that the first one's program serves the others
    for part in (teacher.feature_extractor, student.front):
      part.compile()
  params = list(student.parameters())
  optimizer = torch.optim.RAdam(
    params, LEARNING_RATE, eps=EPS, weight_decay=DECAY, decoupled_weight_decay=True
  )
  audio, audio_len = (torch.tensor(x).to(device) for x in make_audio(args))
  autocast = torch.autocast(device.type, dtype, enabled=args.dtype != "float32")

  def forward():
    with torch.no_grad(), autocast:
      real = torch.arange(audio.shape[1], device=device) < audio_len[:, None]
      x = torch.where(real, audio / 32768, 0)
      x = x - x.sum(1, keepdim=True) / audio_len[:, None]
      x = torch.where(real, x, 0)
      x = x / torch.sqrt((x**2).sum(1, keepdim=True) / audio_len[:, None] + 1e-7)
      x = teacher(x.to(teacher.dtype), attention_mask=real.long()).last_hidden_state
      x = torch.nn.functional.max_pool1d(x.transpose(1, 2), 2, ceil_mode=True).transpose(1, 2)
      return head(x).float()

  def update():
    teacher_logits = forward()
    with autocast:
      logits, mask = student(audio, audio_len)
    logits = logits.float()
    size = min(logits.shape[1], teacher_logits.shape[1])
    logits, mask, teacher_logits = logits[:, :size], mask[:, :size], teacher_logits[:, :size]
    label = ((teacher_logits.argmax(-1) != 0) & mask).float()
    window = 2 * NEIGHBOURS + 1
    near = torch.nn.functional.max_pool1d(label[:, None], window, 1, NEIGHBOURS)[:, 0]
    selected = (near > 0) & mask
    p = (teacher_logits / TEMPERATURE).log_softmax(-1)
    q = (logits / TEMPERATURE).log_softmax(-1)
    kl = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    loss = TEMPERATURE**2 * (kl * selected).sum() / selected.sum().clamp(min=1)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

  def wait(_):
    if device.type == "cuda":
      torch.cuda.synchronize()

  found = {
    "forward": timed(forward, wait, args.rounds),
    "step": timed(update, wait, args.rounds),
  }
  count = lambda *modules: sum(p.numel() for module in modules for p in module.parameters())
  cuda = device.type == "cuda"
  return found | {
    "parameters": [count(teacher, head), count(student)],
    "memory": torch.cuda.max_memory_allocated() if cuda else None,
    "name": f"torch {torch.__version__}",
    "device": torch.cuda.get_device_name() if cuda else "cpu",
  }


def torch_student(classes):
  """The Conformer of transformers behind log-mel features, SpecAugment and four convolutions."""
  import torch
  from torch import nn
  from transformers import Wav2Vec2ConformerConfig
  from transformers.models.wav2vec2_conformer import modeling_wav2vec2_conformer as conformer

  from jaxkd.models.features import LogMel, filters

  config = Wav2Vec2ConformerConfig(
    hidden_size=WIDTH,
    num_hidden_layers=LAYERS,
    num_attention_heads=HEADS,
    intermediate_size=4 * WIDTH,
    hidden_act="swish",
    conv_depthwise_kernel_size=KERNEL,
    position_embeddings_type="relative",
    hidden_dropout=DROPOUT,
    activation_dropout=DROPOUT,
    attention_dropout=DROPOUT,
    conformer_conv_dropout=DROPOUT,
    layerdrop=0.0,
    num_conv_pos_embeddings=16,  # not used with relative positions
  )

  class Student(nn.Module):
    def __init__(self):
      super().__init__()
      sizes = (1, *CHANNELS)
      layers = []
      for i in range(4):
        layers += [nn.Conv2d(sizes[i], sizes[i + 1], 3, padding=1), nn.ReLU()]
        if i in (1, 3):
          layers.append(nn.MaxPool2d((2, 1), ceil_mode=True))
      self.front = nn.Sequential(*layers)
      self.project = nn.Linear(MELS * CHANNELS[-1], WIDTH)
      self.encoder = conformer.Wav2Vec2ConformerEncoder(config)
      del self.encoder.pos_conv_embed
      self.head = nn.Linear(WIDTH, classes)
      self.register_buffer("bank", torch.tensor(filters(LogMel(mels=MELS))[0]))
      self.register_buffer("window", torch.hann_window(400))

    def forward(self, audio, audio_len):
      with torch.no_grad():
        x = audio / 32768
        x = x / x.abs().amax(1, keepdim=True).clamp(min=1e-5)
        x = x - 0.97 * nn.functional.pad(x, (1, 0))[:, :-1]
        spectrum = torch.stft(x, 512, 160, 400, self.window, return_complex=True)[..., :-1]
        x = (spectrum.abs() ** 2).transpose(1, 2) @ self.bank
        x = spec_augment(torch.log(x.clamp(min=1e-10)))
      return self.encode(x, audio_len)

    def encode(self, x, audio_len):
      x = self.front(x[:, None]).permute(0, 2, 1, 3).flatten(2)
      frames = (audio_len + 639) // 640
      mask = torch.arange(x.shape[1], device=x.device) < frames[:, None]
      x = self.encoder(self.project(x), attention_mask=mask).last_hidden_state
      return self.head(x), mask

  def spec_augment(x):
    for axis, count, width in ((1, x.shape[1] // 50, 20), (2, 3, 8)):
      for _ in range(count):
        start = torch.randint(0, x.shape[axis] - width, (1,)).item()
        x.narrow(axis, start, torch.randint(0, width + 1, (1,)).item()).zero_()
    return x

  return Student()


def child(args):
  """One contestant's facts on standard output as JSON."""
  found = {"jaxkd": ours, "torch": theirs}[args.contestant](args)
  if found["memory"] is None:
    found["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  print(json.dumps(found))


def show(name, found, args):
  """Prints one contestant's lines; returns what → median seconds."""
  teacher, student = (f"{n / 1e6:.1f} M" for n in found[-1]["parameters"])
  memory = max(f["memory"] for f in found) / 2**30
  print(f"{name}: {found[-1]['name']} on {found[-1]['device']}, peak memory {memory:.1f} GiB")
  print(f"  parameters: teacher {teacher}, student {student}")
  medians = {}
  for what in (w for w in ("forward", "step", "stored") if w in found[0]):
    times = [t for f in found for t in f[what]]
    medians[what] = float(np.median(times))
    speed = args.rows * args.seconds / np.array([medians[what], max(times), min(times)])
    line = f"  {what:8} {medians[what]:8.3f} s   {speed[0]:8.1f} s of audio a second"
    line += f" ({speed[1]:.1f} to {speed[2]:.1f})"
    rate = gflop(args)[what] / medians[what] / 1e3
    line += f"   {rate:.2f} TFLOP/s"
    line += f", {rate / args.tflops:.1%} of the peak" if args.tflops else ""
    print(line)
  return medians


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--rows", type=int, default=2)
  parser.add_argument("--seconds", type=float, default=8.0)
  parser.add_argument("--rounds", type=int, default=3, help="in each process")
  parser.add_argument("--turns", type=int, default=2, help="processes of each contestant")
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
  parser.add_argument("--device", default="cpu", help="of PyTorch: cpu or cuda")
  parser.add_argument("--tflops", type=float, default=0.0, help="the chip's peak in this dtype")
  parser.add_argument("--contestant", choices=("jaxkd", "torch"), help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.contestant:
    return child(args)
  found = {"jaxkd": [], "torch": []}
  for _ in range(args.turns):
    for name in found:
      command = [sys.executable, *sys.argv, f"--contestant={name}"]
      run = subprocess.run(command, capture_output=True, text=True)
      if run.returncode:
        sys.exit(f"{name} failed:\n{run.stderr[-3000:]}")
      found[name].append(json.loads(run.stdout.splitlines()[-1]))
  medians = {name: show(name, facts, args) for name, facts in found.items()}
  for what in ("forward", "step"):
    ratio = medians["torch"][what] / medians["jaxkd"][what]
    print(f"{what}: jaxkd is {ratio:.2f} times as fast as torch")
  ratio = medians["jaxkd"]["step"] / medians["jaxkd"]["stored"]
  print(f"stored frames: an update is {ratio:.2f} times as fast as with the teacher that runs")


if __name__ == "__main__":
  main()
