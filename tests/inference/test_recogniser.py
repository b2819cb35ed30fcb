"""Recordings to words: windows, times, confidences, searches."""

import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from flax import nnx

import golden_posteriors
import jaxkd
from jaxkd.errors import UserError
from jaxkd.inference import listening, recogniser
from jaxkd.inference.alignment import viterbi
from jaxkd.inference.recogniser import Recogniser
from jaxkd.inference.search import lexicon
from jaxkd.labels import Vocabulary, characters, phonemes
from jaxkd.labels.lexicon import Lexicon
from jaxkd.masks import length_mask, strided_len
from jaxkd.models.acoustic import AcousticModel
from jaxkd.teacher import store, stored
from jaxkd.types import FrameOutput

_BENCHMARK = pathlib.Path(__file__).parents[2] / "benchmarks" / "confidence.py"
_spec = importlib.util.spec_from_file_location("confidence", _BENCHMARK)
measure = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(measure)

FRAME, LETTERS = 640, characters("ab ")
LEVELS = {"a": 0.1, "b": 0.2, " ": 0.3, "-": 0.4}  # "-" is the blank


class Levels(nnx.Module):
  """Hears the level of each frame: a class for each, and the nearer ones not quite impossible."""

  def __init__(self):
    self.levels = nnx.Param(jnp.array(list(LEVELS.values())))

  def __call__(self, audio, audio_len):
    frames = audio.reshape(len(audio), -1, FRAME)
    means = jnp.abs(frames).mean(-1)
    logits = -40 * jnp.abs(means[..., None] - self.levels[...][None, None])
    return FrameOutput(logits, length_mask(strided_len(audio_len, FRAME), frames.shape[1]))


@pytest.fixture(scope="module")
def ears() -> Recogniser:
  graphdef, params = nnx.split(Levels())
  return Recogniser(AcousticModel(graphdef, params, LETTERS, FRAME), "levels")


def sound(path: str) -> np.ndarray:
  """f32[S]: 40 ms for each class of a path, such as "aa-b"."""
  signs = np.resize([1.0, -1.0], FRAME)
  return np.concatenate([LEVELS[c] * signs for c in path]).astype(np.float32)


def test_words_have_times_within_a_frame(ears):
  found = ears.transcribe(sound("--aab--- -bb--"))
  assert found.text == "ab b" and found.seconds == pytest.approx(14 * 0.04)
  first, second = found.words
  assert (first.start_s, first.end_s) == pytest.approx((2 * 0.04, 5 * 0.04))
  assert (second.start_s, second.end_s) == pytest.approx((10 * 0.04, 12 * 0.04))


def test_times_are_those_of_the_forced_alignment(ears):
  path = "-aa-b -" * 5 + "ab"
  found = ears.transcribe(sound(path))
  log_probs = jax.nn.log_softmax(
    ears.model(sound(path)[None], np.int32([len(path) * FRAME])).logits
  )
  labels = LETTERS.encode(found.text)
  aligned = viterbi(
    log_probs, np.int32([len(path)]), labels[None], np.int32([len(labels)]), blank_id=3
  )
  starts = [int(aligned.first[0, start]) for _, start, _ in LETTERS.words(labels.tolist())]
  assert [round(word.start_s / 0.04) for word in found.words] == starts
  beam = recogniser.with_beam(LETTERS, beam=4)
  assert ears.transcribe(sound(path), search=beam).words == found.words


def test_long_audio_gives_the_text_of_the_whole(ears, tmp_path, monkeypatch):
  """In windows from a file, resampled or not, as in one piece; and nothing is lost between."""
  rng = np.random.default_rng(0)
  path = "".join(rng.choice(list("ab -"), 1800))  # 72 s
  soundfile.write(str(tmp_path / "x.wav"), sound(path), 16_000, subtype="FLOAT")
  monkeypatch.setattr(listening, "LONGEST_SECONDS", 80.0)
  monkeypatch.setattr(listening, "_LENGTHS_SECONDS", (80.0,))
  whole = ears.transcribe(sound(path))
  monkeypatch.undo()
  pieced = ears.transcribe(tmp_path / "x.wav")
  assert pieced.text == whole.text and len(pieced.words) > 200
  np.testing.assert_allclose(
    [[w.start_s, w.end_s, w.confidence] for w in pieced.words],
    [[w.start_s, w.end_s, w.confidence] for w in whole.words],
    atol=1e-5,
  )
  assert pieced.seconds == whole.seconds == 72.0


