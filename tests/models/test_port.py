"""Folders in Hugging Face's layout: weights both ways, vocabularies, and what can be wrong."""

import functools
import json
import pathlib
import shutil

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import hf_models
from hf_models import torch
from jaxkd import teacher as teacher_lib
from jaxkd.commands import line as command_line
from jaxkd.data.demo import DIGITS
from jaxkd.errors import UserError
from jaxkd.labels import Vocabulary, characters, normalise
from jaxkd.models.huggingface import families
from jaxkd.models.huggingface import folder as huggingface
from jaxkd.models.huggingface import weights as port

KEY = jax.random.key(0)
TEXTS = ("", "a", "bad cafe", "  a\tface ", "egg", "BAD egG")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """(family, norm, **over) → a tiny model's folder and itself; each is made once."""

  @functools.cache
  def get(family="hubert", norm="layer", **over):
    folder = tmp_path_factory.mktemp("model")
    return folder, hf_models.make(folder, family, norm, **over)

  return get


@pytest.fixture
def folder(saved, tmp_path) -> pathlib.Path:
  """A copy of a good folder, to be damaged."""
  return shutil.copytree(saved()[0], tmp_path / "model")


def edit(path: pathlib.Path, **changes) -> None:
  """Changes fields of a JSON file; a value of None takes the field away."""
  found = json.loads(path.read_text()) if path.exists() else {}
  found |= changes
  path.write_text(json.dumps({k: v for k, v in found.items() if v is not None}))


def edit_weights(folder: pathlib.Path, change) -> None:
  """Applies a function to name → tensor of model.safetensors."""
  path = folder / "model.safetensors"
  weights = load_file(path)
  change(weights)
  save_file({k: v.contiguous() for k, v in weights.items()}, path, metadata={"format": "pt"})


def leaves(params) -> dict[str, np.ndarray]:
  found = jax.tree_util.tree_flatten_with_path(params)[0]
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in found}


def assert_same(params, others) -> None:
  params, others = leaves(params), leaves(others)
  assert params.keys() == others.keys() and len(params) > 30
  for name, leaf in params.items():
    assert leaf.dtype == others[name].dtype == np.float32
    np.testing.assert_array_equal(leaf, others[name], err_msg=name)


def config_of(folder):
  return families.model_config(huggingface.read_description(folder), "")


def load_params(folder, *, classes=12, **options):
  return port.load(folder, config_of(folder), classes, **options)


def save_again(folder, target) -> None:
  """What jaxkd writes of a model that it has read."""
  teacher = teacher_lib.from_huggingface(folder)
  save(folder, target, teacher.params, teacher.vocabulary)


def save(folder, target, params, labels) -> None:
  description = huggingface.read_description(folder)
  huggingface.save(target, description, config_of(folder), params, labels)


def from_pretrained(kind, folder):
  """The model as transformers loads it, which finds every weight and no other."""
  loaded, problems = kind.from_pretrained(folder, output_loading_info=True)
  assert not any(problems.values()), problems
  return loaded.eval()


def torch_logits(model) -> np.ndarray:
  audio = np.random.default_rng(0).normal(size=(2, 5000)).astype(np.float32)
  return hf_models.call(model, audio, [5000, 3100]).logits.numpy()[:, :9]


def refuse(folder, *words: str) -> str:
  """The error of loading a folder: one line that has these words."""
  with pytest.raises(UserError) as error:
    teacher_lib.from_huggingface(folder)
  text = str(error.value)
  assert "\n" not in text
  for word in words:
    assert word in text
  return text


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


# Folders with something wrong.

PREFIX = "hubert.encoder.layers."


@pytest.mark.parametrize(
  "name",
  [
    "hubert.feature_projection.projection.weight",
    "hubert.encoder.pos_conv_embed.conv.parametrizations.weight.original0",
    f"{PREFIX}0.attention.q_proj.bias",
    f"{PREFIX}1.feed_forward.output_dense.weight",
    "lm_head.bias",
  ],
)
def test_missing_weight_is_named(folder, name):
  edit_weights(folder, lambda weights: weights.pop(name))
  text = refuse(folder, str(folder), "missing", name)
  assert text.count("hubert.") <= 1 and "unused" not in text


@pytest.mark.parametrize(
  "layers, problem, other", [(4, "missing", "unused"), (2, "unused", "missing")]
)
def test_number_of_layers_that_does_not_fit(folder, layers, problem, other):
  edit(folder / "config.json", num_hidden_layers=layers)
  assert other not in refuse(folder, problem, f"{PREFIX}{min(layers, 3)}.")


@pytest.mark.parametrize("name", ["hubert.adapter.weight", "lm_head.scale"])
def test_unused_weight_is_named(folder, name):
  edit_weights(folder, lambda weights: weights.update({name: torch.ones(3)}))
  assert "missing" not in refuse(folder, str(folder), "unused", name)


