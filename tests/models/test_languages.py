"""Models with an adapter and a vocabulary for each language (MMS), against transformers."""

import json

import numpy as np
import pytest

import jaxkd
from jaxkd import teacher
from jaxkd.commands import line
from jaxkd.errors import UserError
from jaxkd.teacher import sources

hf_models = pytest.importorskip("hf_models")
safetensors = pytest.importorskip("safetensors.torch")
LETTERS = {"eng": "ABCDE", "fra": "ABCDEFGHIJ"}
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "|")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A model whose own weights are English, and adapters for two languages."""
  folder = tmp_path_factory.mktemp("mms")
  torch, transformers = hf_models.torch, hf_models.transformers
  symbols = (*SPECIAL, *LETTERS["eng"])
  hf_models.make(folder, "wav2vec2", "layer", symbols=symbols, adapter_attn_dim=6)
  vocabularies = {}
  for seed, (language, letters) in enumerate(LETTERS.items()):
    symbols = (*SPECIAL, *letters)
    vocabularies[language] = {symbol: i for i, symbol in enumerate(symbols)}
    config = transformers.AutoConfig.from_pretrained(folder, vocab_size=len(symbols))
    model = transformers.Wav2Vec2ForCTC(config)
    torch.manual_seed(seed)
    weights = {n: 0.3 * torch.randn_like(w) for n, w in model._get_adapters().items()}
    safetensors.save_file(weights, folder / f"adapter.{language}.safetensors")
  (folder / "vocab.json").write_text(json.dumps(vocabularies))
  return folder


@pytest.mark.parametrize("language", LETTERS)
def test_each_language_equals_transformers(folder, language):
  reference = hf_models.transformers.Wav2Vec2ForCTC.from_pretrained(
    folder, target_lang=language, ignore_mismatched_sizes=True
  ).eval()
  audio = np.random.default_rng(0).normal(size=(2, 9000)).astype(np.float32)
  lengths = np.array([9000, 7000])
  padded = hf_models.normalised(audio, lengths)
  expected = hf_models.call(reference, padded, lengths).logits.numpy()
  out = teacher.from_huggingface(folder, language=language)(audio, lengths.astype(np.int32))
  mask = np.asarray(out.mask)
  assert out.logits.shape[-1] == len(SPECIAL) + len(LETTERS[language])
  np.testing.assert_allclose(np.asarray(out.logits)[mask], expected[mask], atol=1e-4)


def test_a_recogniser_and_a_teacher_of_a_language(folder):
  model = jaxkd.load(folder, language="fra").model
  assert model.labels[-1] == "J"
  found = sources.find(str(folder), pool=2, dtype="float32", language="eng")
  assert found.vocabulary.symbols == (*SPECIAL, *LETTERS["eng"]) and found.frame_samples == 640


@pytest.mark.parametrize(
  ("language", "words"),
  [
    ("", r"one must be named \(teacher.language\) of its 2 languages: eng, fra"),
    ("deu", "'deu' is none of its 2 languages: eng, fra"),
  ],
)
def test_a_language_that_is_not_there(folder, language, words):
  with pytest.raises(UserError, match=words):
    line.main(["transcribe", str(folder), "x.wav", f"--language={language}"])


def test_an_adapter_that_is_absent(folder, tmp_path):
  for path in folder.iterdir():
    if path.name != "adapter.fra.safetensors":
      (tmp_path / path.name).symlink_to(path)
  with pytest.raises(UserError, match=r"no adapter.fra.safetensors: it has adapters of eng"):
    teacher.from_huggingface(tmp_path, language="fra")


def test_a_model_of_one_language(tmp_path):
  hf_models.make(tmp_path, "wav2vec2", "layer")
  with pytest.raises(UserError, match="one vocabulary, and none of the language 'fra'"):
    teacher.from_huggingface(tmp_path, language="fra")


def test_a_run_has_no_languages(tmp_path):
  (tmp_path / "results.json").write_text("{}")
  for load in (
    lambda: jaxkd.load(tmp_path, language="fra"),
    lambda: sources.find(str(tmp_path), pool=2, dtype="float32", language="fra"),
  ):
    with pytest.raises(UserError, match="one vocabulary, and none of the language 'fra'"):
      load()


def test_it_is_not_fine_tuned(folder):
  flags = ["--config=teacher:demo", f"--config.student.source={folder}", "--workdir=/nowhere/x"]
  with pytest.raises(UserError, match="it can teach, and not be fine-tuned"):
    line.main(["train", *flags])
