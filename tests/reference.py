"""Slow NumPy float64 oracles, written from the definitions."""

import itertools
import pathlib

import numpy as np

from jaxkd.data import plan


def log_softmax(logits: np.ndarray) -> np.ndarray:
  """f64, over the last axis."""
  logits = np.asarray(logits, np.float64)
  return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def ctc_brute_force(logits: np.ndarray, labels, blank_id: int) -> float:
  """-log of the summed probability of all V^T paths that collapse to the labels.

  Args:
    logits: f[T, V].
    labels: sequence of classes.
    blank_id: the blank's class.
  """
  log_probs = log_softmax(logits)
  frames, classes = log_probs.shape
  total = -np.inf
  for path in itertools.product(range(classes), repeat=frames):
    merged = [c for c, _ in itertools.groupby(path)]
    if [c for c in merged if c != blank_id] == list(labels):
      total = np.logaddexp(total, log_probs[np.arange(frames), list(path)].sum())
  return -total


def ctc_forward(logits: np.ndarray, labels, blank_id: int) -> float:
  """-log p(labels | logits f[T, V]) by the forward recursion in logarithms."""
  log_probs = log_softmax(logits)
  states = [blank_id]
  for label in labels:
    states += [int(label), blank_id]
  alpha = np.full(len(states), -np.inf)
  alpha[0] = 0.0  # Before the first frame, a path stands in the first blank.
  for frame in log_probs:
    before, alpha = alpha, alpha.copy()
    alpha[1:] = np.logaddexp(alpha[1:], before[:-1])
    for s in range(3, len(states), 2):
      if states[s] != states[s - 2]:
        alpha[s] = np.logaddexp(alpha[s], before[s - 2])
    alpha = alpha + frame[states]
  return -np.logaddexp.reduce(alpha[-2:])


def ctc_occupancy(logits, labels, blank_id: int) -> np.ndarray:
  """f64[T, V]: the share of each class at each frame in all paths that collapse to the labels."""
  log_probs = log_softmax(logits)
  frames, classes = log_probs.shape
  share = np.zeros((frames, classes))
  for path in itertools.product(range(classes), repeat=frames):
    merged = [c for c, _ in itertools.groupby(path)]
    if [c for c in merged if c != blank_id] == list(labels):
      share[np.arange(frames), list(path)] += np.exp(log_probs[np.arange(frames), path].sum())
  return share / max(share[0].sum(), 1e-300)


def golden(case: str) -> dict:
  """What the authors' public code returned for case "a" or "b"; the blank is the last class.

  Returns:
    {"teacher_logits", "student_logits", "labels", "label_lengths", "log_prior": arrays, and
    "variants": {name: {"mask", "kl_sum", "kl_norm", "ctc_sum", "ctc_norm"}}}; "standard" has no
    mask.
  """
  path = pathlib.Path(__file__).parent / "golden" / "golden_selection.npz"
  found = {"variants": {}}
  with np.load(path, allow_pickle=False) as arrays:
    for name in arrays.files:
      found_case, *parts = name.split("/")
      if found_case == case:
        where = found if len(parts) == 1 else found["variants"].setdefault(parts[0], {})
        where[parts[-1]] = arrays[name]
  return found


def select_all(logits, blank_id: int) -> list[bool]:
  """Every frame of the real frames f[T, V]; the selectors below have the same form."""
  return [True] * len(logits)


def select_nonblank(logits, blank_id: int, log_prior=None, prior_scale: float = 0.0) -> list[bool]:
  """Frames whose best class, after the prior, is a label."""
  log_prior = np.zeros(logits.shape[1]) if log_prior is None else log_prior
  scores = [log_softmax(frame) - prior_scale * np.float64(log_prior) for frame in logits]
  return [max(range(len(s)), key=lambda c: s[c]) != blank_id for s in scores]


def select_trim(logits, blank_id: int) -> list[bool]:
  """From the first label frame to the last."""
  labels = [t for t, label in enumerate(select_nonblank(logits, blank_id)) if label]
  return [bool(labels) and labels[0] <= t <= labels[-1] for t in range(len(logits))]


def select_keep(logits, blank_id: int, before: int, after: int) -> list[bool]:
  """Label frames and their neighbours, painted one by one."""
  selected = [False] * len(logits)
  for t, label in enumerate(select_nonblank(logits, blank_id)):
    for s in range(max(0, t - before), min(len(logits), t + after + 1)):
      selected[s] = selected[s] or label
  return selected