@pytest.mark.parametrize(
  "name, shape",
  [
    ("lm_head.weight", (40, 32)),
    ("lm_head.bias", (13,)),
    ("hubert.feature_extractor.conv_layers.1.conv.weight", (16, 16, 2)),
    ("hubert.feature_extractor.conv_layers.1.conv.weight", (16, 48)),
    ("hubert.encoder.pos_conv_embed.conv.parametrizations.weight.original0", (8,)),
    (f"{PREFIX}0.attention.q_proj.weight", (32, 31)),
    (f"{PREFIX}1.attention.q_proj.weight", (32, 31)),
    ("hubert.masked_spec_embed", ()),
  ],
)
def test_misshapen_weight_is_named(folder, name, shape):
  edit_weights(folder, lambda weights: weights.update({name: torch.ones(shape)}))
  refuse(folder, str(folder), "misshapen", name)


def test_weights_of_whole_numbers_are_refused(folder):
  name = "lm_head.bias"
  edit_weights(folder, lambda weights: weights.update({name: weights[name].long()}))
  refuse(folder, name, "int64")


def test_folder_without_weights(folder):
  (folder / "model.safetensors").unlink()
  assert "convert" not in refuse(folder, str(folder), "no *.safetensors")
  (folder / "pytorch_model.bin").write_bytes(b"")
  refuse(folder, str(folder), "pytorch_model.bin", f"jaxkd convert {folder}")


def test_weights_of_another_name_are_not_the_model(folder):
  expected = load_params(folder)
  zeros = {name: 0 * w for name, w in load_file(folder / "model.safetensors").items()}
  for name in ("model_ema.safetensors", "a.safetensors", "optimizer.safetensors"):
    save_file(zeros, folder / name, metadata={"format": "pt"})
  assert_same(load_params(folder), expected)
  # The whole model wins over shards, as in transformers.
  index = folder / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": dict.fromkeys(zeros, "a.safetensors")}))
  assert_same(load_params(folder), expected)
  theirs = from_pretrained(hf_models.transformers.HubertForCTC, folder).lm_head.bias.detach()
  np.testing.assert_array_equal(expected["head"]["bias"][...], theirs)
  # Without it, the shards that the index names.
  (folder / "model.safetensors").unlink()
  assert not load_params(folder)["head"]["kernel"][...].any()
  index.unlink()
  refuse(folder, "only a.safetensors, model_ema.safetensors, opt", "call the model's weights model")


@pytest.mark.parametrize(
  ("content", "words"),
  [
    (
      '{"weight_map": {"lm_head.bias": "model-2.safetensors"}}',
      ["names model-2.safetensors", "fetch"],
    ),
    ('{"weight_map": {"lm_head.bias": "../a.safetensors"}}', ["'../a.safetensors'", "same folder"]),
    ('{"weight_map": {"lm_head.bias": 3}}', ["does not say which file"]),
    ('{"weight_map": []}', ["does not say which file"]),
    ("{}", ["does not say which file"]),
    ("", ["does not say which file"]),
  ],
)
def test_index_of_shards_that_is_wrong(folder, content, words):
  (folder / "model.safetensors").rename(folder.parent / "a.safetensors")
  (folder / "model.safetensors.index.json").write_text(content)
  refuse(folder, "model.safetensors.index.json", *words)


