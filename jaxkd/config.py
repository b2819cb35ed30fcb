"""Every default once, and the check that runs before anything expensive.

`base(recipe)` is the paper's setup; a recipe replaces data and sizes. A variant in `configs/` is
`base(recipe)` with one or two fields changed.
"""

import difflib
import math
import string

from ml_collections import ConfigDict

from jaxkd.errors import UserError

ALPHABET = " '" + string.ascii_lowercase

# name -> field -> (type, lowest, highest[, default]); the functions are in `selection.py`.
SELECTIONS = {
  "all_frames": {},
  "nonblank": {"prior_scale": (float, 0.0, math.inf, 0.0)},
  "trim": {},
  "keep": {"before": (int, 0, math.inf), "after": (int, 0, math.inf)},
  "symmetric": {"n": (int, 0, math.inf)},
  "threshold": {"min_label_prob": (float, 0.0, 1.0)},
  "random_blanks": {"ratio": (float, 0.0, math.inf)},
}
CORPORA = ("demo", "digits", "prompts")
TFDS_CORPORA = ("librispeech", "tedlium")  # corpus:split, with splits as TFDS names them
SPLITS = ("train", "unlabelled", "dev", "test")


def _conformer(layers, width, heads, dropout, channels, pool) -> ConfigDict:
  return ConfigDict(
    dict(
      layers=layers,
      width=width,
      heads=heads,
      ff_mult=4,
      conv_kernel=31,  # output frames
      dropout=dropout,
      rel_clip=16,  # output frames; farther positions share one embedding
      frontend_channels=channels,
      frontend_pool=pool,  # (time, mel) after convolution 2 and after convolution 4
    )
  )


def _training(**changes) -> ConfigDict:
  """How one model is trained; the student and a teacher that is trained here have one each."""
  training = ConfigDict(
    dict(
      epochs=100,
      batch_seconds=180.0,  # audio in a global batch, padding included
      buckets=8,  # shapes that utterances are padded to; each is compiled once
      join_seconds=0.0,  # > 0: utterances are joined at random into rows of at most this length
      speeds=(1.0,),  # an utterance's speed factor is drawn from these every epoch
      noise_db=(),  # (low, high): white noise relative to the row's peak; () for none
      optimizer="radam",
      lr=(7e-6, 5e-4, 5e-5, 1e-7),  # piecewise linear between these ...
      lr_parts=(0.44, 0.44, 0.12),  # ... over these shares of all steps
      b1=0.9,
      b2=0.999,
      eps=1e-16,
      weight_decay=0.01,  # decoupled, times the learning rate
      clip_norm=1.0,  # global gradient norm; 0 for no clipping
      spec_augment=True,
      spec_augment_from_epoch=0,
      time_mask_frames=20,  # of 10 ms
      freq_mask_bins=8,
      eval_every_epochs=1,
      average=4,  # the student is the average of this many best checkpoints
    )
  )
  training.update(changes)
  return training


def base(recipe: str = "demo") -> ConfigDict:
  """The paper's TED-LIUM setup with the data and sizes of a recipe.

  Args:
    recipe: one of RECIPES.

  Returns:
    A locked ConfigDict: assigning to a field that does not exist raises.

  Raises:
    UserError: an unknown recipe.
  """
  if recipe not in RECIPES:
    raise UserError(f"unknown recipe '{recipe}': choose one of {', '.join(RECIPES)}")
  config = ConfigDict(
    dict(
      recipe=recipe,
      seed=0,
      dtype="float32",  # of the models' arithmetic: float32 or bfloat16; losses stay float32
      data=dict(
        train="",  # what the student trains on: a manifest, a folder of audio, or corpus:split
        teacher_train="",  # transcribed; read only where the teacher is trained here
        dev="",  # "" for none: the last checkpoints are averaged instead of the best
        test="",
        root="",  # folder of the digits or prompts corpus
        split_by="index",  # of the digits corpus: index or speaker
        workers=0,  # processes that decode audio; 0 decodes in threads of this one
      ),
      labels=dict(alphabet=ALPHABET),
      features=dict(
        kind="logmel",  # logmel (the paper's) or kaldi
        mels=80,
        low_hz=60.0,
        high_hz=7600.0,
        normalise="none",  # none (the paper's) or utterance
      ),
      student=_conformer(12, 384, 8, 0.2, (32, 64, 64, 32), ((2, 1), (2, 1))),
      teacher=dict(
        source="train",  # train (here, from transcripts), the workdir of a finished run, or none
        model=_conformer(12, 512, 8, 0.1, (32, 64, 64, 32), ((2, 1), (2, 1))),
        training=_training(),
      ),
      kd=dict(
        scale=1.0,  # of the distillation loss; CTC gets 1 - scale. The paper: 0.25, 0.9, 1.0
        temperature=2.0,
        selection=dict(name="all_frames"),
        start_epoch=0,  # the selection applies from here on; all frames before
        stop_epoch=0,  # > 0: all frames from this epoch on
        grow_epochs=0,  # > 0: n, before and after are multiplied by epoch // grow_epochs
      ),
      training=_training(),
      checkpoint=dict(every_steps=500),  # besides every evaluation
    )
  )
  RECIPES[recipe](config)
  return config.lock()