def select_symmetric(logits, blank_id: int, n: int) -> list[bool]:
  """Frames that have a label frame at a distance of at most n."""
  labels = [t for t, label in enumerate(select_nonblank(logits, blank_id)) if label]
  return [any(abs(s - t) <= n for t in labels) for s in range(len(logits))]


def select_threshold(logits, blank_id: int, min_label_prob: float) -> list[bool]:
  """Label frames and frames whose blank leaves at least `min_label_prob` to the labels."""
  labels = select_nonblank(logits, blank_id)
  mass = [1 - np.exp(log_softmax(frame)[blank_id]) for frame in logits]
  return [label or m >= min_label_prob for label, m in zip(labels, mass, strict=True)]


def random_blanks_count(logits, blank_id: int, ratio: float) -> int:
  """Frames that label frames and random blank frames add up to."""
  labels = sum(select_nonblank(logits, blank_id))
  return labels + min(round(ratio * labels), len(logits) - labels)


def kd_kl(student, teacher, weights, temperature: float) -> tuple[float, float]:
  """T² · Σ weight · KL(teacher ‖ student) at temperature T, and Σ weight, frame by frame."""
  total = weight_sum = 0.0
  for index in np.ndindex(weights.shape):
    if weights[index] > 0:
      p = log_softmax(np.float64(teacher[index]) / temperature)
      q = log_softmax(np.float64(student[index]) / temperature)
      kl = sum(np.exp(a) * (a - b) for a, b in zip(p, q, strict=True) if a > -np.inf)
      total += float(weights[index]) * temperature**2 * kl
      weight_sum += float(weights[index])
  return total, weight_sum


def delayed_kl(student, teacher, weights, mask, temperature, delays, softness):
  """Sum and divisor of one utterance, logits f[T, V], frame by frame."""
  total = weight_sum = 0.0
  for t in np.flatnonzero(weights):
    there = [t + d for d in delays if 0 <= t + d < len(mask) and mask[t + d]]
    if there:
      kls = [kd_kl(student[s], teacher[t], np.ones(()), temperature)[0] for s in there]
      mean = np.mean([np.exp(-kl / temperature**2 / softness) for kl in kls])
      total -= weights[t] * softness * np.log(mean) * temperature**2
      weight_sum += weights[t]
  return total, weight_sum


def split_kl(student, teacher, alpha, beta, mask, temperature, blank_id, delays, softness):
  """Sum and divisor of one utterance, logits f[T, V], frame by frame."""
  p, q = (np.exp([log_softmax(np.float64(x) / temperature) for x in y]) for y in (teacher, student))
  two = lambda x: np.array([x[blank_id], 1 - x[blank_id]])
  rest = lambda x: np.delete(x, blank_id) / (1 - x[blank_id])
  kl = lambda a, b: (a * np.log(a / b)).sum()
  total = weight_sum = 0.0
  for t in np.flatnonzero(np.maximum(alpha, beta) * mask):
    there = [t + d for d in delays if 0 <= t + d < len(mask) and mask[t + d]]
    if there:
      weight = max(alpha[t], beta[t])
      parts = [
        (alpha[t] * kl(two(p[t]), two(q[s])) + beta[t] * kl(rest(p[t]), rest(q[s]))) / weight
        for s in there
      ]
      mean = np.mean([np.exp(-part / softness) for part in parts])
      total -= weight * softness * np.log(mean) * temperature**2
      weight_sum += weight
  return total, weight_sum


def mel(hz: float) -> float:
  """Kaldi's mel scale."""
  return 1127 * np.log(1 + hz / 700)


def mel_filters(mels: int, low_hz: float, high_hz: float) -> np.ndarray:
  """f64[257, mels]: triangles of equal width in mel, sampled at the bins of a 512-point FFT."""
  width = (mel(high_hz) - mel(low_hz)) / (mels + 1)
  bank = np.zeros((257, mels))
  for b, m in np.ndindex(bank.shape):
    distance = abs(mel(b * 16_000 / 512) - (mel(low_hz) + (m + 1) * width))
    bank[b, m] = max(0.0, 1 - distance / width)
  return bank


