"""Recordings to words: windows, times, confidences, searches."""

import dataclasses
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
from jaxkd.inference.search import lexicon, ngram
from jaxkd.labels import MarkedVocabulary, SubwordVocabulary, Vocabulary, characters, phonemes
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


def test_a_model_that_says_nan_is_named_and_not_taken_for_silence(ears):
  broken = dataclasses.replace(
    ears.model, params=jax.tree.map(lambda p: p * np.nan, ears.model.params)
  )
  search = recogniser.with_beam(LETTERS, beam=2)
  for options in ({}, {"search": search}):
    with pytest.raises(
      UserError, match="the model's output has NaN or infinities in 2 of 2 frames"
    ):
      Recogniser(broken, "broken").transcribe(sound("aa"), **options)
  with pytest.raises(ValueError, match="beam is 0; it must be 1 or more"):
    recogniser.with_beam(LETTERS, beam=0)


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


def test_words_that_have_no_alignment_share_the_stretch(ears, caplog):
  """Too many for their frames: each has its part of the time, and none is lost."""
  text = "abab ab aba bab"
  found = ears.transcribe(sound("-ab-"), search=lambda log_probs: text)
  assert found.text == text and {word.confidence for word in found.words} == {0}
  edges = [(word.start_s, word.end_s) for word in found.words]
  np.testing.assert_allclose(edges, [(0.04 * i, 0.04 * i + 0.04) for i in range(4)], atol=1e-9)
  told = f"{text!r} has no times of its own between 0.00 and 0.16 s: its 15 labels do not fit"
  assert told in caplog.text


def test_words_that_cannot_be_spelled_leave_the_others_their_times(ears, caplog):
  search = lambda log_probs: "a cow 7 b 9"
  found = ears.transcribe(sound("-a----bb--"), search=search)
  assert found.text == "a cow 7 b 9"
  edges = [(word.start_s, word.end_s) for word in found.words]
  wanted = [(0.04, 0.08), (0.08, 0.16), (0.16, 0.24), (0.24, 0.32), (0.32, 0.4)]
  np.testing.assert_allclose(edges, wanted, atol=1e-9)
  assert [word.confidence > 0 for word in found.words] == [True, False, False, True, False]
  assert "'cow 7 9' has no times of its own between 0.00 and 0.40 s: the model's" in caplog.text


def listener(vocabulary: Vocabulary) -> Recogniser:
  """A recogniser whose frames are given."""
  graphdef, params = nnx.split(Levels())
  return Recogniser(AcousticModel(graphdef, params, vocabulary, FRAME), "levels")


def frames_of(vocabulary: Vocabulary, symbols: str, sure: float = 12.0) -> listening.Frames:
  """Frames that say symbols almost surely, a blank where "-" stands."""
  ids = {symbol: i for i, symbol in enumerate(vocabulary.symbols)} | {"-": vocabulary.blank_id}
  path = np.array([ids[symbol] for symbol in symbols.split()], np.int32)
  logits = sure * np.eye(len(vocabulary.symbols), dtype=np.float32)[path]
  return listening.Frames(*listening.said(logits, whole=False)[:2], _log(logits), 0.04 * len(path))


def _log(logits: np.ndarray) -> np.ndarray:
  return np.asarray(jax.nn.log_softmax(logits))


ONE, AN = ("W", "AH", "N"), (("AE", "N", "D", "AE", "N", "D"), ("AH", "N"))
SOUNDS = phonemes(Lexicon((("one", (ONE,)), ("two", (("T", "UW"),)), ("an", AN))))
PIECES = MarkedVocabulary(("<blk>", "▁the", "▁t", "he", "▁sat", "▁s", "at"), 0, "")
CASES = Vocabulary(("<b>", "|", "A", "a", "N", "n"), 0, "|")
_STRIPS = {
  "normalizer": {"type": "StripAccents"},
  "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
  "model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0], ["▁a", -1], ["▁b", -1]]},
}
STRIPPED = SubwordVocabulary(("<unk>", "▁a", "▁b", "<blank>"), 3, "", json.dumps(_STRIPS))


