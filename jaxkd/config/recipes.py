"""Recipes: data × size. A size decides models and training, data what is read.

`manifest-medium` is the data `manifest` with size `medium`; `manifest` alone has a size of its own.
"""

from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

from jaxkd.config import fields, schema
from jaxkd.errors import UserError, did_you_mean


def conformer(layers, width, heads, dropout, channels, pool) -> ConfigDict:
  """The block of a student, or of a teacher that is trained from scratch."""
  return _model(
    "conformer",
    layers=layers,
    width=width,
    heads=heads,
    dropout=dropout,
    frontend_channels=channels,
    frontend_pool=pool,
  )


def huggingface(source: str = "") -> ConfigDict:
  """The block of a pre-trained model that is fine-tuned: the paper's teacher."""
  return _model("huggingface", source=source)


def _model(name: str, **changes) -> ConfigDict:
  block = {k: f.default for k, f in fields.MODELS[name].items()}
  return ConfigDict({"name": name} | block | changes)


# What differs from the table in each size: of a student, and of a teacher that is trained here.
_FASTCONFORMERS = {
  "tiny": (
    dict(layers=3, width=64, heads=4, subsampling=4, subsampling_channels=16, dropout=0.05),
    dict(layers=3, width=112, heads=4, subsampling=4, subsampling_channels=32),
  ),
  "small": (dict(width=184, heads=4, subsampling_channels=128), {}),
  "medium": ({}, {}),
  "large": (dict(width=512), {}),
}


def of_another_kind(recipe: str, path: str, kind: str) -> dict:
  """Fields of a block in a recipe's size, where a flag names a kind that the recipe has not there.

  Args:
    recipe: one of RECIPES.
    path: of the block, such as "teacher.model".
    kind: its new `name`.
  """
  if kind != "fastconformer":
    return {}
  of_student, of_teacher = _FASTCONFORMERS[parts(recipe)[1]]
  return of_student if path == "student" else of_teacher


def training(**changes) -> ConfigDict:
  """How one model is trained; the student and a teacher that is trained here have one each."""
  return ConfigDict(schema.defaults(fields.TRAINING) | changes)


def finetuning(**changes) -> ConfigDict:
  """The paper's fine-tuning of HuBERT large: 10 epochs, 3 × 120 s an update.

  Layers are computed again, without which 35 s a chip do not fit 16 GiB.
  """
  common = dict(epochs=10, batch_seconds=120.0, accumulate=3, remat=True, spec_augment=False)
  return training(**common | changes)


def _tiny(config: ConfigDict) -> None:
  config.features.update(mels=40, normalise="utterance")
  channels, pool = (8, 8, 16, 16), ((2, 2), (2, 2))
  config.student = conformer(3, 64, 4, 0.05, channels, pool)
  config.student.conv_kernel = 15
  config.teacher.model = conformer(3, 112, 4, 0.1, channels, pool)
  config.teacher.model.conv_kernel = 15
  common = dict(
    optimizer="adamw",
    b2=0.98,
    eps=1e-8,
    lr_parts=(0.1, 0.75, 0.15),
    batch_seconds=40.0,
    row_multiple=1,  # the same on one device or eight
    buckets=2,
    join_seconds=6.0,
    speeds=(0.9, 1.0, 1.1),
    noise_db=(-65.0, -45.0),
  )
  config.training = training(epochs=20, lr=(1e-4, 3e-3, 3e-4, 1e-6), spec_augment=False, **common)
  config.teacher.training = training(
    epochs=24, lr=(1e-4, 2e-3, 2e-4, 1e-6), spec_augment_from_epoch=10, **common
  )


def _full(**student):
  """A size whose teacher is HuBERT large, on accelerators in bfloat16."""

  def apply(config: ConfigDict) -> None:
    config.dtype = "bfloat16"
    config.student.update(student)
    config.teacher.model = huggingface("facebook/hubert-large-ll60k")
    config.teacher.training = finetuning()

  return apply


class Size(NamedTuple):
  """How large the models are.

  Attributes:
    about: for whom, with the student's parameters.
    apply: changes the config of the table's defaults.
  """

  about: str
  apply: Callable[[ConfigDict], None]


SIZES = {
  "tiny": Size("0.3 M parameters, minutes on two CPU cores", _tiny),
  "small": Size("10 M parameters, for a phone", _full(width=184, heads=4, dropout=0.1)),
  "medium": Size("44 M parameters, the paper's for TED-LIUM", _full()),
  "large": Size("77 M parameters, the paper's for LibriSpeech", _full(width=512, dropout=0.1)),
}


