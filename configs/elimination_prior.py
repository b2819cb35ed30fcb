"""Blank elimination after the teacher's log prior is subtracted with scale 0.5.

Differs from base() in one place: frames that are blank even so are left out.
    python -m jaxkd.main --config=configs/elimination_prior.py
"""

from jaxkd import config as config_lib


def get_config(recipe: str = "demo"):
  config = config_lib.base(recipe)
  config.kd.selection = dict(name="nonblank", prior_scale=0.5)
  return config
