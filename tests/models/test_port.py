"""Folders in Hugging Face's layout: weights both ways, and vocabularies."""

import json
import shutil

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from safetensors.torch import load_file

import hf_models
from hf_folders import (
  assert_same,
  edit,
  edit_weights,
  from_pretrained,
  leaves,
  load_params,
  refuse,
  save,
  save_again,
)
from hf_models import torch
from jaxkd import teacher as teacher_lib
from jaxkd.data.demo import DIGITS
from jaxkd.labels import Vocabulary, characters, normalise
from jaxkd.models.huggingface import folder as huggingface

KEY = jax.random.key(0)
TEXTS = ("", "a", "bad cafe", "  a\tface ", "egg", "BAD egG")


def torch_logits(model) -> np.ndarray:
  audio = np.random.default_rng(0).normal(size=(2, 5000)).astype(np.float32)
  return hf_models.call(model, audio, [5000, 3100]).logits.numpy()[:, :9]


# Weights both ways.


@pytest.mark.parametrize("family, norm", hf_models.MODELS)
def test_what_is_saved_is_loaded_by_transformers_and_again(saved, tmp_path, family, norm):
  folder, model = saved(family, norm)
  teacher = teacher_lib.from_huggingface(folder)
  save_again(folder, tmp_path / "new")
  loaded = from_pretrained(type(model), tmp_path / "new")
  np.testing.assert_allclose(torch_logits(loaded), torch_logits(model), atol=1e-4)
  again = teacher_lib.from_huggingface(tmp_path / "new")
  assert_same(again.params, teacher.params)
  assert again.vocabulary == teacher.vocabulary and again.blank_id == 0
  assert again.graphdef == teacher.graphdef
  # Names and shapes are those that transformers has written.
  ours, theirs = (load_file(f / "model.safetensors") for f in (tmp_path / "new", folder))
  assert {n: w.shape for n, w in ours.items()} == {n: w.shape for n, w in theirs.items()}


@pytest.mark.parametrize("fields", [dict(mask_time_prob=0.0), dict(feat_proj_layer_norm=False)])
def test_weights_that_some_models_lack_are_not_written(saved, tmp_path, fields):
  folder, model = saved(**fields)
  save_again(folder, tmp_path / "new")
  loaded = from_pretrained(type(model), tmp_path / "new")
  np.testing.assert_allclose(torch_logits(loaded), torch_logits(model), atol=1e-4)


def test_saved_folder_is_a_processor_of_transformers(saved, tmp_path):
  folder, _ = saved()
  save_again(folder, tmp_path / "new")
  processor = hf_models.transformers.Wav2Vec2Processor.from_pretrained(tmp_path / "new")
  assert processor.feature_extractor.return_attention_mask
  assert processor.tokenizer.decode([6, 5, 5, 0, 8, 4, 8]) == "BAD D"


@pytest.mark.parametrize("alphabet", ["ab ", "ab' é"])
def test_a_vocabulary_of_ours_is_saved_for_transformers(saved, tmp_path, alphabet):
  folder, model = saved(vocab_size=len(alphabet) + 1)
  labels = characters(alphabet)
  save(folder, tmp_path / "new", load_params(folder, classes=len(labels.symbols)), labels)
  loaded = type(model).from_pretrained(tmp_path / "new")
  assert loaded.config.pad_token_id == labels.blank_id == len(alphabet)
  assert loaded.config.vocab_size == len(labels.symbols)
  tokenizer = hf_models.transformers.Wav2Vec2CTCTokenizer.from_pretrained(tmp_path / "new")
  again = teacher_lib.from_huggingface(tmp_path / "new").vocabulary
  ids = labels.encode("ab ba b")
  assert again.blank_id == labels.blank_id == tokenizer.pad_token_id
  assert labels.decode(ids) == again.decode(ids) == tokenizer.decode(ids, group_tokens=False)
  np.testing.assert_array_equal(again.encode("ab ba b"), ids)
  assert tokenizer("ab ba b").input_ids == ids.tolist()


