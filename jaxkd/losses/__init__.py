"""Losses: arrays in, arrays out, no framework inside."""

from jaxkd.losses.ctc import ctc_is_feasible, ctc_loss
from jaxkd.losses.distillation import cosine_distance, kd_kl

__all__ = ["cosine_distance", "ctc_is_feasible", "ctc_loss", "kd_kl"]
