"""The scripts of docs/stored-teachers.md, run where their toolkits are there."""

import ast
import inspect
import json
import pathlib
import re
import sys
import types

import jax
import numpy as np
import pytest

import corpus
import drawn_run
from jaxkd import teacher
from jaxkd.config import overrides
from jaxkd.data.corpora import Options
from jaxkd.data.sources import open_source
from jaxkd.devices import mesh
from jaxkd.labels import MarkedVocabulary, UnknownSymbol
from jaxkd.models import kept
from jaxkd.teacher import store, stored

PAGE = (pathlib.Path(__file__).parents[2] / "docs" / "stored-teachers.md").read_text()
pytestmark = pytest.mark.usefixtures("quick_to_compile")


def code(mark: str) -> str:
  return re.search(rf"<!-- {mark} -->\n```python\n(.*?)```", PAGE, re.S)[1]


@pytest.fixture
def rows(monkeypatch):
  """The file that the scripts share, which can be imported."""
  module = types.ModuleType("rows")
  exec(compile(code("rows.py"), "rows.py", "exec"), vars(module))
  monkeypatch.setitem(sys.modules, "rows", module)
  return module


def test_rows_are_those_of_training(rows, tmp_path):
  corpus.make_split(tmp_path, "dev", 2)
  first, second = map(json.loads, (tmp_path / "dev.jsonl").read_text().splitlines())
  whole = {"audio_filepath": second["audio_filepath"], "id": "not read"}
  parts = [first | {"offset": 0.05, "duration": 0.1005}, first | {"duration": 0.07}]
  data = corpus.write_manifest(tmp_path / "parts.jsonl", [*parts, whole])
  source = open_source(str(data), Options())
  found = list(rows.utterances(str(data)))
  assert [name for name, _ in found] == list(source.ids) and found[1][0].endswith("#2")
  for i, (_, audio) in enumerate(found):
    np.testing.assert_array_equal(audio, source.read(i))


def written_by(mark: str, *args) -> stored.Stored:
  names = {"__name__": mark}
  exec(compile(code(mark), mark, "exec"), names)
  names["write"](*map(str, args))
  return stored.find(str(args[-1]))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
  folder = tmp_path_factory.mktemp("lab")
  corpus.make_split(folder, "dev", 3)
  return folder


def posterior(found: stored.Stored, name: str) -> np.ndarray:
  frames = found.store.read(found.positions[name, 1.0])
  known = np.isfinite(frames.log_probs)
  return np.where(known, np.exp(frames.log_probs), 0)


def test_transformers(lab, rows):
  hf_models = pytest.importorskip("hf_models")
  hf_models.make(lab / "model", "wav2vec2", "layer")
  found = written_by("transformers", lab / "model", lab / "dev.jsonl", lab / "torch")
  ours = teacher.from_huggingface(lab / "model", pool=1)
  assert found.vocabulary.symbols == ours.vocabulary.symbols
  assert found.vocabulary.decode([5, 4, 6]) == ours.vocabulary.decode([5, 4, 6])
  assert (found.blank_id, found.frame_samples) == (ours.blank_id, ours.frame_samples)
  source = open_source(str(lab / "dev.jsonl"), Options())
  assert found.has(source)
  for i, name in enumerate(source.ids):
    audio = source.read(i)
    out = ours(audio[None], np.array([len(audio)], np.int32))
    expected = np.exp(out.logits[0] - np.logaddexp.reduce(out.logits[0], -1, keepdims=True))
    np.testing.assert_allclose(posterior(found, name), expected, atol=2e-3)
    assert found.frames(name, 1.0, audio).samples == len(audio)


def test_onnx(lab, rows):
  pytest.importorskip("onnxruntime")
  from jaxkd.export import slots

  flags = corpus.flags(lab, "symmetric", lab / "run", "--config.labels.alphabet= abc")
  config, _ = overrides.parse(flags)
  drawn_run.save(lab / "run", config, {"teacher_workdir": None})
  model = kept.read(lab / "run").load(mesh.make_mesh(devices=jax.devices()[:1]))
  slot, folder = slots.fitting(model)[0][0], lab / "omnilingual"
  folder.mkdir()
  (folder / "model.onnx").write_bytes(slot.build(model, False).SerializeToString())
  slot.write_classes(model, folder)
  found = written_by("onnx", folder / "model.onnx", lab / "dev.jsonl", lab / "from-onnx")
  assert found.frame_samples == 320 and found.vocabulary.decode([2, 1, 3]) == "a b"
  source = open_source(str(lab / "dev.jsonl"), Options())
  order = [model.blank_id, *(i for i in range(len(model.labels)) if i != model.blank_id)]
  for i, name in enumerate(source.ids):
    audio = source.read(i)
    out = model(audio[None], np.array([len(audio)], np.int32)).logits[0][:, order]
    expected = np.exp(out - np.logaddexp.reduce(out, -1, keepdims=True))
    frames = found.at(640).frames(name, 1.0, audio)
    known = np.isfinite(frames.log_probs)
    np.testing.assert_allclose(
      np.where(known, np.exp(frames.log_probs), 0), np.where(known, expected, 0), atol=2e-3
    )


@pytest.mark.parametrize("mark", ["transformers", "nemo", "icefall", "onnx"])
def test_each_is_short_and_calls_the_writer_as_it_is(mark):
  assert len(code(mark).splitlines()) <= 40
  calls = [node for node in ast.walk(ast.parse(code(mark))) if isinstance(node, ast.Call)]
  made = [call for call in calls if ast.unparse(call.func) == "store.Writer"]
  added = [call for call in calls if ast.unparse(call.func) == "writer.add"]
  assert len(made) == len(added) == 1
  names = inspect.signature(store.Writer.__init__).parameters
  assert {k.arg for k in made[0].keywords if k.arg} <= names.keys()
  assert {k.arg for k in added[0].keywords} <= inspect.signature(store.Writer.add).parameters.keys()


@pytest.mark.parametrize("text", ["the cat sat", "cat", "", "The CAT"])
def test_pieces_by_their_symbols(text):
  vocabulary = MarkedVocabulary(("▁the", "▁c", "at", "▁s", "a", "t", "▁", "c", "<b>"), 8, "")
  ids = vocabulary.encode(text)
  assert vocabulary.decode(ids) == text.lower()
  assert [word for word, _, _ in vocabulary.words(ids.tolist())] == text.lower().split()
  assert [vocabulary.symbols[i] for i in vocabulary.encode("cat sat")] == ["▁c", "at", "▁s", "at"]
  with pytest.raises(UnknownSymbol):
    vocabulary.encode("dog")
