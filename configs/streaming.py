"""A student that hears streams: from audio alone, of a teacher that hears everything.

Differs from symmetric.py in four places: features without look-ahead; chunks of 160 to 1280 ms,
one drawn for each row, with 2.56 s before them; the student's own full mode teaches its chunks,
too; and it says everything a frame later than its teacher. Not in the paper.
    python -m jaxkd.main --config=configs/streaming.py
"""

from jaxkd import config as config_lib


def get_config(recipe: str = "demo"):
  config = config_lib.base(recipe)
  config.features.update(kind="sherpa", normalise="none")
  config.student.update(chunk_frames=(4, 8, 16, 32), left_frames=(64,))
  config.kd.update(co_teacher=0.5, delays=(1,))
  config.kd.selection = dict(name="symmetric", n=2)
  return config
