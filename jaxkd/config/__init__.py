"""Every default once, and the check that runs before anything expensive.

`base(recipe)` is the paper's setup; a recipe replaces data and sizes. A variant in `configs/` is
`base(recipe)` with one or two fields changed.
"""

import difflib
import math
import string

from ml_collections import ConfigDict

from jaxkd.config import recipes
from jaxkd.config.recipes import RECIPES
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
  "soft": {"min_weight": (float, 0.0, 1.0, 0.0)},
}
# name -> fields of config.labels that it reads.
LABELS = {
  "auto": ("alphabet", "missing"),
  "characters": ("alphabet",),
  "phonemes": ("lexicon", "cmudict", "missing"),
  "sentencepiece": ("size",),
}
CORPORA = ("demo", "digits", "prompts")
TFDS_CORPORA = ("librispeech", "tedlium")  # corpus:split, with splits as TFDS names them
SPLITS = ("train", "unlabelled", "dev", "test")


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
        root="",  # folder of the digits or prompts corpus, or TFDS's data_dir
        split_by="index",  # of the digits corpus: index or speaker
        workers=0,  # processes that decode audio; 0 decodes in threads of this one
      ),
      labels=dict(
        # The classes: characters, phonemes or sentencepiece; auto is a given teacher's vocabulary,
        # that of a Hugging Face student's head, or else characters.
        name="auto",
        alphabet=ALPHABET,  # of characters; the blank is added
        lexicon="",  # of phonemes: a file of `word P1 P2 ...` lines, whose words win over CMUdict's
        cmudict=True,  # of phonemes: CMUdict's words too
        missing="error",  # words without phonemes: error, or skip their training utterances
        size=500,  # of sentencepiece: classes, the blank included
      ),
      features=dict(
        kind="logmel",  # logmel (the paper's) or kaldi
        mels=80,
        low_hz=60.0,
        high_hz=7600.0,
        normalise="none",  # none (the paper's) or utterance
      ),
      student=recipes.conformer(12, 384, 8, 0.2, (32, 64, 64, 32), ((2, 1), (2, 1))),
      teacher=dict(
        # train (here, from transcripts), the workdir of a finished run, a folder in Hugging Face's
        # layout, org/name on its hub, several of these with commas between (their posteriors are
        # averaged), or none
        source="train",
        pool=2,  # 20 ms frames of a Hugging Face model that are max-pooled into one
        model=recipes.conformer(12, 512, 8, 0.1, (32, 64, 64, 32), ((2, 1), (2, 1))),
        training=recipes.training(),
      ),
      kd=dict(
        scale=1.0,  # of the distillation loss; CTC gets 1 - scale. The paper: 0.25, 0.9, 1.0
        temperature=2.0,
        selection=dict(name="all_frames"),
        start_epoch=0,  # the selection applies from here on; all frames before
        stop_epoch=0,  # > 0: all frames from this epoch on
        grow_epochs=0,  # > 0: n, before and after are multiplied by epoch // grow_epochs
        normalization="frames",  # the KL over selected frames, or labels: over rows x labels
        warmup=0,  # first epochs, in which encoder outputs are brought together instead
        hypotheses=0,  # > 0: so many of the teacher's best transcripts are the target, no frames
      ),
      training=recipes.training(),
      profile="",  # updates to trace, such as 10:20
      checkpoint=dict(every_steps=500),  # besides every evaluation
      mesh=dict(fsdp=1),  # devices that large parameters are split over; it divides their number
    )
  )
  RECIPES[recipe](config)
  return config.lock()


def train_data(config: ConfigDict) -> str:
  """What the student trains on: `data.train`, or where that is "auto" the corpus's split."""
  if config.data.train != "auto":
    return config.data.train
  return f"{config.recipe}:{'unlabelled' if config.kd.scale == 1.0 else 'train'}"


def for_teacher(config: ConfigDict) -> ConfigDict:
  """The config of the run that trains the teacher: CTC alone on `data.teacher_train`."""
  teacher = base(config.recipe).copy_and_resolve_references().unlock()
  for name in ("seed", "dtype", "labels", "features", "checkpoint", "mesh"):
    teacher[name] = config[name]
  teacher.variant = "teacher"
  teacher.data = config.data.copy_and_resolve_references()
  teacher.data.train = config.data.teacher_train
  teacher.student = config.teacher.model
  teacher.training = config.teacher.training
  teacher.teacher.source = "none"
  teacher.kd.update(scale=0.0)
  return teacher.lock()


def profile_steps(profile: str) -> tuple[int, int] | None:
  """First and last update of "10:20"; None for "".

  Raises:
    UserError: it has another form.
  """
  if not profile:
    return None
  first, colon, last = profile.partition(":")
  if not (colon and first.isdigit() and last.isdigit() and int(first) <= int(last)):
    raise UserError(f"--profile={profile}: it must be FIRST:LAST, two updates, such as 10:20")
  return int(first), int(last)


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
    _check_model(path, _get(config, path))
  _check_labels(config.labels)
  features = config.features
  _require(
    features.low_hz < features.high_hz,
    "features.high_hz",
    features.high_hz,
    "above features.low_hz",
  )
  profile_steps(config.profile)
  _check_objective(config)
  _check_data(config)


