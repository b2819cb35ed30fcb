"""Guided CTC training (Kurata and Audhkhasi 2019): the student is to spike where the teacher does.

Differs from base() in three places: in label frames the student's probability of the teacher's best
class is raised, beside CTC on transcripts.
    python -m jaxkd.main --config=configs/guided.py
"""

from jaxkd import config as config_lib


def get_config(recipe: str = "demo"):
  config = config_lib.base(recipe)
  config.kd.loss = "guided"
  config.kd.scale = 0.5
  config.kd.selection = dict(name="nonblank")
  return config