def test_trained_weights_are_not_rounded_by_who_reads_them(saved, tmp_path):
  """Half-precision models are trained in float32, and transformers reads what config.json says."""
  folder = tmp_path / "half"
  model = hf_models.make(folder, "hubert", "layer").bfloat16()
  model.save_pretrained(folder)
  params = teacher_lib.from_huggingface(folder).params
  params = jax.tree.map(lambda x: x * np.float32(1.001), params)
  save(folder, tmp_path / "new", params, huggingface.read_labels(folder))
  loaded = type(model).from_pretrained(tmp_path / "new")
  assert loaded.dtype == torch.float32
  kernel = loaded.lm_head.weight.detach().numpy().T
  np.testing.assert_array_equal(kernel, params["head"]["kernel"][...])


# Weights as they are found.


@pytest.mark.parametrize("family", ["hubert", "wav2vec2", "wavlm"])
def test_both_spellings_of_weight_norm(saved, tmp_path, family):
  folder, model = saved(family, "group")
  new = shutil.copytree(folder, tmp_path / "model")
  position = f"{family}.encoder.pos_conv_embed.conv."

  def change(weights):
    for theirs, older in (("original0", "weight_g"), ("original1", "weight_v")):
      weights[position + older] = weights.pop(f"{position}parametrizations.weight.{theirs}")

  edit_weights(new, change)
  assert_same(load_params(new), load_params(folder))


def test_sharded_weights(saved, tmp_path):
  folder, model = saved()
  new = shutil.copytree(folder, tmp_path / "model")
  (new / "model.safetensors").unlink()
  model.save_pretrained(new, max_shard_size="20KB")
  assert len(list(new.glob("*.safetensors"))) > 2 and list(new.glob("*.index.json"))
  assert_same(load_params(new), load_params(folder))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_weights_are_read_as_float32(saved, tmp_path, dtype):
  folder, _ = saved()
  new = shutil.copytree(folder, tmp_path / "model")
  half = getattr(torch, dtype)
  edit_weights(new, lambda w: w.update({k: v.to(half) for k, v in w.items()}))
  assert load_file(new / "model.safetensors")["lm_head.bias"].dtype == half
  rounded = shutil.copytree(folder, tmp_path / "rounded")
  edit_weights(rounded, lambda w: w.update({k: v.to(half).float() for k, v in w.items()}))
  assert_same(load_params(new), load_params(rounded))
  kernel = lambda folder: load_params(folder)["head"]["kernel"][...]
  assert (kernel(new) != kernel(folder)).any()


@pytest.mark.parametrize("family, norm", hf_models.MODELS)
def test_pretrained_models_get_a_fresh_head(saved, tmp_path, family, norm):
  folder, model = saved(family, norm, head=False)
  names = load_file(folder / "model.safetensors").keys()
  # For wav2vec2 and UniSpeech with a quantizer; the others without their prefix.
  whole = family in ("wav2vec2", "unispeech", "unispeech-sat")
  assert ("quantizer.codevectors" in names) == whole
  assert any(n.startswith("encoder.layers.0.") for n in names) == (not whole)
  refuse(folder, str(folder), "no CTC head", "lm_head", "configs/teacher.py")
  params = load_params(folder, classes=40, fresh_head=KEY)
  kernel, bias = (np.asarray(params["head"][name][...]) for name in ("kernel", "bias"))
  assert kernel.shape == (32, 40) and bias.shape == (40,) and not bias.any()
  np.testing.assert_allclose(kernel.std(), 0.02, rtol=0.1)
  draw = lambda key: load_params(folder, classes=40, fresh_head=key)["head"]["kernel"][...]
  assert (kernel == draw(KEY)).all() and (kernel != draw(jax.random.key(1))).any()
  # The encoder is theirs: saved with the head, it gives the same frames in transformers.
  save(folder, tmp_path / "new", params, characters("".join(chr(0x4E00 + i) for i in range(39))))
  full = getattr(hf_models.transformers, hf_models.CLASSES[family] + "ForCTC")
  loaded = from_pretrained(full, tmp_path / "new")
  audio = np.random.default_rng(0).normal(size=(1, 5000)).astype(np.float32)
  got, expected = (hf_models.call(m.base_model, audio).last_hidden_state for m in (loaded, model))
  np.testing.assert_allclose(got, expected, atol=1e-4)


