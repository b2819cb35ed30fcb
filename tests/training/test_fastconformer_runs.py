"""A FastConformer from nothing to a folder of transformers': trained, taught, converted, loaded."""

import json
import pathlib

import jax
import numpy as np
import pytest

import corpus
import jaxkd
from hf_models import torch, transformers
from jaxkd import teacher as teacher_lib
from jaxkd.commands import line as command_line
from jaxkd.config import overrides
from jaxkd.data import audio
from jaxkd.devices import mesh as mesh_lib
from jaxkd.errors import UserError
from jaxkd.labels import normalise
from jaxkd.models import kept, registry
from jaxkd.training import loop as train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_to_compile", "compiled_once")]
NEMO = ("--config.features.kind=nemo", "--config.features.normalise=none")
FAST = (
  *NEMO,
  *(
    f"--config.{model}.{field}"
    for model in ("student", "teacher.model")
    for field in ("name=fastconformer", "subsampling_channels=4")
  ),
)


def flags(lab, variant: str, name: str, *more: str) -> list[str]:
  return corpus.flags(lab, variant, lab / name, *FAST, *more)


def start(arguments: list[str]) -> pathlib.Path:
  config, folder = overrides.parse(arguments)
  train.run(config, folder)
  return folder


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
  """A corpus, a student with all that training has at random and its teacher, and its folder."""
  folder = tmp_path_factory.mktemp("lab")
  corpus.make(folder)
  more = ("student.layer_drop=0.3", "student.layers=2", "training.spec_augment=True")
  start(flags(folder, "symmetric", "run", *(f"--config.{field}" for field in more)))
  assert command_line.main(["convert", str(folder / "run"), str(folder / "shared")]) == 0
  return folder


def student_of(folder):
  return kept.read(folder).load(mesh_lib.make_mesh())


def test_it_learns_and_says_what_it_is(lab):
  results = json.loads((lab / "run" / "results.json").read_text())
  assert results["test"]["student"]["params"] != results["test"]["teacher"]["params"]
  rows = [json.loads(row) for row in (lab / "run" / "metrics.jsonl").read_text().splitlines()]
  losses = [row["loss"] for row in rows if "loss" in row]
  assert losses[-1] < losses[0] and np.isfinite(losses).all()
  found = kept.read(lab / "run").architecture
  assert found.kind == "FastConformer" and found.frame_samples == 640
  assert [int(found.frame_len(n)) for n in (0, 159, 160, 640, 641, 6400)] == [0, 0, 1, 1, 1, 10]
  names = {
    jax.tree_util.keystr(path)
    for path, _ in jax.tree_util.tree_leaves_with_path(found.structure(4)[1])
  }
  assert not any("variance" in name for name in names)  # nothing that is not learnt


def test_transformers_loads_it_to_the_same_logits(lab):
  model, problems = transformers.ParakeetForCTC.from_pretrained(
    lab / "shared", output_loading_info=True
  )
  assert not any(problems.values()), problems
  processor = transformers.AutoProcessor.from_pretrained(lab / "shared")
  ours, again = student_of(lab / "run"), teacher_lib.from_huggingface(lab / "shared")
  assert again.vocabulary == ours.vocabulary
  for number in range(3):
    samples = audio.read(lab / "audio" / f"test-{number:02}.flac")
    inputs = processor(samples, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
      expected = model.eval()(**inputs).logits[0].numpy()
    for jaxs in (ours, again):
      out = jaxs(samples[None], np.array([len(samples)], np.int32))
      got = np.asarray(out.logits[0][out.mask[0]])
      assert np.abs(got).max() > 0.1
      np.testing.assert_allclose(got, expected[: len(got)], atol=1e-4)
    ids = expected.argmax(-1)
    said = normalise(processor.decode(ids, skip_special_tokens=True))
    assert said == jaxkd.load(lab / "shared").transcribe(samples).text


@pytest.mark.exhaustive
def test_its_folder_teaches(lab):
  given = f"--config.teacher.source={lab / 'shared'}"
  folder = start(flags(lab, "symmetric", "taught", given, "--config.teacher.pool=1"))
  assert json.loads((folder / "results.json").read_text())["selected_rate"] > 0
  card = (lab / "shared" / "README.md").read_text()
  assert "a FastConformer, layers: 2" in card and "library_name: transformers" in card


@pytest.mark.exhaustive
def test_a_warm_up_brings_encodings_together(lab):
  given = f"--config.teacher.source={lab / 'run'}"
  folder = start(flags(lab, "warmup", "warm", given, "--config.kd.warmup=1"))
  assert "kd/cosine" in (folder / "metrics.jsonl").read_text()


@pytest.mark.parametrize("to", ["onnx", "web"])
def test_it_is_not_written_as_onnx(lab, to):
  pytest.importorskip("onnx")
  with pytest.raises(UserError, match="only a Conformer can be written as ONNX here; for a Fast"):
    command_line.main(["export", str(lab / "run"), f"--to={to}"])


# Settings.


@pytest.mark.parametrize("model", ["student", "teacher.model"])
def test_sizes_have_blocks_of_their_own(model):
  lines = [f"--config.{model}.name=fastconformer", *NEMO, "--config.data.train=a"]
  found = {}
  for size in ("tiny", "small", "medium", "large"):
    parsed, _ = overrides.parse(
      ["x", f"--config=symmetric:manifest-{size}", *lines, "--config.data.teacher_train=b"]
    )
    block = parsed.student if model == "student" else parsed.teacher.model
    shape = registry.architecture(block, parsed.features, dtype="float32")
    like = shape.structure(29)[1]
    millions = sum(leaf.size for leaf in jax.tree.leaves(like)) / 1e6
    found[size] = millions, shape.frame_samples
  frames = {"tiny": 640, "small": 1280, "medium": 1280, "large": 1280}
  sizes = {"tiny": 0.3, "small": 10, "medium": 43, "large": 76}
  for size, (millions, samples) in found.items():
    assert samples == frames[size]
    assert model != "student" or millions == pytest.approx(sizes[size], rel=0.1)


@pytest.mark.parametrize(
  ("flags", "words"),
  [
    (NEMO[1:], "features.kind is 'logmel': it must be nemo, and config.features.normalise none"),
    (NEMO[:1], "features.normalise is 'utterance': it must be none where config.student.name"),
    ((*NEMO, "--config.features.mels=42"), "features.mels is 42: it must be a multiple of"),
    ((*NEMO, "--config.student.subsampling=3"), "student.subsampling is 3: it must be 2, 4, 8 or"),
    ((*NEMO, "--config.student.conv_kernel=8"), "student.conv_kernel is 8: it must be odd"),
    ((*NEMO, "--config.student.width=66"), "student.width is 66: it must be a multiple of"),
    ((*NEMO, "--config.student.frontend_pool=1"), "'fastconformer' has no such field"),
  ],
)
def test_what_does_not_go_together(flags, words):
  with pytest.raises(UserError) as error:
    overrides.parse(["x", "--config=symmetric:demo", "--config.student.name=fastconformer", *flags])
  assert words in str(error.value) and "\n" not in str(error.value)
