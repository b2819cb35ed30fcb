"""Wav2Vec2-Conformer with a CTC head against transformers on each utterance alone."""

import functools
import json
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

hf_models = pytest.importorskip("hf_models")
alone = pytest.importorskip("alone")

from jaxkd import teacher  # noqa: E402
from jaxkd.commands import line  # noqa: E402
from jaxkd.errors import UserError  # noqa: E402
from jaxkd.models.huggingface import families  # noqa: E402
from jaxkd.models.huggingface import folder as huggingface  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_to_compile")

SIZES = dict(
  hidden_size=32,
  num_hidden_layers=3,
  num_attention_heads=4,
  intermediate_size=48,
  conv_dim=(16,) * 7,
  num_conv_pos_embeddings=8,
  num_conv_pos_embedding_groups=4,
  conv_depthwise_kernel_size=5,
)


def make(folder, front=None, **over):
  """(folder, model, front-end) of a tiny random model, as its users save it."""
  transformers = hf_models.transformers
  fields = SIZES | {"vocab_size": len(hf_models.SYMBOLS)} | over
  config = transformers.Wav2Vec2ConformerConfig(**fields)
  hf_models.torch.manual_seed(0)
  model = alone.randomise(transformers.Wav2Vec2ConformerForCTC(config))
  model.save_pretrained(folder)
  classes = {symbol: i for i, symbol in enumerate(hf_models.SYMBOLS)}
  (pathlib.Path(folder) / "vocab.json").write_text(json.dumps(classes))
  front = transformers.Wav2Vec2FeatureExtractor(**(front or {}))
  front.save_pretrained(folder)
  return pathlib.Path(folder), model, front


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """Fields of config.json → what `make` gives; each is made once."""
  return functools.cache(lambda **over: make(tmp_path_factory.mktemp("conformer"), **over))


@pytest.fixture
def folder(saved, tmp_path):
  """A copy to be damaged."""
  return shutil.copytree(saved()[0], tmp_path / "model")


def edit(path, **changes):
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def config_of(folder):
  return families.model_config(huggingface.read_description(folder), "")


# (front-end, fields of config.json)
VARIANTS = {
  "relative": ({}, {}),
  "rotary": ({}, dict(position_embeddings_type="rotary", rotary_embedding_base=500)),
  "no positions": (dict(do_normalize=False), dict(position_embeddings_type=None)),
  "layer norm": (
    dict(return_attention_mask=True),
    dict(feat_extract_norm="layer", conv_bias=True, hidden_act="swish", layer_norm_eps=0.1),
  ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_each_row_equals_transformers_alone(tmp_path, name):
  front, fields = VARIANTS[name]
  folder, model, extractor = make(tmp_path, front, **fields)
  audio = alone.make_audio()
  alone.check(folder, alone.of_transformers(model, extractor, audio), audio)


@pytest.mark.exhaustive
@pytest.mark.parametrize("positions", ["relative", "rotary"])
def test_long_audio(saved, positions):
  folder, model, front = saved(position_embeddings_type=positions)
  lengths = np.array([320_000, 160_000], np.int32)
  audio = alone.make_audio(lengths, size=320_000)
  alone.check(folder, alone.of_transformers(model, front, audio, lengths), audio, lengths)


def test_frames_are_counted_as_in_transformers(saved):
  folder, model, _ = saved()
  config, lengths = config_of(folder), np.arange(3000)
  counted = model._get_feat_extract_output_lengths(hf_models.torch.tensor(lengths)).numpy().clip(0)
  np.testing.assert_array_equal(config.frame_len(jnp.array(lengths)), counted)
  assert config.frame_samples == 320


@pytest.mark.exhaustive
@pytest.mark.parametrize("positions", ["relative", "rotary"])
def test_bfloat16_is_close_to_float32(saved, positions):
  folder = saved(position_embeddings_type=positions)[0]
  alone.check_bfloat16(folder, alone.make_audio())


def test_fields_that_config_json_does_not_have():
  config = hf_models.transformers.Wav2Vec2ConformerConfig()
  filled = {"config": config.to_dict(), "preprocessor": {}}
  silent = {"config": {"model_type": "wav2vec2-conformer"}, "preprocessor": {}}
  assert families.model_config(filled, "") == families.model_config(silent, "")


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    (dict(hidden_act="tanh"), "hidden_act is 'tanh': it must be one of gelu"),
    (dict(feat_extract_norm="batch"), "feat_extract_norm is 'batch': it must be one of group"),
    (dict(position_embeddings_type="far"), "'far': it must be one of relative, rotary, None"),
    (dict(add_adapter=True), "add_adapter is True: it must be False"),
    (dict(conv_depthwise_kernel_size=4), "conv_depthwise_kernel_size is 4: it must be odd"),
    (dict(position_embeddings_type="rotary"), "unused: .*self_attn.linear_pos.weight"),
    (dict(num_hidden_layers=4), "missing: wav2vec2_conformer.*layers.3"),
  ],
)
def test_what_cannot_be_had_is_refused(folder, fields, words):
  edit(folder / "config.json", **fields)
  with pytest.raises(UserError, match=words):
    teacher.from_huggingface(folder)


def test_it_is_not_fine_tuned(folder):
  flags = ["--config=teacher:demo", f"--config.student.source={folder}", "--workdir=/nowhere/x"]
  with pytest.raises(UserError, match="it can teach, and not be fine-tuned"):
    line.main(["train", *flags])
