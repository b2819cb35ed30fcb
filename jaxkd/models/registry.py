"""A config's model block → its architecture, the structure for some classes, first parameters."""

import dataclasses
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from jaxkd.errors import UserError
from jaxkd.labels import Vocabulary
from jaxkd.masks import strided_len
from jaxkd.models.conformer import ConformerConfig, ConformerCTC
from jaxkd.models.fastconformer import FastConformerConfig, FastConformerCTC
from jaxkd.models.features import LogMel, frame_len
from jaxkd.models.huggingface import families, weights
from jaxkd.models.huggingface import folder as huggingface
from jaxkd.models.wav2vec2 import Wav2Vec2Config
from jaxkd.types import SAMPLE_RATE_HZ

log = logging.getLogger(__name__)

# Nats by which a drawn head prefers the blank. Without them CTC alone may learn that silence is a
# space, or to scatter a word's letters over the pause behind it, and never leave that again.
_BLANK_FIRST = 3.0


@dataclasses.dataclass(frozen=True)
class Architecture:
  """A model whose classes are not decided yet.

  Attributes:
    settings: its sizes.
    features: what a model reads whose parameters are drawn here; None for one of Hugging Face's.
    description: of a Hugging Face model, which a workdir keeps to load and export it; else None.
    folder: where the weights of a Hugging Face model lie; None where they are drawn or elsewhere.
    head: name and classes of the folder's own head; None where it has none.
  """

  settings: ConformerConfig | FastConformerConfig | Wav2Vec2Config
  features: LogMel | None = None
  description: dict | None = None
  folder: pathlib.Path | None = None
  head: tuple[str, Vocabulary] | None = None

  @property
  def frame_samples(self) -> int:
    """Audio samples in an output frame."""
    return self.settings.frame_samples

  def frame_len(self, audio_len):
    """Output frames of so many samples, ints or NumPy."""
    if isinstance(self.settings, ConformerConfig):
      return self.settings.frame_len(frame_len(audio_len, self.features.kind))
    return strided_len(self.settings.frame_len(audio_len), self.settings.pool)

  @property
  def kind(self) -> str:
    """As people call it."""
    names = {ConformerConfig: "Conformer", FastConformerConfig: "FastConformer"}
    return names.get(type(self.settings)) or self.settings.family

  @property
  def is_ours(self) -> bool:
    """Whether it is none of Hugging Face's families, so that nobody else loads it."""
    return isinstance(self.settings, ConformerConfig)

  @property
  def frozen(self) -> tuple[str, ...]:
    """Top-level parts whose parameters are not trained."""
    return ("conv",) if getattr(self.settings, "freeze_conv", False) else ()

  def structure(
    self, classes: int, project_to: int | None = None, *, inner_heads: bool = False
  ) -> tuple[Any, Any]:
    """Graph definition and abstract parameters (`nnx.split`).

    Args:
      classes: of the head, the blank included.
      project_to: width of a teacher's frames, for a projection to compare them in.
      inner_heads: whether a Conformer has those of its `inner_layers`, which only training needs.
    """
    if self.features is None:
      return weights.structure(self.settings, classes)
    drawn = lambda: self._drawn(classes, project_to, inner_heads, jax.random.key(0))
    return nnx.split(nnx.eval_shape(drawn))

  def first_params(
    self,
    vocabulary: Vocabulary,
    project_to: int | None = None,
    devices: jax.sharding.Mesh | None = None,
    *,
    inner_heads: bool = False,
  ) -> Callable[[jax.Array], Any]:
    """Typed key → parameters: drawn, or read from the folder, with a fresh head where need be.

    Heads that are drawn with all else say blank first.

    Args:
      vocabulary: classes of the head.
      project_to, inner_heads: as of `structure`.
      devices: where what is read is laid out; None for the default one.
    """
    classes = len(vocabulary.symbols)
    if self.features is not None:

      def draw(key):
        model = self._drawn(classes, project_to, inner_heads, key)
        for head in (model.head, getattr(model, "inner_heads", None)):
          if head is not None:
            head.bias[...] = head.bias[...].at[..., vocabulary.blank_id].add(_BLANK_FIRST)
        return nnx.state(model, nnx.Param)

      return jax.jit(draw)
    keeps_head = self.head is not None and self.head[1] == vocabulary

    def read(key):
      if not keeps_head:
        log.info("%s: a fresh head for %d classes", self.folder, classes)
      head = None if keeps_head else key
      return weights.load(self.folder, self.settings, classes, fresh_head=head, devices=devices)

    return read

  def _drawn(self, classes: int, project_to, inner_heads: bool, key: jax.Array) -> nnx.Module:
    options = dict(rngs=nnx.Rngs(params=key), project_to=project_to)
    if isinstance(self.settings, FastConformerConfig):
      return FastConformerCTC(self.settings, classes, **options)
    return ConformerCTC(self.settings, self.features, classes, inner_heads=inner_heads, **options)


