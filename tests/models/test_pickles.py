"""PyTorch's pickled weights: read as torch reads them, and nothing that they ask for is called."""

import collections
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

import hf_models
import jaxkd
from hf_folders import assert_same, edit, load_params, refuse
from hf_models import torch
from jaxkd import teacher as teacher_lib
from jaxkd.commands import line as command_line
from jaxkd.config import base, recipes
from jaxkd.errors import UserError
from jaxkd.models import registry
from jaxkd.models.huggingface import pickles


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> pathlib.Path:
  """The user's cache, which is empty."""
  monkeypatch.setenv("JAXKD_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


@pytest.fixture
def pickled(folder) -> pathlib.Path:
  """A model's folder as older versions of transformers wrote it."""
  pickle_weights(folder)
  return folder


def pickle_weights(folder) -> None:
  path = folder / "model.safetensors"
  weights = {name: torch.tensor(array) for name, array in load_file(path).items()}
  torch.save(weights, folder / "pytorch_model.bin")
  path.unlink()


def read(path) -> dict[str, np.ndarray]:
  return {name: tensor.read() for name, tensor in pickles.read(path).items()}


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_are_those_that_torch_reads(tmp_path, zipped):
  whole = torch.randn(4, 6, generator=torch.manual_seed(0))
  names = "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 bool"
  given = collections.OrderedDict(
    {name: (3 * whole).to(getattr(torch, name)) for name in names.split()},
    part=whole[1:3],
    turned=whole.T,
    strided=whole[::2, 1::2],
    scalar=torch.tensor(2.5),
    empty=torch.zeros(0, 3),
    parameter=torch.nn.Parameter(whole[0].clone()),
  )
  given._metadata = {"": {"version": 1}}  # as a state_dict has it
  torch.save(given, tmp_path / "x.bin", _use_new_zipfile_serialization=zipped)
  found = read(tmp_path / "x.bin")
  assert found.keys() == given.keys()
  for name, tensor in torch.load(tmp_path / "x.bin", weights_only=True).items():
    assert found[name].dtype.name == str(tensor.dtype).removeprefix("torch.")
    np.testing.assert_array_equal(np.float64(found[name]), tensor.detach().double().numpy())


@pytest.mark.parametrize("zipped", [True, False])
def test_a_folder_is_converted_once(saved, pickled, cache, caplog, monkeypatch, zipped):
  path = pickled / "pytorch_model.bin"
  torch.save(torch.load(path), path, _use_new_zipfile_serialization=zipped)
  monkeypatch.setitem(sys.modules, "torch", None)  # which nobody needs for it
  caplog.set_level("INFO")
  teacher = teacher_lib.from_huggingface(pickled)
  assert_same(teacher.params, load_params(saved()[0]))
  (made,) = cache.glob("weights-*")
  said = f"pytorch_model.bin is converted once, its tensors alone, and kept as {made}"
  assert caplog.text.count(said) == 1
  written = (made / "model.safetensors").stat()
  assert jaxkd.load(pickled).model.vocabulary == teacher.vocabulary
  assert caplog.text.count(said) == 1 and (made / "model.safetensors").stat() == written
  assert not list(pickled.glob("*.safetensors"))


def test_what_has_changed_is_converted_anew(saved, pickled, cache):
  before = load_params(pickled)
  path = pickled / "pytorch_model.bin"
  times = path.stat().st_atime_ns, path.stat().st_mtime_ns
  weights = torch.load(path)
  weights["lm_head.bias"] += 1
  torch.save(weights, path)  # as many bytes
  os.utime(path, ns=times)  # of the same age
  after = load_params(pickled)["head"]["bias"][...]
  np.testing.assert_array_equal(after, before["head"]["bias"][...] + 1)
  assert len(list(cache.glob("weights-*"))) == 2
  # Safetensors beside it win.
  shutil.copy(saved()[0] / "model.safetensors", pickled)
  assert_same(load_params(pickled), before)


def test_shards_and_their_index(saved, pickled, cache):
  expected = load_params(saved()[0])
  weights = torch.load(pickled / "pytorch_model.bin")
  (pickled / "pytorch_model.bin").unlink()
  parts = [dict(list(weights.items())[start::2]) for start in (0, 1)]
  for number, part in enumerate(parts):
    torch.save(part, pickled / f"pytorch_model-{number}.bin")
  torch.save({name: 0 * w for name, w in weights.items()}, pickled / "pytorch_model_old.bin")
  refuse(pickled, "only pytorch_model-0.bin, pytorch_model-1.bin, pytorch_model_old.bin")
  where = {name: f"pytorch_model-{i}.bin" for i, part in enumerate(parts) for name in part}
  (pickled / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
  assert_same(load_params(pickled), expected)
  (pickled / "pytorch_model-1.bin").unlink()
  refuse(pickled, "pytorch_model.bin.index.json names pytorch_model-1.bin", "fetch the whole model")


def test_two_processes_at_once(saved, pickled, cache):
  code = (
    "import sys; from jaxkd import teacher; print(teacher.from_huggingface(sys.argv[1]).labels)"
  )
  start = lambda: subprocess.Popen(
    [sys.executable, "-c", code, str(pickled)], stdout=subprocess.PIPE, text=True
  )
  both = [start(), start()]
  assert {process.communicate(timeout=120)[0] for process in both} == {f"{hf_models.SYMBOLS}\n"}
  (made,) = cache.glob("weights-*")
  assert [p.name for p in made.iterdir()] == ["model.safetensors"]
  assert not list(cache.glob(".*unfinished"))


def test_a_student_begins_with_it(saved, pickled):
  block = recipes.huggingface(str(pickled))
  made = registry.architecture(block, base("demo").features, dtype="float32")
  params = made.first_params(made.head[1])(None)
  assert_same(params, load_params(saved()[0]))


class Evil:
  """Calls a function where it is unpickled."""

  def __init__(self, function, *given):
    self.called = function, given

  def __reduce__(self):
    return self.called


@pytest.mark.parametrize("kind", ["zip", "legacy", "bare", "among tensors"])
@pytest.mark.parametrize("call", [(os.system, "touch {}"), (exec, "open({!r}, 'w').close()")])
def test_a_pickle_that_calls_something_calls_nothing(pickled, tmp_path, cache, kind, call):
  mark, path = tmp_path / "mark", pickled / "pytorch_model.bin"
  function, text = call
  given = Evil(function, text.format(str(mark)))
  if kind == "bare":
    path.write_bytes(pickle.dumps(given))
  else:
    given = torch.load(path) | {"more": given} if kind == "among tensors" else given
    torch.save(given, path, _use_new_zipfile_serialization=kind != "legacy")
  text = refuse(pickled, str(path), "cannot be read as tensors alone", "it asks for")
  assert function.__name__ in text
  with pytest.raises(UserError, match="cannot be read as tensors alone: it asks for"):
    command_line.main(["convert", str(pickled)])
  assert not mark.exists() and not list(cache.glob("weights-*"))
  assert not list(pickled.glob("model.safetensors*"))
  pickle.loads(pickle.dumps(Evil(function, call[1].format(str(mark)))))  # it would have
  assert mark.exists()


@pytest.mark.parametrize(
  "value",
  [
    torch.ones(2),
    [torch.ones(2)],
    {},
    {"model": {"lm_head.bias": torch.ones(2)}},
    {"step": 3, "lm_head.bias": torch.ones(2)},
    {0: torch.ones(2)},
  ],
)
def test_what_is_no_tensors_by_name(pickled, value):
  torch.save(value, pickled / "pytorch_model.bin")
  refuse(pickled, "pytorch_model.bin does not hold tensors by name")


@pytest.mark.parametrize("offset, strides", [(1, (4, 1)), (0, (5, 1)), (0, (4, 2)), (9**9, (4, 1))])
def test_a_tensor_is_within_its_numbers(tmp_path, offset, strides):
  """What lies behind them in memory is nobody's business."""
  path = tmp_path / "x.bin"
  given = pickles._View(pickles._Storage("F32", "0", 12), offset, (3, 4), strides)
  tensor = pickles._tensor(path, "x", given, lambda storage: bytes(48))
  with pytest.raises(UserError, match="x is longer than its numbers"):
    tensor.read()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0, 4, 300, 60_000])
