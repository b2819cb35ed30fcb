"""A finished run: its config, classes, models and data, opened once."""

import functools
import os
import pathlib

import jax
import numpy as np

from jaxkd import buckets, files, workdirs
from jaxkd import config as config_lib
from jaxkd.data.corpora import Options
from jaxkd.data.sources import NO_LIMITS, Limits, Source, open_source
from jaxkd.devices import mesh as mesh_lib
from jaxkd.errors import UserError
from jaxkd.inference import priors
from jaxkd.labels import Vocabulary
from jaxkd.models import kept
from jaxkd.models.acoustic import AcousticModel
from jaxkd.teacher import sources
from jaxkd.teacher.stored import Stored


class FinishedRun:
  """The workdir of a finished run; models and data are read when they are asked for.

  Attributes:
    folder: the workdir.
    kept: what it says of its own model.
    config: of the run, complete.
    results: of results.json.
    devices: mesh that models are laid out on.
  """

  def __init__(self, folder: pathlib.Path, devices: jax.sharding.Mesh | None = None):
    """Opens a workdir of any version.

    Args:
      folder: the workdir.
      devices: None for all.

    Raises:
      UserError: not the workdir of a finished run, or one that cannot be read.
    """
    self.folder = folder
    self.kept = kept.read(folder)
    self.config = self.kept.config
    self.results = files.read_json(folder / workdirs.RESULTS, kind=dict)
    self.devices = mesh_lib.make_mesh() if devices is None else devices

  @property
  def vocabulary(self) -> Vocabulary:
    return self.kept.vocabulary

  @functools.cached_property
  def student(self) -> AcousticModel:
    """The model that the run trained."""
    return self.kept.load(self.devices)

  @property
  def teacher_source(self) -> str:
    """As `config.teacher.source` would name the teacher; "" for none."""
    return teacher_source(self.results, self.folder)

  @functools.cached_property
  def teacher(self) -> AcousticModel | Stored | None:
    """The model that it learnt from; None for none.

    Raises:
      UserError: it is not there any more.
    """
    if not self.teacher_source:
      return None
    options = dict(pool=self.config.teacher.pool, language=self.config.teacher.language)
    try:
      found = sources.find(self.teacher_source, dtype=self.config.dtype, **options)
      if isinstance(found, Stored):
        found = found.at(self.kept.architecture.frame_samples)
      return found.load(self.devices)
    except UserError as error:
      raise UserError(
        f"the teacher of {self.folder} cannot be used ({error}): --model=student goes without it"
      ) from error

  def models(self, names: tuple[str, ...] = workdirs.MODELS) -> dict[str, AcousticModel]:
    """Those of the named models that the run has.

    Raises:
      UserError: it has none of them.
    """
    found = {name: getattr(self, name) for name in names}
    found = {name: model for name, model in found.items() if model is not None}
    if not found:
      raise UserError(f"{self.folder} has no teacher: --model=student")
    return found

  def open(self, spec: str, limits: Limits = NO_LIMITS) -> Source:
    """Data by name: a manifest, a folder of audio or corpus:split."""
    data = self.config.data
    return open_source(spec, Options(root=data.root, split_by=data.split_by), limits)

  def splits(self, test: str = "") -> dict[str, Source]:
    """ "dev" and "test" → source, where the run has them; `test` in the place of its test data.

    Raises:
      UserError: there is neither.
    """
    specs = {"dev": self.config.data.dev, "test": test or self.config.data.test}
    found = {split: self.open(spec) for split, spec in specs.items() if spec}
    if not found:
      raise UserError(f"{self.folder} has neither dev nor test data: --data=MANIFEST")
    return found

  @functools.cached_property
  def train(self) -> Source:
    """What the run trained on, within its limits of length."""
    data = self.config.data
    limits = Limits(data.min_seconds, data.max_seconds)
    return self.open(config_lib.train_data(self.config), limits)

  def transcripts(self) -> tuple[list[str], str]:
    """Training transcripts of the student, or else of a teacher, and the name of the data.

    Raises:
      UserError: neither has any.
    """
    if None not in self.train.texts:
      return self.train.texts, self.train.name
    for source in sources.members(self.teacher_source) if self.teacher_source else ():
      if workdirs.is_finished(buckets.here(source)):
        data = FinishedRun(buckets.here(source), self.devices).train
        if None not in data.texts:
          return data.texts, data.name
    raise UserError(
      f"--lm=train: neither {self.train.name} nor the training data of the teacher is "
      "transcribed: give --lm=FILE.arpa, or --lm=none"
    )

  def log_prior(self, name: str) -> np.ndarray:
    """f32[V]: of a model on the training data, kept in the workdir."""
    path = self.folder / priors.OWN
    if name == "teacher":
      path = priors.place(self.teacher_source, self.folder)
    return priors.kept_log_prior(getattr(self, name), self.train, path, self.devices)


def teacher_source(results: dict, folder: pathlib.Path) -> str:
  """As `config.teacher.source` would name the teacher of a results.json; "" for none.

  Args:
    results: of results.json, which names folders relative to its own.
    folder: the workdir.
  """
  if not results.get("teacher_workdir"):
    return ""

  def there(name: str) -> str:
    is_beside = not buckets.is_url(name) and buckets.fetch(folder / name).is_dir()
    return str(folder / name) if is_beside else name

  return ",".join(map(there, sources.members(results["teacher_workdir"])))


def beside(teacher: str, folder: pathlib.Path) -> str:
  """A teacher's source relative to a workdir, so that both can be moved; a hub's name as it is."""
  relative = lambda name: os.path.relpath(name, folder) if os.path.isdir(name) else name
  return ",".join(map(relative, sources.members(teacher)))
