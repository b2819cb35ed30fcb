"""jaxkd export as a command, and what the runtimes make of its folders."""

import importlib.util
import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import corpus
import drawn_run
import jaxkd
from jaxkd.commands import line as command_line
from jaxkd.config import overrides
from jaxkd.errors import UserError
from jaxkd.export import slots

pytest.importorskip("sherpa_onnx")
pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
  folder = tmp_path_factory.mktemp("lab")
  corpus.make(folder)
  kinds = {
    "logmel": [],
    "sherpa": ["--config.features.kind=sherpa", "--config.features.mels=80"],
    "nemo": ["--config.features.kind=nemo", "--config.features.mels=80"],
    "stream": ["--config.features.kind=sherpa", "--config.features.normalise=none"],
    "kaldi": ["--config.features.kind=kaldi", "--config.features.normalise=none"],
  }
  for name, changes in kinds.items():
    alphabet = "--config.labels.alphabet= abc"
    flags = corpus.flags(folder, "symmetric", folder / name, alphabet, *changes)
    config, _ = overrides.parse(flags)
    drawn_run.save(folder / name, config, {"teacher_workdir": None})
  return folder


def export(*given) -> int:
  return command_line.main(["export", *map(str, given)])


@pytest.mark.slow
def test_runtimes_say_what_the_student_says(lab, capfd):
  assert export(lab / "sherpa", "--int8", "--fp16", "--max_wer_loss=100") == 0
  out = capfd.readouterr().out
  found = json.loads((lab / "sherpa" / "export" / "export.json").read_text())
  assert set(found["files"]) == {
    f"{folder}/model.{form}onnx"
    for folder in ("omnilingual", "zipformer", "onnx-asr")
    for form in ("", "int8.", "fp16.")
  }
  for name, facts in found["files"].items():
    if name.endswith("/model.onnx"):
      assert facts["largest_difference"] < 1e-3
    if name.startswith("onnx-asr") and "not_run" in facts:
      continue
    assert facts["runtime"].startswith(("sherpa-onnx", "onnx-asr"))
    if name.endswith("/model.onnx"):
      assert facts["same_texts"] == 1.0 and facts["wer"] == facts["wer_here"]
  sizes = {name: facts["bytes"] for name, facts in found["files"].items()}
  for folder in ("omnilingual", "zipformer", "onnx-asr"):
    assert sizes[f"{folder}/model.int8.onnx"] < sizes[f"{folder}/model.onnx"]
    assert sizes[f"{folder}/model.fp16.onnx"] < sizes[f"{folder}/model.onnx"]
  assert all("not_kept" not in facts for facts in found["files"].values())
  assert "next:" in out and max(map(len, out.splitlines()[:12])) <= 80


def test_the_released_onnx_asr_reads_nemos_features(lab):
  assert export(lab / "nemo") == 0
  found = json.loads((lab / "nemo" / "export" / "export.json").read_text())
  facts = found["files"]["onnx-asr-nemo/model.onnx"]
  assert facts["runtime"].startswith("onnx-asr") and facts["same_texts"] == 1.0


def test_places_that_do_not_fit_are_named(lab, capfd, tmp_path):
  assert export(lab / "logmel", f"--out={tmp_path}") == 0
  assert "zipformer: the runtime computes features.kind=sherpa" in capfd.readouterr().out
  assert not (tmp_path / "zipformer").exists() and (tmp_path / "omnilingual").is_dir()
  assert export(lab / "kaldi", f"--out={tmp_path / 'kaldi'}") == 0
  assert "omnilingual: the runtime changes the volume" in capfd.readouterr().out


def test_sherpa_hears_streams_as_they_are_heard_here(lab, capfd):
  assert export(lab / "stream", "--stream=160ms", "--int8", "--max_wer_loss=100") == 0
  out, place = capfd.readouterr().out, lab / "stream" / "export"
  files = json.loads((place / "export.json").read_text())["files"]
  facts = files["online/model.onnx"]
  assert facts["runtime"].startswith("sherpa-onnx") and facts["same_texts"] == 1.0
  assert facts["largest_difference"] < 1e-3
  assert files["online/model.int8.onnx"]["bytes"] < facts["bytes"]
  assert "has not learnt to hear chunks" in out and "online: WER here in chunks" in out
  told = (place / "online" / "README.md").read_text()
  assert "Chunks of 160 ms, each heard 238 ms after" in told and "feature_dim=" in told


