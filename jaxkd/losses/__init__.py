"""Losses: arrays in, arrays out, no framework inside."""

from jaxkd.losses.ctc import ctc_is_feasible, ctc_loss
from jaxkd.losses.distillation import kd_kl

__all__ = ["ctc_is_feasible", "ctc_loss", "kd_kl"]