def log_mel(audio: np.ndarray, mels: int, low_hz: float, high_hz: float) -> np.ndarray:
  """f64[ceil(S / 160), mels] of one utterance f[S] in [-1, 1], the paper's front-end."""
  audio = np.float64(audio) / max(np.abs(audio).max(), 1e-5)
  emphasised = [x - 0.97 * (audio[i - 1] if i else 0) for i, x in enumerate(audio)]
  window = [0.5 - 0.5 * np.cos(2 * np.pi * i / 400) for i in range(400)]
  bank, rows = mel_filters(mels, low_hz, high_hz), []
  for frame in range(-(-len(audio) // 160)):
    first = frame * 160 + 80 - 200  # The window's middle is the middle of the frame's 10 ms.
    inside = range(first, first + 400)
    cut = [emphasised[i] if 0 <= i < len(audio) else 0.0 for i in inside]
    power = np.abs(np.fft.rfft(np.multiply(cut, window), 512)) ** 2
    rows.append(np.log(np.maximum(power @ bank, 1e-10)))
  return np.array(rows)


def relative_attention(x, qkv, positions, content_bias, position_bias, clip: int) -> np.ndarray:
  """Transformer-XL self-attention of one utterance f[T, D], before the output projection.

  Args:
    x: f[T, D], normalised.
    qkv: kernel f[D, 3D] and bias f[3D]: queries, keys and values, heads next to each other in each.
    positions: f[D, D].
    content_bias, position_bias: f[H, D / H].
    clip: largest distance.
  """
  frames, width = x.shape
  heads, size = content_bias.shape
  q, k, v = np.split(x @ qkv[0] + qkv[1], 3, axis=-1)
  out = np.zeros((frames, width))
  for h in range(heads):
    part = slice(h * size, (h + 1) * size)
    for i in range(frames):
      scores = np.zeros(frames)
      for j in range(frames):
        distance = max(-clip, min(clip, i - j))
        angles = [distance / 10_000 ** (2 * w / width) for w in range(width // 2)]
        r = np.concatenate([np.sin(angles), np.cos(angles)]) @ positions[:, part]
        scores[j] = (q[i, part] + content_bias[h]) @ k[j, part]
        scores[j] += (q[i, part] + position_bias[h]) @ r
      weights = np.exp(log_softmax(scores / np.sqrt(size)))
      out[i, part] = weights @ v[:, part]
  return out


def epoch_plan(durations, shapes, *, seed, epoch, speeds, join, apart):
  """`plan.epoch_plan` as lists, every row searched for each utterance."""
  rng = np.random.default_rng([seed, epoch])
  drawn = rng.choice(np.array(speeds), len(durations))
  lengths = plan.samples_of(durations, drawn)
  order = rng.permutation(len(durations))
  capacity = shapes[0].samples if join else 0
  if apart is None or not capacity:
    rows = _join(order, lengths, capacity)
  else:
    kinds = (order[~apart[order]], order[apart[order]])
    rows = [row for kind in kinds for row in _join(kind, lengths, capacity)]
    rows = [rows[i] for i in rng.permutation(len(rows))]
  batches, waiting = [], []
  for shape in shapes:
    shorter = [s.samples for s in shapes if s.samples < shape.samples]
    low = max(shorter, default=0)
    waiting += [row for row in rows if low < sum(lengths[list(row)]) <= shape.samples]
    full = len(waiting) if shape == shapes[-1] else len(waiting) // shape.rows * shape.rows
    for start in range(0, full, shape.rows):
      chosen = waiting[start : min(start + shape.rows, full)]
      chosen += [()] * (shape.rows - len(chosen))
      factors = tuple(tuple(float(drawn[u]) for u in row) for row in chosen)
      batches.append(plan.PlannedBatch(shape, tuple(chosen), factors))
    waiting = waiting[full:]
  return [batches[i] for i in rng.permutation(len(batches))]


def _join(order, lengths, capacity):
  rows, rooms = [], []
  for u in order.tolist():
    fitting = [row for row, room in enumerate(rooms) if room >= lengths[u]]
    if fitting:
      row = min(fitting, key=lambda row: rooms[row])
      rows[row], rooms[row] = (*rows[row], u), rooms[row] - lengths[u]
    else:
      rows.append((u,))
      rooms.append(max(0, capacity - lengths[u]))
  return rows
