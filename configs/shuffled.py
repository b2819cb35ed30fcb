"""Label frames and as many blank frames as the symmetric selection has, drawn at random.

Differs from base() in one place: it is `symmetric` whose blank frames may lie anywhere.
    python -m jaxkd.main --config=configs/shuffled.py
"""

from jaxkd import config as config_lib


def get_config(recipe: str = "demo"):
  config = config_lib.base(recipe)
  config.kd.selection = dict(name="shuffled", n=2)
  return config
