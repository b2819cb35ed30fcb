"""The student's own past is the teacher: the moving average of its parameters, beside CTC.

Differs from base() in four places: the teacher, the scale, which grows as the average becomes good,
and the frames.
    python -m jaxkd.main --config=configs/self_distillation.py
"""

from jaxkd import config as config_lib


def get_config(recipe: str = "demo"):
  config = config_lib.base(recipe)
  config.teacher.source = "average"
  config.kd.scale = 0.5
  config.kd.scale_ramp = (0.0, 5)
  config.kd.selection = dict(name="symmetric", n=2)
  return config