def test_a_file_that_is_cut(pickled, cache, zipped, kept):
  path = pickled / "pytorch_model.bin"
  torch.save(torch.load(path), path, _use_new_zipfile_serialization=zipped)
  path.write_bytes(path.read_bytes()[:kept])
  refuse(pickled, str(path), "cannot be read")
  assert not list(cache.glob("*weights-*[!k]"))  # but locks


def test_a_damaged_byte_is_found(pickled):
  path = pickled / "pytorch_model.bin"
  data = bytearray(path.read_bytes())
  bias = load_params(pickled)["head"]["bias"][...]
  data[data.index(np.asarray(bias).tobytes())] ^= 1
  path.write_bytes(data)
  refuse(pickled, str(path), "cannot be read", "CRC")


def test_a_pointer_of_git_is_no_file(pickled):
  text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
  for name in ("pytorch_model.bin", "model.safetensors"):
    (pickled / name).write_text(text)
    refuse(pickled, name, "cannot be read", "a pointer of Git LFS", "git lfs pull")


@pytest.mark.parametrize("safe", [True, False])
def test_pickles_are_fetched_where_there_are_no_safetensors(monkeypatch, folder, tmp_path, safe):
  hub, asked = pytest.importorskip("huggingface_hub"), []
  if not safe:
    pickle_weights(folder)
  there = tmp_path / "snapshot"

  def fetch(name, allow_patterns, ignore_patterns):
    asked.append(allow_patterns)
    for pattern in allow_patterns:
      for path in folder.glob(pattern):
        there.mkdir(exist_ok=True)
        shutil.copy(path, there)
    return str(there)

  monkeypatch.setattr(hub, "snapshot_download", fetch)
  assert teacher_lib.from_huggingface("org/name").labels == hf_models.SYMBOLS
  pickles_too = ["pytorch_model*.bin" in patterns for patterns in asked]
  assert pickles_too == ([False] if safe else [False, True])


