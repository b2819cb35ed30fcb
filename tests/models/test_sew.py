"""SEW and SEW-D with a CTC head against transformers on each utterance alone."""

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
from jaxkd.models.sew import Distances  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_to_compile")

CLASSES = {"sew": "SEW", "sew-d": "SEWD"}
SIZES = dict(
  hidden_size=32,
  num_hidden_layers=3,
  num_attention_heads=4,
  intermediate_size=48,
  conv_dim=(8, 12, 12, 12, 12, 16, 16, 16, 16, 24, 24, 24, 24),
  num_conv_pos_embeddings=8,
  num_conv_pos_embedding_groups=4,
)


def make(folder, family="sew", front=None, **over):
  """(folder, model, front-end) of a tiny random model, as its users save it."""
  transformers = hf_models.transformers
  fields = SIZES | {"vocab_size": len(hf_models.SYMBOLS)} | over
  config = getattr(transformers, CLASSES[family] + "Config")(**fields)
  hf_models.torch.manual_seed(0)
  model = alone.randomise(getattr(transformers, CLASSES[family] + "ForCTC")(config))
  model.save_pretrained(folder)
  classes = {symbol: i for i, symbol in enumerate(hf_models.SYMBOLS)}
  (pathlib.Path(folder) / "vocab.json").write_text(json.dumps(classes))
  front = transformers.Wav2Vec2FeatureExtractor(**(front or {}))
  front.save_pretrained(folder)
  return pathlib.Path(folder), model, front


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """family → what `make` gives; each is made once."""
  return functools.cache(lambda family: make(tmp_path_factory.mktemp("sew"), family))


@pytest.fixture(params=CLASSES)
def folder(request, saved, tmp_path):
  """A copy to be damaged."""
  return shutil.copytree(saved(request.param)[0], tmp_path / "model")


def edit(path, **changes):
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def config_of(folder):
  return families.model_config(huggingface.read_description(folder), "")


def check(folder, model, front, audio=None):
  audio = alone.make_audio() if audio is None else audio
  # Fewer frames than are squeezed into one are too few for transformers.
  lengths = np.array([9000, 6415, 3001, 1060, 399], np.int32)
  expected = alone.of_transformers(model, front, audio, lengths)
  assert [len(logits) for logits in expected] == [27, 19, 9, 3, 0]
  return alone.check(folder, expected, audio, lengths)


