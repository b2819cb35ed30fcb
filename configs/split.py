"""Every frame teaches whether it is blank, label frames which label it is.

Differs from base() in two places: the KL is taken in two parts, and the second counts where labels
are. Elimination that learns silence, too. Not in the paper.
    python -m jaxkd.main --config=configs/split.py
"""

from jaxkd import config as config_lib


def get_config(recipe: str = "demo"):
  config = config_lib.base(recipe)
  config.kd.loss = "split_kl"
  config.kd.selection = dict(name="nonblank")
  return config
