"""Folders in Hugging Face's layout with something wrong: each is one line that names it."""

import json

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import hf_models
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
from jaxkd.commands import line as command_line
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
    wanted = {"*.json", "*.safetensors", "tokenizer.model", "sentencepiece.model", "spiece.model"}
    assert wanted <= set(allow_patterns)
    assert ignore_patterns == ["adapter.*.safetensors"]
    calls.append(name)
    return str(folder)

  monkeypatch.setattr(hub, "snapshot_download", fetch)
  assert teacher_lib.from_huggingface("org/name").labels == hf_models.SYMBOLS
  assert calls == ["some/model", "org/name"]
