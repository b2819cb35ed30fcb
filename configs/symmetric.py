"""Symmetric selection without the CTC loss: distillation needs no transcripts.

Differs from base() in one place: frames within n of a label frame carry the loss. kd.scale is 1 in
base(), so nothing else trains the student.
    python -m jaxkd.main --config=configs/symmetric.py
    python -m jaxkd.main --config=configs/symmetric.py:manifest --config.data.train=audio.jsonl ...
"""

from jaxkd import config as config_lib


def get_config(recipe: str = "demo"):
  config = config_lib.base(recipe)
  config.kd.selection = dict(name="symmetric", n=2)
  return config
