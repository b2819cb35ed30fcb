"""Folders in Hugging Face's layout with something wrong: each is one line that names it."""

import json

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import hf_models
import jaxkd
from hf_folders import (
  assert_same,
  config_of,
  edit,
  edit_weights,
  from_pretrained,
  load_params,
  refuse,
)
from hf_models import torch
from jaxkd import teacher as teacher_lib
from jaxkd.errors import UserError

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


@pytest.mark.parametrize(
  "kind, shown", [("int64", "int64"), ("int8", "int8"), ("float8_e4m3fn", "F8_E4M3")]
)
@pytest.mark.parametrize("name", ["lm_head.bias", f"{PREFIX}0.attention.q_proj.weight"])
def test_weights_of_whole_numbers_or_codes_are_refused(folder, name, kind, shown):
  kind = getattr(torch, kind)
  edit_weights(folder, lambda weights: weights.update({name: weights[name].to(kind)}))
  refuse(folder, f"{name} holds {shown}: weights must be floating point, and not quantised")


@pytest.mark.parametrize("shape", ["whole", "shards"])
def test_cut_shard(saved, folder, shape):
  if shape == "shards":
    (folder / "model.safetensors").unlink()
    saved()[1].save_pretrained(folder, max_shard_size="20KB")
  path = sorted(folder.glob("*.safetensors"))[-1]
  path.write_bytes(path.read_bytes()[:-4])
  refuse(folder, str(path), "cannot be read")


@pytest.mark.parametrize("task", ["SequenceClassification", "AudioFrameClassification", "XVector"])
def test_models_of_other_tasks(folder, task):
  transformers = hf_models.transformers
  config = transformers.AutoConfig.from_pretrained(folder).to_dict() | {"architectures": None}
  kind = getattr(transformers, f"Wav2Vec2For{task}")
  (folder / "model.safetensors").unlink()
  sizes = dict(tdnn_dim=(8, 8), tdnn_kernel=(1, 1), tdnn_dilation=(1, 1), xvector_output_dim=8)
  given = transformers.Wav2Vec2Config(**config | {"model_type": "wav2vec2"} | sizes)
  kind(given).save_pretrained(folder)
  refuse(folder, str(folder), "no CTC head (lm_head.weight)", f"it is Wav2Vec2For{task}")


def test_a_model_of_another_kind(folder):
  edit(folder / "config.json", model_type="whisper")
  with pytest.raises(UserError, match="model_type is 'whisper': it must be one of"):
    jaxkd.load(folder)


def test_folder_without_weights(folder):
  (folder / "model.safetensors").unlink()
  wrong = "no weights in it, neither model.safetensors nor pytorch_model.bin"
  refuse(folder, str(folder), wrong)
  (folder / "tf_model.h5").write_text("")
  refuse(folder, wrong, "only tf_model.h5, which is not read")
  (folder / "adapter_config.json").write_text("{}")
  (folder / "adapter_model.safetensors").write_text("")
  refuse(folder, wrong, "it is an adapter (adapter_config.json)")


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
  refuse(folder, "only a.safetensors, model_ema.safetensors, opt", "rename the model's weights")


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
    (
      "config.json",
      dict(quantization_config={"quant_method": "bitsandbytes"}),
      ["quantization_config (bitsandbytes)", "take the model"],
    ),
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
    wanted = {"*.json", "*.safetensors", "tokenizer.model", "sentencepiece.model", "spiece.model"}
    assert wanted <= set(allow_patterns)
    assert ignore_patterns == ["adapter.*.safetensors"]
    calls.append(name)
    return str(folder)

  monkeypatch.setattr(hub, "snapshot_download", fetch)
  assert teacher_lib.from_huggingface("org/name").labels == hf_models.SYMBOLS
  assert calls == ["some/model", "org/name"]