def test_convert_writes_them_where_it_is_told(saved, pickled, tmp_path):
  target = tmp_path / "new"
  command_line.main(["convert", str(pickled), str(target)])
  assert_same(load_params(target), load_params(saved()[0]))
  assert {"config.json", "vocab.json"} < {path.name for path in target.iterdir()}
  assert not list(target.glob("*.bin*")) and not list(target.glob("*unfinished"))
  command_line.main(["convert", str(pickled)])
  names = [path.name for path in pickled.iterdir() if "model" in path.name]
  assert sorted(names) == ["model.safetensors", "pytorch_model.bin"]
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="file cannot be written"):
    command_line.main(["convert", str(pickled), str(tmp_path / "file")])


def test_an_adapter_may_be_one(tmp_path):
  folder = tmp_path / "mms"
  model = hf_models.make(folder, "wav2vec2", "layer", adapter_attn_dim=6)
  adapter = {name: weight + 1 for name, weight in model._get_adapters().items()}
  torch.save(adapter, folder / "adapter.eng.bin")
  symbols = {symbol: i for i, symbol in enumerate(hf_models.SYMBOLS)}
  (folder / "vocab.json").write_text(json.dumps({"eng": symbols}))
  edit(folder / "config.json", vocab_size=len(symbols))
  found = teacher_lib.from_huggingface(folder, language="eng").params
  bias = adapter["lm_head.bias"].detach().numpy()
  np.testing.assert_array_equal(found["head"]["bias"][...], bias)
