"""Losses: arrays in, arrays out, no framework inside."""

from jaxkd.losses.ctc import ctc_is_feasible, ctc_loss
from jaxkd.losses.delayed import delayed_kl
from jaxkd.losses.distillation import cosine_distance, guided_ctc, kd_kl, soft_cross_entropy
from jaxkd.losses.occupancy import ctc_occupancy
from jaxkd.losses.split import split_kl

__all__ = [
  "cosine_distance",
  "ctc_is_feasible",
  "ctc_loss",
  "ctc_occupancy",
  "delayed_kl",
  "guided_ctc",
  "kd_kl",
  "soft_cross_entropy",
  "split_kl",
]
