"""S-CTC (Huang et al. 2018): targets are the teacher's occupancies of its own best transcripts.

Differs from base() in two places: the loss, and one transcript an utterance. With
config.kd.targets=transcripts the occupancies are of the data's transcripts.
    python -m jaxkd.main --config=configs/soft_ctc.py
"""

from jaxkd import config as config_lib


def get_config(recipe: str = "demo"):
  config = config_lib.base(recipe)
  config.kd.loss = "soft_ctc"
  config.kd.hypotheses = 1
  return config
