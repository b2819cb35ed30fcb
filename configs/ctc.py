"""CTC alone: the small model is trained on transcripts without a teacher.

Differs from base() in two places: no distillation, and no teacher. It needs transcripts.
    python -m jaxkd.main --config=configs/ctc.py
"""

from jaxkd import config as config_lib


def get_config(recipe: str = "demo"):
  config = config_lib.base(recipe)
  config.kd.scale = 0.0
  config.teacher.source = "none"
  return config
