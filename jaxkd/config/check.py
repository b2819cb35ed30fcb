"""The check that runs before anything expensive: every value against the table, then the rules."""

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping

from ml_collections import ConfigDict

from jaxkd.config import fields, recipes, schema
from jaxkd.config.meaning import STREAMED, distils, reads_hypotheses, reads_transcripts
from jaxkd.config.schema import Block, Field, Kinds
from jaxkd.errors import UserError, did_you_mean

_SHOWN = 120  # characters of a value in a message


def check(config: ConfigDict) -> None:
  """Passes a config that can be run; reads no data.

  Raises:
    UserError: a wrong name, value or combination, in one line.
  """
  check_values(config)
  recipes.parts(config.recipe)
  _check_read("labels", config.labels)
  _check_read("kd", config.kd)
  for path, model, training in (
    ("student", config.student, config.training),
    ("teacher.model", config.teacher.model, config.teacher.training),
  ):
    _check_model(path, model, config)
    training_path = "training" if path == "student" else "teacher.training"
    _check_training(training_path, training, config.recipe)
  _check_labels(config.labels)
  low, high = config.features.low_hz, config.features.high_hz
  _require(low < high, "features.high_hz", high, f"above features.low_hz, {low:g}")
  profile_steps(config.profile)
  _check_selection(config.kd)
  _check_objective(config)
  _check_data(config)


def check_values(config: ConfigDict | dict) -> None:
  """Passes a config whose fields are known, complete, and each of its type and in its range.

  Args:
    config: of the newest schema; a dict has tuples where its config has them.

  Raises:
    UserError: the first that is not.
  """
  _check_block(config, fields.FIELDS, "config")


def _check_block(value, node: Block | Kinds, path: str) -> None:
  if not isinstance(value, (ConfigDict, dict)):
    names = ("name",) if isinstance(node, Kinds) else node.fields
    raise UserError(f"{path} is {_shown(value)}: it must be a block of {', '.join(names)}")
  known = _known(value, node, path)
  kind = value["name"] if isinstance(node, Kinds) else ""
  for name in value:
    if name not in known:
      raise UserError(_unknown(str(name), path, kind, node, known))
  for name, inner in known.items():
    if name not in value:
      if isinstance(inner, Field) and inner.optional:
        continue
      needs = f": '{kind}' needs it" if kind else ""
      more = f", {schema.allowed(inner)}" if isinstance(inner, Field) else ""
      raise UserError(f"{path}.{name} is missing{needs}{more}")
    if isinstance(inner, Field):
      _check_field(f"{path}.{name}", value[name], inner)
    else:
      _check_block(value[name], inner, f"{path}.{name}")


def _known(value: ConfigDict, node: Block | Kinds, path: str) -> Mapping:
  """The fields that a block may have."""
  if isinstance(node, Block):
    return node.fields
  if "name" not in value:
    raise UserError(f"{path}.name is missing: {schema.allowed(node.name)}")
  _check_field(f"{path}.name", value["name"], node.name)
  return node.of(value["name"])


def _unknown(name: str, path: str, kind: str, node: Block | Kinds, known: Iterable[str]) -> str:
  """The line about a field that a block does not have."""
  others = [n for n in known if not (kind and n == "name")]
  if not kind:
    return (
      f"{path}.{_plain(name)}: no such field{did_you_mean(name, others)}; fields of {path}: "
      + ", ".join(sorted(others))
    )
  owners = [f"'{k}'" for k, own in node.kinds.items() if name in own]
  have = "have" if len(owners) > 1 else "has"
  whose = f" ({' and '.join(owners)} {have} it)" if owners else did_you_mean(name, others)
  return f"{path}.{_plain(name)}: '{kind}' has no such field{whose}; its fields: " + (
    ", ".join(others) or "none"
  )


def _check_field(path: str, value, field: Field) -> None:
  if not fits(value, field):
    close = did_you_mean(value, field.choices) if isinstance(value, str) else ""
    raise UserError(f"{path} is {_shown(value)}{close}: it must be {schema.allowed(field)}")


def fits(value, field: Field) -> bool:
  """Whether a value has the field's type, inner types included, and lies in its range.

  An integer passes for a number; a truth value does not.
  """
  default = field.default
  if isinstance(default, tuple):
    if not isinstance(value, tuple):
      return False
    size_fits = len(value) in field.sizes if field.sizes else len(value) > 0
    return size_fits and all(fits(v, field.each) for v in value)
  if isinstance(default, (bool, str)):
    return isinstance(value, type(default)) and (not field.choices or value in field.choices)
  if isinstance(value, bool) or not isinstance(value, (int, type(default))):
    return False
  if isinstance(default, float) and not _is_finite(value):
    return False
  return field.low < value <= field.high if field.above else field.low <= value <= field.high


