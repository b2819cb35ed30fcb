"""Slow NumPy float64 oracles, written from the definitions."""

import itertools

import numpy as np


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
