"""A config's model block → structure, classes and first parameters; finished models from disk."""

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from jaxkd import files
from jaxkd import labels as labels_lib
from jaxkd import teacher as teacher_lib
from jaxkd.devices import mesh, sharding
from jaxkd.errors import UserError
from jaxkd.labels import Vocabulary, characters, lexicon
from jaxkd.models import parameters
from jaxkd.models.conformer import ConformerConfig, ConformerCTC
from jaxkd.models.features import SAMPLE_RATE_HZ, LogMel
from jaxkd.models.huggingface import folder as huggingface
from jaxkd.models.huggingface import weights as port
from jaxkd.models.wav2vec2 import Wav2Vec2Config
from jaxkd.teacher import Teacher

log = logging.getLogger(__name__)
FINAL = pathlib.Path("checkpoints", "final")
DESCRIPTION = "huggingface.json"
LABELS = "labels.json"


@dataclasses.dataclass(frozen=True)
class Blueprint:
  """A model that is to be trained.

  Attributes:
    graphdef, like: its structure and abstract parameters (`nnx.split`).
    labels: its classes.
    params: typed key → first parameters: drawn, or read from a folder.
    frozen: top-level parts whose parameters are not trained.
    description: of a Hugging Face model, kept in the workdir to load and export it; else None.
  """

  graphdef: Any
  like: Any
  labels: Vocabulary
  params: Callable[[jax.Array], Any]
  frozen: tuple[str, ...] = ()
  description: dict | None = None

  def save(self, folder: pathlib.Path) -> None:
    """Writes to a workdir what `load_finished` needs besides its config and parameters."""
    self.labels.save(folder / LABELS)
    if self.description is not None:
      files.write_json(folder / DESCRIPTION, self.description)


def check_workdir(folder: pathlib.Path, labels: Vocabulary) -> None:
  """A workdir holds no run, or one with these classes and pronunciations.

  Raises:
    UserError: it holds another.
  """
  path = folder / LABELS
  if path.exists() and Vocabulary.load(path) != labels:
    raise UserError(
      f"--workdir={folder} holds a run of other classes or pronunciations (config.labels): choose "
      "another --workdir or remove this one"
    )


def make(config: ConfigDict, labels: Vocabulary, project_to: int | None = None) -> Blueprint:
  """The model that `config.student` describes, with these classes.

  Args:
    config: of the run.
    labels: the classes.
    project_to: width of the teacher's frames, for a projection to compare them in; None for none.

  Raises:
    UserError: a Hugging Face folder that is not there or does not fit.
  """
  block = config.student
  if block.name == "huggingface":
    return _pretrained(config, labels)
  create, graphdef, like = _conformer(config, labels, project_to)
  params = jax.jit(lambda key: nnx.state(create(key), nnx.Param))
  return Blueprint(graphdef, like, labels, params)


def own_labels(config: ConfigDict, texts: Iterable[str] = ()) -> Vocabulary:
  """Classes of a model without a teacher: its folder's vocabulary, or config.labels.

  A Hugging Face model that has been fine-tuned keeps its head and its vocabulary where
  config.labels.name is "auto"; else, and where it is only pre-trained, it gets a new head.

  Args:
    config: of the model's own run.
    texts: transcripts that it is trained on: sentencepiece's pieces are made of them, and of words
      that sound alike the one that they have more often is heard.

  Raises:
    UserError: a Hugging Face folder that is not there or has no blank; a lexicon that cannot be
      read; transcripts that sentencepiece cannot be trained on.
  """
  block = config.labels
  if block.name == "auto" and (found := head_labels(config)) is not None:
    return found
  if block.name == "sentencepiece":
    return labels_lib.sentencepiece(texts, block.size)
  if block.name == "phonemes":
    words = lexicon.Lexicon(())
    if block.lexicon:
      words = lexicon.read(pathlib.Path(block.lexicon).expanduser())
    if block.cmudict:
      words = words.before(lexicon.cmudict())
    return labels_lib.phonemes(words.by_count(texts))
  return characters(block.alphabet)


