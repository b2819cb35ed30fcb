"""The teacher's ten best transcripts of each utterance are CTC targets; no frame is compared.

Differs from base() in one place: the loss (config.kd.hypotheses is another number than ten). The
transcripts are found once, by prefix beam search, and kept in the workdir (nbest.jsonl); each time
an utterance comes up one of them is drawn by its probability. The student needs no other
transcripts.
    python -m jaxkd.main --config=configs/hypotheses.py
"""

from jaxkd import config as config_lib


def get_config(recipe: str = "demo"):
  config = config_lib.base(recipe)
  config.kd.loss = "hypotheses"
  return config
