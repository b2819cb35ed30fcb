"""Blank frames weigh what the teacher gives to labels there, 1 - p(blank); label frames weigh 1.

Differs from base() in one place: every frame carries the loss, with this weight. Not in the paper.
    python -m jaxkd.main --config=configs/soft.py
"""

from jaxkd import config as config_lib


def get_config(recipe: str = "demo"):
  config = config_lib.base(recipe)
  config.kd.selection = dict(name="soft")
  return config
