"""Symmetric selection that forgives a student whose spikes are a frame early or late.

Differs from symmetric.py in one place: the KL is a soft minimum over delays. Not in the paper.
    python -m jaxkd.main --config=configs/delayed.py
"""

from jaxkd import config as config_lib


def get_config(recipe: str = "demo"):
  config = config_lib.base(recipe)
  config.kd.delays = (-1, 0, 1)
  config.kd.softness = 0.1  # with 1 nat, delays that fit about as well blur the student's labels
  config.kd.selection = dict(name="symmetric", n=2)
  return config