def test_many_recordings_come_back_in_their_order(ears, tmp_path):
  texts = ["a", "ab", "ba b", "b a b a", "a" + " b" * 40]
  paths = ["-" + text.replace(" ", " -") + "-" for text in texts]
  given = [sound(p) for p in paths * 20]
  assert [t.text for t in ears.transcribe(given)] == texts * 20


def test_what_cannot_be_heard_is_named(ears, tmp_path):
  (tmp_path / "x.wav").write_text("no sound")
  with pytest.raises(UserError, match="x.wav: not readable as audio"):
    ears.transcribe([sound("aa"), tmp_path / "x.wav"])
  found = list(ears.each([sound("aa"), tmp_path / "x.wav", sound("bb"), np.zeros(9000)]))
  assert [getattr(t, "text", None) for t in found] == ["a", None, "b", None]
  assert "silent" in str(found[3])
  soundfile.write(str(tmp_path / "long.wav"), np.zeros(61 * 16_000), 16_000)  # heard in windows
  with pytest.raises(UserError, match="long.wav: silent: every sample is 0"):
    ears.transcribe(tmp_path / "long.wav")


def test_samples_are_floats_or_whole_numbers_of_one_channel(ears):
  samples = sound("-ab-")
  for same in (samples.astype(np.float64), jnp.asarray(samples), (2**31 * samples).astype("<i4")):
    assert ears.transcribe(same).text == "ab"
  assert ears.transcribe([np.int16(2**15 * samples)])[0].text == "ab"
  for wrong, words in [
    (np.stack([samples, samples], 1), r"float32\[2560, 2\]"),
    (np.ones(()), r"float64\[\]"),
    (np.float32(1), r"float32\[\]"),
    (samples > 0, r"bool\[2560\]"),
    (np.uint8(samples), r"uint8\[2560\]"),
    ([0.5, 0.25], r"float64\[\]"),
  ]:
    with pytest.raises(UserError, match=rf"the samples: {words}: they must be float\[S\], int16"):
      ears.transcribe(wrong)


def test_words_that_have_no_alignment_are_not_lost(ears, caplog):
  """Too many for their frames, or ones that the classes cannot write."""
  for text in ("abababab", "a cow"):
    caplog.clear()
    found = ears.transcribe(sound("-ab-"), search=lambda log_probs, text=text: text)
    assert found.text == text
    assert {(w.start_s, w.end_s, w.confidence) for w in found.words} == {(0, 0.16, 0)}
    assert f"{text!r} has no times but 0.00 to 0.16 s" in caplog.text


def test_of_words_that_sound_alike_the_searchs_is_given():
  vocabulary = phonemes(Lexicon((("to", (("T", "U"),)), ("two", (("T", "U"),)))))
  graphdef, params = nnx.split(Levels())
  heard = Recogniser(AcousticModel(graphdef, params, vocabulary, FRAME), "levels")
  log_probs = np.log(np.full((6, len(vocabulary.symbols)), 0.2, np.float32))
  frames = listening.Frames(np.zeros(6, np.int32), np.ones(6), log_probs, 0.24)
  assert [word.text for word in heard._words(frames, lambda _: "two to")] == ["two", "to"]


def test_confidence_is_one_of_a_sure_frame_and_zero_of_an_unsure_one():
  sure, unsure = np.log([1 - 3e-9, 1e-9, 1e-9, 1e-9]), np.log([0.25] * 4)
  half = np.log([0.5, 0.5, 1e-30, 1e-30])
  found = listening.frame_confidence(jnp.array([sure, half, unsure]))
  assert found[0] > 0.99 and 0.2 < found[1] < 0.9 and found[2] == pytest.approx(0, abs=1e-6)


def test_a_doubtful_word_is_less_sure(ears):
  clear, doubtful = sound("-a- -b-"), sound("-a- -b-")
  doubtful[5 * FRAME : 6 * FRAME] *= 0.16 / 0.2  # nearer to an "a"
  sure, less = ears.transcribe([clear, doubtful])
  assert sure.text == less.text == "a b"
  assert less.words[1].confidence < sure.words[1].confidence
  assert less.words[0].confidence == pytest.approx(sure.words[0].confidence, abs=1e-5)


