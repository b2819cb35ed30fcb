"""One decision: the classes of a run."""

import logging

import pytest

from jaxkd import config as config_lib
from jaxkd.labels import characters, choose, normalise


def block(**changes):
  labels = config_lib.base("demo").labels.copy_and_resolve_references().unlock()
  labels.update(changes)
  return labels


ENGLISH = characters(config_lib.ALPHABET)


@pytest.mark.parametrize("texts", [[], ["Don’t", "a b"], [""], ["zz"]])
def test_english_has_the_usual_alphabet(texts):
  assert choose(block())(texts) == ENGLISH


@pytest.mark.parametrize(
  ("texts", "alphabet", "rare"),
  [
    (["你好", "好你", "你 好"], " 你好", "space (1)"),
    (["560762", "0"], "02567", "0 (2), 2 (1), 5 (1), 6 (2), 7 (1)"),
    (["ÄÖ äö äö ", "öäß"], " ßäö", "space (2), ß (1)"),
  ],
)
def test_any_language_has_the_characters_of_its_transcripts(caplog, texts, alphabet, rare):
  caplog.set_level(logging.INFO)
  found = choose(block())(texts)
  assert found == characters(alphabet)
  for text in texts:
    assert found.decode(found.encode(text)) == normalise(text)
  told = f"labels.alphabet=auto: {len(alphabet)} characters of the transcripts are the classes"
  assert told in caplog.text and caplog.text.rstrip().endswith(f"less than 3 times: {rare}")


def test_what_is_said_wins():
  assert choose(block(alphabet="ab "))(["xyz"]) == characters("ab ")


@pytest.mark.parametrize("changes", [{}, {"name": "characters"}])
def test_a_teachers_classes_are_taken(changes):
  teacher = "runs/t", characters("xyz ")
  assert choose(block(**changes), teacher=teacher)(()) == teacher[1]


def test_an_alphabet_that_a_teacher_makes_void_is_said(caplog):
  teacher = "runs/t", characters("xyz ")
  assert choose(block(alphabet="ab "), teacher=teacher)(()) == teacher[1]
  assert "config.labels.alphabet is not read: the classes are those of runs/t" in caplog.text
