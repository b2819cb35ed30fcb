"""LASR and its front-end against transformers on each utterance alone."""

import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest

import alone
from hf_models import torch, transformers

if not hasattr(transformers, "LasrForCTC"):
  pytest.skip("this transformers has no LASR", allow_module_level=True)

from jaxkd import teacher as teacher_lib
from jaxkd.errors import UserError
from jaxkd.models.features import LogMel, log_mel
from jaxkd.models.huggingface import families
from jaxkd.models.huggingface import folder as huggingface

pytestmark = pytest.mark.usefixtures("quick_to_compile")
FRONT = transformers.LasrFeatureExtractor()
SIZES = dict(
  hidden_size=32,
  num_hidden_layers=2,
  num_attention_heads=4,
  intermediate_size=48,
  subsampling_conv_channels=8,
)
PIECES = ("<pad>", "</s>", "<unk>", "▁", "▁AB", *"ABCDEFG")
VARIANT = dict(
  num_hidden_layers=3,
  num_mel_bins=20,
  attention_bias=True,
  convolution_bias=True,
  conv_kernel_size=7,
  subsampling_conv_kernel_size=4,
  subsampling_conv_stride=3,
  hidden_act="gelu",
  layer_norm_eps=0.01,
  feed_forward_residual_weights=(0.8, 0.7),
  conv_residual_weights=(1.1, 0.9),
  rope_parameters=(("rope_theta", 500.0), ("rope_type", "default")),
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """**over → a tiny model's folder, itself and its front-end; each is made once."""

  @functools.cache
  def get(**over):
    folder = tmp_path_factory.mktemp("model")
    fields = SIZES | over
    if "rope_parameters" in over:
      fields["rope_parameters"] = dict(over["rope_parameters"])
    torch.manual_seed(0)
    config = transformers.LasrCTCConfig(vocab_size=len(PIECES), encoder_config=fields)
    model = alone.randomise(transformers.LasrForCTC(config))
    model.save_pretrained(folder)
    front = transformers.LasrFeatureExtractor(feature_size=over.get("num_mel_bins", 128))
    tokenizer = transformers.LasrTokenizer(vocab=[(p, -1.0) for p in PIECES], extra_ids=0)
    transformers.LasrProcessor(front, tokenizer).save_pretrained(folder)
    return folder, model, front

  return get


def config_of(folder, **options):
  return families.model_config(huggingface.read_description(folder), "", **options)


def counter(model):
  """A front-end's real frames → the model's."""
  return lambda frames: max(0, model._get_subsampling_output_length(frames))


@pytest.mark.parametrize("over", [{}, VARIANT], ids=["usual", "variant"])
def test_each_row_equals_transformers_alone(saved, over):
  folder, model, front = saved(**over)
  for audio in (alone.make_speech(), alone.make_audio()):
    alone.check(folder, alone.of_features(model, front, counter(model), audio), audio)
  assert config_of(folder).frame_samples == 160 * over.get("subsampling_conv_stride", 2) ** 2


def test_features_equal_those_of_the_extractor():
  audio = alone.make_speech()
  got, mask = log_mel(audio, alone.LENGTHS, LogMel("lasr", 128))
  assert mask.sum(1).tolist() == [54, 38, 17, 1, 0]
  for row in range(4):
    samples = audio[row, : alone.LENGTHS[row]] / np.float32(32768)
    expected = alone.features(FRONT, samples)["input_features"][0].numpy()
    np.testing.assert_allclose(got[row][mask[row]], expected, atol=1e-4)
  assert np.log(1e-5) - 1e-3 < got[0].min() < np.log(1e-5) + 1e-3  # of a filter without any bin


@pytest.mark.parametrize("over", [{}, VARIANT], ids=["usual", "variant"])
def test_frames_are_counted_as_in_transformers(saved, over):
  folder, model, _ = saved(**over)
  config, count = config_of(folder), counter(model)
  lengths = np.concatenate([np.arange(400, 6000, 53), [16_000, 16_001, 47_999]])
  expected = [
    count(int(alone.features(FRONT, np.zeros(n, np.float32))["attention_mask"].sum()))
    for n in lengths
  ]
  np.testing.assert_array_equal(config.frame_len(lengths), expected)
  np.testing.assert_array_equal(config.frame_len(jnp.array(lengths)), expected)
  assert [config.frame_len(n) for n in (0, config.min_samples - 1, config.min_samples)] == [0, 0, 1]


def test_frames_are_pooled(saved):
  folder = saved()[0]
  teacher = teacher_lib.from_huggingface(folder, 2)
  out = teacher(alone.make_audio(), alone.LENGTHS)
  frames = config_of(folder).frame_len(alone.LENGTHS)
  np.testing.assert_array_equal(out.mask.sum(1), -(-frames // 2))
  assert teacher.frame_ms == 80


def test_a_sample_has_no_frame(saved):
  out = teacher_lib.from_huggingface(saved()[0])(np.full((1, 1), np.nan), np.array([1]))
  assert not out.mask.any() and np.isfinite(out.logits).all()


def test_bfloat16_is_close_to_float32(saved):
  alone.check_bfloat16(saved()[0], alone.make_speech())


def test_classes_are_those_of_the_tokenizer(saved):
  folder = saved()[0]
  labels = huggingface.read_labels(folder)
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  assert labels.blank_id == 0 and labels.symbols == PIECES
  for ids in ([4, 7, 3, 8, 9], [5, 6, 4, 2, 1, 7], [3, 5]):
    assert labels.decode(ids) == tokenizer.decode(ids, skip_special_tokens=True).strip().lower()


def test_fields_that_config_json_does_not_have():
  config = transformers.LasrCTCConfig()
  filled = {"config": config.to_dict(), "preprocessor": FRONT.to_dict()}
  silent = {"config": {"model_type": "lasr_ctc"}, "preprocessor": {}}
  assert families.model_config(filled, "") == families.model_config(silent, "")


@pytest.mark.parametrize(
  ("encoder", "front", "words"),
  [
    (dict(hidden_act="mish"), {}, "hidden_act is 'mish': it must be one of"),
    (dict(head_dim=16), {}, "head_dim is 16: it must be one of 8"),
    (dict(rope_parameters=dict(rope_type="yarn")), {}, "rope_type is 'yarn': only 'default'"),
    ({}, dict(hop_length=200), "hop_length is 200: only 160 is there"),
    ({}, dict(feature_size=80), "feature_size is 80: only 128 is there"),
    ({}, dict(sampling_rate=8000), "sampling_rate is 8000"),
    (dict(num_hidden_layers=3), {}, "weights do not fit config.json: missing: encoder.layers.2"),
    (dict(conv_kernel_size=31), {}, "weights do not fit config.json: misshapen"),
  ],
)
def test_what_is_not_exact_is_refused(saved, tmp_path, encoder, front, words):
  changed = {"config.json": ("encoder_config", encoder)}
  changed["processor_config.json"] = ("feature_extractor", front)
  for path in saved()[0].iterdir():
    if path.name not in changed:
      (tmp_path / path.name).symlink_to(path)
      continue
    part, fields = changed[path.name]
    given = json.loads(path.read_text())
    (tmp_path / path.name).write_text(json.dumps(given | {part: given[part] | fields}))
  with pytest.raises(UserError, match=words):
    teacher_lib.from_huggingface(tmp_path)
