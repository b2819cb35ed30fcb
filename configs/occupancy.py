"""Frames weigh the share of a label that the teacher's own transcript expects in them.

Differs from base() in one place: the weights, 1 - γ(blank) of the teacher's greedy labels with
delta taken from the blank's logits. Spikes get shoulders without a number of neighbours. Not in the
paper.
    python -m jaxkd.main --config=configs/occupancy.py
"""

from jaxkd import config as config_lib


def get_config(recipe: str = "demo"):
  config = config_lib.base(recipe)
  config.kd.selection = dict(name="occupancy", delta=3.0)
  return config