def _small(config: ConfigDict) -> None:
  """Models and schedules that take minutes on two CPU cores."""
  config.features.update(mels=40, normalise="utterance")
  channels, pool = (8, 8, 16, 16), ((2, 2), (2, 2))
  config.student = _conformer(3, 64, 4, 0.05, channels, pool)
  config.student.conv_kernel = 15
  config.teacher.model = _conformer(3, 112, 4, 0.1, channels, pool)
  config.teacher.model.conv_kernel = 15
  common = dict(
    optimizer="adamw",
    b2=0.98,
    eps=1e-8,
    lr_parts=(0.1, 0.75, 0.15),
    batch_seconds=40.0,
    buckets=2,
    speeds=(0.9, 1.0, 1.1),
    noise_db=(-65.0, -45.0),
  )
  config.training = _training(
    epochs=20, join_seconds=6.0, lr=(1e-4, 3e-3, 3e-4, 1e-6), spec_augment=False, **common
  )
  config.teacher.training = _training(
    epochs=24,
    join_seconds=6.0,
    lr=(1e-4, 2e-3, 2e-4, 1e-6),
    spec_augment_from_epoch=10,
    **common,
  )


def _corpus(name: str):
  def recipe(config: ConfigDict) -> None:
    _small(config)
    config.data.update(
      train="auto",  # unlabelled where kd.scale is 1, else train: see resolve_train
      teacher_train=f"{name}:train",
      dev=f"{name}:dev",
      test=f"{name}:test",
    )

  return recipe


def _demo(config: ConfigDict) -> None:
  _corpus("demo")(config)
  config.teacher.training.update(epochs=13, batch_seconds=30.0, spec_augment_from_epoch=8)
  config.training.epochs = 8


def _prompts(config: ConfigDict) -> None:
  _corpus("prompts")(config)
  # A few prompts are long: rows of one length hold them, and the short ones joined.
  for training in (config.training, config.teacher.training):
    training.join_seconds = 30.0


RECIPES = {
  "demo": _demo,
  "manifest": _small,
  "digits": _corpus("digits"),
  "prompts": _prompts,
}


def train_data(config: ConfigDict) -> str:
  """What the student trains on: `data.train`, or where that is "auto" the corpus's split."""
  if config.data.train != "auto":
    return config.data.train
  return f"{config.recipe}:{'unlabelled' if config.kd.scale == 1.0 else 'train'}"


def for_teacher(config: ConfigDict) -> ConfigDict:
  """The config of the run that trains the teacher: CTC alone on `data.teacher_train`."""
  teacher = base(config.recipe).copy_and_resolve_references().unlock()
  for name in ("seed", "dtype", "labels", "features", "checkpoint"):
    teacher[name] = config[name]
  teacher.variant = "teacher"
  teacher.data = config.data.copy_and_resolve_references()
  teacher.data.train = config.data.teacher_train
  teacher.student = config.teacher.model
  teacher.training = config.teacher.training
  teacher.teacher.source = "none"
  teacher.kd.update(scale=0.0)
  return teacher.lock()


