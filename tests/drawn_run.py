"""Finished runs that nothing was trained for."""

import json
import pathlib

import jax
import numpy as np

from jaxkd import files, workdirs
from jaxkd.labels import characters
from jaxkd.models import kept, parameters, registry


def save(folder: pathlib.Path, config, results: dict) -> pathlib.Path:
  """The workdir of a run that ended at once, with drawn parameters."""
  vocabulary = characters(config.labels.alphabet)
  model = registry.architecture(config.student, config.features, dtype=config.dtype)
  rng = np.random.default_rng(0)
  drawn = lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32)
  folder.mkdir(parents=True)
  like = model.structure(len(vocabulary.symbols))[1]
  parameters.save_params(folder / kept.FINAL, jax.tree.map(drawn, like))
  vocabulary.save(folder / workdirs.LABELS)
  files.write_json(folder / "config.json", json.loads(json.dumps(config.to_dict())))
  files.write_json(folder / "results.json", results)
  return folder