@pytest.mark.parametrize(
  ("vocabulary", "symbols", "text"),
  [
    (SOUNDS, "- W AH N# - - T UW# - T N# - W AH N# - AH - N# -", "one two <T-N> one an"),
    (PIECES, "- ▁t - - he - - - ▁s - - - at - -", "the sat"),
    (CASES, "- A - - n - - | - A - - N - -", "an an"),
    (STRIPPED, "- ▁a - - ▁b -", "a b"),
  ],
  ids=["phonemes", "pieces", "cases", "a tokenizer that cannot spell"],
)
def test_a_beam_aligns_the_labels_that_it_heard(vocabulary, symbols, text):
  """Whatever else the text may be spelled with: so its words are those of the best path."""
  heard, frames = listener(vocabulary), frames_of(vocabulary, symbols)
  greedy = list(heard._words(frames, None))
  assert " ".join(word.text for word in greedy) == text
  assert list(heard._words(frames, recogniser.with_beam(vocabulary, beam=8))) == greedy


def test_a_lexicon_aligns_the_spelling_that_was_heard():
  """A second pronunciation; at the first's length, and where it has too few frames for that."""
  pytest.importorskip("flashlight")
  heard = listener(SOUNDS)
  search = recogniser.with_lexicon(SOUNDS, SOUNDS.lexicon, None, lexicon.Options(beam=50))
  for symbols in ("- - AH - - - - N# - - - - T - - UW# - - -", "- AH N# -", "- AH N# N# - T UW#"):
    frames = frames_of(SOUNDS, symbols)
    assert list(heard._words(frames, search)) == list(heard._words(frames, None))


def test_a_tokenizer_that_cannot_spell_has_no_lexicon():
  words = "words of w.txt cannot be spelled exactly as the model's tokenizer would: .*StripAccents"
  with pytest.raises(UserError, match=words) as error:
    recogniser.with_lexicon(STRIPPED, ["a"], None, lexicon.Options(), name="w.txt")
  assert "transcripts" not in str(error.value) and "\n" not in str(error.value)


def test_of_words_that_sound_alike_the_searchs_is_given():
  vocabulary = phonemes(Lexicon((("to", (("T", "U"),)), ("two", (("T", "U"),)))))
  heard = listener(vocabulary)
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


def test_a_word_that_the_frames_do_not_say_is_not_sure(ears):
  """Surer as they say it more, and as sure as by the best path where they say it."""
  found = []
  for level in (0.1, 0.14, 0.149, 0.151, 0.16, 0.2):  # between "a" and "b"
    samples = sound("-b-")
    samples[FRAME : 2 * FRAME] *= level / 0.2
    (greedy,), (word,) = (
      ears.transcribe(samples, search=search).words for search in (None, lambda log_probs: "b")
    )
    found.append(word.confidence)
    if level > 0.15:
      assert word == greedy
    else:
      assert greedy.text == "a" and word.confidence < greedy.confidence
  assert found[0] < 0.05 and found[1] < 0.5 < found[-1]
  assert found[3] == pytest.approx(found[2], abs=0.1)  # no jump where it becomes the best


def test_a_phrase_flips_a_near_tie_and_no_clear_word(ears):
  tie, clear = sound("-a-"), sound("-a-")
  tie[FRAME : 2 * FRAME] *= 0.146 / 0.1  # between "a" and "b", nearer to "a"
  plain = recogniser.with_beam(LETTERS, beam=16)
  favoured = recogniser.with_beam(LETTERS, beam=16, phrases=["B"], boost=2.0)
  assert [t.text for t in ears.transcribe([tie, clear], search=plain)] == ["a", "a"]
  assert [t.text for t in ears.transcribe([tie, clear], search=favoured)] == ["b", "a"]


