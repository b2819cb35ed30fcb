"""A teacher's rows in a padded batch against transformers on each utterance alone.

Many models of transformers change with padding; ours do not, and are theirs without any.
"""

import warnings

import numpy as np

import padding
from hf_models import torch
from jaxkd import teacher

# Rows of several lengths, the shortest with a frame, and one that is too short for any.
LENGTHS = np.array([9000, 6415, 3001, 400, 399], np.int32)


def make_audio(lengths=LENGTHS, *, size: int = 9600, seed: int = 0) -> np.ndarray:
  """i16[B, size] of noise, in the padding too."""
  audio = np.random.default_rng(seed).normal(size=(len(lengths), size))
  return np.round(3000 * audio).astype(np.int16)


def randomise(model, seed: int = 0):
  """Noise on all parameters of a torch model, and statistics for its batch norms; returns it."""
  generator = torch.Generator().manual_seed(seed)
  noise = lambda like: torch.randn(like.shape, generator=generator)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * noise(parameter))
    for name, statistics in model.named_buffers():
      if name.endswith("running_mean"):
        statistics.copy_(0.2 * noise(statistics))
      elif name.endswith("running_var"):
        statistics.copy_((0.5 * noise(statistics)).exp())
  return model.eval()


def of_transformers(model, front, audio: np.ndarray, lengths=LENGTHS) -> list[np.ndarray]:
  """f32[frames, V] for each row of i16[B, S]: what transformers gives for it, without padding."""
  found = []
  for row, length in enumerate(lengths):
    real = audio[row, :length] / np.float32(32768)
    values = front(real, sampling_rate=16_000, return_tensors="pt").input_values
    try:
      with torch.no_grad():
        found.append(model(values).logits[0].numpy())
    except RuntimeError:  # a convolution over fewer samples than its kernel has
      found.append(np.zeros((0, model.config.vocab_size), np.float32))
  return found


def make_speech(lengths=LENGTHS, *, size: int = 9600, seed: int = 0) -> np.ndarray:
  """i16[B, size] of noise whose spectrum falls and whose loudness changes, as those of speech."""
  rng = np.random.default_rng(seed)
  audio = np.zeros((len(lengths), size))
  for row in audio:
    noise, loudness = rng.normal(size=(2, size))
    smooth = np.convolve(noise, 0.9 ** np.arange(60), "same")
    row[:] = smooth * np.exp(np.convolve(loudness, np.hanning(2000) / 30, "same"))
  return np.round(3000 * audio / audio.std()).clip(-32768, 32767).astype(np.int16)


def features(front, samples: np.ndarray) -> dict:
  """What a front-end of log-mel features makes of f32[S], as torch arrays of one row."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # NumPy: the mean of no frames
    return front(samples, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True)


def of_features(model, front, count, audio: np.ndarray, lengths=LENGTHS) -> list[np.ndarray]:
  """f32[frames, V] of the real frames of each row of i16[B, S] by transformers, without padding.

  Args:
    model, front: of transformers.
    count: of the front-end's real frames → of the model's.
    audio: i16[B, S].
    lengths: real samples.
  """
  found = []
  for row, length in enumerate(lengths):
    try:
      given = features(front, audio[row, :length] / np.float32(32768))
      with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: a convolution of an even kernel copies its input
        logits = model(**given).logits[0].numpy()
      found.append(logits[: count(int(given["attention_mask"].sum()))])
    except (RuntimeError, ValueError, IndexError):  # no frame
      found.append(np.zeros((0, model.config.vocab_size), np.float32))
  assert [len(logits) > 0 for logits in found[:3]] == [True] * 3
  return found


def check(folder, expected: list[np.ndarray], audio, lengths=LENGTHS, **options) -> float:
  """The teacher from a folder gives those logits, as int16 and as floats with NaN in the padding.

  Args:
    folder: of the model.
    expected: of `of_transformers`.
    audio: i16[B, S].
    lengths: real samples.
    **options: of `teacher.from_huggingface`.

  Returns:
    Largest difference of a logit.
  """
  model = teacher.from_huggingface(folder, **options)
  floats = np.where(
    padding.length_masks(lengths, audio.shape[1]), audio / np.float32(32768), np.float32(np.nan)
  )
  worst = 0.0
  for given in (audio, floats):
    out = model(given, lengths)
    logits, mask = np.asarray(out.logits), np.asarray(out.mask)
    assert logits.dtype == np.float32 and np.isfinite(logits[mask]).all()
    for row, want in enumerate(expected):
      np.testing.assert_array_equal(mask[row], np.arange(mask.shape[1]) < len(want))
      np.testing.assert_allclose(logits[row, : len(want)], want, rtol=0, atol=1e-4)
      worst = max(worst, float(np.abs(logits[row, : len(want)] - want).max(initial=0)))
  return worst


def check_bfloat16(folder, audio, lengths=LENGTHS, *, mean: float = 0.05) -> float:
  """bfloat16 is close to float32, and not it: mean |difference| of log probabilities."""

  def log_probabilities(dtype):
    out = teacher.from_huggingface(folder, dtype=dtype)(audio, lengths)
    logits = np.float64(out.logits)[np.asarray(out.mask)]
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

  difference = np.abs(log_probabilities("bfloat16") - log_probabilities("float32")).mean()
  assert 0 < difference < mean
  return float(difference)