def test_fresh_head_replaces_one_that_is_there(folder):
  fairseq = {"final_proj.weight": torch.ones(3), "label_embs_concat": torch.ones(2, 3)}
  edit_weights(folder, lambda weights: weights.update(fairseq))  # as fairseq's HuBERT has them
  kept, fresh = load_params(folder), load_params(folder, classes=40, fresh_head=KEY)
  assert fresh["head"]["kernel"].shape == (32, 40)
  kept, fresh = leaves(kept), leaves(fresh)
  for name in kept:
    assert "head" in name or (kept[name] == fresh[name]).all()


# Vocabularies.


def tokenizer_of(folder, **options):
  return hf_models.transformers.Wav2Vec2CTCTokenizer(str(folder / "vocab.json"), **options)


def test_text_is_encoded_and_decoded_as_in_transformers(saved, tmp_path):
  folder, _ = saved()
  labels, tokenizer = huggingface.read_labels(folder), tokenizer_of(folder)
  assert labels.symbols == hf_models.SYMBOLS and labels.blank_id == tokenizer.pad_token_id == 0
  labels.save(tmp_path / "labels.json")
  assert Vocabulary.load(tmp_path / "labels.json") == labels
  for text in TEXTS:
    plain = " ".join(text.split())
    ids = labels.encode(text)
    assert ids.tolist() == tokenizer(plain.upper()).input_ids
    assert labels.decode(ids) == tokenizer.decode(ids, group_tokens=False).lower() == plain.lower()
  assert labels.decode([1, 5, 0, 3, 6, 4, 4, 2, 7]) == "ab c"
  skipped = tokenizer.decode([1, 5, 0, 3, 6, 4, 2, 7], skip_special_tokens=True)
  assert skipped.lower() == "ab c"
  for text in ("x", "<s>", "|", "a|b", "<pad>"):
    with pytest.raises(ValueError, match="no class"):
      labels.encode(text)


def test_both_cases_of_a_cased_vocabulary(folder):
  (folder / "vocab.json").write_text(
    json.dumps({"<pad>": 0, "|": 1, "A": 2, "a": 3, "B": 4, "é": 5})
  )
  edit(folder / "config.json", vocab_size=6)
  labels = huggingface.read_labels(folder)
  # Each word as it is, as in transformers, or else normalised.
  assert labels.encode("a A b É AÉ").tolist() == [3, 1, 2, 1, 4, 1, 5, 1, 3, 5]
  assert labels.decode([2, 3, 1, 4, 5]) == "aa bé"


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
def test_pad_token_by_another_name(folder, file, as_dict):
  symbols = ("A", "B", "|", "[UNK]", "[PAD]")
  (folder / "vocab.json").write_text(json.dumps({s: i for i, s in enumerate(symbols)}))
  edit(folder / "config.json", vocab_size=5)
  pad = dict(content="[PAD]", lstrip=False) if as_dict else "[PAD]"
  edit(folder / file, pad_token=pad)
  labels = huggingface.read_labels(folder)
  assert labels.symbols == symbols and labels.blank_id == 4
  assert labels.decode([0, 3, 4, 2, 1]) == "a b" and labels.encode("a b").tolist() == [0, 2, 1]


