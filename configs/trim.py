"""Trimming: blanks before the first and after the last label frame carry no loss.

Differs from base() in one place: silence at both ends is left out.
    python -m jaxkd.main --config=configs/trim.py
"""

from jaxkd import config as config_lib


def get_config(recipe: str = "demo"):
  config = config_lib.base(recipe)
  config.kd.selection = dict(name="trim")
  return config
