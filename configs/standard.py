"""Standard distillation: every frame carries the loss.

Differs from base() in one place: the selection, which is also base()'s own.
    python -m jaxkd.main --config=configs/standard.py
"""

from jaxkd import config as config_lib


def get_config(recipe: str = "demo"):
  config = config_lib.base(recipe)
  config.kd.selection = dict(name="all_frames")
  return config