def test_added_tokens_and_rounded_heads(folder):
  (folder / "vocab.json").write_text(json.dumps({"A": 0, "|": 1, "<unk>": 2, "<pad>": 3}))
  (folder / "added_tokens.json").write_text(json.dumps({"<s>": 4, "</s>": 5}))
  edit(folder / "config.json", vocab_size=8)
  labels = huggingface.read_labels(folder)
  assert labels.symbols[:6] == ("A", "|", "<unk>", "<pad>", "<s>", "</s>")
  assert labels.blank_id == 3 and len(set(labels.symbols)) == 8
  assert labels.decode([0, 1, 4, 5, 6, 7, 0]) == "a a"


def test_what_transformers_adds_to_a_vocabulary_of_letters(folder):
  (folder / "vocab.json").write_text(json.dumps({"A": 0, "B": 1, "|": 2}))
  tokenizer = tokenizer_of(folder)
  tokenizer.save_pretrained(folder)
  edit(folder / "config.json", vocab_size=len(tokenizer))
  labels = huggingface.read_labels(folder)
  assert labels.blank_id == tokenizer.pad_token_id > 2
  assert labels.decode([0, 2, *range(3, len(tokenizer)), 1]) == "a b"


@pytest.mark.parametrize("delimiter", ["#", "_", " "])
def test_word_delimiter_of_another_name(saved, tmp_path, delimiter):
  symbols = ("<pad>", "<s>", "</s>", "<unk>", delimiter, *"ABCDEFG")
  folder, _ = saved(symbols=symbols)
  tokenizer_of(folder, word_delimiter_token=delimiter).save_pretrained(folder)
  labels = huggingface.read_labels(folder)
  assert labels.decode([5, 4, 6]) == "a b" and labels.encode("a b").tolist() == [5, 4, 6]
  save_again(folder, tmp_path / "new")
  again = huggingface.read_labels(tmp_path / "new")
  assert again.decode([5, 4, 6]) == "a b" and again.encode("a b").tolist() == [5, 4, 6]
  # transformers does not read another one back from its own files.
  tokenizer = hf_models.transformers.Wav2Vec2CTCTokenizer.from_pretrained(tmp_path / "new")
  assert tokenizer.decode([5, 4, 6]) == "A B" and tokenizer("A B").input_ids == [5, 4, 6]


# Symbols, and what tokenizer_config.json says of them.
_BRACKETS = dict(pad_token="[PAD]", unk_token="[UNK]")
_TOKENIZERS = {
  "letters": (("<pad>", "<unk>", "|", "a", "b", "'", "é"), {}),
  "upper case": (("|", "A", "B", "'", "Ü", "<unk>", "<pad>"), {}),
  "lowered": (("|", "A", "B", "'", "Ü", "<unk>", "<pad>"), {"do_lower_case": True}),
  "both cases": (("<pad>", "<unk>", "|", "a", "A", "b", "’"), {}),
  "several characters": (
    ("[PAD]", "[UNK]", "|", "a", "b", "g", "gb", "s", "e", "ẹ́", "ṣ"),
    _BRACKETS,
  ),
  "composed and not": (("[PAD]", "[UNK]", "|", "ক", "\u09be", "\u09df", "e", "\u0301"), _BRACKETS),
  "phonemes": (
    ("<s>", "<pad>", "</s>", "<unk>", "n", "ə", "o", "oʊ", "ɑː", "t̠ʃ", "N", "|"),
    dict(tokenizer_class="Wav2Vec2PhonemeCTCTokenizer", do_phonemize=False),
  ),
}


def with_tokenizer(folder, symbols, settings) -> None:
  """Puts a vocabulary into a folder, whose head is not looked at."""
  kind = {"tokenizer_class": "Wav2Vec2CTCTokenizer"}
  (folder / "vocab.json").write_text(json.dumps({s: i for i, s in enumerate(symbols)}))
  (folder / "tokenizer_config.json").write_text(json.dumps(kind | settings))
  edit(folder / "config.json", vocab_size=len(symbols))


