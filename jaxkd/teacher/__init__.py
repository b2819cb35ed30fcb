"""Frozen models that a student learns from, and where they come from."""

import os
import pathlib

import jax

from jaxkd.labels import Vocabulary
from jaxkd.models.acoustic import AcousticModel
from jaxkd.models.huggingface import families, weights
from jaxkd.models.huggingface import folder as huggingface
from jaxkd.models.wav2vec2 import Wav2Vec2Config

__all__ = ["AcousticModel", "from_huggingface", "read_huggingface"]


def from_huggingface(
  source: str | os.PathLike,
  pool: int = 1,
  *,
  dtype: str = "float32",
  language: str = "",
  devices: jax.sharding.Mesh | None = None,
) -> AcousticModel:
  """A model with a CTC head, of one of the families in `huggingface.families`.

  Args:
    source: a folder with config.json, weights (safetensors, or PyTorch's pytorch_model.bin),
      vocab.json and preprocessor_config.json, or org/name on the Hugging Face hub.
    pool: frames (20 ms) that are max-pooled into one before the head; 2 in the paper.
    dtype: of the arithmetic, "float32" or "bfloat16", in which its matrices are kept, too.
    language: of a model with an adapter for each (MMS), as its files name it, such as "fra".
    devices: where the parameters are laid out (`mesh.make_mesh`); None for JAX's default device.

  Returns:
    A model that is called with audio i16 or float[B, S] of full scale 1 at 16 kHz and audio_len
    i32[B], and returns FrameOutput(logits f32[B, T, V], mask bool[B, T]).

  Raises:
    UserError: no such model, no CTC head, another architecture, a vocabulary without blank,
      another sampling rate than 16 kHz, or weights that do not fit.
  """
  folder = huggingface.folder_of(os.fspath(source), language)
  config, vocabulary = read_huggingface(folder, pool, dtype, language)
  classes = len(vocabulary.symbols)
  graphdef = weights.structure(config, classes)[0]
  params = weights.load(folder, config, classes, language=language, frozen=True, devices=devices)
  return AcousticModel(graphdef, params, vocabulary, config.frame_samples)


def read_huggingface(
  folder: pathlib.Path, pool: int, dtype: str, language: str = ""
) -> tuple[Wav2Vec2Config, Vocabulary]:
  """Structure and classes of what `from_huggingface` loads; raises as that does."""
  description = huggingface.read_description(folder)
  config = families.model_config(description, str(folder), pool=pool, dtype=dtype)
  vocabulary = huggingface.read_labels(folder, language)
  if language:
    weights.adapter_file(folder, language)  # is there, before anything is built
  return config, vocabulary