def test_what_cannot_be_streamed_is_refused_in_a_line(lab):
  with pytest.raises(UserError, match="logmel cannot hear streams: features.kind is logmel"):
    export(lab / "logmel", "--stream=160ms")
  with pytest.raises(UserError, match="streams of this student: .*features.kind=sherpa"):
    export(lab / "kaldi", "--stream=160ms")
  with pytest.raises(UserError, match="--stream=150ms must be a multiple of a frame, 40 ms"):
    export(lab / "stream", "--stream=150ms")
  with pytest.raises(UserError, match="--stream is of --to=onnx and --to=web, and not of --to=st"):
    export(lab / "stream", "--stream=160ms", "--to=stablehlo")


def test_a_file_that_says_something_else_is_not_kept(lab, capfd, tmp_path, monkeypatch):
  build = slots._onnx_asr

  def broken(model, half):
    graph = build(model, half)
    of_head = lambda x: x.data_type == onnx.TensorProto.FLOAT and x.dims == [len(model.labels)]
    bias = next(filter(of_head, graph.graph.initializer))
    values = numpy_helper.to_array(bias) + np.arange(len(model.labels), dtype=np.float32)
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    return graph

  wrong = [
    slot._replace(build=broken) if slot.folder == "onnx-asr" else slot for slot in slots.SLOTS
  ]
  monkeypatch.setattr(slots, "SLOTS", tuple(wrong))
  assert export(lab / "logmel", f"--out={tmp_path}") == 1
  out = capfd.readouterr().out
  assert "onnx-asr/model.onnx: log probabilities differ by" in out
  assert not (tmp_path / "onnx-asr" / "model.onnx").exists()
  assert (tmp_path / "omnilingual" / "model.onnx").exists()


def test_int8_that_loses_too_much_is_not_kept(lab, capfd, tmp_path, monkeypatch):
  from jaxkd.export import check

  monkeypatch.setattr(check, "lost", lambda whole, small: 0.7)
  assert export(lab / "logmel", "--int8", f"--out={tmp_path}") == 0
  assert "omnilingual/model.int8.onnx: it loses 0.70 points of WER" in capfd.readouterr().out
  assert not list(tmp_path.rglob("model.int8.onnx")) and not list(tmp_path.rglob("*unfinished*"))


def test_audio_alone_gives_no_wer(lab, capfd, tmp_path):
  (tmp_path / "audio").mkdir()
  for path in sorted((lab / "audio").glob("test-*.flac"))[:2]:
    (tmp_path / "audio" / path.name).symlink_to(path)
  given = f"--data={tmp_path / 'audio'}", f"--out={tmp_path / 'out'}"
  assert export(lab / "stream", "--stream=160ms", *given) == 0
  facts = json.loads((tmp_path / "out" / "export.json").read_text())
  assert not facts["transcribed"] and facts["joined_otherwise"] == 0
  assert facts["files"]["online/model.onnx"]["wer"] is None
  out = capfd.readouterr().out
  assert "WER here" not in out and "online/model" in out and "–" in out


def test_an_exported_folder_transcribes(lab, capfd, tmp_path):
  assert export(lab / "logmel", f"--out={tmp_path}") == 0
  capfd.readouterr()
  paths = sorted((lab / "audio").glob("test-*.flac"))
  here = jaxkd.load(lab / "logmel").transcribe(paths)
  there = jaxkd.load(tmp_path).transcribe(paths)
  assert [t.text for t in there] == [t.text for t in here]
  assert [[w.start_s for w in t.words] for t in there] == [
    [w.start_s for w in t.words] for t in here
  ]


def test_mistakes_are_one_line(lab, tmp_path, monkeypatch):
  with pytest.raises(UserError, match="absent is not the workdir of a finished run"):
    export(tmp_path / "absent")
  with pytest.raises(UserError, match="no such file"):
    export(lab / "logmel", "--data=nowhere.jsonl", f"--out={tmp_path}")
  with pytest.raises(UserError, match="--int8 is of --to=onnx, and not of --to=web"):
    export(lab / "logmel", "--to=web", "--int8")
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="file.* cannot be written: Not a directory"):
    export(lab / "logmel", f"--out={tmp_path / 'file' / 'out'}")
  find = importlib.util.find_spec
  without = lambda name, *rest: None if name == "onnxruntime" else find(name, *rest)
  monkeypatch.setattr(importlib.util, "find_spec", without)
  with pytest.raises(UserError, match=r"needs onnxruntime: pip install 'jaxkd\[export\]'"):
    export(lab / "logmel", f"--out={tmp_path}")


def test_the_files_are_valid_and_of_the_opset_that_runtimes_read(lab, tmp_path):
  assert export(lab / "logmel", f"--out={tmp_path}") == 0
  for path in tmp_path.rglob("model.onnx"):
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == 17 and model.ir_version == 8