def _is_finite(value: float) -> bool:
  try:
    return math.isfinite(value)
  except OverflowError:  # an integer that no float can hold
    return False


def _check_read(path: str, block: ConfigDict) -> None:
  """Refuses values that the block's switch makes of no effect."""
  node = fields.FIELDS.fields[path]
  chosen = block[node.switch]
  for name, field in node.fields.items():
    if not isinstance(field, Field) or not field.read_by or chosen in field.read_by:
      continue
    if block[name] != field.default:
      raise UserError(
        f"config.{path}.{name} is {_shown(block[name])}, which '{chosen}' does not read: set "
        f"config.{path}.{node.switch}={' or '.join(field.read_by)}, or leave it at "
        f"{field.default!r}"
      )


def _check_model(path: str, model: ConfigDict, config: ConfigDict) -> None:
  """What must fit together in a model that is drawn here."""
  if model.name == "huggingface":
    return
  _require(
    model.width % model.heads == 0, f"{path}.width", model.width, f"a multiple of {path}.heads"
  )
  _require(model.conv_kernel % 2 == 1, f"{path}.conv_kernel", model.conv_kernel, "odd")
  if model.name == "fastconformer":
    _check_fastconformer(path, model)
    if path == "student" or config.teacher.source == "train":
      _check_nemo(path, model.subsampling, config.features)
    return
  pool = model.frontend_pool
  _require(
    tuple(time for time, _ in pool) == (2, 2),
    f"{path}.frontend_pool",
    pool,
    "two (2, mel) pairs: 10 ms features become 40 ms frames",
  )


def _check_fastconformer(path: str, model: ConfigDict) -> None:
  _require(model.width % 2 == 0, f"{path}.width", model.width, "even")
  factor = model.subsampling
  _require(factor in (2, 4, 8, 16), f"{path}.subsampling", factor, "2, 4, 8 or 16")


def _check_nemo(path: str, factor: int, features: ConfigDict) -> None:
  """The features of a FastConformer, which others that read it compute, too."""
  where = f"where config.{path}.name is fastconformer"
  kind, normalise, mels = features.kind, features.normalise, features.mels
  needed = f"nemo, and config.features.normalise none, {where}"
  _require(kind == "nemo", "features.kind", kind, needed)
  _require(normalise == "none", "features.normalise", normalise, f"none {where}")
  multiple = f"a multiple of config.{path}.subsampling, {factor}"
  _require(mels % factor == 0, "features.mels", mels, multiple)


def _check_training(path: str, training: ConfigDict, recipe: str) -> None:
  parts, noise = training.lr_parts, training.noise_db
  _require(abs(sum(parts) - 1) < 1e-6, f"{path}.lr_parts", parts, "three shares that add up to 1")
  _require(
    tuple(noise) == tuple(sorted(noise)), f"{path}.noise_db", noise, "(low, high), the lower first"
  )
  if not training.spec_augment:
    _check_no_masks(path, training, recipes.base(recipe))


def _check_no_masks(path: str, training: ConfigDict, base: ConfigDict) -> None:
  """Refuses settings of masks where there are none, but for what comes with the recipe.

  A teacher's own run has as `training` what is `teacher.training` in the recipe.
  """
  for name in ("spec_augment_from_epoch", "time_mask_frames", "freq_mask_bins"):
    usual = fields.TRAINING.fields[name].default
    ok = training[name] in (usual, base.training[name], base.teacher.training[name])
    unread = f"{usual} where config.{path}.spec_augment is False: nothing is masked"
    _require(ok, f"{path}.{name}", training[name], unread)


def _check_trained(path: str, model: ConfigDict, training_path: str, training: ConfigDict) -> None:
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
    f"{training_path}.spec_augment",
    training.spec_augment,
    "False for a Hugging Face model: its own masks are in its config.json",
  )


def _check_labels(block: ConfigDict) -> None:
  alphabet = block.alphabet
  letters = [c for c in alphabet if not unicodedata.combining(c)]  # marks belong to many
  _require(
    0 < len(set(letters)) == len(letters),
    "labels.alphabet",
    alphabet,
    f"{fields.AUTO}, or characters, each once",
  )
  if block.name == "phonemes":
    _require(
      block.cmudict or block.lexicon != "",
      "labels.cmudict",
      block.cmudict,
      "True where config.labels.lexicon names no file",
    )


