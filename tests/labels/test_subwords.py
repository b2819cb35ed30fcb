"""Vocabularies of tokenizer.json and of sentencepiece's files against transformers' tokenizers."""

import functools
import io
import json
import pathlib
import shutil
import unicodedata

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

hf_models = pytest.importorskip("hf_models")
sentencepiece = pytest.importorskip("sentencepiece")
tokenizers = pytest.importorskip("tokenizers")

from jaxkd.errors import UserError  # noqa: E402
from jaxkd.labels import SubwordVocabulary, UnknownSymbol, Vocabulary, normalise  # noqa: E402
from jaxkd.models.huggingface import families  # noqa: E402
from jaxkd.models.huggingface import folder as huggingface  # noqa: E402
from jaxkd.models.huggingface import tokenizers as reading  # noqa: E402

TEXTS = (
  "hello world how are you today",
  "the cat sat on the mat and ate the rat",
  "one two three four five six seven",
  "don't you know it's fine",
  "she sells sea shells on the sea shore",
  "déjà vu naïve café straße",
)
LETTERS = sorted({c for text in TEXTS for c in text})
# Of texts: known letters, others, marks that compose with them, and what the tables replace.
OTHERS = ("É", "A", "z", "7", "é", "e\u0301", "\u0301", "ﬁ", "①", "…", "カ", "ｶﾞ", "‌", "한", "़", "क़")


def trained(kind: str, size: int = 70, **options) -> bytes:
  """A file of sentencepiece's."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(TEXTS * 5),
    model_writer=model,
    model_type=kind,
    vocab_size=size,
    minloglevel=3,
    hard_vocab_limit=kind == "bpe",
    **dict(bos_id=-1, eos_id=-1, unk_id=0) | options,
  )
  return model.getvalue()


def saved(folder: pathlib.Path, tokenizer, **names) -> pathlib.Path:
  """A folder with a tokenizer of the library, as Parakeet's users save it."""
  made = hf_models.transformers.ParakeetTokenizer(tokenizer_object=tokenizer, **names)
  made.add_special_tokens({"pad_token": tokenizers.AddedToken("<pad>", special=True)})
  made.save_pretrained(folder)
  return folder


def beside(folder: pathlib.Path, model: bytes, **settings) -> pathlib.Path:
  """A folder with a file of sentencepiece's alone."""
  (folder / "tokenizer.model").write_bytes(model)
  names = {"tokenizer_class": "ParakeetTokenizer", "pad_token": "<pad>"}
  (folder / "tokenizer_config.json").write_text(json.dumps(names | settings))
  return folder


def converted(folder: pathlib.Path) -> pathlib.Path:
  """As transformers' script converts a model of NeMo's."""
  from transformers.convert_slow_tokenizer import ParakeetConverter

  (folder / "given.model").write_bytes(trained("bpe"))
  found = ParakeetConverter(str(folder / "given.model")).converted()
  return saved(folder, found, unk_token="<unk>", clean_up_tokenization_spaces=False)


def unigram(folder: pathlib.Path) -> pathlib.Path:
  """As LASR's tokenizer: words on their own, sentencepiece's table of characters."""
  from jaxkd.labels import spm

  given = spm.tokenizer_of(trained("unigram"))
  scores = [tuple(pair) for pair in given["model"]["vocab"]]
  found = tokenizers.Tokenizer(tokenizers.models.Unigram(scores, unk_id=0))
  steps = tokenizers.pre_tokenizers
  found.normalizer = tokenizers.Tokenizer.from_str(
    json.dumps(
      {
        "model": json.loads(found.to_str())["model"],
        "normalizer": given["normalizer"]["normalizers"][0],
      }
    )
  ).normalizer
  found.pre_tokenizer = steps.Sequence([steps.WhitespaceSplit(), steps.Metaspace()])
  found.decoder = tokenizers.decoders.Metaspace()
  return saved(folder, found, unk_token="<unk>")


