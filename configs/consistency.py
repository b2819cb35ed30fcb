"""CR-CTC (Yao et al. 2025): two views of each input learn from each other, beside CTC.

Differs from base() in four places: the consistency's scale, masks, no teacher, CTC alone. An
update takes twice the memory of one view: config.training.batch_seconds may have to be half as
large. Beside a teacher, symmetric.py with --config.kd.consistency=0.2 and masks.
    python -m jaxkd.main --config=configs/consistency.py
"""

from jaxkd import config as config_lib


def get_config(recipe: str = "demo"):
  config = config_lib.base(recipe)
  config.kd.consistency = 0.2
  config.kd.scale = 0.0
  config.training.spec_augment = True
  config.teacher.source = "none"
  return config
