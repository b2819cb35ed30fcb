"""Omnilingual ASR with a CTC head against transformers on each utterance alone."""

import json
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

hf_models = pytest.importorskip("hf_models")
alone = pytest.importorskip("alone")
tokenizers = pytest.importorskip("tokenizers")
if not hasattr(hf_models.transformers, "OmniASRForCTC"):
  pytest.skip("this transformers has no Omnilingual ASR", allow_module_level=True)

from jaxkd import teacher  # noqa: E402
from jaxkd.commands import line  # noqa: E402
from jaxkd.errors import UserError  # noqa: E402
from jaxkd.models.huggingface import families  # noqa: E402
from jaxkd.models.huggingface import folder as huggingface  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_to_compile")

PIECES = ("<s>", "<pad>", "</s>", "<unk>", *" abcdeA|é")
SIZES = dict(
  hidden_size=32,
  num_hidden_layers=3,
  num_attention_heads=4,
  intermediate_size=48,
  conv_dim=(16,) * 7,
  num_conv_pos_embeddings=8,
  num_conv_pos_embedding_groups=4,
)


def tokenizer_of_pieces():
  """As transformers' converter makes it of Omnilingual ASR's own file."""
  scores = [(piece, -float(i)) for i, piece in enumerate(PIECES)]
  found = tokenizers.Tokenizer(tokenizers.models.Unigram(scores, unk_id=3))
  found.normalizer = tokenizers.normalizers.Strip()
  found.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", behavior="merged_with_next")
  found.decoder = tokenizers.decoders.Fuse()
  names = dict(bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
  return hf_models.transformers.ParakeetTokenizer(tokenizer_object=found, **names)


def make(folder, front=None, **audio):
  """(folder, model, front-end) of a tiny random model, saved as its processor saves it."""
  transformers = hf_models.transformers
  config = transformers.OmniASRCTCConfig(
    vocab_size=len(PIECES), audio_config={"model_type": "omniasr_audio"} | SIZES | audio
  )
  hf_models.torch.manual_seed(0)
  model = alone.randomise(transformers.OmniASRForCTC(config))
  model.save_pretrained(folder)
  front = transformers.OmniASRFeatureExtractor(**(front or {}))
  transformers.OmniASRCTCProcessor(front, tokenizer_of_pieces()).save_pretrained(folder)
  return pathlib.Path(folder), model, front


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  return make(tmp_path_factory.mktemp("omniasr"))


@pytest.fixture
def folder(saved, tmp_path):
  """A copy to be damaged."""
  return shutil.copytree(saved[0], tmp_path / "model")


def edit(path, **changes):
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_audio(folder, **changes):
  """Changes fields of config.json's audio_config."""
  given = json.loads((folder / "config.json").read_text())["audio_config"]
  edit(folder / "config.json", audio_config=given | changes)


@pytest.mark.parametrize(
  ("front", "fields"),
  [
    (None, {}),
    (dict(do_normalize=False), dict(conv_bias=False, hidden_act="relu", layer_norm_eps=0.1)),
  ],
  ids=["usual", "variant"],
)
def test_each_row_equals_transformers_alone(tmp_path, front, fields):
  folder, model, extractor = make(tmp_path, front, **fields)
  audio = alone.make_audio()
  alone.check(folder, alone.of_transformers(model, extractor, audio), audio)


def test_waveforms_of_little_power_are_normalised_with_their_epsilon(saved):
  folder, model, front = saved
  audio = alone.make_audio() // 1000
  alone.check(folder, alone.of_transformers(model, front, audio), audio)


def test_frames_are_counted_as_in_transformers(saved):
  folder, model, _ = saved
  config = families.model_config(huggingface.read_description(folder), "")
  lengths = np.arange(3000)
  counted = model._get_subsampling_output_length(hf_models.torch.tensor(lengths)).numpy().clip(0)
  np.testing.assert_array_equal(config.frame_len(jnp.array(lengths)), counted)
  assert config.frame_samples == 320


def test_bfloat16_is_close_to_float32(saved):
  alone.check_bfloat16(saved[0], alone.make_audio())


def test_classes_are_the_tokenizers_and_the_blank_is_the_first(saved):
  labels, tokenizer = huggingface.read_labels(saved[0]), tokenizer_of_pieces()
  assert labels.symbols == PIECES and labels.blank_id == 0
  for text in ("ab c", "a|é A", "dad"):
    ids = labels.encode(text)
    assert ids.tolist() == tokenizer(text).input_ids
    assert labels.decode(ids) == tokenizer.decode(ids.tolist(), group_tokens=False).lower()
  assert labels.decode([5, 0, 1, 2, 3, 4, 4, 6]) == "a b"


def test_classes_of_other_files(folder):
  pieces = {piece: i for i, piece in enumerate(PIECES)}
  (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": pieces}}))
  assert huggingface.read_labels(folder).symbols == PIECES
  edit(folder / "config.json", vocab_size=20, blank_token_id=1)
  labels = huggingface.read_labels(folder)
  assert labels.blank_id == 1 and labels.symbols[len(PIECES) :][0] == f"<unused {len(PIECES)}>"


def test_fields_that_config_json_does_not_have(folder):
  """They are those of the smallest model that is published."""
  (folder / "config.json").write_text(json.dumps({"model_type": "omniasr_ctc"}))
  config = families.model_config(huggingface.read_description(folder), "")
  assert (config.width, config.layers, config.heads, config.ff_width) == (1024, 24, 16, 4096)
  assert len(huggingface.read_labels(folder).symbols) == 10288
  config = hf_models.transformers.OmniASRCTCConfig()
  filled = {"config": config.to_dict(), "preprocessor": {}}
  silent = {"config": {"model_type": "omniasr_ctc"}, "preprocessor": {}}
  assert families.model_config(filled, "") == families.model_config(silent, "")


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda f: edit_audio(f, hidden_act="tanh"), "hidden_act is 'tanh': it must be one of gelu"),
    (lambda f: edit_audio(f, num_conv_pos_embeddings=7), "num_conv_pos_embeddings is 7"),
    (lambda f: edit_audio(f, num_hidden_layers=4), r"missing: model.audio_tower.layers.3"),
    (lambda f: edit(f / "config.json", vocab_size=5), "classes up to 12.* vocab_size, 5"),
    (lambda f: edit(f / "config.json", blank_token_id=99), "blank_token_id, 99, do not fit"),
    (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json cannot be read"),
    (lambda f: edit(f / "tokenizer.json", model={}), "has no vocabulary that can be read"),
    (
      lambda f: edit(f / "processor_config.json", feature_extractor={"sampling_rate": 8000}),
      "only models of 16000 Hz",
    ),
  ],
)
def test_what_cannot_be_had_is_refused(folder, change, words):
  change(folder)
  with pytest.raises(UserError, match=words):
    teacher.from_huggingface(folder)


def test_it_is_not_fine_tuned(saved):
  flags = ["--config=teacher:demo", f"--config.student.source={saved[0]}", "--workdir=/nowhere/x"]
  with pytest.raises(UserError, match="it can teach, and not be fine-tuned"):
    line.main(["train", *flags])
