"""Label frames, and blank frames where the teacher gives labels at least a tenth.

Differs from base() in one place: blank frames with a label mass of min_label_prob or more carry the
loss too.
    python -m jaxkd.main --config=configs/threshold.py
"""

from jaxkd import config as config_lib


def get_config(recipe: str = "demo"):
  config = config_lib.base(recipe)
  config.kd.selection = dict(name="threshold", min_label_prob=0.1)
  return config
