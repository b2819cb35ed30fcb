"""A split of utterances whose frames are known, on eight devices: hypotheses, runs and offsets."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxkd.data import plan
from jaxkd.data.audio import BrokenAudio
from jaxkd.devices import mesh
from jaxkd.inference import alignment as align
from jaxkd.inference import scoring
from jaxkd.labels import characters
from jaxkd.masks import length_mask, strided_len
from jaxkd.models.acoustic import AcousticModel
from jaxkd.types import FrameOutput

pytestmark = pytest.mark.usefixtures("quick_to_compile")
FRAME = 640
LABELS = characters("abc")
BLANK = LABELS.blank_id


class Heard(nnx.Module):
  """Says the class that the first sample of a frame is, so many frames late; sure of it."""

  def __init__(self, late: int):
    self.late = late
    self.scale = nnx.Param(jnp.float32(9))

  def __call__(self, audio, audio_len):
    frames = audio.reshape(len(audio), -1, FRAME)[:, :, 0].astype(jnp.int32)
    late = jnp.pad(frames, ((0, 0), (self.late, 0)), constant_values=BLANK)[:, : frames.shape[1]]
    mask = length_mask(strided_len(audio_len, FRAME), frames.shape[1])
    return FrameOutput(self.scale * jax.nn.one_hot(late, BLANK + 1), mask)


def source_of(paths: list[str | None], texts: list[str | None]):
  """Utterances of one class a frame; None cannot be read."""

  def read(index: int) -> np.ndarray:
    if paths[index] is None:
      raise BrokenAudio("not audio")
    ids = ["abc.".index(c) for c in paths[index]]
    return np.repeat(np.array(ids, np.int16), FRAME)

  return types.SimpleNamespace(
    name="made",
    ids=[f"u{i}" for i in range(len(paths))],
    texts=texts,
    durations=np.array([len(p or ".") * FRAME / 16_000 for p in paths]),
    read=read,
  )


def evaluate(source, late: int, *, teacher: bool = True, spikes: bool = True):
  """Of a student that is late beside a teacher that is not."""
  models = [AcousticModel(*nnx.split(Heard(n)), LABELS, FRAME) for n in (late, 0)]
  shapes = plan.shapes(source.durations, batch_seconds=3.0, buckets=1, frame_samples=FRAME)
  assert len(plan.evaluation_plan(source.durations, shapes)) > 1
  return scoring.evaluate(
    models[0],
    models[1] if teacher else None,
    source,
    mesh.make_mesh(),
    shapes=shapes,
    spikes=spikes,
  )


PATHS = [
  "..a..bb.c....",  # transcribed
  ".a.a..........",  # not transcribed
  ".b....cc.a...",  # with a transcript that the classes cannot write
  "..ab.........",  # with one that has no path
  None,
  "..............",  # silence
]
TEXTS = ["abc", None, "b,c", "abc" * 9, "ab", None]


@pytest.fixture(scope="module")
def found(quick_to_compile):
  return evaluate(source_of(PATHS, TEXTS), late=2)


def test_hypotheses_of_real_frames(found):
  for model in ("teacher", "student"):
    rows = found.hypotheses[model]
    assert [row["id"] for row in rows] == ["u0", "u1", "u2", "u3", "u5"]
    assert [row["hypothesis"] for row in rows] == ["abc", "aa", "bca", "ab", ""]
    assert [row["reference"] for row in rows] == ["abc", None, "b,c", "abc" * 9, None]
  assert found.broken == [("u4", "not audio")]


def test_blank_runs_of_both_models(found):
  """2, 1 in the first; 1; 4, 1; 0. None is at the ends, and the student's are as long."""
  expected = [1, 3, 1, 0, 1] + [0] * (25 - 4)
  assert found.blank_runs == {"teacher": expected, "student": expected}


def test_offsets_of_all_that_can_be_aligned(found):
  """Three labels of the first, and the teacher's own of the second and third: all 2 late."""
  histogram = found.spike_offsets["histogram"]
  assert found.spike_offsets | {"histogram": None} == {
    "histogram": None,
    "utterances": 3,
    "left_out": 1,
    "labels": 8,
    "share_0": 0.0,
    "share_1": 0.0,
    "share_more": 1.0,
    "mean": 2.0,
  }
  reach = range(-align.REACH, align.REACH + 1)
  assert histogram == {str(n): 8 * (n == 2) for n in reach}


@pytest.mark.parametrize(("late", "share"), [(0, "share_0"), (1, "share_1")])
def test_shares(late, share):
  offsets = evaluate(source_of(PATHS, TEXTS), late=late).spike_offsets
  assert offsets[share] == 1.0 and offsets["mean"] == late
  assert sum(offsets[f"share_{name}"] for name in ("0", "1", "more")) == 1.0


def test_labels_without_a_transcript_are_those_the_teacher_hears():
  """Also where the student hears none."""
  found = evaluate(source_of(PATHS, TEXTS), late=14)
  assert {row["hypothesis"] for row in found.hypotheses["student"]} == {""}
  assert found.spike_offsets["labels"] == 8


def test_no_offsets_without_teacher_or_label_or_wish():
  assert evaluate(source_of(PATHS, TEXTS), late=1, spikes=False).spike_offsets is None
  alone = evaluate(source_of(PATHS, TEXTS), late=1, teacher=False)
  assert alone.spike_offsets is None and list(alone.blank_runs) == ["student"]
  silence = evaluate(source_of(["." * 14] * 6, [None] * 6), late=1)
  assert silence.spike_offsets is None and sum(silence.blank_runs["student"]) == 0


def test_long_recordings_are_left_out_of_the_comparison_in_time(monkeypatch, quick_to_compile):
  """Its memory grows with the square of their length; all other figures are there."""
  compared = evaluate(source_of(PATHS, TEXTS), late=1)
  monkeypatch.setattr(scoring, "LONGEST_SECONDS", 0.0)
  found = evaluate(source_of(PATHS, TEXTS), late=1)
  assert found.spike_offsets is None and compared.spike_offsets is not None
  assert (found.figures, found.kl) == (compared.figures, compared.kl)