def check(config: ConfigDict) -> None:
  """Raises UserError for a wrong name, value or combination; reads no data."""
  _check_fields(config, base(config.recipe), "config")
  _check_selection(config.kd)
  for path, (low, high) in _RANGES.items():
    _check_range(path, _get(config, path), low, high)
  for path, choices in _CHOICES.items():
    _require(_get(config, path) in choices, path, _get(config, path), f"one of {choices}")
  for path in ("training", "teacher.training"):
    _check_training(path, _get(config, path))
  for path in ("student", "teacher.model"):
    model = _get(config, path)
    _require(model.width % model.heads == 0, f"{path}.width", model.width, "a multiple of heads")
    _require(model.conv_kernel % 2 == 1, f"{path}.conv_kernel", model.conv_kernel, "odd")
    _require(
      len(model.frontend_channels) == 4,
      f"{path}.frontend_channels",
      model.frontend_channels,
      "four channel counts",
    )
    _require(
      tuple(p[0] for p in model.frontend_pool) == (2, 2),
      f"{path}.frontend_pool",
      model.frontend_pool,
      "two (2, mel) pairs: 10 ms features become 40 ms frames",
    )
  alphabet = config.labels.alphabet
  _require(
    0 < len(set(alphabet)) == len(alphabet), "labels.alphabet", alphabet, "characters, each once"
  )
  features = config.features
  _require(
    features.low_hz < features.high_hz,
    "features.high_hz",
    features.high_hz,
    "above features.low_hz",
  )
  _check_data(config)


_CHOICES = {
  "dtype": ("float32", "bfloat16"),
  "features.kind": ("logmel", "kaldi"),
  "features.normalise": ("none", "utterance"),
  "training.optimizer": ("radam", "adamw"),
  "teacher.training.optimizer": ("radam", "adamw"),
  "data.split_by": ("index", "speaker"),
}
_RANGES = {
  "seed": (0, 2**31 - 1),
  "kd.scale": (0.0, 1.0),
  "kd.temperature": (1e-3, 1e3),
  "kd.start_epoch": (0, math.inf),
  "kd.stop_epoch": (0, math.inf),
  "kd.grow_epochs": (0, math.inf),
  "data.workers": (0, 256),
  "checkpoint.every_steps": (1, math.inf),
  "features.mels": (8, 256),
  "features.low_hz": (0.0, 8000.0),
  "features.high_hz": (0.0, 8000.0),
} | {
  f"{model}.{field}": limits
  for model in ("student", "teacher.model")
  for field, limits in {
    "layers": (1, 1000),
    "width": (4, 1e5),
    "heads": (1, 1000),
    "ff_mult": (1, 100),
    "conv_kernel": (1, 1001),
    "dropout": (0.0, 0.95),
    "rel_clip": (1, 1e5),
  }.items()
}


def _check_training(path: str, training: ConfigDict) -> None:
  ranges = {
    "epochs": (1, math.inf),
    "batch_seconds": (1.0, math.inf),
    "buckets": (1, 64),
    "join_seconds": (0.0, 3600.0),
    "clip_norm": (0.0, math.inf),
    "weight_decay": (0.0, 1.0),
    "b1": (0.0, 0.99999),
    "b2": (0.0, 0.99999),
    "eps": (0.0, 1.0),
    "spec_augment_from_epoch": (0, math.inf),
    "time_mask_frames": (1, 1000),
    "freq_mask_bins": (1, 256),
    "eval_every_epochs": (1, math.inf),
    "average": (1, 100),
  }
  for field, (low, high) in ranges.items():
    _check_range(f"{path}.{field}", training[field], low, high)
  _require(
    len(training.lr) == 4 and all(x > 0 for x in training.lr),
    f"{path}.lr",
    training.lr,
    "four positive learning rates",
  )
  _require(
    len(training.lr_parts) == 3
    and abs(sum(training.lr_parts) - 1) < 1e-6
    and min(training.lr_parts) > 0,
    f"{path}.lr_parts",
    training.lr_parts,
    "three positive shares that add up to 1",
  )
  _require(
    len(training.speeds) > 0 and all(0.5 <= s <= 2 for s in training.speeds),
    f"{path}.speeds",
    training.speeds,
    "factors from 0.5 to 2",
  )
  _require(
    len(training.noise_db) in (0, 2) and list(training.noise_db) == sorted(training.noise_db),
    f"{path}.noise_db",
    training.noise_db,
    "() or (low, high) in dB",
  )


