"""Encoder outputs are brought together for two epochs, then symmetric selection takes over.

Differs from base() in two places: in the first epochs the student's encoder output, projected to
the teacher's width, learns the direction of the teacher's; after that see symmetric.py.
    python -m jaxkd.main --config=configs/warmup.py
"""

from jaxkd import config as config_lib


def get_config(recipe: str = "demo"):
  config = config_lib.base(recipe)
  config.kd.warmup = 2
  config.kd.selection = dict(name="symmetric", n=2)
  return config
