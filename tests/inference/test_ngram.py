"""Language models: right probabilities of tiny corpora; ARPA files that parse, or say why not."""

import bz2
import gzip
import lzma
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxkd.errors import UserError
from jaxkd.inference.search import lexicon, ngram
from jaxkd.labels import Vocabulary

TEXTS = ["a b", "a b c", "a c", "b a b", "c c c a", "", "a"]
sentences = st.lists(st.lists(st.sampled_from("abcde"), max_size=6).map(" ".join), min_size=1)


def contexts(model: ngram.NGrams, rng, count: int = 20):
  """Contexts that occurred, and others."""
  words = [*model.words, "unseen"]
  seen = [gram for table in model.tables[:-1] for gram in table if gram[-1] != ngram.END]
  drawn = [tuple(rng.choice(words, rng.integers(1, 5)).tolist()) for _ in range(count)]
  return [(), (ngram.START,), *seen[:count], *drawn, *((ngram.START, *gram) for gram in drawn)]


def assert_sums_to_one(model: ngram.NGrams) -> None:
  vocabulary = [*model.words, ngram.END, ngram.UNKNOWN]
  for context in contexts(model, np.random.default_rng(0)):
    total = sum(10 ** model.score(context, word) for word in vocabulary)
    assert total == pytest.approx(1, abs=1e-9), context


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_probabilities_sum_to_one(order):
  model = ngram.estimate(TEXTS, order)
  assert model.order == order and sorted(model.words) == ["a", "b", "c"]
  assert_sums_to_one(model)


@settings(max_examples=60, deadline=None)
@given(sentences, st.integers(1, 4))
def test_any_corpus_gives_a_distribution(texts, order):
  if not any(texts):
    with pytest.raises(UserError, match="there are none"):
      ngram.estimate(texts, order)
    return
  assert_sums_to_one(ngram.estimate(texts, order))


def test_enough_text_gives_its_own_discounts():
  rng = np.random.default_rng(0)
  words = [f"w{i}" for i in range(300)]
  weights = 1 / np.arange(1, 301)
  texts = [" ".join(rng.choice(words, 8, p=weights / weights.sum())) for _ in range(300)]
  counts = ngram._counts(texts, 2)[1]
  found = ngram._discounts(counts.values())
  n = [sum(c == k for c in counts.values()) for k in range(5)]
  y = n[1] / (n[1] + 2 * n[2])
  expected = (1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3])
  assert found == pytest.approx(expected) and found != ngram._FALLBACK
  assert_sums_to_one(ngram.estimate(texts, 3))


def test_a_bigram_model_by_hand():
  """Two sentences, "a b" and "a": all by the discounts 0.5, 1 and 1.5.

  Continuations: a follows <s>; b follows a; </s> follows a and b: counts 1, 1, 2, of which 0.5, 0.5
  and 1 are taken, 2 of 4 in all, and spread over a, b, </s> and <unk>.
  """
  model = ngram.estimate(["a b", "a"], 2)
  p_a = p_b = 0.5 / 4 + 2 / 4 / 4
  p_end = 1 / 4 + 2 / 4 / 4
  # After a: b once and </s> once, 0.5 taken of each. After <s>: a twice, 1 taken. After b: </s>.
  expected = {
    ((), "a"): p_a,
    ((), "</s>"): p_end,
    ((), "nothing"): 2 / 4 / 4,
    (("<s>",), "a"): 1 / 2 + 1 / 2 * p_a,
    (("<s>",), "b"): 1 / 2 * p_b,
    (("a",), "b"): 0.5 / 2 + 1 / 2 * p_b,
    (("a",), "a"): 1 / 2 * p_a,
    (("b",), "</s>"): 0.5 / 1 + 0.5 / 1 * p_end,
    (("nothing",), "a"): p_a,
  }
  for (context, word), p in expected.items():
    assert 10 ** model.score(context, word) == pytest.approx(p), (context, word)
  whole = expected[("<s>",), "a"] * expected[("a",), "b"] * expected[("b",), "</s>"]
  assert model.sentence("a b") == pytest.approx(math.log10(whole))


def test_marks_in_transcripts_are_no_words():
  model = ngram.estimate(["a <unk> b", "<s> a </s> b"], 2)
  assert sorted(model.words) == ["a", "b"]
  assert_sums_to_one(model)
  assert model.score((), "<unk>") > ngram.estimate(["a b", "a b"], 2).score((), "<unk>")


@pytest.mark.parametrize("order", [1, 2, 4])
def test_round_trip(order, tmp_path):
  model = ngram.estimate(TEXTS, order)
  ngram.write_arpa(model, tmp_path / "lm.arpa")
  packed = tmp_path / "lm.arpa.gz"
  packed.write_bytes(gzip.compress((tmp_path / "lm.arpa").read_bytes()))
  for path in (tmp_path / "lm.arpa", packed):
    again = ngram.read_arpa(path)
    assert (again.order, again.words) == (order, model.words)
    contents = ngram.read_contents(path)
    assert contents.sizes == tuple(map(len, model.tables)) and list(contents.words) == model.words
    for word, p in contents.words.items():
      assert p == pytest.approx(model.tables[0][(word,)][0], abs=1e-7)
    for text in [*TEXTS, "unseen a b", "c b a a unseen"]:
      assert again.sentence(text) == pytest.approx(model.sentence(text), abs=1e-5)