def test_convert_reads_the_models_own_pickles(folder, tmp_path):
  expected = load_params(folder)
  weights = load_file(folder / "model.safetensors")
  (folder / "model.safetensors").unlink()
  parts = [dict(list(weights.items())[start::2]) for start in (0, 1)]
  for number, part in enumerate(parts):
    torch.save(part, folder / f"pytorch_model-{number}.bin")
  torch.save({name: 0 * w for name, w in weights.items()}, folder / "pytorch_model_old.bin")
  target = tmp_path / "new"
  with pytest.raises(UserError, match="nor a folder with pytorch_model.bin or"):
    command_line.main(["convert", str(folder), str(target)])
  where = {name: f"pytorch_model-{i}.bin" for i, part in enumerate(parts) for name in part}
  (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
  refuse(folder, f"jaxkd convert {folder}")
  command_line.main(["convert", str(folder), str(target)])
  assert_same(load_params(target), expected)
  # One file that has all wins, as in transformers.
  torch.save({name: w + 1 for name, w in weights.items()}, folder / "pytorch_model.bin")
  command_line.main(["convert", str(folder), str(target)])
  bias = load_params(target)["head"]["bias"][...]
  np.testing.assert_array_equal(bias, expected["head"]["bias"][...] + 1)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"])
def test_pickles_on_the_hub_are_named(monkeypatch, folder, file):
  hub = pytest.importorskip("huggingface_hub")
  (folder / "model.safetensors").unlink()
  monkeypatch.setattr(hub, "snapshot_download", lambda name, **options: str(folder))
  monkeypatch.setattr(hub, "list_repo_files", lambda name: ["config.json", file])
  found = refuse("org/name", "org/name", file, "hf download org/name", "jaxkd convert DIR")
  assert str(folder) not in found
  # Without the network, what was fetched before is named.
  monkeypatch.setattr(hub, "list_repo_files", lambda name: 1 / 0)
  refuse("org/name", str(folder), "no *.safetensors")


@pytest.mark.parametrize("kept", [0, 4, 500, 60_000])
def test_damaged_weights(folder, kept):
  path = folder / "model.safetensors"
  path.write_bytes(path.read_bytes()[:kept])
  refuse(folder, str(path), "cannot be read")


@pytest.mark.parametrize("name", ["config.json", "vocab.json"])
def test_absent_or_damaged_file(folder, name):
  path = folder / name
  for text in (path.read_text()[:-5], "", "[]", "null", "\0"):
    path.write_text(text)
    refuse(folder, str(path))
  path.write_bytes(b"\xff\xfe\x00")
  refuse(folder, str(path))
  path.unlink()
  refuse(folder, str(path), "No such file")


def test_front_end_is_in_one_of_two_files(folder):
  settings = json.loads((folder / "preprocessor_config.json").read_text())
  (folder / "preprocessor_config.json").unlink()
  refuse(folder, str(folder), "preprocessor_config.json")
  path = folder / "processor_config.json"
  edit(path, processor_class="Wav2Vec2Processor")
  refuse(folder, "preprocessor_config.json")
  edit(path, feature_extractor=settings | {"do_normalize": False})
  assert not config_of(folder).normalise
  teacher_lib.from_huggingface(folder)
  edit(path, feature_extractor=settings | {"sampling_rate": 8000})
  refuse(folder, "sampling_rate", "8000", "16000")


@pytest.mark.parametrize(
  "file, changes, words",
  [
    ("config.json", dict(model_type="bert"), ["model_type", "'bert'", "hubert", "data2vec-audio"]),
    ("config.json", dict(model_type=None), ["model_type", "None"]),
    ("config.json", dict(adapter_attn_dim=16), ["adapter_attn_dim", "16"]),
    ("config.json", dict(add_adapter=True), ["add_adapter"]),
    ("config.json", dict(conv_pos_batch_norm=True), ["conv_pos_batch_norm"]),
    ("config.json", dict(hidden_act="mish"), ["hidden_act", "'mish'", "gelu"]),
    ("config.json", dict(feat_extract_activation="tanh"), ["feat_extract_activation", "'tanh'"]),
    ("config.json", dict(vocab_size=11), ["vocab.json", "vocab_size", "11"]),
    ("preprocessor_config.json", dict(sampling_rate=8000), ["sampling_rate", "8000", "16000"]),
    ("vocab.json", {"<pad>": None}, ["vocab.json", "no blank", "'<pad>'"]),
    ("vocab.json", dict(G=12), ["vocab.json", "vocab_size", "12"]),
    ("vocab.json", dict(G=5), ["vocab.json", "12 symbols"]),
    ("vocab.json", dict(G=-1), ["vocab.json", "whole number"]),
    ("vocab.json", dict(G="11"), ["vocab.json", "whole number"]),
    ("tokenizer_config.json", dict(pad_token="[PAD]"), ["vocab.json", "no blank", "'[PAD]'"]),
  ],
)
def test_what_does_not_fit_is_named(folder, file, changes, words):
  edit(folder / file, **changes)
  refuse(folder, str(folder), *words)


def test_vocabulary_of_several_languages_is_refused(folder):
  symbols = {s: i for i, s in enumerate(hf_models.SYMBOLS)}
  (folder / "vocab.json").write_text(json.dumps({"eng": symbols, "fra": symbols}))
  refuse(folder, str(folder), "one must be named (teacher.language)", "eng, fra")


def test_source_that_is_no_folder(monkeypatch, saved, tmp_path):
  hub, calls = pytest.importorskip("huggingface_hub"), []

  def fail(name, **options):
    calls.append(name)
    raise OSError("no route\nto host")

  monkeypatch.setattr(hub, "snapshot_download", fail)
  for source in (str(tmp_path / "absent"), "absent", "./a/b", "../b", "~/absent", "a/b/c"):
    refuse(source, source, "no such folder")
  assert not calls
  text = refuse("some/model", "some/model", "no such folder", "OSError", "no route to host")
  assert calls == ["some/model"] and str(tmp_path) not in text

  folder, _ = saved()

  def fetch(name, allow_patterns, ignore_patterns):
    assert {"*.json", "*.safetensors"} <= set(allow_patterns)
    assert ignore_patterns == ["adapter.*.safetensors"]
    calls.append(name)
    return str(folder)

  monkeypatch.setattr(hub, "snapshot_download", fetch)
  assert teacher_lib.from_huggingface("org/name").labels == hf_models.SYMBOLS
  assert calls == ["some/model", "org/name"]


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