# (family, front-end, fields of config.json)
VARIANTS = {
  "sew": ("sew", {}, {}),
  "sew-d": ("sew-d", {}, {}),
  "layer norm": ("sew", dict(return_attention_mask=True), dict(feat_extract_norm="layer")),
  "no projection, odd positions": (
    "sew",
    dict(do_normalize=False),
    dict(hidden_size=24, conv_bias=True, num_conv_pos_embeddings=7, hidden_act="relu"),
  ),
  "squeezed by three": ("sew-d", {}, dict(squeeze_factor=3, feat_extract_activation="gelu_new")),
  "not squeezed": ("sew", {}, dict(squeeze_factor=1)),
  "few buckets": ("sew-d", {}, dict(position_buckets=4, max_position_embeddings=9)),
  "no buckets": ("sew-d", {}, dict(position_buckets=-1, max_position_embeddings=5)),
  "projections of distances": ("sew-d", {}, dict(share_att_key=False, norm_rel_ebd="none")),
  "by queries": ("sew-d", {}, dict(share_att_key=False, pos_att_type=["c2p"])),
  "by keys": ("sew-d", {}, dict(pos_att_type=["p2c"], layer_norm_eps=0.1)),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_each_row_equals_transformers_alone(tmp_path, name):
  family, front, fields = VARIANTS[name]
  check(*make(tmp_path, family, front, **fields))


def test_a_frame_that_fills_no_pair_has_the_heads_bias(saved):
  """As transformers leaves the last of an odd number."""
  folder, model, _ = saved("sew")
  audio, lengths = alone.make_audio(lengths=[9000, 500]), np.array([9000, 500], np.int32)
  out = teacher.from_huggingface(folder)(audio, lengths)
  assert np.asarray(out.mask).sum(1).tolist() == [27, 1]
  for logits in (out.logits[0, 26], out.logits[1, 0]):
    np.testing.assert_array_equal(logits, model.lm_head.bias.detach().numpy())


@pytest.mark.parametrize("family", CLASSES)
def test_frames_are_counted_as_in_transformers(saved, family):
  folder, model, _ = saved(family)
  config, lengths = config_of(folder), np.arange(3000)
  counted = model._get_feat_extract_output_lengths(hf_models.torch.tensor(lengths)).numpy().clip(0)
  np.testing.assert_array_equal(config.frame_len(jnp.array(lengths)), counted)
  assert config.frame_samples == 320 and config.min_samples == np.argmax(counted > 0)


@pytest.mark.parametrize(("span", "farthest"), [(256, 512), (256, 400), (32, 100), (4, 9), (2, 7)])
def test_distances_share_vectors_as_in_transformers(span, farthest):
  from transformers.models.sew_d.modeling_sew_d import build_relative_position

  frames = 3000
  theirs = build_relative_position(frames, 1, span, farthest)[0, :, 0].numpy()
  rows = Distances(span, farthest, True, True, True, True).rows(frames)
  np.testing.assert_array_equal(rows[frames - 1 :], (theirs + span).clip(0, 2 * span - 1))
  theirs = build_relative_position(1, frames, span, farthest)[0, 0, :: -1 * -1].numpy()
  np.testing.assert_array_equal(rows[frames - 1 :: -1], (theirs + span).clip(0, 2 * span - 1))


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", CLASSES)
def test_bfloat16_is_close_to_float32(saved, family):
  alone.check_bfloat16(saved(family)[0], alone.make_audio())


def test_pooled_frames_are_those_of_the_encoder(saved):
  folder, audio = saved("sew")[0], alone.make_audio()
  one, two = (teacher.from_huggingface(folder, pool)(audio, alone.LENGTHS) for pool in (1, 2))
  assert np.asarray(two.mask).sum(1).tolist() == [14, 10, 5, 1, 0]
  # Of the last frame, alone in its pair.
  np.testing.assert_allclose(two.logits[0, 13], one.logits[0, 26], atol=1e-5)


@pytest.mark.parametrize("family", CLASSES)
def test_fields_that_config_json_does_not_have(family):
  config = getattr(hf_models.transformers, CLASSES[family] + "Config")()
  filled = {"config": config.to_dict(), "preprocessor": {}}
  silent = {"config": {"model_type": family}, "preprocessor": {}}
  assert families.model_config(filled, "") == families.model_config(silent, "")


@pytest.mark.parametrize(
  ("fields", "words"),
  [
    (dict(hidden_act="tanh"), "hidden_act is 'tanh': it must be one of gelu"),
    (dict(feat_extract_norm="batch"), "feat_extract_norm is 'batch': it must be one of group"),
    (dict(add_adapter=True), "add_adapter is True: only False is there"),
    (dict(relative_attention=False), "relative_attention is False: only True is there"),
    (dict(conv_kernel_size=3), "conv_kernel_size is 3: only 0 is there"),
    (dict(num_hidden_layers=4), "missing: sew.*layers?.3"),
    (dict(squeeze_factor=3), "misshapen: sew.*encoder.upsample.projection.weight"),
  ],
)
def test_what_cannot_be_had_is_refused(folder, fields, words):
  edit(folder / "config.json", **fields)
  with pytest.raises(UserError, match=words):
    teacher.from_huggingface(folder)


def test_attention_by_no_distance_is_refused(saved, tmp_path):
  folder = shutil.copytree(saved("sew-d")[0], tmp_path / "model")
  edit(folder / "config.json", pos_att_type=[])
  with pytest.raises(UserError, match=r"pos_att_type is \[\]: it must have c2p or p2c"):
    teacher.from_huggingface(folder)


def test_they_are_not_fine_tuned(folder):
  flags = ["--config=teacher:demo", f"--config.student.source={folder}", "--workdir=/nowhere/x"]
  with pytest.raises(UserError, match="it can teach, and not be fine-tuned"):
    line.main(["train", *flags])
