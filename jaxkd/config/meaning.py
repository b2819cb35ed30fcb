"""What the fields of an objective say together."""

from ml_collections import ConfigDict

# Kinds of features of which a frame depends on no audio but that of its window.
STREAMED = ("kaldi", "sherpa")


def scales(kd: ConfigDict) -> tuple[float, float]:
  """The least and the largest scale of the distillation loss in any epoch."""
  ends = kd.scale, *kd.scale_ramp[:1]
  return min(ends), max(ends)


def distils(kd: ConfigDict) -> bool:
  """Whether a teacher is learnt from, in any epoch."""
  return scales(kd)[1] > 0


def average_decay(teacher: ConfigDict) -> float | None:
  """The decay of the average of the student's own past, where a `config.teacher` is that."""
  return teacher.decay if teacher.source == "average" else None


def reads_transcripts(kd: ConfigDict) -> bool:
  """Whether anything is learnt from the data's transcripts."""
  return _reads("transcripts", kd)


def reads_hypotheses(kd: ConfigDict) -> bool:
  """Whether anything is learnt from what the teacher may have heard."""
  return _reads("hypotheses", kd) or (distils(kd) and kd.loss == "hypotheses")


def _reads(targets: str, kd: ConfigDict) -> bool:
  least, largest = scales(kd)
  soft = largest > 0 and kd.loss == "soft_ctc" and kd.targets == targets
  return soft or (least < 1 and kd.ctc == targets)