def _check_selection(kd: ConfigDict) -> None:
  name = kd.selection.name
  if kd.loss == "hypotheses":
    _require(
      name == "all_frames", "kd.selection.name", name, "all_frames with config.kd.loss=hypotheses"
    )
  if kd.grow_epochs:
    _require(
      name in ("keep", "symmetric"),
      "kd.grow_epochs",
      kd.grow_epochs,
      f"0 with selection '{name}': only keep and symmetric have neighbours that can grow",
    )
  if kd.n_ramp:
    _require(
      name == "symmetric" and not kd.grow_epochs,
      "kd.n_ramp",
      kd.n_ramp,
      "() but for the selection symmetric without kd.grow_epochs",
    )
  if kd.stop_epoch:
    _require(
      kd.stop_epoch > kd.start_epoch, "kd.stop_epoch", kd.stop_epoch, "0 or above kd.start_epoch"
    )


def _check_objective(config: ConfigDict) -> None:
  """Parts of the objective that do not go together."""
  kd = config.kd
  _check_ramp("kd.scale_ramp", kd.scale_ramp, 0.0, 1.0)
  _check_ramp("kd.temperature_ramp", kd.temperature_ramp, 1e-3, 1e3)
  _require(
    len(set(kd.delays)) == len(kd.delays), "kd.delays", kd.delays, "whole numbers, each once"
  )
  if kd.normalization == "labels":
    _require(kd.scale < 1, "kd.scale", kd.scale, "below 1 with kd.normalization=labels")
    _require(kd.delays == (0,), "kd.delays", kd.delays, "(0,) with kd.normalization=labels")
    _require(kd.ctc == "transcripts", "kd.ctc", kd.ctc, "transcripts with kd.normalization=labels")
  if len(kd.delays) == 1:
    for name in ("softness", "delay_of"):
      usual = fields.default(f"kd.{name}")
      unread = f"{usual} where config.kd.delays is a single one: there is none to choose"
      _require(kd[name] == usual, f"kd.{name}", kd[name], unread)
  for name in ("warmup", "start_epoch"):  # else what comes after it never does
    epochs = config.training.epochs
    _require(kd[name] < epochs, f"kd.{name}", kd[name], f"below config.training.epochs, {epochs}")
  _check_hypotheses(kd)
  if kd.warmup:
    name = config.student.name
    drawn = "conformer or fastconformer with kd.warmup"
    _require(name != "huggingface", "student.name", name, drawn)
  _check_inner(config)
  if kd.consistency:
    masks = config.training.spec_augment or config.student.name == "huggingface"
    wanted = "True with kd.consistency, whose views differ by masks"
    _require(masks, "training.spec_augment", config.training.spec_augment, wanted)
  _check_chunks(config)
  _check_source(config)


def _check_hypotheses(kd: ConfigDict) -> None:
  """What is learnt from the teacher's transcripts, once."""
  if kd.ctc == "hypotheses":
    alone = "transcripts where kd.scale is 0; alone these targets are kd.loss=hypotheses"
    _require(distils(kd), "kd.ctc", kd.ctc, alone)
    twice = "transcripts with kd.loss=hypotheses, which is the same CTC"
    _require(kd.loss != "hypotheses", "kd.ctc", kd.ctc, twice)
  if not reads_hypotheses(kd):
    count = fields.default("kd.hypotheses")
    unread = f"{count} where no loss reads the teacher's transcripts"
    _require(kd.hypotheses == count, "kd.hypotheses", kd.hypotheses, unread)


def _check_chunks(config: ConfigDict) -> None:
  """What a student that hears streams needs."""
  kd, student = config.kd, config.student
  chunks, left = student.get("chunk_frames", ()), student.get("left_frames", ())
  if any(chunks):
    kinds = " or ".join(STREAMED)
    told = f"{kinds} with student.chunk_frames: the others read the whole utterance"
    _require(config.features.kind in STREAMED, "features.kind", config.features.kind, told)
    normalise = config.features.normalise
    _require(normalise == "none", "features.normalise", normalise, "none with student.chunk_frames")
    _require(left != (), "student.left_frames", left, "given with student.chunk_frames")
  else:
    _require(left == (), "student.left_frames", left, "() where student.chunk_frames has no chunk")
  if kd.co_teacher:
    _require(any(chunks), "student.chunk_frames", chunks, "given with kd.co_teacher")
    _require(not kd.consistency, "kd.consistency", kd.consistency, "0 with kd.co_teacher")
    _require(not kd.warmup, "kd.warmup", kd.warmup, "0 with kd.co_teacher")
  of_teacher = config.teacher.model.get("chunk_frames", ())
  _require(of_teacher == (), "teacher.model.chunk_frames", of_teacher, "(): it hears everything")


