"""Symmetric selection beside CTC on what the teacher heard: no transcripts of the data's.

Differs from base() in three places: the selection, a scale that leaves CTC three quarters of the
loss, and CTC's targets, which are the teacher's best transcripts, drawn by their probabilities.
    python -m jaxkd.main --config=configs/pseudo_labels.py
"""

from jaxkd import config as config_lib


def get_config(recipe: str = "demo"):
  config = config_lib.base(recipe)
  config.kd.selection = dict(name="symmetric", n=2)
  config.kd.scale = 0.25
  config.kd.ctc = "hypotheses"
  return config
