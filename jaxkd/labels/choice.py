"""Which vocabulary a run has: one decision, of `config.labels` and of what models bring."""

import collections
import logging
from collections.abc import Callable, Iterable

from ml_collections import ConfigDict

from jaxkd import files
from jaxkd.config import ALPHABET, AUTO
from jaxkd.errors import UserError
from jaxkd.labels import lexicon as lexicon_lib
from jaxkd.labels.phonemes import phonemes
from jaxkd.labels.pieces import sentencepiece
from jaxkd.labels.text import normalise
from jaxkd.labels.vocabulary import Vocabulary, characters, check_same

log = logging.getLogger(__name__)
_RARE = 3  # a character that is seen less often is worth a line
# Transcripts that a run reads → its vocabulary.
Choice = Callable[[Iterable[str]], Vocabulary]
_FIX = "config.labels.name=auto takes the teacher's"


def choose(
  block: ConfigDict,
  *,
  teacher: tuple[str, Vocabulary] | None = None,
  head: tuple[str, Vocabulary] | None = None,
) -> Choice:
  """Checks what can be checked, and returns what gives the vocabulary once transcripts are there.

  A teacher's classes are the run's. Without one, a pre-trained model that has a head keeps it where
  `block.name` is "auto". Else the classes are those that the block names; transcripts decide the
  pieces of sentencepiece, and which of the words that sound alike is heard.

  Args:
    block: `config.labels`.
    teacher: its name, and its vocabulary where it is known already.
    head: of the model that is trained: its name and the vocabulary of its own head.

  Raises:
    UserError: classes that differ from the teacher's, a lexicon that cannot be read, or (by what is
      returned) transcripts that sentencepiece cannot be trained on.
  """
  if teacher is not None:
    vocabulary = _taught(block, *teacher)
    if head is not None:
      check_same(vocabulary, head[1], teacher[0], head[0])
    return lambda texts: vocabulary
  if block.name == "auto" and head is not None:
    return lambda texts: head[1]
  return _own(block)


def _own(block: ConfigDict) -> Choice:
  """The classes that the block names."""
  if block.name == "sentencepiece":
    return lambda texts: sentencepiece(texts, block.size)
  if block.name == "phonemes":
    words = lexicon_lib.Lexicon(())
    if block.lexicon:
      words = lexicon_lib.read(files.expanded(block.lexicon))
    if block.cmudict:
      words = words.before(lexicon_lib.cmudict())
    return lambda texts: phonemes(words.by_count(texts))
  if block.alphabet == AUTO:
    return _of_transcripts
  return lambda texts: characters(block.alphabet)


def _of_transcripts(texts: Iterable[str]) -> Vocabulary:
  """The usual alphabet where it can write all transcripts, else the characters that they have."""
  counts = collections.Counter(character for text in texts for character in normalise(text))
  if counts.keys() <= set(ALPHABET):
    return characters(ALPHABET)
  found = "".join(sorted(counts))
  rare = [f"{'space' if c == ' ' else c} ({n})" for c, n in sorted(counts.items()) if n < _RARE]
  log.info(
    "labels.alphabet=auto: %d characters of the transcripts are the classes: %r%s",
    len(found),
    found if len(found) <= 80 else f"{found[:80]}…",
    f"; seen less than {_RARE} times: {', '.join(rare[:20])}{', …' * (len(rare) > 20)}"
    if rare
    else "",
  )
  return characters(found)


def _taught(block: ConfigDict, source: str, given: Vocabulary) -> Vocabulary:
  """The teacher's classes, which must be those that the block asks for, if it asks for any.

  Of phonemes, the words that transcripts may have are the block's.
  """
  if block.name == "auto":
    if block.alphabet != AUTO:
      log.warning("config.labels.alphabet is not read: the classes are those of %s", source)
    return given
  if (block.name, block.alphabet) == ("characters", AUTO) and given.kind == block.name:
    return given
  if block.name == "sentencepiece":
    if (given.kind, len(given.symbols)) != (block.name, block.size):
      raise UserError(
        f"config.labels asks for sentencepiece with {block.size} classes, and {source} has "
        f"{given.kind}, {len(given.symbols)} classes: {_FIX}"
      )
    return given
  own = _own(block)(())
  check_same(given, own, source, "config.labels", fix=_FIX)
  if own.kind != given.kind or own.kind != "phonemes":
    return own
  # Of words that sound alike the same one is heard from both.
  return phonemes(own.lexicon.in_order_of(given.lexicon))
