"""Granite Speech 5 and its front-end against transformers on each utterance alone."""

import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest

import alone
import torchaudio_mels
from hf_models import SYMBOLS, torch, transformers
from jaxkd import teacher as teacher_lib
from jaxkd.errors import UserError
from jaxkd.models import granite_speech5
from jaxkd.models.huggingface import families
from jaxkd.models.huggingface import folder as huggingface

pytestmark = pytest.mark.usefixtures("quick_to_compile")
SIZES = dict(
  vocab_size=len(SYMBOLS),
  hidden_size=32,
  num_hidden_layers=4,
  num_attention_heads=4,
  intermediate_size=48,
  context_size=8,
  max_position_embeddings=16,
)
VARIANT = dict(
  num_hidden_layers=5,
  subsample_layers=(2,),
  head_dim=6,
  context_size=5,
  max_position_embeddings=5,
  attention_bias=False,
  hidden_act="gelu",
  conv_kernel_size=3,
  conv_expansion_factor=1,
  num_mel_bins=20,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """tied, floor, **over → a tiny model's folder, itself and its front-end; each is made once."""

  @functools.cache
  def get(tied=True, floor=8.0, **over):
    folder = tmp_path_factory.mktemp("model")
    fields = {k: list(v) if isinstance(v, tuple) else v for k, v in (SIZES | over).items()}
    torch.manual_seed(0)
    config = transformers.GraniteSpeech5CTCConfig(
      vocab_size=len(SYMBOLS), tie_word_embeddings=tied, encoder_config=fields
    )
    model = alone.randomise(transformers.GraniteSpeech5ForCTC(config))
    model.save_pretrained(folder)
    front = torchaudio_mels.FeatureExtractor(over.get("num_mel_bins", 80), logmel_floor_db=floor)
    front.save_pretrained(folder)
    vocabulary = {symbol: i for i, symbol in enumerate(SYMBOLS)}
    tokenizer = {"model": {"type": "BPE", "vocab": vocabulary, "merges": []}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder, model, front

  return get


def config_of(folder, **options) -> granite_speech5.GraniteSpeech5Config:
  return families.model_config(huggingface.read_description(folder), "", **options)


def counter(model):
  """A front-end's real frames → the model's."""
  return lambda frames: int(model._get_subsampling_output_length(torch.tensor(frames)))


@pytest.mark.parametrize(
  ("options", "frame_samples"),
  [
    ({}, 1280),
    (dict(tied=False, floor=2.0, **VARIANT), 640),
    (dict(num_hidden_layers=1, subsample_layers=()), 320),
  ],
  ids=["usual", "variant", "one layer"],
)
def test_each_row_equals_transformers_alone(saved, options, frame_samples):
  folder, model, front = saved(**options)
  audio = alone.make_speech()
  alone.check(folder, alone.of_features(model, front, counter(model), audio), audio)
  assert config_of(folder).frame_samples == frame_samples


# 257 samples are the fewest that can be mirrored; 480 are an odd number of hops and no sample more.
@pytest.mark.parametrize("floor", [8.0, 1.0])
def test_features_equal_those_of_the_extractor(saved, floor):
  folder, _, front = saved(floor=floor)
  lengths = np.array([9000, 6415, 3001, 480, 481, 257, 256], np.int32)
  audio = alone.make_speech(lengths)
  got = granite_speech5.stacked_features(audio, lengths, config_of(folder))
  for row, length in enumerate(lengths[:-1]):
    samples = audio[row, :length] / np.float32(32768)
    given = alone.features(front, samples)
    expected = given["input_features"][0].numpy()
    assert len(expected) == -(-(length // 160) // 2) == given["attention_mask"].sum()
    np.testing.assert_allclose(got[row, : len(expected)], expected, atol=1e-5)
  assert not np.asarray(got[-1]).any()


@pytest.mark.parametrize("halving", [(0, 1), ()])
def test_frames_are_counted_as_in_transformers(saved, halving):
  folder, model, front = saved(**{} if halving else dict(num_hidden_layers=1, subsample_layers=()))
  config, count = config_of(folder), counter(model)
  lengths = np.concatenate([np.arange(257, 6000, 53), [16_000, 16_001, 47_999]])
  expected = [
    count(int(alone.features(front, np.zeros(n, np.float32))["attention_mask"].sum()))
    for n in lengths
  ]
  np.testing.assert_array_equal(config.frame_len(lengths), expected)
  np.testing.assert_array_equal(config.frame_len(jnp.array(lengths)), expected)
  assert [config.frame_len(n) for n in (0, 160, 256)] == [0, 0, 0]


def test_frames_are_pooled(saved):
  folder = saved()[0]
  teacher = teacher_lib.from_huggingface(folder, 2)
  out = teacher(alone.make_audio(), alone.LENGTHS)
  frames = config_of(folder).frame_len(alone.LENGTHS)
  np.testing.assert_array_equal(out.mask.sum(1), -(-frames // 2))
  assert teacher.frame_ms == 160


def test_a_sample_has_no_frame(saved):
  out = teacher_lib.from_huggingface(saved()[0])(np.full((1, 1), np.nan), np.array([1]))
  assert out.mask.shape == (1, 1) and not out.mask.any() and np.isfinite(out.logits).all()


def test_bfloat16_is_close_to_float32(saved):
  alone.check_bfloat16(saved()[0], alone.make_speech())


def test_runs_are_cut_where_frames_are_halved_and_half_way(saved):
  assert config_of(saved()[0]).runs == [(0, 1), (1, 2), (2, 4)]
  assert config_of(saved(tied=False, floor=2.0, **VARIANT)[0]).runs == [(0, 2), (2, 3), (3, 5)]


def test_classes_are_those_of_the_tokenizer(saved):
  labels = huggingface.read_labels(saved()[0])
  assert labels.blank_id == 0 and labels.symbols == SYMBOLS


def test_fields_that_config_json_does_not_have(saved):
  config = transformers.GraniteSpeech5CTCConfig()
  filled = {"config": config.to_dict(), "preprocessor": saved()[2].to_dict()}
  silent = {"config": {"model_type": "granite_speech5_ctc"}, "preprocessor": {}}
  assert families.model_config(filled, "") == families.model_config(silent, "")


@pytest.mark.parametrize(
  ("encoder", "front", "words"),
  [
    (dict(hidden_act="mish"), {}, "hidden_act is 'mish': it must be one of"),
    (dict(num_key_value_heads=2), {}, "num_key_value_heads is 2: it must be one of 4"),
    (dict(conv_kernel_size=4), {}, "conv_kernel_size is 4: it must be odd"),
    (dict(context_size=17), {}, "context_size is 17: it must be 1 to max_position_embeddings, 16"),
    (dict(subsample_layers=[4]), {}, r"subsample_layers is \[4\]: they must be .* below 4"),
    ({}, dict(hop_length=200), "hop_length is 200: only 160 is there"),
    ({}, dict(delta_win_length=5), "delta_win_length is 5: only 3 is there"),
    ({}, dict(num_mel_bins=40), "num_mel_bins is 40: only 80 is there"),
    ({}, dict(sampling_rate=8000), "sampling_rate is 8000"),
    (dict(num_hidden_layers=5), {}, "weights do not fit config.json: missing: encoder.layers.4"),
    (dict(conv_expansion_factor=1), {}, "weights do not fit config.json: misshapen"),
  ],
)
def test_what_is_not_exact_is_refused(saved, tmp_path, encoder, front, words):
  changed = {"config.json": encoder, "preprocessor_config.json": front}
  for path in saved()[0].iterdir():
    if path.name not in changed:
      (tmp_path / path.name).symlink_to(path)
      continue
    given, fields = json.loads(path.read_text()), changed[path.name]
    given |= {"encoder_config": given["encoder_config"] | fields} if fields is encoder else fields
    (tmp_path / path.name).write_text(json.dumps(given))
  with pytest.raises(UserError, match=words):
    teacher_lib.from_huggingface(tmp_path)


def test_weights_without_a_head_are_refused(saved, tmp_path):
  for path in saved()[0].iterdir():
    if path.name != "model.safetensors":
      (tmp_path / path.name).symlink_to(path)
  weights = {n: w for n, w in saved()[1].encoder.state_dict().items() if not n.startswith("out.")}
  save = pytest.importorskip("safetensors.torch").save_file
  save(weights, tmp_path / "model.safetensors")
  with pytest.raises(UserError, match=r"has no CTC head \(ctc_head.weight\)"):
    teacher_lib.from_huggingface(tmp_path)
