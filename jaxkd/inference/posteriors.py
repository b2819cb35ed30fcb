"""What the models of a finished run say of its data, kept in memory to be searched many times."""

import dataclasses
import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from jaxkd import config as config_lib
from jaxkd import console, files
from jaxkd.data import pipeline, plan
from jaxkd.data.sources import Source
from jaxkd.devices import mesh as mesh_lib
from jaxkd.devices import sharding
from jaxkd.errors import UserError
from jaxkd.inference import error_rates as metrics
from jaxkd.inference.search.greedy import collapse
from jaxkd.inference.search.prefix import prefix_beam
from jaxkd.labels import Vocabulary
from jaxkd.labels.text import normalise
from jaxkd.models import blueprint
from jaxkd.teacher import Teacher
from jaxkd.training import assembly as build
from jaxkd.training import results
from jaxkd.types import Batch

# Batches of the prefix beam: so many rows, and frames up to a multiple of so many.
_ROWS, _FRAMES = 16, 64
# N-best list: (text, score) of different sentences, best first.
NBest = list[tuple[str, float]]


@dataclasses.dataclass(frozen=True)
class Searched:
  """What a search found.

  Attributes:
    nbests: for each utterance.
    seconds: that it took, compiling left out.
  """

  nbests: list[NBest]
  seconds: float


