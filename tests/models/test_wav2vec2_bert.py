"""Wav2Vec2-BERT and its front-end against transformers on each utterance alone."""

import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest

import alone
from hf_models import SYMBOLS, torch, transformers
from jaxkd import teacher as teacher_lib
from jaxkd.errors import UserError
from jaxkd.models import wav2vec2_bert
from jaxkd.models.huggingface import families
from jaxkd.models.huggingface import folder as huggingface

pytestmark = pytest.mark.usefixtures("quick_to_compile")
FRONT = transformers.SeamlessM4TFeatureExtractor(padding_value=1.0)
SIZES = dict(
  hidden_size=32,
  num_hidden_layers=3,
  num_attention_heads=4,
  intermediate_size=48,
  conv_depthwise_kernel_size=7,
  left_max_position_embeddings=6,
  right_max_position_embeddings=3,
  vocab_size=len(SYMBOLS),
)
ADAPTERS = dict(
  add_adapter=True,
  num_adapter_layers=2,
  output_hidden_size=24,
  use_intermediate_ffn_before_adapter=True,
  adapter_act="gelu",
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """**over → a tiny model's folder and itself; each is made once."""

  @functools.cache
  def get(**over):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = transformers.Wav2Vec2BertConfig(**SIZES | over)
    model = alone.randomise(transformers.Wav2Vec2BertForCTC(config))
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({s: i for i, s in enumerate(SYMBOLS)}))
    tokenizer = transformers.Wav2Vec2CTCTokenizer.from_pretrained(folder)
    transformers.Wav2Vec2BertProcessor(FRONT, tokenizer).save_pretrained(folder)
    return folder, model

  return get


def config_of(folder, **options) -> wav2vec2_bert.Wav2Vec2BertConfig:
  return families.model_config(huggingface.read_description(folder), "", **options)


def check(saved_model, audio=None) -> float:
  """Each row equals transformers alone. A row of 3001 samples has half a frame behind the others,
  which an adapter's convolutions read."""
  folder, model = saved_model
  audio = alone.make_speech() if audio is None else audio
  count = lambda frames: frames and int(model._get_feat_extract_output_lengths(frames))
  return alone.check(folder, alone.of_features(model, FRONT, count, audio), audio)


@pytest.mark.parametrize("positions", wav2vec2_bert.POSITIONS)
def test_each_row_equals_transformers_alone(saved, positions):
  check(saved(position_embeddings_type=positions))


@pytest.mark.exhaustive
@pytest.mark.parametrize(
  "over",
  [
    dict(add_adapter=True),
    ADAPTERS,
    dict(add_adapter=True, adapter_kernel_size=4, adapter_stride=5),
    dict(
      hidden_act="gelu",
      layer_norm_eps=0.01,
      conv_depthwise_kernel_size=3,
      left_max_position_embeddings=2,
      right_max_position_embeddings=9,
      mask_time_prob=0.0,
    ),
  ],
  ids=["adapter", "adapters", "strides", "variant"],
)
def test_adapters_and_other_fields_equal_transformers(saved, over):
  check(saved(**over), alone.make_audio())
  strides = over.get("adapter_stride", 2) ** over.get("num_adapter_layers", 1)
  folder = saved(**over)[0]
  assert config_of(folder).frame_samples == 320 * (strides if "add_adapter" in over else 1)


def test_features_equal_those_of_the_extractor():
  audio = alone.make_speech()
  got, frames = wav2vec2_bert.stacked_features(audio, alone.LENGTHS, FRONT.num_mel_bins)
  assert frames.tolist() == [54, 38, 17, 1, 0]
  for row in range(3):
    samples = audio[row, : alone.LENGTHS[row]] / np.float32(32768)
    expected = alone.features(FRONT, samples)["input_features"][0].numpy()
    count = frames[row] // 2
    np.testing.assert_allclose(got[row, :count], expected[:count], atol=1e-4)
    assert np.std(expected[:count]) > 0.5