def _corpus(name: str):
  """Data of a made corpus, whose splits have the same names."""

  def apply(config: ConfigDict, size: str) -> None:
    del size
    config.data.update(
      train="auto",  # see train_data
      teacher_train=f"{name}:train",
      dev=f"{name}:dev",
      test=f"{name}:test",
    )

  return apply


def _demo(config: ConfigDict, size: str) -> None:
  _corpus("demo")(config, size)
  if size == "tiny":
    config.teacher.training.update(epochs=13, batch_seconds=30.0, spec_augment_from_epoch=8)
    config.training.epochs = 8


def _pauses(config: ConfigDict, size: str) -> None:
  _corpus("pauses")(config, size)
  if size == "tiny":
    config.teacher.training.update(epochs=8, join_seconds=12.0, spec_augment_from_epoch=6)
    config.training.update(epochs=4, join_seconds=12.0)


def _sentences(config: ConfigDict, size: str) -> None:
  _corpus("sentences")(config, size)
  if size == "tiny":
    # Two or three sentences are a row.
    for block in (config.training, config.teacher.training):
      block.update(join_seconds=20.0, batch_seconds=60.0)
    config.training.epochs = 14


def _prompts(config: ConfigDict, size: str) -> None:
  _corpus("prompts")(config, size)
  if size == "tiny":
    # A few prompts are long: rows of one length hold them, and the short ones joined.
    for block in (config.training, config.teacher.training):
      block.join_seconds = 30.0


def _tedlium(config: ConfigDict, size: str) -> None:
  del size
  config.data.update(
    train="tedlium:train",
    teacher_train="tedlium:train",
    dev="tedlium:validation",
    test="tedlium:test",
  )


def _librispeech(config: ConfigDict, size: str) -> None:
  everything = "librispeech:train_clean100+train_clean360+train_other500"
  config.data.update(
    train=everything,
    teacher_train=everything,
    dev="librispeech:dev_other",
    test="librispeech:test_other",
  )
  if size != "tiny":
    config.training.update(epochs=50, batch_seconds=300.0, freq_mask_bins=16)


class Data(NamedTuple):
  """What is trained on.

  Attributes:
    about: whose.
    size: the size that it has where none is given.
    apply: config of a size, the size → fills in what is read.
  """

  about: str
  size: str
  apply: Callable[[ConfigDict, str], None]


DATA = {
  "demo": Data("synthetic speech that is made here", "tiny", _demo),
  "pauses": Data("its digits with silence around every word", "tiny", _pauses),
  "sentences": Data("synthetic sentences with pauses and noise: harder", "tiny", _sentences),
  "manifest": Data("your own: config.data.train and the like", "tiny", lambda config, size: None),
  "digits": Data("recorded digits, in config.data.root", "tiny", _corpus("digits")),
  "prompts": Data("Debian's recorded telephone prompts", "tiny", _prompts),
  "librispeech": Data("LibriSpeech's 960 hours by TFDS", "large", _librispeech),
  "tedlium": Data("TED-LIUM 2's 207 hours by TFDS", "medium", _tedlium),
}
RECIPES = (*DATA, *(f"{data}-{size}" for data in DATA for size in SIZES))


def parts(recipe: str) -> tuple[str, str]:
  """Data and size of a recipe: ("manifest", "medium") of "manifest-medium".

  Raises:
    UserError: an unknown recipe.
  """
  if recipe in RECIPES:
    data, _, size = recipe.partition("-")
    return data, size or DATA[data].size
  near = did_you_mean(str(recipe), RECIPES)
  raise UserError(
    f"unknown recipe {str(recipe)!r}{near}: choose DATA or DATA-SIZE, DATA one of "
    f"{', '.join(DATA)} and SIZE one of {', '.join(SIZES)}"
  )


def base(recipe: str = "demo") -> ConfigDict:
  """The paper's TED-LIUM setup with a recipe's models, training and data.

  Args:
    recipe: one of RECIPES.

  Returns:
    A locked ConfigDict: assigning to a field that does not exist raises.

  Raises:
    UserError: an unknown recipe.
  """
  data, size = parts(recipe)
  config = ConfigDict(schema.defaults(fields.FIELDS))
  config.recipe = recipe
  SIZES[size].apply(config)
  DATA[data].apply(config, size)
  return config.lock()