def words(folder: pathlib.Path) -> pathlib.Path:
  """Whole words with marks, and an added token that is text."""
  found = {f"▁{word}": i for i, word in enumerate(sorted({"", *" ".join(TEXTS).split()}))}
  model = tokenizers.models.WordLevel(found | {"<unk>": len(found)}, unk_token="<unk>")
  made = tokenizers.Tokenizer(model)
  made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
  made.decoder = tokenizers.decoders.Metaspace()
  made.add_tokens([tokenizers.AddedToken("hello", normalized=False)])
  return saved(folder, made, unk_token="<unk>")


def first_alone(folder: pathlib.Path, kind: str = "first") -> pathlib.Path:
  """A mark before the first word, or none; lower case; parts that a regular expression cuts."""
  trainer = tokenizers.trainers.BpeTrainer(vocab_size=90, show_progress=False)
  found = tokenizers.Tokenizer(tokenizers.models.BPE())
  normal, steps = tokenizers.normalizers, tokenizers.pre_tokenizers
  found.normalizer = normal.Sequence([normal.NFKC(), normal.Lowercase(), normal.Strip()])
  marks = steps.Metaspace(prepend_scheme=kind)
  found.pre_tokenizer = steps.Sequence([marks, steps.Split("'", behavior="isolated")])
  found.decoder = tokenizers.decoders.Metaspace(prepend_scheme=kind)
  found.train_from_iterator(TEXTS * 5, trainer)
  return saved(folder, found)


def letters(folder: pathlib.Path) -> pathlib.Path:
  """As Omnilingual ASR's converter makes it: letters, the space among them."""
  scores = [(c, -float(i)) for i, c in enumerate(("<unk>", *LETTERS))]
  found = tokenizers.Tokenizer(tokenizers.models.Unigram(scores, unk_id=0))
  found.normalizer = tokenizers.normalizers.Strip()
  found.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", behavior="merged_with_next")
  found.decoder = tokenizers.decoders.Fuse()
  return saved(folder, found, unk_token="<unk>")


def with_bytes(kind: str, **options):
  size = 256 + 80
  return lambda folder: beside(folder, trained(kind, size, byte_fallback=True, **options))