def test_silence_and_a_constant_are_as_the_extractor_has_them():
  """Every filter's deviation is 0: what is left is rounding over the root of 1e-7."""
  audio = np.stack([np.zeros(8000), np.full(8000, 0.25)]).astype(np.float32)
  got, _ = wav2vec2_bert.stacked_features(audio, np.array([8000, 8000]), 80)
  for row in range(2):
    expected = alone.features(FRONT, audio[row])["input_features"][0].numpy()
    np.testing.assert_allclose(got[row, :24], expected[:24], atol=0.01)


@pytest.mark.parametrize("over", [{}, ADAPTERS], ids=["plain", "adapters"])
def test_frames_are_counted_as_in_transformers(saved, over):
  folder, model = saved(**over)
  config = config_of(folder)
  lengths = np.concatenate([np.arange(560, 2000, 33), [16_000, 16_001, 47_999]])
  counts = [alone.features(FRONT, np.zeros(n, np.float32))["attention_mask"].sum() for n in lengths]
  expected = [int(model._get_feat_extract_output_lengths(count)) for count in counts]
  np.testing.assert_array_equal(config.frame_len(lengths), expected)
  np.testing.assert_array_equal(config.frame_len(jnp.array(lengths)), expected)
  assert [config.frame_len(int(n)) for n in (0, 399, 559, 560)] == [0, 0, 0, 1]


def test_frames_are_pooled(saved):
  folder, _ = saved(**ADAPTERS)
  teacher = teacher_lib.from_huggingface(folder, 2)
  frames = -(-config_of(folder, pool=2).frame_len(alone.LENGTHS) // 2)
  out = teacher(alone.make_audio(), alone.LENGTHS)
  np.testing.assert_array_equal(out.mask.sum(1), frames)
  assert teacher.frame_ms == 20 * 4 * 2


def test_less_than_a_window_of_audio_has_no_frame(saved):
  out = teacher_lib.from_huggingface(saved()[0])(np.full((1, 1), np.nan), np.array([1]))
  assert not out.mask.any() and np.isfinite(out.logits).all()


def test_bfloat16_is_close_to_float32(saved):
  alone.check_bfloat16(saved()[0], alone.make_speech())


def test_fields_that_config_json_does_not_have():
  config = transformers.Wav2Vec2BertConfig()
  filled = {"config": config.to_dict(), "preprocessor": FRONT.to_dict()}
  silent = {"config": {"model_type": "wav2vec2-bert"}, "preprocessor": {}}
  assert families.model_config(filled, "") == families.model_config(silent, "")


@pytest.mark.parametrize(
  ("changed", "words"),
  [
    (dict(position_embeddings_type="other"), "relative_key, relative, rotary"),
    (dict(hidden_act="mish"), "hidden_act is 'mish': it must be one of"),
    (dict(add_adapter=True, adapter_stride=4), "adapter_stride 4"),
    (dict(add_adapter=True, adapter_act="mish"), "adapter_act is 'mish'"),
    (dict(feature_projection_input_dim=80), "2 times num_mel_bins"),
    (dict(feature_extractor=dict(stride=4)), "stride is 4: only 2 is there"),
    (dict(feature_extractor=dict(return_attention_mask=False)), "return_attention_mask is"),
    (dict(feature_extractor=dict(sampling_rate=8000)), "sampling_rate is 8000"),
    (dict(add_adapter=True), "weights do not fit config.json: missing"),
    (dict(num_hidden_layers=2), "weights do not fit config.json: unused"),
  ],
)
def test_what_is_not_exact_is_refused(saved, tmp_path, changed, words):
  file = "processor_config.json" if "feature_extractor" in changed else "config.json"
  for path in saved()[0].iterdir():
    if path.name != file:
      (tmp_path / path.name).symlink_to(path)
  given = json.loads((saved()[0] / file).read_text())
  (tmp_path / file).write_text(json.dumps(given | changed))
  with pytest.raises(UserError, match=words):
    teacher_lib.from_huggingface(tmp_path)