@dataclasses.dataclass(frozen=True)
class Posteriors:
  """Of the utterances of a split that could be decoded, in its order.

  Attributes:
    ids, references: of the utterances; a reference is None where there is no transcript.
    log_probs: f32[T, V] of each, real frames only.
    audio_seconds: of all of them.
    compute_seconds: that the model took for them, compiling left out.
  """

  ids: list[str]
  references: list[str | None]
  log_probs: list[np.ndarray]
  audio_seconds: float
  compute_seconds: float

  @property
  def transcribed(self) -> bool:
    return any(reference is not None for reference in self.references)

  def error_rates(self, hypotheses: list[str]) -> dict:
    """{"wer", "cer", "words"} of a text for each utterance."""
    known = [i for i, reference in enumerate(self.references) if reference is not None]
    return metrics.error_rates([self.references[i] for i in known], [hypotheses[i] for i in known])

  def rows(self, nbests: list[NBest]) -> list[dict]:
    """Of a file of hypotheses: id, reference, hypothesis, nbest."""
    return [
      {
        "id": name,
        "reference": reference,
        "hypothesis": nbest[0][0],
        "nbest": [{"text": text, "score": round(float(score), 4)} for text, score in nbest],
      }
      for name, reference, nbest in zip(self.ids, self.references, nbests, strict=True)
    ]

  def greedy(self, labels: Vocabulary) -> Searched:
    """The best path of each utterance, with its log probability."""
    started, nbests = time.perf_counter(), []
    for frames in self.log_probs:
      path = frames.argmax(-1).astype(np.int32)
      text = labels.decode(collapse(path, blank_id=labels.blank_id))
      nbests.append([(text, frames.max(-1).sum())])
    return Searched(nbests, time.perf_counter() - started)

  def prefix_beam(self, labels: Vocabulary, beam: int, count: int) -> Searched:
    """The `count` best label sequences of each utterance as texts, with their log probability."""
    order = sorted(range(len(self.log_probs)), key=lambda i: len(self.log_probs[i]))
    nbests: list[NBest] = [[] for _ in order]
    shapes, seconds = set(), 0.0
    search = functools.partial(prefix_beam, blank_id=labels.blank_id, beam=beam)
    with console.progress("prefix beam", len(order)) as update:
      for start in range(0, len(order), _ROWS):
        chosen = order[start : start + _ROWS]
        batch = self._batch(chosen)
        if batch[1].shape not in shapes:  # compiles
          jax.block_until_ready(search(*batch))
          shapes.add(batch[1].shape)
        started = time.perf_counter()
        found = map(np.asarray, search(*batch))
        for i, *best in zip(chosen, *found, strict=False):
          nbests[i] = _texts(labels, *best)[:count]
        seconds += time.perf_counter() - started
        update(len(chosen))
    return Searched(nbests, seconds)

  def _batch(self, chosen: list[int]) -> tuple[np.ndarray, np.ndarray]:
    longest = max(len(self.log_probs[i]) for i in chosen)
    frames = -(-longest // _FRAMES) * _FRAMES
    logits = np.zeros((_ROWS, frames, self.log_probs[0].shape[1]), np.float32)
    mask = np.zeros((_ROWS, frames), bool)
    for row, i in enumerate(chosen):
      logits[row, : len(self.log_probs[i])] = self.log_probs[i]
      mask[row, : len(self.log_probs[i])] = True
    return logits, mask


def _texts(labels: Vocabulary, sequences, lengths, log_p) -> NBest:
  """Texts of label sequences; several that are one text, such as with more spaces, add up."""
  found: dict[str, float] = {}
  for sequence, length, p in zip(sequences, lengths, log_p.astype(np.float64), strict=True):
    if np.isfinite(p):
      text = labels.decode(sequence[:length])
      found[text] = np.logaddexp(found.get(text, -np.inf), p)
  return sorted(found.items(), key=lambda pair: -pair[1])


class Opened:
  """The models and data of a finished run.

  Attributes:
    splits: "dev" and "test" → source, where the run has them.
    models: "student", "teacher" → model.
  """

  def __init__(self, folder: pathlib.Path, models: tuple[str, ...], data: str = ""):
    """Loads the models that are asked for and there.

    Args:
      folder: the workdir.
      models: names.
      data: in the place of the run's test data.

    Raises:
      UserError: the run is not finished, has no such model or no data to search.
    """
    self._folder, self._mesh = folder, mesh_lib.make_mesh()
    self._config, student = blueprint.load_finished(folder, self._mesh)
    self.models: dict[str, Teacher] = {"student": student} if "student" in models else {}
    self._teacher_source = results.teacher_source(files.read_json(folder / "results.json"), folder)
    if "teacher" in models and self._teacher_source:
      self.models["teacher"] = build.load_teacher(self._config, self._teacher_source, self._mesh)
    if not self.models:
      raise UserError(f"{folder} has no teacher: --model=student")
    specs = {"dev": self._config.data.dev, "test": data or self._config.data.test}
    self.splits = {
      split: build.open_split(self._config, spec) for split, spec in specs.items() if spec
    }
    if not self.splits:
      raise UserError(f"{folder} has neither dev nor test data: --data=MANIFEST")

  @functools.cached_property
  def _train(self) -> Source:
    return build.open_split(self._config, config_lib.train_data(self._config))

  def transcripts(self) -> tuple[list[str], str]:
    """Training transcripts of the student, or else of the teacher, and the name of the data.

    Raises:
      UserError: neither has any.
    """
    if None not in self._train.texts:
      return self._train.texts, self._train.name
    for source in blueprint.members(self._teacher_source) if self._teacher_source else ():
      if (pathlib.Path(source) / "results.json").exists():
        config = ConfigDict(files.read_json(pathlib.Path(source) / "config.json"))
        data = build.open_split(config, config_lib.train_data(config))
        if None not in data.texts:
          return data.texts, data.name
    raise UserError(
      f"--lm=train: neither {self._train.name} nor the training data of the teacher is "
      "transcribed: give --lm=FILE.arpa, or --lm=none"
    )

  def log_prior(self, name: str) -> np.ndarray:
    """f32[V]: of a model on the student's training data, kept in the workdir."""
    path = self._folder / build.LOG_PRIOR
    if name == "teacher":
      own = pathlib.Path(self._teacher_source) / build.LOG_PRIOR
      path = own if own.exists() else self._folder / build.TEACHER_LOG_PRIOR
    if path.exists():
      return np.array(files.read_json(path), np.float32)
    return np.asarray(build.estimate_log_prior(self.models[name], self._train, path, self._mesh))

  def log_probs(self, name: str, split: str) -> Posteriors:
    """What a model says of every frame of a split."""
    model, source = self.models[name], self.splits[split]
    index = {unique: i for i, unique in enumerate(source.ids)}
    durations = np.concatenate([s.durations for s in self.splits.values()])
    shapes = build.eval_shapes(durations, self._mesh)
    planned = plan.evaluation_plan(source.durations, shapes)
    predict = functools.partial(_log_probs, model.graphdef, self._mesh, model.params)
    found: dict[int, np.ndarray] = {}
    compiled, seconds = set(), 0.0
    with console.progress(f"{name}: {split}", len(planned)) as update:
      for host in pipeline.batches(source, planned, shards=mesh_lib.my_shards(self._mesh)):
        batch = mesh_lib.put_batch(host.batch, self._mesh)
        if batch.audio.shape not in compiled:
          jax.block_until_ready(predict(batch))
          compiled.add(batch.audio.shape)
        started = time.perf_counter()
        out = jax.block_until_ready(predict(batch))
        seconds += time.perf_counter() - started
        for ids, frames, mask in zip(host.ids, *map(mesh_lib.my_rows, out), strict=True):
          if ids:
            found[index[ids[0]]] = frames[mask]
        update()
    order = sorted(found)
    texts = [source.texts[i] for i in order]
    return Posteriors(
      ids=[source.ids[i] for i in order],
      references=[None if text is None else normalise(text) for text in texts],
      log_probs=[found[i] for i in order],
      audio_seconds=float(source.durations[order].sum()),
      compute_seconds=seconds,
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _log_probs(graphdef, mesh: jax.sharding.Mesh, params, batch: Batch):
  """f32[B, T, V] and mask bool[B, T], split by rows."""
  with sharding.on(mesh):
    out = nnx.merge(graphdef, params)(batch.audio, batch.audio_len)
    found = jax.nn.log_softmax(out.logits.astype(jnp.float32)), out.mask
  return jax.lax.with_sharding_constraint(found, sharding.split_rows(mesh))
