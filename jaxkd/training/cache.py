"""`config.teacher.cache`: what the teacher says of a run's data, stored beside its workdir."""

import hashlib
import json
import logging
import pathlib

from jaxkd.devices import mesh
from jaxkd.inference import teaching
from jaxkd.teacher import sources as teachers
from jaxkd.teacher import stored as stored_lib
from jaxkd.teacher.store import VERSION
from jaxkd.teacher.stored import Stored
from jaxkd.training import objective
from jaxkd.training.assembly import Plan

log = logging.getLogger(__name__)


def stored(plan: Plan, found: teachers.Found) -> Stored:
  """What a teacher says of the data of a run, stored first where it is not yet.

  Training data at every speed of the config, dev and test data as they are. Runs side by side that
  ask for the same share it: the first of them writes it.

  Args:
    plan: of the run.
    found: its teacher, which is loaded only where something is left to be heard.
  """
  config, data, devices = plan.config, plan.data, plan.devices
  wanted = [teaching.Wanted(data.train, objective.speeds_heard(config.kd, config.training.speeds))]
  wanted += [teaching.Wanted(split, (1.0,)) for split in data.held_out().values()]
  folder = _folder(plan, found, wanted)
  log.info("what the teacher says is kept in %s", folder)
  totals = teaching.write(found, wanted, folder, devices, temperature=config.kd.temperature)
  log.info("%.2f h of the teacher's frames in %.1f MB", totals["hours"], totals["bytes"] / 1e6)
  return stored_lib.find(str(folder)).at(plan.architecture.frame_samples)


def _folder(plan: Plan, found: teachers.Found, wanted: list[teaching.Wanted]) -> pathlib.Path:
  """Beside the workdir, another one where anything is different that the frames depend on."""
  config = plan.config
  spoken = [[source.fingerprint(), speeds] for source, speeds in wanted]
  teacher = [found.source, teachers.fingerprint(found.source)]
  options = [config.teacher.pool, config.teacher.language, config.dtype, config.kd.temperature]
  key = json.dumps([VERSION, teacher, options, found.vocabulary.fingerprint(), spoken])
  digest = hashlib.sha256(key.encode()).hexdigest()[:8]
  return pathlib.Path(mesh.agreed(str(plan.folder.parent / f"frames-{digest}")))
