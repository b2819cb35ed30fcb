"""Blank elimination: only frames that the teacher labels carry the loss.

Differs from base() in one place: blank frames of the teacher are left out. Without the CTC loss
(kd.scale 1) the student is never shown a blank.
    python -m jaxkd.main --config=configs/elimination.py
"""

from jaxkd import config as config_lib


def get_config(recipe: str = "demo"):
  config = config_lib.base(recipe)
  config.kd.selection = dict(name="nonblank")
  return config
