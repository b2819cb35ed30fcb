"""Objectives of a few lines of config."""

from ml_collections import ConfigDict

from jaxkd.training import objective


def kd(**changes) -> ConfigDict:
  """A `config.kd` block: standard distillation, but for the changes."""
  fields = dict(
    loss="kl",
    scale=1.0,
    temperature=2.0,
    selection=dict(name="all_frames"),
    start_epoch=0,
    stop_epoch=0,
    grow_epochs=0,
    normalization="frames",
    warmup=0,
    hypotheses=0,
  )
  return ConfigDict(fields | changes)


def make(blank_id: int, *, spec_augment: bool = False, **changes) -> objective.Objective:
  """The objective of a `kd` block with the changes."""
  training = ConfigDict(
    dict(spec_augment=spec_augment, spec_augment_from_epoch=0, time_mask_frames=5, freq_mask_bins=2)
  )
  return objective.make(kd(**changes), training, blank_id=blank_id, log_prior=None)