def architecture(
  block: ConfigDict,
  features: ConfigDict,
  *,
  dtype: str,
  remat: bool = False,
  description: dict | None = None,
) -> Architecture:
  """What a model block describes.

  Args:
    block: `config.student` or `config.teacher.model`.
    features: `config.features`.
    dtype: of the arithmetic.
    remat: layers are computed again for the gradient.
    description: of a Hugging Face model whose folder is not looked for; None reads the folder.

  Raises:
    UserError: a Hugging Face folder that is not there or cannot be used.
  """
  if block.name == "conformer":
    sizes = {k: v for k, v in _tuples(block).items() if k not in ("name", "init")}
    settings = ConformerConfig(dtype=dtype, remat=remat, **sizes)
    return Architecture(settings, LogMel(**features))
  if block.name == "fastconformer":
    sizes = {k: v for k, v in block.items() if k not in ("name", "init", "ff_mult")}
    sizes |= {"ff_width": block.ff_mult * block.width, "mels": features.mels}
    # Nothing estimates statistics here: a batch norm is its scale and its bias.
    settings = FastConformerConfig(statistics=False, dtype=dtype, remat=remat, **sizes)
    return Architecture(settings, LogMel(**features))
  folder, head, where = None, None, block.source
  if description is None:
    folder = huggingface.folder_of(block.source)
    description, where = huggingface.read_description(folder), str(folder)
    family = families.of(description["config"], where)
    if not family.learns:
      raise UserError(f"{where} is {family.class_name}: it can teach, and not be fine-tuned here")
    if description["config"].get("adapter_attn_dim"):
      raise UserError(f"{where} has adapters of languages: it can teach, and not be fine-tuned")
    if weights.has_head(folder, family):
      head = block.source, huggingface.read_labels(folder)
  settings = dataclasses.replace(
    families.model_config(description, where, pool=block.pool, dtype=dtype),
    head_dropout=block.dropout,
    freeze_conv=block.freeze_conv,
    remat=remat,
  )
  return Architecture(settings, None, description, folder, head)


def encoder_width(graphdef, like) -> int:
  """Numbers in a frame of a model's encoder output."""
  audio = jax.ShapeDtypeStruct((1, SAMPLE_RATE_HZ), jnp.float32)
  audio_len = jax.ShapeDtypeStruct((1,), jnp.int32)
  encode = lambda params, *audio: nnx.merge(graphdef, params).encode(*audio)[0]
  return jax.eval_shape(encode, like, audio, audio_len).shape[-1]


def as_kept(params):
  """Parameters of a model as it is kept: nothing that only its training needs."""
  training_only = ("projection", "inner_heads")
  return nnx.State({name: part for name, part in params.items() if name not in training_only})


def _tuples(block: ConfigDict) -> dict:
  """A block's fields with every list as a tuple, since static settings must be hashable."""
  deep = lambda x: tuple(deep(y) for y in x) if isinstance(x, (list, tuple)) else x
  return {name: deep(value) for name, value in block.items()}