def test_agrees_with_kenlm(tmp_path):
  kenlm = pytest.importorskip("flashlight.lib.text.decoder.kenlm")
  from flashlight.lib.text.dictionary import Dictionary

  ngram.write_arpa(ngram.estimate(TEXTS, 4), tmp_path / "lm.arpa")
  ours = ngram.read_arpa(tmp_path / "lm.arpa")
  words = ["a", "b", "c", "unseen"]
  dictionary = Dictionary()
  for word in words:
    dictionary.add_entry(word)
  theirs = kenlm.KenLM(str(tmp_path / "lm.arpa"), dictionary)
  rng = np.random.default_rng(0)
  for _ in range(50):
    drawn, state, context = rng.integers(0, 4, rng.integers(1, 8)), theirs.start(False), ["<s>"]
    for index in drawn.tolist():
      state, score = theirs.score(state, index)
      assert ours.score(context, words[index]) == pytest.approx(score, abs=1e-5)
      context.append(words[index])
    assert ours.score(context, "</s>") == pytest.approx(theirs.finish(state)[1], abs=1e-5)


ARPA = """\
made by hand

\\data\\
ngram 1=4
ngram 2=2

\\1-grams:
-99\t<s>\t-0.3
-0.5\t</s>
-0.4\ta\t-0.2
-1\t<unk>

\\2-grams:
-0.2\t<s> a
-0.1\ta </s>

\\end\\
"""


def test_reads_what_others_write(tmp_path):
  path = tmp_path / "lm.arpa"
  path.write_bytes(ARPA.replace("\t", " ").replace("\n", "\r\n").encode())
  model = ngram.read_arpa(path)
  assert model.score(["<s>"], "a") == pytest.approx(-0.2)
  assert model.score(["<s>"], "b") == pytest.approx(-0.3 - 1)
  assert model.score(["a"], "a") == pytest.approx(-0.2 - 0.4)
  assert model.score(["b"], "a") == pytest.approx(-0.4)


@pytest.mark.parametrize(
  ("old", "new", "line", "words"),
  [
    ("\\data\\", "data", 18, r"the file ends where \\data\\"),
    ("ngram 1=4\nngram 2=2\n", "", 5, "instead of ngram 1=COUNT"),
    ("ngram 2=2", "ngram 3=2", 5, "'ngram 3=2' instead of ngram 2=COUNT"),
    ("ngram 2=2", "ngram 2=two", 5, "'ngram 2=two' instead of ngram 2=COUNT"),
    ("ngram 1=4", "ngram 1=5", 13, r"4 1-grams, and \\data\\ says 5"),
    ("ngram 2=2", "ngram 2=1", 17, r"2 2-grams, and \\data\\ says 1"),
    ("\\2-grams:", "\\3-grams:", 13, r"instead of \\2-grams:"),
    ("-0.4\ta\t-0.2", "-0.4\ta\tb", 10, "something else than a number"),
    ("-0.4\ta\t-0.2", "zero\ta\t-0.2", 10, "something else than a number"),
    ("-0.4\ta\t-0.2", "nan\ta\t-0.2", 10, "no log10 probability"),
    ("-0.4\ta\t-0.2", "0.4\ta\t-0.2", 10, "no log10 probability"),
    ("-0.1\ta </s>", "-0.1", 15, "no probability, 2 words"),
    ("-0.1\ta </s>", "-0.1\ta b c d", 15, "no probability, 2 words"),
    ("\\end\\\n", "", 17, r"the file ends where \\end\\"),
    ("\\end\\", "\\3-grams:", 17, r"instead of \\end\\"),
  ],
)
def test_files_that_do_not_parse(tmp_path, old, new, line, words):
  path = tmp_path / "lm.arpa"
  assert old in ARPA
  path.write_text(ARPA.replace(old, new))
  with pytest.raises(UserError, match=words) as caught:
    ngram.read_contents(path)
  assert str(caught.value).startswith(f"{path}:{line}: ") and "\n" not in str(caught.value)


_FORMS = {
  "gzip": gzip.compress,
  "bzip2": bz2.compress,
  "xz": lzma.compress,
  "a mark of the byte order": lambda arpa: b"\xef\xbb\xbf" + arpa,
  "carriage returns": lambda arpa: arpa.replace(b"\n", b"\r\n"),
  "spaces": lambda arpa: arpa.replace(b"\t", b" "),
  "lines before": lambda arpa: b"made by hand\n\n" + arpa,
  "as it is": lambda arpa: arpa,
}


