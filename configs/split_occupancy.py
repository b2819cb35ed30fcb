"""Every frame teaches whether it is blank, and which label by the share of labels expected in it.

Differs from base() in two places: see split.py and occupancy.py, whose weights are those of the
second part. Not in the paper.
    python -m jaxkd.main --config=configs/split_occupancy.py
"""

from jaxkd import config as config_lib


def get_config(recipe: str = "demo"):
  config = config_lib.base(recipe)
  config.kd.loss = "split_kl"
  config.kd.selection = dict(name="occupancy", delta=3.0)
  return config