def test_confidence_orders_right_and_wrong_words_of_the_demo():
  """Frames of a trained student, of its test data (tests/golden_posteriors.py)."""
  found = np.load(golden_posteriors.PATH)
  facts = json.loads(str(found["facts"]))
  vocabulary = Vocabulary(tuple(facts["symbols"]), facts["blank_id"])
  graphdef, params = nnx.split(Levels())
  student = Recogniser(AcousticModel(graphdef, params, vocabulary, FRAME), "demo")
  starts = np.cumsum(found["frames"])[:-1]
  sure, right = [], []
  for text, part in zip(facts["references"], np.split(found["log_probs"], starts), strict=True):
    log_probs = part.astype(np.float32)
    confidence = np.asarray(listening.frame_confidence(jnp.asarray(log_probs)))
    frames = listening.Frames(log_probs.argmax(-1), confidence, None, len(part) * 0.04)
    words = list(student._words(frames, None))
    sure += [word.confidence for word in words]
    right += measure.right_and_wrong(text, [word.text for word in words])
  sure, right = np.array(sure), np.array(right)
  assert (~right).sum() >= 20 and right.sum() >= 100
  assert measure.area(sure, right) > 0.8  # 0.5 is chance


def test_a_phrase_flips_a_near_tie_and_no_clear_word(ears):
  tie, clear = sound("-a-"), sound("-a-")
  tie[FRAME : 2 * FRAME] *= 0.146 / 0.1  # between "a" and "b", nearer to "a"
  plain = recogniser.with_beam(LETTERS, beam=16)
  favoured = recogniser.with_beam(LETTERS, beam=16, phrases=["B"], boost=2.0)
  assert [t.text for t in ears.transcribe([tie, clear], search=plain)] == ["a", "a"]
  assert [t.text for t in ears.transcribe([tie, clear], search=favoured)] == ["b", "a"]


def test_words_of_a_lexicon_alone(ears, caplog):
  pytest.importorskip("flashlight")
  search = recogniser.with_lexicon(LETTERS, ["ab", "bb", "cow"], None, lexicon.Options())
  assert "that the model's classes cannot spell: 1 (cow)" in caplog.text
  found = ears.transcribe(sound("-aa--bb- a-a-"), search=search)
  assert found.text == "ab ab" or found.text.split()[0] == "ab"
  assert all(word.text in ("ab", "bb") for word in found.words)


@pytest.mark.parametrize("longest", [10, 40, 1000])
def test_stretches_cover_all_and_are_cut_in_silence(longest):
  rng = np.random.default_rng(1)
  path = np.repeat(rng.integers(0, 7, 100).clip(max=3), rng.integers(1, 6, 100))
  found = recogniser.stretches(path, 3, longest)
  assert found[0][0] == 0 and found[-1][1] == len(path)
  assert all(a[1] == b[0] for a, b in zip(found, found[1:], strict=False))
  assert all(0 < end - start <= longest for start, end in found)
  if longest == 40:
    assert all(path[end] == 3 for _, end in found[:-1])
  assert recogniser.stretches(path[:0], 3, longest) == []


@pytest.mark.parametrize(
  ("source", "words"), [("gone", "'gone': no such folder"), ("a/b/c", "no such folder")]
)
def test_nothing_to_load(source, words, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match=words) as error:
    jaxkd.load(source)
  assert "config" not in str(error.value)


def test_a_store_hears_nothing(tmp_path, monkeypatch):
  """As it is, and as the teacher of a run."""
  folder = tmp_path / "frames"
  facts, symbols = {"teacher": "org/big"}, LETTERS.symbols
  store.Writer(folder, symbols=symbols, blank_id=3, frame_samples=FRAME, facts=facts).close()
  words = "frames is what a teacher said of other audio, and hears none: give .* itself, org/big"
  with pytest.raises(UserError, match=f"{words}$"):
    jaxkd.load(folder)
  (tmp_path / "results.json").write_text("{}")
  run = type("Run", (), {"models": lambda self, names: {names[0]: stored.find(str(folder))}})
  monkeypatch.setattr(recogniser, "FinishedRun", lambda *given: run())
  with pytest.raises(UserError, match=f"{words}, or --model=student$"):
    jaxkd.load(tmp_path, "teacher")