FOLDERS = {
  "converted from NeMo": converted,
  "unigram": unigram,
  "whole words": words,
  "a mark before the first word": first_alone,
  "no mark before the first word": functools.partial(first_alone, kind="never"),
  "letters": letters,
  "sentencepiece's byte pairs": lambda folder: beside(folder, trained("bpe")),
  "sentencepiece's unigrams": lambda folder: beside(folder, trained("unigram", bos_id=1, eos_id=2)),
  "byte pairs and bytes": with_bytes("bpe"),
  "unigrams and bytes": with_bytes("unigram"),
  "pieces of its user": lambda folder: beside(
    folder, trained("bpe", user_defined_symbols=["at", "don't", "th"])
  ),
  "no table and no dummy": lambda folder: beside(
    folder, trained("bpe", normalization_rule_name="identity", add_dummy_prefix=False)
  ),
  "case folded": lambda folder: beside(
    folder, trained("unigram", normalization_rule_name="nmt_nfkc_cf")
  ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """Name → (folder, transformers' tokenizer, ours); each is made once."""

  @functools.cache
  def get(name: str):
    folder = FOLDERS[name](tmp_path_factory.mktemp("model"))
    # Like every model's folder, it says whose tokenizer it has.
    (folder / "config.json").write_text(json.dumps({"model_type": "parakeet_ctc"}))
    theirs = hf_models.transformers.AutoTokenizer.from_pretrained(folder)
    return folder, theirs, read(folder, len(theirs), theirs.pad_token_id)

  return get


def read(folder, classes: int, blank: int) -> Vocabulary:
  family = families.FAMILIES["parakeet_ctc"]
  return reading.read(folder, {"pad_token_id": blank}, family, classes)


def decoded(theirs, ids) -> str:
  return normalise(theirs.decode(ids, group_tokens=False, skip_special_tokens=True))


def is_known(theirs, text: str) -> bool:
  """Whether every character has a piece; where a tokenizer has no unknown, it leaves them out."""
  ids = theirs(text).input_ids
  if theirs.unk_token_id in ids:
    return False
  composed = normalise(unicodedata.normalize("NFKC", text))
  return theirs.unk_token is not None or decoded(theirs, ids) == composed


@pytest.mark.parametrize("name", FOLDERS)
def test_any_text_is_encoded_and_decoded_as_in_transformers(made, name):
  _, theirs, ours = made(name)
  assert type(ours) is (Vocabulary if name == "letters" else SubwordVocabulary)
  assert ours.blank_id == theirs.pad_token_id and len(ours.symbols) == len(theirs)
  for text in TEXTS:
    assert ours.encode(text).tolist() == theirs(text).input_ids != []
    assert ours.decode(theirs(text).input_ids) == text
  words = st.lists(st.sampled_from([*LETTERS, *OTHERS]), min_size=1, max_size=6).map("".join)
  several = st.lists(words | st.sampled_from(" ".join(TEXTS).split()), max_size=5).map(" ".join)

  @hypothesis.settings(max_examples=250, deadline=None, derandomize=True)
  @hypothesis.given(several)
  def same(text):
    text = " ".join(text.split())
    if is_known(theirs, text):
      assert ours.encode(text).tolist() == theirs(text).input_ids
    elif not is_known(theirs, normalise(text)):
      with pytest.raises(UnknownSymbol):
        ours.encode(text)

  same()

  @hypothesis.settings(max_examples=250, deadline=None, derandomize=True)
  @hypothesis.given(st.lists(st.integers(0, len(theirs) - 1), max_size=12))
  def same_ids(ids):
    assert ours.decode(ids) == decoded(theirs, ids)
    parts = [word for word, start, end in ours.words(np.array(ids, int))]
    assert "".join(parts).replace(" ", "") == ours.decode(ids).replace(" ", "") or name == "letters"

  same_ids()


@pytest.mark.parametrize("name", FOLDERS)
def test_classes_are_kept_and_words_are_found(made, tmp_path, name):
  ours = made(name)[2]
  ours.save(tmp_path / "labels.json")
  again = Vocabulary.load(tmp_path / "labels.json")
  assert again == ours and again.fingerprint() == ours.fingerprint()
  for text in TEXTS[:3]:
    found = ours.words(ours.encode(text))
    assert [word for word, _, _ in found] == text.split()
    for word, start, end in found:
      assert tuple(ours.encode(text)[start:end]) in ours.spellings(word) or name == "letters"


# Of one folder.


@pytest.fixture
def folder(made, tmp_path):
  """A copy of a good one, to be damaged."""
  return shutil.copytree(made("converted from NeMo")[0], tmp_path / "model")


def edit(path: pathlib.Path, **changes) -> None:
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_words_that_cannot_be_written_as_they_are_are_normalised(made):
  ours = made("converted from NeMo")[2]
  assert ours.encode("HELLO  World\n").tolist() == ours.encode("hello world").tolist()
  with pytest.raises(UnknownSymbol) as error:
    ours.encode("hello 7up")
  assert error.value.symbol == "7"
  for text in ("<pad>", "a <unk> b"):
    with pytest.raises(UnknownSymbol):
      ours.encode(text)


def test_bytes_spell_what_no_piece_has(made):
  for name in ("byte pairs and bytes", "unigrams and bytes"):
    ours = made(name)[2]
    assert ours.decode(ours.encode("hello 7 日本")) == "hello 7 日本"
    assert ours.decode(ours.encode("日本")[1:3]) == "\ufffd\ufffd"


def test_classes_without_a_piece_and_the_blank_of_config_json(folder):
  settings = json.loads((folder / "tokenizer_config.json").read_text())
  size = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
  ours = read(folder, size + 4, size + 2)
  assert ours.symbols[size:] == ("<pad>", f"<unused {size + 1}>", "<blank>", f"<unused {size + 3}>")
  assert settings["pad_token"] == "<pad>" and ours.blank_id == size + 2
  assert ours.decode([0, size, size + 1, size + 2, size + 3]) == ""
  with pytest.raises(
    UserError, match=f"up to {size - 1} and the blank, .*pad_token_id, {size - 1}"
  ):
    read(folder, size - 1, size - 1)


def test_a_folder_of_another_family_with_a_tokenizer(folder, tmp_path):
  hf_models.make(tmp_path / "wav2vec2", "wav2vec2", "layer", symbols=["a"] * 71, pad_token_id=70)
  for name in ("vocab.json", "tokenizer_config.json"):
    (tmp_path / "wav2vec2" / name).unlink(missing_ok=True)
  shutil.copy(folder / "tokenizer.json", tmp_path / "wav2vec2")
  ours = huggingface.read_labels(tmp_path / "wav2vec2")
  assert ours.kind == "subwords" and ours.symbols[ours.blank_id] == "<pad>"
  with pytest.raises(UserError, match="one vocabulary, and none of the language 'fra'"):
    huggingface.read_labels(tmp_path / "wav2vec2", "fra")


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (dict(decoder={"type": "ByteLevel"}), "its decoder has a 'ByteLevel': known are Sequence"),
    (dict(model={}), "has no vocabulary that can be read"),
    (dict(model={"vocab": [["a"]]}), "has no vocabulary that can be read"),
  ],
)
def test_a_vocabulary_that_cannot_be_had_is_refused(folder, changes, words):
  edit(folder / "tokenizer.json", **changes)
  with pytest.raises(UserError, match="tokenizer.json") as error:
    read(folder, 71, 70)
  assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    (dict(pre_tokenizer={"type": "ByteLevel"}), "its pre_tokenizer has a 'ByteLevel'"),
    (dict(normalizer={"type": "Nmt"}), "its normalizer has a 'Nmt'"),
    (dict(type="WordPiece"), "its model is 'WordPiece': it must be one of BPE, Unigram"),
    (dict(dropout=0.1), "its model's dropout is 0.1"),
    (
      dict(normalizer={"type": "Replace", "pattern": {"Regex": "(?i)a"}, "content": ""}),
      "its Replace has the pattern '(?i)a'",
    ),
    (
      dict(pre_tokenizer={"type": "Split", "pattern": {"String": "a"}, "behavior": "Contiguous"}),
      "its pre_tokenizer splits with 'Contiguous'",
    ),
  ],
)
def test_what_cannot_be_written_exactly_is_still_decoded(made, folder, changes, words):
  path = folder / "tokenizer.json"
  found = json.loads(path.read_text())
  for name, value in changes.items():
    (found if name in found else found["model"])[name] = value
  path.write_text(json.dumps(found))
  whole, ours = made("converted from NeMo")[2], read(folder, 71, 70)
  assert ours.decode(whole.encode(TEXTS[0])) == TEXTS[0]
  with pytest.raises(UserError) as error:
    ours.encode("a")
  assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("model", "words"),
  [
    (b"", "no model of sentencepiece"),
    (b"\x0a\x05ab", "no model of sentencepiece"),
    (None, "neither of unigrams nor of byte pairs"),
  ],
)
def test_files_of_sentencepiece_that_cannot_be_had(tmp_path, model, words):
  model = trained("word") if model is None else model
  with pytest.raises(UserError, match="tokenizer.model cannot be used") as error:
    read(beside(tmp_path, model), 71, 70)
  assert words in str(error.value)


def test_what_is_saved_belongs_together(made, tmp_path):
  path = tmp_path / "labels.json"
  made("converted from NeMo")[2].save(path)
  edit(path, symbols=json.loads(path.read_text())["symbols"][::-1])
  with pytest.raises(UserError, match="labels.json.*is another piece in tokenizer.json"):
    Vocabulary.load(path)


def test_clean_up_of_spaces(made, folder, tmp_path):
  """What transformers does for models that are not of byte pairs."""
  unigrams = shutil.copytree(made("unigram")[0], tmp_path / "unigrams")
  for path, cleaned in ((folder, False), (unigrams, True)):
    edit(path / "tokenizer_config.json", clean_up_tokenization_spaces=True)
    theirs = hf_models.transformers.AutoTokenizer.from_pretrained(path)
    ours = read(path, len(theirs), theirs.pad_token_id)
    ids = ours.encode("it 's").tolist()
    assert ours.decode(ids) == decoded(theirs, ids) == ("it's" if cleaned else "it 's")
