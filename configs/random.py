"""Label frames and as many blank frames, drawn at random.

Differs from base() in one place: ratio random blank frames for each label frame carry the loss too.
    python -m jaxkd.main --config=configs/random.py
"""

from jaxkd import config as config_lib


def get_config(recipe: str = "demo"):
  config = config_lib.base(recipe)
  config.kd.selection = dict(name="random_blanks", ratio=1.0)
  return config
