"""What a model's card says of how it was made."""

import pytest

from jaxkd import config as config_lib
from jaxkd.report import card


@pytest.mark.parametrize(
  ("scale", "loss", "targets", "words"),
  [
    (0.25, "kl", "hypotheses", "by 0.25, and CTC on its transcripts; no others."),
    (0.25, "soft_ctc", "transcripts", "by 0.25, and CTC on its transcripts."),
    (1.0, "kl", "hypotheses", "alone; no transcripts."),
  ],
)
def test_the_card_says_whose_transcripts_ctc_learns(scale, loss, targets, words):
  config = config_lib.base("demo")
  config.kd.update(scale=scale, ctc="hypotheses", loss=loss, targets=targets)
  assert card._objective(config).endswith(words)


def test_the_card_of_a_ramp_tells_both_ends():
  """Even where the last epochs are CTC alone."""
  config = config_lib.base("demo")
  config.kd.update(scale=0.0, scale_ramp=(1.0, 3))
  words = "the teacher's labels (selection all_frames), by 1 to 0, and CTC on transcripts."
  assert card._objective(config) == f"Objective: {words}"
