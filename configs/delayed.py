"""Symmetric selection that forgives a student whose spikes are a frame early or late.

Differs from symmetric.py in one place: the KL is a soft minimum over delays. Not in the paper.
    python -m jaxkd.main --config=configs/delayed.py
"""

from jaxkd import config as config_lib


def get_config(recipe: str = "demo"):
  config = config_lib.base(recipe)
  config.kd.delays = (-1, 0, 1)
  config.kd.selection = dict(name="symmetric", n=2)
  return config
