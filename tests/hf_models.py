"""Tiny random models of Hugging Face transformers, saved as its users save theirs.

Whoever imports this is skipped where torch or transformers is not installed.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import warnings

import numpy as np
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
torch.set_num_threads(1)  # for models this small, threads wait for each other
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

# family → prefix of its classes in transformers.
CLASSES = {
  "hubert": "Hubert",
  "wav2vec2": "Wav2Vec2",
  "wavlm": "WavLM",
  "data2vec-audio": "Data2VecAudio",
  "unispeech": "UniSpeech",
  "unispeech-sat": "UniSpeechSat",
}
# Every architecture with each norm it exists with, and one of each family that only has other
# names; (family, norm).
MODELS = [
  *((family, norm) for family in ("hubert", "wav2vec2", "wavlm") for norm in ("group", "layer")),
  ("data2vec-audio", "layer"),
  ("unispeech", "layer"),
  ("unispeech-sat", "group"),
]
SYMBOLS = ("<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFG")
# Upper-case letters of the demo corpus, as a fine-tuned model would have them.
DIGITS = ("<pad>", "<s>", "</s>", "<unk>", "|", *"EFGHINORSTUVWXZ")
_SIZES = dict(
  hidden_size=32,
  num_hidden_layers=3,
  num_attention_heads=4,
  intermediate_size=48,
  conv_dim=(16,) * 7,
  num_conv_pos_embeddings=8,
  num_conv_pos_embedding_groups=4,
)


_PARAKEET = dict(
  hidden_size=32,
  num_hidden_layers=2,
  num_attention_heads=4,
  intermediate_size=48,
  subsampling_conv_channels=8,
  num_mel_bins=16,
)


@dataclasses.dataclass(frozen=True)
class Saved:
  """A folder and the torch model that was saved there."""

  folder: pathlib.Path
  model: "torch.nn.Module"


def make(folder, family: str, norm: str, *, head=True, symbols=SYMBOLS, front=None, seed=0, **over):
  """A model with noise on all parameters, in evaluation mode, saved to a folder.

  Args:
    folder: made if absent; gets config.json, weights, vocabulary and front-end.
    family: one of CLASSES.
    norm: "group" (and post-norm layers: "base") or "layer" (and pre-norm: "large"; data2vec-audio
      is post-norm).
    head: with a CTC head and a vocabulary; without, what pre-training leaves: for wav2vec2 and
      UniSpeech the quantizer and its like too, for the others the bare encoder, whose weights have
      no prefix.
    symbols: of vocab.json, by class.
    front: what differs from Wav2Vec2FeatureExtractor's usual settings.
    seed: of the parameters.
    **over: fields of config.json.
  """
  folder = pathlib.Path(folder)
  own = dict(do_stable_layer_norm=norm == "layer", feat_extract_norm=norm)
  if family == "data2vec-audio":
    assert norm == "layer"
    own = dict(num_conv_pos_embeddings=2, conv_pos_kernel_size=5)
  fields = _SIZES | {"vocab_size": len(symbols)} | own | over
  full = ("wav2vec2", "unispeech", "unispeech-sat")
  pretrained = "ForPreTraining" if family in full else "Model"
  get = lambda suffix: getattr(transformers, CLASSES[family] + suffix)
  torch.manual_seed(seed)
  model = get("ForCTC" if head else pretrained)(get("Config")(**fields)).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
  model.save_pretrained(folder)
  if head:
    (folder / "vocab.json").write_text(json.dumps({s: i for i, s in enumerate(symbols)}))
  settings = dict(return_attention_mask=norm == "layer") | (front or {})
  transformers.Wav2Vec2FeatureExtractor(**settings).save_pretrained(folder)
  return model


def make_parakeet(folder: pathlib.Path, *, factor: int = 8, seed: int = 0, **over):
  """A model with noise on all parameters and statistics, saved with its front-end and classes."""
  encoder = transformers.ParakeetEncoderConfig(**_PARAKEET | {"subsampling_factor": factor} | over)
  classes = len(SYMBOLS)
  config = transformers.ParakeetCTCConfig(
    vocab_size=classes, pad_token_id=0, encoder_config=encoder.to_dict()
  )
  torch.manual_seed(seed)
  model = transformers.ParakeetForCTC(config).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.1 * torch.randn_like(parameter))
    for name, buffer in model.named_buffers():
      if name.endswith("running_mean"):
        buffer.normal_(std=0.3)
      elif name.endswith("running_var"):
        buffer.uniform_(0.2, 2.0)
  model.save_pretrained(folder)
  vocabulary = {symbol: i for i, symbol in enumerate(SYMBOLS)}
  tokenizer = {"model": {"type": "BPE", "vocab": vocabulary, "merges": []}}
  (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
  parakeet_extractor(encoder.num_mel_bins).save_pretrained(folder)
  return model


def parakeet_extractor(mels: int):
  """The front-end of such a model."""
  return transformers.ParakeetFeatureExtractor(feature_size=mels)


def normalised(audio, lengths) -> np.ndarray:
  """f32[B, S]: each row's real samples with zero mean and unit variance, then zeros."""
  out = np.zeros(audio.shape, np.float32)
  for row, length in enumerate(lengths):
    real = np.float64(audio[row, :length])
    out[row, :length] = (real - real.mean()) / np.sqrt(real.var() + 1e-7)
  return out


def call(model, audio: np.ndarray, lengths=None):
  """transformers' output for f32[B, S]; with lengths, the attention mask is given to it."""
  mask = None
  if lengths is not None:
    mask = torch.tensor(np.arange(audio.shape[1]) < np.asarray(lengths)[:, None]).long()
  with torch.no_grad(), warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch: mask and bias of WavLM's attention differ in type
    return model(torch.tensor(audio), attention_mask=mask)


@contextlib.contextmanager
def watched(**modules):
  """Name → (first input, output) of each module's next call, as arrays, filled while open."""
  seen, hooks = {}, []

  def hook(name, args, options, output):
    output = output[0] if isinstance(output, tuple) else output
    first = args[0] if args else next(iter(options.values()))
    # Copies: transformers sets padding to 0 in place.
    seen[name] = tuple(x.detach().numpy().copy() for x in (first, output))

  for name, module in modules.items():
    watch = lambda _, args, options, output, name=name: hook(name, args, options, output)
    hooks.append(module.register_forward_hook(watch, with_kwargs=True))
  try:
    yield seen
  finally:
    for hook_handle in hooks:
      hook_handle.remove()