def taught_labels(config: ConfigDict, given: Vocabulary) -> Vocabulary:
  """Classes of a student whose teacher is there: the teacher's, and config.labels must agree.

  Of phonemes, the words that transcripts may have are config.labels's.

  Raises:
    UserError: config.labels asks for other classes.
  """
  asked, source = config.labels, config.teacher.source
  fix = "config.labels.name=auto takes the teacher's"
  if asked.name == "auto":
    return given
  if asked.name == "sentencepiece":
    if (given.kind, len(given.symbols)) != (asked.name, asked.size):
      raise UserError(
        f"config.labels asks for sentencepiece with {asked.size} classes, and {source} has "
        f"{given.kind}, {len(given.symbols)} classes: {fix}"
      )
    return given
  own = own_labels(config)
  labels_lib.check_same(given, own, source, "config.labels", fix=fix)
  if own.kind != given.kind or own.kind != "phonemes":
    return own
  # Of words that sound alike the same one is heard from both.
  return labels_lib.phonemes(own.lexicon.in_order_of(given.lexicon))


def untrained_labels(config: ConfigDict) -> Vocabulary:
  """`own_labels` without transcripts; of sentencepiece only the number of classes is right."""
  if config.labels.name != "sentencepiece":
    return own_labels(config)
  pieces = tuple(f"<piece {i}>" for i in range(config.labels.size - 1))
  return Vocabulary((*pieces, labels_lib.BLANK), len(pieces))


def head_labels(config: ConfigDict) -> Vocabulary | None:
  """The vocabulary of `config.student` where it is a Hugging Face model with a CTC head.

  Raises:
    UserError: a folder that is not there or has no blank.
  """
  if config.student.name != "huggingface":
    return None
  folder = huggingface.folder_of(config.student.source)
  return huggingface.read_labels(folder) if port.has_head(folder) else None


def without_projection(params):
  """Parameters of a student as it is kept: nothing that only its training needs."""
  return nnx.State({name: part for name, part in params.items() if name != "projection"})


def encoder_width(graphdef, params) -> int:
  """Numbers in a frame of a model's encoder output."""
  audio = jax.ShapeDtypeStruct((1, SAMPLE_RATE_HZ), jnp.int16)
  audio_len = jax.ShapeDtypeStruct((1,), jnp.int32)
  encode = lambda params, *audio: nnx.merge(graphdef, params).encode(*audio)[0]
  return jax.eval_shape(encode, params, audio, audio_len).shape[-1]


def _conformer(config: ConfigDict, labels: Vocabulary, project_to: int | None = None):
  """Typed key → model, its structure and abstract parameters."""
  sizes = {k: v for k, v in _tuples(config.student).items() if k not in ("name", "init")}
  settings = ConformerConfig(dtype=config.dtype, remat=_remat(config), **sizes)
  features, classes = LogMel(**config.features), len(labels.symbols)
  create = lambda key: ConformerCTC(
    settings, features, classes, rngs=nnx.Rngs(params=key), project_to=project_to
  )
  return create, *nnx.split(nnx.eval_shape(lambda: create(jax.random.key(0))))


def _remat(config: ConfigDict) -> bool:
  """Of the training of `config.student`; configs of older runs do not say."""
  return config.training.get("remat", False)


def _tuples(block: ConfigDict) -> dict:
  """A block's fields with every list as a tuple, since static settings must be hashable."""
  deep = lambda x: tuple(deep(y) for y in x) if isinstance(x, (list, tuple)) else x
  return {name: deep(value) for name, value in block.items()}


def _pretrained(config: ConfigDict, labels: Vocabulary) -> Blueprint:
  block, classes = config.student, len(labels.symbols)
  folder = huggingface.folder_of(block.source)
  description = huggingface.read_description(folder)
  settings = huggingface_config(config, description, str(folder))
  keeps_head = port.has_head(folder) and huggingface.read_labels(folder) == labels

  def params(key):
    if not keeps_head:
      log.info("%s: a fresh head for %d classes", folder, classes)
    return port.load(folder, settings, classes, fresh_head=None if keeps_head else key)

  frozen = ("conv",) if block.freeze_conv else ()
  return Blueprint(*port.structure(settings, classes), labels, params, frozen, description)


def huggingface_config(config: ConfigDict, description: dict, where: str) -> Wav2Vec2Config:
  """The structure of `config.student`, a Hugging Face model with this description.

  Raises:
    UserError: it cannot be used; `where` is named.
  """
  block = config.student
  settings = huggingface.model_config(
    description,
    where,
    pool=block.pool,
    dtype=config.dtype,
    head_dropout=block.dropout,
    freeze_conv=block.freeze_conv,
  )
  return dataclasses.replace(settings, remat=_remat(config))


