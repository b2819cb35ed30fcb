"""Classes of a FastConformer as transformers reads them from the folder that jaxkd writes."""

import json

import numpy as np
import pytest

hf_models = pytest.importorskip("hf_models")
tokenizers = pytest.importorskip("tokenizers")

from jaxkd import labels as labels_lib  # noqa: E402
from jaxkd.errors import UserError  # noqa: E402
from jaxkd.labels import SubwordVocabulary, TokenVocabulary, Vocabulary, normalise, spm  # noqa: E402
from jaxkd.models.huggingface import families, students  # noqa: E402
from jaxkd.models.huggingface import tokenizers as reading  # noqa: E402

TEXTS = ("a b", "bad cab", "cab bad a", "a", "")


def pieces() -> Vocabulary:
  pytest.importorskip("sentencepiece")
  return labels_lib.sentencepiece(TEXTS * 3, 9)


def subwords() -> Vocabulary:
  found = spm.tokenizer_of(pieces().model)
  symbols = [piece for piece, _ in found["model"]["vocab"]]
  return SubwordVocabulary((*symbols, "<pad>"), len(symbols), "", json.dumps(found))


MADE = {
  "letters": lambda: labels_lib.characters(" abcd"),
  "the blank first, a bar for the space": lambda: Vocabulary(
    ("<pad>", "<s>", "|", *"ABCD", "ch"), 0, "|"
  ),
  "pieces": pieces,
  "subwords": subwords,
}


@pytest.mark.parametrize("name", MADE)
def test_classes_are_those_of_transformers_and_read_again(tmp_path, name):
  ours = MADE[name]()
  for file, value in students.tokenizer_files(ours).items():
    (tmp_path / file).write_text(json.dumps(value))
  (tmp_path / "config.json").write_text(json.dumps({"model_type": "parakeet_ctc"}))
  theirs = hf_models.transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert theirs.pad_token_id == ours.blank_id
  again = reading.read(
    tmp_path,
    {"pad_token_id": ours.blank_id},
    families.FAMILIES["parakeet_ctc"],
    len(ours.symbols),
  )
  assert (again.symbols, again.blank_id) == (ours.symbols, ours.blank_id)
  assert name != "letters" or again == ours
  for text in TEXTS:
    ids = ours.encode(text).tolist()
    assert again.encode(text).tolist() == ids
    upper = text.upper() if "A" in ours.symbols else text
    assert theirs(upper).input_ids == ids
  rng = np.random.default_rng(0)
  for _ in range(50):
    ids = rng.integers(0, len(ours.symbols), 8).tolist()
    said = theirs.decode(ids, group_tokens=False, skip_special_tokens=True)
    assert ours.decode(ids) == again.decode(ids) == normalise(said)


def test_classes_that_have_no_such_file_are_refused():
  with pytest.raises(UserError, match="which are characters, sentencepiece, subwords, and not tok"):
    students.tokenizer_files(TokenVocabulary(("<pad>", "n", "oʊ"), 0, ""))