def _check_inner(config: ConfigDict) -> None:
  """Heads behind inner layers, and the share of the loss that they have."""
  kd, layers = config.kd, config.student.get("inner_layers", ())
  if kd.inner_scale:
    conformer = config.student.name == "conformer"
    _require(conformer, "student.name", config.student.name, "conformer with kd.inner_scale")
    _require(layers != (), "student.inner_layers", layers, "given with kd.inner_scale")
    _require(not kd.warmup, "kd.warmup", kd.warmup, "0 with kd.inner_scale")
    deep = config.student.layers
    inside = sorted(set(layers)) == list(layers) and layers[-1] < deep
    _require(inside, "student.inner_layers", layers, f"in order, each once and below {deep}")
  else:
    _require(layers == (), "student.inner_layers", layers, "() where kd.inner_scale is 0")
  path = "teacher.model.inner_layers"
  layers = config.teacher.model.get("inner_layers", ())
  _require(layers == (), path, layers, "(): inner heads are the student's")


def _check_ramp(path: str, ramp: tuple, low: float, high: float) -> None:
  ok = not ramp or (low <= ramp[0] <= high and ramp[1] >= 1)
  _require(
    ok, path, ramp, f"() or (first, epochs), first from {low:g} to {high:g}, 1 epoch or more"
  )


def _check_source(config: ConfigDict) -> None:
  """What the objective asks of a teacher that the source cannot give."""
  kd, source, cache = config.kd, config.teacher.source, config.teacher.cache
  if kd.warmup:
    _require("," not in source, "teacher.source", source, "a single teacher with kd.warmup")
    _require(not cache, "teacher.cache", cache, "False with kd.warmup, which asks for encodings")
  if cache:
    reason = "() with config.teacher.cache, which keeps one temperature"
    _require(not kd.temperature_ramp, "kd.temperature_ramp", kd.temperature_ramp, reason)
  if source == "none":
    where = "where config.teacher.source is none"
    _require(kd.scale == 0, "kd.scale", kd.scale, f"0 {where}")
    _require(not kd.scale_ramp, "kd.scale_ramp", kd.scale_ramp, f"() {where}")
  if source == "average":
    where = "where config.teacher.source is average, the student's own past"
    field = "ctc" if kd.ctc == "hypotheses" else "loss"
    reason = f"{'transcripts' if field == 'ctc' else 'a loss that asks for no hypotheses'} {where}"
    _require(not reads_hypotheses(kd), f"kd.{field}", kd[field], reason)
    transcribed = reads_transcripts(kd) or config.student.init != ""
    _require(transcribed, "kd.scale", kd.scale, f"below 1 {where}, or config.student.init given")
    _require(distils(kd), "kd.scale", kd.scale, f"above 0 {where}")
    _require(not kd.warmup, "kd.warmup", kd.warmup, f"0 {where}")
    prior = kd.selection.get("prior_scale", 0.0)
    _require(not prior, "kd.selection.prior_scale", prior, f"0 {where}")
  if source in ("none", "average"):
    where = f"where config.teacher.source is {source}"
    _require(not cache, "teacher.cache", cache, f"False {where}")
  else:
    decay, usual = config.teacher.decay, fields.default("teacher.decay")
    reason = f"{usual} but for config.teacher.source=average"
    _require(decay == usual, "teacher.decay", decay, reason)


def _check_data(config: ConfigDict) -> None:
  data = config.data
  _require(
    data.min_seconds < data.max_seconds,
    "data.max_seconds",
    data.max_seconds,
    f"above data.min_seconds, {data.min_seconds:g}",
  )
  _require(data.train != "", "data.train", "", "a manifest, a folder of audio or corpus:split")
  if data.train == "auto":
    _require(
      recipes.base(config.recipe).data.train == "auto",
      "data.train",
      "auto",
      f"a manifest, a folder of audio or corpus:split with recipe '{config.recipe}'",
    )
  if config.teacher.source == "train":
    _require(
      data.teacher_train != "",
      "data.teacher_train",
      "",
      "a transcribed manifest to train the teacher on, or set config.teacher.source to a workdir",
    )
    teacher = config.teacher
    _check_trained("teacher.model", teacher.model, "teacher.training", teacher.training)
  _check_trained("student", config.student, "training", config.training)


def profile_steps(profile: str) -> tuple[int, int] | None:
  """First and last update of "10:20"; None for "".

  Raises:
    UserError: it has another form.
  """
  if not profile:
    return None
  found = re.fullmatch(r"([0-9]{1,15}):([0-9]{1,15})", profile)
  if not found or int(found[1]) > int(found[2]):
    raise UserError(
      f"--profile={_plain(profile)}: it must be FIRST:LAST, two updates, such as 10:20"
    )
  return int(found[1]), int(found[2])


def _require(ok: bool, path: str, value, wanted: str) -> None:
  if not ok:
    raise UserError(f"config.{path} is {_shown(value)}: it must be {wanted}")


def _shown(value) -> str:
  """A value in one line, cut where it is long."""
  try:
    return _plain(repr(value))
  except ValueError:  # an integer of thousands of digits
    return f"a {type(value).__name__} too long to print"


def _plain(text: str) -> str:
  text = " ".join(text.split())
  return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