@pytest.mark.parametrize("name", ["lm.arpa", "lm.arpa.gz"])
@pytest.mark.parametrize("form", _FORMS)
def test_every_form_is_read_here_and_by_the_search(tmp_path, form, name):
  """Whatever the file is called."""
  pytest.importorskip("flashlight.lib.text.decoder.kenlm")
  model = ngram.estimate(TEXTS, 3)
  ngram.write_arpa(model, tmp_path / "plain")
  (tmp_path / name).write_bytes(_FORMS[form]((tmp_path / "plain").read_bytes()))
  assert ngram.read_arpa(tmp_path / name) == ngram.read_arpa(tmp_path / "plain")
  lm = lexicon.open_lm(tmp_path / name)
  assert lm.order == 3 and lm.words == {word: word for word in model.words}
  for text, p in scores(lm, ["a b", "c c b a"]).items():
    assert p == pytest.approx(model.sentence(text), abs=1e-5)


def scores(lm: lexicon.LanguageModel, texts) -> dict[str, float]:
  """log10 p of texts by the language model of a search for their words."""
  words = {word: [(i,)] for i, word in enumerate(dict.fromkeys(" ".join(texts).split()))}
  labels = Vocabulary(("<>", *words), 0)
  theirs = lexicon.LexiconSearch(lexicon.Spellings(words, ()), labels, lm)._lm
  found = {}
  for text in texts:
    state, found[text] = theirs.start(False), 0.0
    for word in text.split():
      state, p = theirs.score(state, list(words).index(word))
      found[text] += p
    found[text] += theirs.finish(state)[1]
  return found


def test_of_two_cases_of_a_word_the_likelier_is_taken(tmp_path, caplog):
  pytest.importorskip("flashlight.lib.text.decoder.kenlm")
  lines = ["-0.7\ttwo\t-0.3", "-3\tTwo\t-0.3", "-1.5\ttoo\t-0.3", "-2\tİki\t-0.3", "-4\tiki\t-0.3"]
  for order in (lines, lines[::-1]):
    path = tmp_path / "lm.arpa"
    head = "\\data\\\nngram 1=8\nngram 2=2\n\n\\1-grams:\n-1\t<unk>\n-99\t<s>\t-0.3\n-0.9\t</s>\n"
    pairs = "\n\n\\2-grams:\n-2.5\t<s> Two\n-0.2\t<s> two\n\n\\end\\\n"
    path.write_text(head + "\n".join(order) + pairs, encoding="utf-8")
    caplog.clear()
    lm = lexicon.open_lm(path)
    assert lm.words == {"two": "two", "too": "too", "iki": "İki"}
    assert "lm.arpa: 2 of 5 words differ from likelier ones in case" in caplog.text
    found = scores(lm, ["two", "iki", "unknown"])
    assert found["two"] == pytest.approx(-0.2 - 0.3 - 0.9)
    assert found["iki"] == pytest.approx(-0.3 - 2 - 0.3 - 0.9)
    assert found["unknown"] == pytest.approx(-0.3 - 1 - 0.9)


def test_probabilities_of_0(tmp_path):
  """-inf is read as it is; the search, whose sums it would make NaN, has what <s> has."""
  pytest.importorskip("flashlight.lib.text.decoder.kenlm")
  path = tmp_path / "lm.arpa"
  path.write_text(ARPA.removeprefix("made by hand\n\n").replace("-99", "-inf"))
  assert ngram.read_arpa(path).score(["<s>"], "a") == pytest.approx(-0.2)
  lm = lexicon.open_lm(path)
  assert not lm.contents.finite
  assert scores(lm, ["a"])["a"] == pytest.approx(-0.2 - 0.1)
  path.write_text(ARPA.replace("-0.1\ta", "-Inf\ta").replace("-0.4\ta\t-0.2", "-0.4\ta\t-inf"))
  model = ngram.read_arpa(path)
  assert model.score(["a"], "</s>") == model.score(["a"], "a") == -math.inf
  assert scores(lexicon.open_lm(path), ["a"])["a"] == pytest.approx(-0.2 - 99)
  ngram.write_arpa(model, path)
  assert ngram.read_arpa(path) == model


def test_a_binary_of_kenlm_is_named(tmp_path):
  path = tmp_path / "lm.arpa"
  path.write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\0" + bytes(64))
  with pytest.raises(UserError, match="lm.arpa is a binary file of KenLM.*: give the ARPA file"):
    ngram.read_contents(path)


def test_files_that_cannot_be_read(tmp_path):
  packed = gzip.compress(ARPA.encode())
  (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
  (tmp_path / "cut.gz").write_bytes(packed[:-20])
  (tmp_path / "damaged.gz").write_bytes(packed[:40] + b"\xff\xff\xff" + packed[43:])
  (tmp_path / "cut.bz2").write_bytes(bz2.compress(ARPA.encode())[:-20])
  (tmp_path / "cut.xz").write_bytes(lzma.compress(ARPA.encode())[:90])
  for name in ("absent", "binary", "cut.gz", "damaged.gz", "cut.bz2", "cut.xz"):
    with pytest.raises(UserError, match=f"{name} cannot be read as a language model") as caught:
      ngram.read_arpa(tmp_path / name)
    assert "\n" not in str(caught.value)
