"""Label frames and an unequal number of neighbours: one before, three after.

Differs from base() in one place: frames near a label frame carry the loss, more of them behind it.
    python -m jaxkd.main --config=configs/keep.py
"""

from jaxkd import config as config_lib


def get_config(recipe: str = "demo"):
  config = config_lib.base(recipe)
  config.kd.selection = dict(name="keep", before=1, after=3)
  return config