_CHOICES = {
  "dtype": ("float32", "bfloat16"),
  "features.kind": ("logmel", "kaldi"),
  "features.normalise": ("none", "utterance"),
  "training.optimizer": ("radam", "adamw"),
  "teacher.training.optimizer": ("radam", "adamw"),
  "data.split_by": ("index", "speaker"),
  "kd.normalization": ("frames", "labels"),
  "labels.missing": ("error", "skip"),
}
_RANGES = {
  "seed": (0, 2**31 - 1),
  "kd.scale": (0.0, 1.0),
  "kd.temperature": (1e-3, 1e3),
  "kd.start_epoch": (0, math.inf),
  "kd.stop_epoch": (0, math.inf),
  "kd.grow_epochs": (0, math.inf),
  "kd.warmup": (0, math.inf),
  "kd.hypotheses": (0, 100),
  "teacher.pool": (1, 16),
  "data.workers": (0, 256),
  "mesh.fsdp": (1, 100_000),
  "checkpoint.every_steps": (1, math.inf),
  "labels.size": (3, 1e6),
  "features.mels": (8, 256),
  "features.low_hz": (0.0, 8000.0),
  "features.high_hz": (0.0, 8000.0),
}
_MODEL_RANGES = {
  "conformer": {
    "layers": (1, 1000),
    "width": (4, 1e5),
    "heads": (1, 1000),
    "ff_mult": (1, 100),
    "conv_kernel": (1, 1001),
    "dropout": (0.0, 0.95),
    "rel_clip": (1, 1e5),
  },
  "huggingface": {"pool": (1, 16), "dropout": (0.0, 0.95)},
}


def _check_model(path: str, model: ConfigDict) -> None:
  for field, (low, high) in _MODEL_RANGES[model.name].items():
    _check_range(f"{path}.{field}", model[field], low, high)
  if model.name == "huggingface":
    return
  _require(model.width % model.heads == 0, f"{path}.width", model.width, "a multiple of heads")
  _require(model.conv_kernel % 2 == 1, f"{path}.conv_kernel", model.conv_kernel, "odd")
  channels, pool = model.frontend_channels, model.frontend_pool
  _require(len(channels) == 4, f"{path}.frontend_channels", channels, "four channel counts")
  _require(
    tuple(p[0] for p in pool) == (2, 2),
    f"{path}.frontend_pool",
    pool,
    "two (2, mel) pairs: 10 ms features become 40 ms frames",
  )


def _check_trained(path: str, model: ConfigDict, training: ConfigDict) -> None:
  """What must fit together where a model is trained here."""
  if model.name != "huggingface":
    return
  _require(
    model.source != "",
    f"{path}.source",
    model.source,
    "a folder with a pre-trained model in Hugging Face's layout, or org/name on its hub",
  )
  _require(
    not training.spec_augment,
    f"{path.replace('student', 'training').replace('model', 'training')}.spec_augment",
    training.spec_augment,
    "False for a Hugging Face model: its own masks are in its config.json",
  )


def _check_training(path: str, training: ConfigDict) -> None:
  ranges = {
    "epochs": (1, math.inf),
    "batch_seconds": (1.0, math.inf),
    "accumulate": (1, 1000),
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
    _check_trained("teacher.model", config.teacher.model, config.teacher.training)
  _check_trained("student", config.student, config.training)
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


def _check_objective(config: ConfigDict) -> None:
  """Parts of the objective that do not go together."""
  kd, source = config.kd, config.teacher.source
  if kd.normalization == "labels":
    _require(kd.scale < 1, "kd.scale", kd.scale, "below 1 with kd.normalization=labels")
  if kd.warmup:
    _require("," not in source, "teacher.source", source, "a single teacher with kd.warmup")
    name = config.student.name
    _require(name == "conformer", "student.name", name, "conformer with kd.warmup")
  if kd.hypotheses:
    fixed = dict(warmup=0, start_epoch=0, stop_epoch=0, normalization="frames")
    for field, value in fixed.items():
      _require(kd[field] == value, f"kd.{field}", kd[field], f"{value} with kd.hypotheses")
    name = kd.selection.name
    _require(name == "all_frames", "kd.selection.name", name, "all_frames with kd.hypotheses")


def _check_labels(block: ConfigDict) -> None:
  name, alphabet = block.name, block.alphabet
  if name not in LABELS:
    raise UserError(
      f"config.labels.name is '{name}'{_near(name, LABELS)}: choose one of {', '.join(LABELS)}"
    )
  for field, default in base().labels.items():
    if field != "name" and field not in LABELS[name] and block[field] != default:
      readers = " or ".join(kind for kind, fields in LABELS.items() if field in fields)
      raise UserError(
        f"config.labels.{field} is {block[field]!r}, which '{name}' does not read: set "
        f"config.labels.name={readers}"
      )
  _require(
    0 < len(set(alphabet)) == len(alphabet), "labels.alphabet", alphabet, "characters, each once"
  )
  if name == "phonemes":
    _require(
      block.cmudict or block.lexicon != "",
      "labels.cmudict",
      block.cmudict,
      "True where config.labels.lexicon names no file",
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
      _check_fields(value, _model_block(value, default, where), where)
    elif not _same_type(value, default):
      raise UserError(f"{where} is {value!r}: it must be of type {type(default).__name__}")


def _model_block(value: ConfigDict, default: ConfigDict, where: str) -> ConfigDict:
  """The fields that a block must have: a model may be of another kind than the recipe's."""
  if default.get("name") not in _MODEL_RANGES or value.get("name") == default.name:
    return default
  _require(
    value.get("name") in _MODEL_RANGES,
    f"{where.removeprefix('config.')}.name",
    value.get("name"),
    f"one of {tuple(_MODEL_RANGES)}",
  )
  if value.name == "huggingface":
    return recipes.huggingface()
  return recipes.conformer(1, 4, 1, 0.0, (1, 1, 1, 1), ((2, 1), (2, 1)))


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
