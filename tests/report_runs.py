"""Finished workdirs with known numbers, without models."""

import functools
import json
import pathlib

import numpy as np

import corpus
from jaxkd.config import overrides

UTTERANCES = 40
WORDS = 4


def references(size: int = UTTERANCES, seed: int = 0) -> dict[str, str]:
  """Id → reference."""
  rng = np.random.default_rng(seed)
  return {f"u{i:03}": " ".join(rng.choice(list("abcdefgh"), WORDS)) for i in range(size)}


def spoil(reference: str, errors: int) -> str:
  """The reference with so many wrong words."""
  return " ".join(["wrong"] * errors + reference.split()[errors:])


@functools.cache
def config_of(variant: str, *flags: str) -> dict:
  places = [f"--config.data.{s}={s}.jsonl" for s in ("train", "teacher_train", "dev", "test")]
  line = ["jaxkd.main", f"--config={corpus.ROOT}/configs/{variant}.py:manifest", *places, *flags]
  return overrides.parse(line)[0].to_dict()


def write_run(
  folder: pathlib.Path,
  variant: str = "symmetric",
  *flags: str,
  errors: int | list[int] = 0,
  teacher: str | None = None,
  trained_on: str = "train",
  utterances: dict[str, str] | None = None,
  figures: dict | None = None,
  split_figures: dict | None = None,
) -> pathlib.Path:
  """A finished workdir.

  Args:
    errors: of the student in the test utterances: in each, or in the first so many one each.
    teacher: its folder's name; it makes one error in the first utterance.
    trained_on: name of the training data.
    figures, split_figures: more for the blocks of each model and each split in results.json.
  """
  config = json.loads(json.dumps(config_of("ctc" if variant == "teacher" else variant, *flags)))
  config["variant"] = variant
  texts = utterances or references()
  counts = errors if isinstance(errors, list) else [int(i < errors) for i in range(len(texts))]
  made = {"student": counts} | ({"teacher": [1]} if teacher else {})
  blocks = {}
  (folder / "hypotheses").mkdir(parents=True)
  for split in ("dev", "test"):
    blocks[split] = {"name": f"{split}.jsonl"} | (split_figures or {})
    for model, wrong in made.items():
      wrong = wrong + [0] * (len(texts) - len(wrong))
      rows = [
        {"id": i, "reference": text, "hypothesis": spoil(text, e)}
        for (i, text), e in zip(texts.items(), wrong, strict=True)
      ]
      lines = "".join(json.dumps(row) + "\n" for row in rows)
      (folder / "hypotheses" / f"{split}.{model}.jsonl").write_text(lines)
      words = WORDS * len(texts)
      block = {"wer": sum(wrong) / words, "cer": 0.01, "words": words, "blank_rate": 0.5}
      blocks[split][model] = block | {"params": 1_200_000} | (figures or {})
  results = {
    "variant": variant,
    "recipe": "manifest",
    "kd_scale": config["kd"]["scale"],
    "seed": config["seed"],
    "commit": "abcdef0123",
    "device": "cpu",
    "wall_seconds": 60.0 * (1 + config["seed"]),
    "teacher_workdir": f"../{teacher}" if teacher else None,
    "selected_rate": None if variant == "teacher" else 0.6,
    "train": {"name": f"{trained_on}.jsonl", "utterances": 100, "hours": 1.5},
  }
  (folder / "results.json").write_text(json.dumps(results | blocks))
  (folder / "config.json").write_text(json.dumps(config))
  facts = {"train": {"name": trained_on, "fingerprint": f"fp-{trained_on}"}}
  (folder / "data.json").write_text(json.dumps(facts))
  curve = [{"step": 10 * i, "epoch": i, "loss": 3.0 / (i + 1)} for i in range(5)]
  curve += [{"step": 10 * i, "epoch": i, "dev/wer": 0.9 / (i + 1)} for i in range(5)]
  (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in curve))
  return folder
