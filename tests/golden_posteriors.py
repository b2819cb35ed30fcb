"""Writes tests/golden/demo_student.npz: what a demo student says of recordings, right and wrong.

  python -m tests.golden_posteriors runs/symmetric-demo

Of the test data: every recording with a wrong word, and as many of the others.
"""

import json
import pathlib
import sys

import numpy as np

from jaxkd.inference.finished import FinishedRun
from jaxkd.inference.listening import listen
from jaxkd.inference.search.greedy import collapse
from jaxkd.labels import normalise

PATH = pathlib.Path(__file__).parent / "golden" / "demo_student.npz"


def main(workdir: str) -> None:
  run = FinishedRun(pathlib.Path(workdir))
  source, model = run.splits()["test"], run.student
  audio = [source.read(i) for i in range(len(source))]
  rows = {True: [], False: []}
  for text, frames in zip(source.texts, listen(model, audio, log_probs=True), strict=True):
    said = model.vocabulary.decode(collapse(frames.path, blank_id=model.blank_id))
    rows[said == normalise(text)].append((normalise(text), frames))
  kept = rows[False] + rows[True][: len(rows[False])]
  vocabulary = {"symbols": model.labels, "blank_id": model.blank_id}
  np.savez_compressed(
    PATH,
    log_probs=np.concatenate([f.log_probs for _, f in kept]).astype(np.float16),
    frames=np.array([len(f.path) for _, f in kept], np.int32),
    facts=np.array(json.dumps({"references": [t for t, _ in kept]} | vocabulary)),
  )


if __name__ == "__main__":
  main(sys.argv[1])
