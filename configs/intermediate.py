"""A head in the middle learns the same as the last: Inter-KD (Yoon et al. 2022), intermediate CTC.

Differs from base() in three places: the head, its share of the loss, and the frames. It is not
kept: a model without it comes out.
    python -m jaxkd.main --config=configs/intermediate.py
"""

from jaxkd import config as config_lib


def get_config(recipe: str = "demo"):
  config = config_lib.base(recipe)
  config.student.inner_layers = (-(-config.student.layers // 2),)
  config.kd.inner_scale = 0.3
  config.kd.selection = dict(name="symmetric", n=2)
  return config