def _check_data(config: ConfigDict) -> None:
  data, scale, source = config.data, config.kd.scale, config.teacher.source
  _require(data.train != "", "data.train", "", "a manifest, a folder of audio or corpus:split")
  if data.train == "auto":
    _require(
      config.recipe in CORPORA, "data.train", "auto", "a manifest or a folder with this recipe"
    )
  if source == "train":
    _require(
      data.teacher_train != "",
      "data.teacher_train",
      "",
      "a transcribed manifest to train the teacher on, or set config.teacher.source to a workdir",
    )
  if source == "none":
    _require(scale == 0.0, "kd.scale", scale, "0 where config.teacher.source is none")
  for field in ("train", "teacher_train", "dev", "test"):
    corpus, colon, split = data[field].partition(":")
    if colon and corpus in CORPORA:
      _require(split in SPLITS, f"data.{field}", data[field], f"{corpus}: and one of {SPLITS}")
    if corpus == "digits":
      _require(
        data.root != "",
        "data.root",
        "",
        "the folder of Free Spoken Digit Dataset recordings ({digit}_{speaker}_{index}.wav; "
        "fetch the public repository Jakobovski/free-spoken-digit-dataset)",
      )


def _check_selection(kd: ConfigDict) -> None:
  block = kd.selection
  name = block.get("name", "")
  if name not in SELECTIONS:
    raise UserError(
      f"config.kd.selection.name is '{name}'{_near(name, SELECTIONS)}: choose one of "
      + ", ".join(SELECTIONS)
    )
  fields = SELECTIONS[name]
  for field in block:
    if field != "name" and field not in fields:
      choices = ", ".join(fields) or "none"
      raise UserError(
        f"config.kd.selection.{field}: '{name}' has no such field{_near(field, fields)}; "
        f"its fields: {choices}"
      )
  for field, (kind, low, high, *default) in fields.items():
    path = f"kd.selection.{field}"
    if field not in block and default:
      continue
    if field not in block:
      raise UserError(f"config.{path} is missing: '{name}' needs it")
    number = isinstance(block[field], (int, float)) and not isinstance(block[field], bool)
    _require(
      number and (kind is float or isinstance(block[field], int)),
      path,
      block[field],
      "an integer" if kind is int else "a number",
    )
    _check_range(path, block[field], low, high)
  if kd.grow_epochs:
    _require(
      name in ("keep", "symmetric"),
      "kd.grow_epochs",
      kd.grow_epochs,
      f"0 with selection '{name}': only keep and symmetric have neighbours that can grow",
    )
  if kd.stop_epoch:
    _require(
      kd.stop_epoch > kd.start_epoch, "kd.stop_epoch", kd.stop_epoch, "0 or above kd.start_epoch"
    )


def _check_fields(config: ConfigDict, reference: ConfigDict, path: str) -> None:
  """Every field known, none missing, and of the reference's type (an int passes for a float)."""
  for field in config:
    if field not in reference and f"{path}.{field}" != "config.variant":
      raise UserError(
        f"{path}.{field}: no such field{_near(field, reference)}; fields of {path}: "
        + ", ".join(sorted(reference))
      )
  for field, default in reference.items():
    where = f"{path}.{field}"
    if field not in config:
      raise UserError(f"{where} is missing")
    if where == "config.kd.selection":
      continue
    value = config[field]
    if isinstance(default, ConfigDict):
      if not isinstance(value, ConfigDict):
        raise UserError(f"{where} is {value!r}: it must be a block of {', '.join(default)}")
      _check_fields(value, default, where)
    elif not _same_type(value, default):
      raise UserError(f"{where} is {value!r}: it must be of type {type(default).__name__}")


def _same_type(value, default) -> bool:
  if isinstance(default, bool) or isinstance(value, bool):
    return isinstance(value, bool) and isinstance(default, bool)
  if isinstance(default, float):
    return isinstance(value, (int, float)) and math.isfinite(value)
  return isinstance(value, type(default))


def _get(config: ConfigDict, path: str):
  for field in path.split("."):
    config = config[field]
  return config


def _check_range(path: str, value, low, high) -> None:
  top = "" if high == math.inf else f" to {high:g}"
  _require(low <= value <= high, path, value, f"{low:g}{top or ' or more'}")


def _require(ok: bool, path: str, value, wanted: str) -> None:
  if not ok:
    raise UserError(f"config.{path} is {value!r}: it must be {wanted}")


def _near(name: str, choices) -> str:
  close = difflib.get_close_matches(str(name), list(choices), n=1)
  return f" (did you mean '{close[0]}'?)" if close else ""