def test_a_phrase_counts_each_time(ears):
  """Beside itself, too; several words, where they overlap with themselves."""
  tie = sound("-b -a-")
  tie[4 * FRAME : 5 * FRAME] *= 0.146 / 0.1  # between "a" and "b", nearer to "a"
  for phrases, text in [([], "b a"), (["b"], "b b"), (["b b"], "b b"), (["b b b"], "b a")]:
    search = recogniser.with_beam(LETTERS, beam=16, phrases=phrases, boost=2.0)
    assert ears.transcribe(tie, search=search).text == text
  assert recogniser._count(["a", "b", "a"], [*"ababa"]) == 2
  assert recogniser._count(["a"], ["aa", "a", "a"]) == 2


def test_phrases_that_cannot_be_spelled_are_named(caplog):
  recogniser.with_beam(LETTERS, beam=4, phrases=["ab b", "7 up", "cow"])
  assert "phrases that the model's classes cannot spell: 2 (7 up, cow)" in caplog.text
  caplog.clear()
  recogniser.with_beam(STRIPPED, beam=4, phrases=["a", "cow"])  # nobody knows
  recogniser.with_beam(SOUNDS, beam=4, phrases=["one two"])
  assert not caplog.text


def test_words_of_a_lexicon_alone(ears, caplog):
  pytest.importorskip("flashlight")
  search = recogniser.with_lexicon(LETTERS, ["ab", "bb", "cow"], None, lexicon.Options())
  assert "that the model's classes cannot spell: 1 (cow)" in caplog.text
  found = ears.transcribe(sound("-aa--bb- a-a-"), search=search)
  assert found.text == "ab ab" or found.text.split()[0] == "ab"
  assert all(word.text in ("ab", "bb") for word in found.words)


def test_words_of_a_lexicon_that_the_language_model_lacks_are_named(caplog, tmp_path):
  pytest.importorskip("flashlight")
  ngram.write_arpa(ngram.estimate(["ab b", "b a"], 2), tmp_path / "lm.arpa")
  lm = lexicon.open_lm(tmp_path / "lm.arpa")
  recogniser.with_lexicon(LETTERS, ["ab", "bb", "aa"], lm, lexicon.Options(lm_weight=1.0))
  assert "words of the lexicon that the language model lacks: 2 (bb, aa)" in caplog.text
  assert "words of the language model that the lexicon lacks: 2 (b, a)" in caplog.text


def test_a_search_of_long_audio_gives_the_text_of_one_stretch(ears, monkeypatch):
  """No cut is in a word, even where longer runs of blanks are there than between words."""
  rng = np.random.default_rng(0)
  words = ["a------b", "b-----ba", "a--a-------a", "bb"]
  path = "- -".join(rng.choice(words, 40))
  search = recogniser.with_beam(LETTERS, beam=8)
  whole = ears.transcribe(sound(path), search=search)
  assert len(whole.words) == 40
  monkeypatch.setattr(recogniser, "_STRETCH_SECONDS", 1.2)
  cut = ears.transcribe(sound(path), search=search)
  assert cut.text == whole.text
  got, wanted = ([[w.start_s, w.end_s, w.confidence] for w in x.words] for x in (cut, whole))
  np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize(
  ("source", "words"), [("gone", "'gone': no such folder"), ("a/b/c", "no such folder")]
)
def test_nothing_to_load(source, words, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match=words) as error:
    jaxkd.load(source)
  assert "config" not in str(error.value)


@pytest.mark.parametrize("source", ["gone", "."])
@pytest.mark.parametrize("model", ["studnt", "models", "", None, 3])
def test_another_model_than_a_run_has(source, model, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "results.json").write_text("{}")
  near = r" \(did you mean 'student'\?\)" if model == "studnt" else ""
  with pytest.raises(UserError, match=f"^model is {model!r}: it must be student or teacher{near}$"):
    jaxkd.load(source, model)


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