@pytest.mark.parametrize("name", _TOKENIZERS)
def test_any_text_is_encoded_and_decoded_as_in_transformers(saved, tmp_path, name):
  folder = shutil.copytree(saved()[0], tmp_path / "model")
  with_tokenizer(folder, *_TOKENIZERS[name])
  theirs = hf_models.transformers.AutoTokenizer.from_pretrained(folder)
  ours = huggingface.read_labels(folder)
  again = tmp_path / "again"
  again.mkdir()
  shutil.copy(folder / "model.safetensors", again)
  shutil.copy(folder / "config.json", again)
  for file, value in huggingface.tokenizer_files(ours).items():
    (again / file).write_text(json.dumps(value))
  rewritten = hf_models.transformers.AutoTokenizer.from_pretrained(again)
  assert huggingface.read_labels(again) == ours
  phonemes = name == "phonemes"
  shown = [s for i, s in enumerate(ours.symbols) if ours.decode([i])]
  assert len(shown) == len(ours.symbols) - (4 if phonemes else 3)
  words = st.lists(st.sampled_from(shown), min_size=1, max_size=1 if phonemes else 4).map("".join)

  @hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
  @hypothesis.given(st.lists(words, max_size=4).map(" ".join))
  def same(text):
    ids = ours.encode(text).tolist()
    assert rewritten(text).input_ids == ids
    assert ours.decode(ids) == normalise(rewritten.decode(ids, group_tokens=False))
    # Their own files lose the spaces beside tokens of several characters.
    for part in text.split() if name == "several characters" else [text]:
      assert theirs(part).input_ids == ours.encode(part).tolist()
    assert ours.decode(ids) == normalise(theirs.decode(ids, group_tokens=False))

  same()


def test_spaces_beside_tokens_of_several_characters_are_kept(folder):
  with_tokenizer(folder, *_TOKENIZERS["several characters"])
  labels = huggingface.read_labels(folder)
  theirs = hf_models.transformers.AutoTokenizer.from_pretrained(folder)
  assert theirs("a gb a").input_ids == [3, 6, 3]
  assert labels.encode("a gb a").tolist() == [3, 2, 6, 2, 3]
  # Decomposed and in capitals; the longest wins.
  assert labels.encode("Ẹ\u0301 GGB E\u0323\u0301").tolist() == [9, 2, 5, 6, 2, 9]


def test_phonemes_are_tokens_between_spaces(folder):
  symbols, settings = _TOKENIZERS["phonemes"]
  with_tokenizer(folder, symbols, settings | {"word_delimiter_token": "|"})
  labels = huggingface.read_labels(folder)
  assert labels.encode("n oʊ | n").tolist() == [4, 7, 11, 4]
  assert labels.decode([4, 7, 1, 11, 4, 0]) == "n oʊ n"
  with pytest.raises(ValueError, match="no class for 'noʊ'"):
    labels.encode("noʊ")


def test_tokens_that_newer_files_add(folder):
  """In tokenizer_config.json, which may write a delimiter as an object."""
  added = {"3": {"content": "ch"}, "4": {"content": "<pad>"}, "9": {"content": "<s>"}}
  with_tokenizer(folder, "a|b", {"added_tokens_decoder": added})
  edit(folder / "tokenizer_config.json", word_delimiter_token={"content": "|", "lstrip": False})
  edit(folder / "config.json", vocab_size=5)
  labels = huggingface.read_labels(folder)
  assert labels.symbols == ("a", "|", "b", "ch", "<pad>") and labels.blank_id == 4
  assert labels.encode("ach b").tolist() == [0, 3, 1, 2]


def test_letters_of_the_demo_corpus(saved):
  folder, _ = saved(symbols=hf_models.DIGITS)
  labels, tokenizer = teacher_lib.from_huggingface(folder).vocabulary, tokenizer_of(folder)
  text = " ".join(DIGITS)
  ids = labels.encode(text)
  assert ids.tolist() == tokenizer(text.upper()).input_ids and labels.decode(ids) == text
  assert set(ids.tolist()) == set(range(4, len(hf_models.DIGITS)))