def is_huggingface(source: str) -> bool:
  """Whether a teacher's source is a Hugging Face model and not a workdir.

  Raises:
    UserError: it is neither.
  """
  folder = pathlib.Path(source).expanduser()
  if (folder / "results.json").exists():
    return False
  if not folder.is_dir():
    return source.count("/") == 1 and not folder.parent.is_dir() or _absent(source)
  config = folder / "config.json"
  if not config.exists() or "recipe" in files.read_json(config):
    raise UserError(
      f"{folder} is neither the workdir of a finished run (no results.json: run it to its end "
      "first) nor a model in Hugging Face's layout (config.json, *.safetensors, vocab.json)"
    )
  return True


def _absent(source: str):
  raise UserError(
    f"config.teacher.source is {source!r}: no such folder; it must be train, none, the workdir of "
    "a finished run, or a model in Hugging Face's layout (a folder, or org/name on its hub)"
  )


def teacher_structure(source: str, *, pool: int, dtype: str):
  """Classes, structure and abstract parameters of what `load_teacher` would load.

  Args:
    source, pool, dtype: as for `load_teacher`.

  Raises:
    UserError: no teacher there, or one that cannot be used.
  """
  if "," in source:
    parts = [teacher_structure(s, pool=pool, dtype=dtype) for s in members(source)]
    _check_one_vocabulary(source, [labels for labels, *_ in parts])
    whole = lambda: teacher_lib.Ensemble([nnx.merge(*structure) for _, *structure in parts])
    return parts[0][0], *nnx.split(nnx.eval_shape(whole))
  if is_huggingface(source):
    settings, labels = teacher_lib.read_huggingface(huggingface.folder_of(source), pool, dtype)
    return labels, *port.structure(settings, len(labels.symbols))
  return _finished_structure(pathlib.Path(source))[1:]


def members(source: str) -> list[str]:
  """The teachers of `config.teacher.source`, which are several where commas stand between.

  Raises:
    UserError: one of them is empty.
  """
  found = [part.strip() for part in source.split(",")]
  if not all(found):
    raise UserError(f"config.teacher.source is {source!r}: teachers with single commas between")
  return found


def _check_one_vocabulary(source: str, vocabularies: list[Vocabulary]) -> None:
  first, *others = zip(members(source), vocabularies, strict=True)
  for name, labels in others:
    labels_lib.check_same(first[1], labels, first[0], name)


def load_teacher(source: str, *, pool: int, dtype: str, devices: jax.sharding.Mesh) -> Teacher:
  """A frozen teacher from a finished workdir or a Hugging Face model, or an ensemble of several.

  Args:
    source: a folder, or org/name on the hub; several with commas between.
    pool, dtype: of a Hugging Face model; a workdir has its own.
    devices: where the parameters go.

  Raises:
    UserError: no teacher there, or one that cannot be used.
  """
  if "," in source:
    found = [load_teacher(s, pool=pool, dtype=dtype, devices=devices) for s in members(source)]
    _check_one_vocabulary(source, [teacher.vocabulary for teacher in found])
    return teacher_lib.ensemble(found)
  if is_huggingface(source):
    place = lambda params: mesh.put(params, sharding.of_state(devices, params))
    return teacher_lib.from_huggingface(source, pool, dtype=dtype, place=place)
  return load_finished(pathlib.Path(source), devices)[1]


def load_finished(folder: pathlib.Path, devices: jax.sharding.Mesh) -> tuple[ConfigDict, Teacher]:
  """Config and final student of a finished run's workdir.

  Raises:
    UserError: not the workdir of a finished run.
  """
  config, labels, graphdef, like = _finished_structure(folder)
  like = jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    like,
    sharding.of_state(devices, like),
  )
  return config, Teacher(graphdef, parameters.load_params(folder / FINAL, like), labels)


def _finished_structure(folder: pathlib.Path):
  """Config, classes, structure and abstract parameters of a finished run's student."""
  if not (folder / "results.json").exists():
    raise UserError(
      f"{folder} is not the workdir of a finished run (no results.json): run it to its end first"
    )
  labels = Vocabulary.load(folder / LABELS)
  config = ConfigDict(files.read_json(folder / "config.json"))
  if config.student.name != "huggingface":
    return config, labels, *_conformer(config, labels)[1:]
  path = folder / DESCRIPTION
  settings = huggingface_config(config, files.read_json(path), str(path))
  return config, labels, *port.structure(settings, len(labels.symbols))
