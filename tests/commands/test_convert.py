"""jaxkd convert of a student: a folder with a card, which is loaded, taught with and uploaded.

tests/models/test_port.py has pickles, tests/training/test_finetune.py a fine-tuned teacher.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import corpus
import drawn_run
import hub as hub_lib
import jaxkd
import report_runs
from jaxkd import workdirs
from jaxkd.commands import line as command_line
from jaxkd.config import overrides
from jaxkd.devices import mesh as mesh_lib
from jaxkd.errors import UserError
from jaxkd.labels import characters, phonemes
from jaxkd.labels.lexicon import Lexicon
from jaxkd.models.huggingface import hub
from jaxkd.teacher import sources

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
  """A corpus, a run with drawn parameters and known results, and its folder to share."""
  folder = tmp_path_factory.mktemp("lab")
  corpus.make(folder)
  known = report_runs.write_run(folder / "known", errors=8, teacher="big")
  flags = corpus.flags(folder, "symmetric", folder / "run", "--config.labels.alphabet= abc")
  config, _ = overrides.parse(flags)
  drawn_run.save(folder / "run", config, json.loads((known / "results.json").read_text()))
  shutil.copytree(known / "hypotheses", folder / "run" / "hypotheses")
  assert command_line.main(["convert", str(folder / "run"), str(folder / "shared")]) == 0
  return folder


def same_params(a, b) -> None:
  jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


def test_the_folder_is_the_student(lab):
  names = ["README.md", "config.json", "labels.json", "model.safetensors"]
  assert sorted(path.name for path in (lab / "shared").iterdir()) == names
  run, shared = jaxkd.load(lab / "run"), jaxkd.load(lab / "shared")
  same_params(run.model, shared.model)
  assert (run.model.vocabulary, run.model.frame_samples) == (
    shared.model.vocabulary,
    shared.model.frame_samples,
  )
  paths = sorted((lab / "audio").glob("test-*.flac"))
  assert [t.words for t in run.transcribe(paths)] == [t.words for t in shared.transcribe(paths)]
  said = json.loads((lab / "shared" / "config.json").read_text())
  assert said["model_type"] == "jaxkd-conformer" and said["frame_samples"] == 640
  assert str(lab) not in (lab / "shared" / "config.json").read_text()
  weights = load_file(lab / "shared" / "model.safetensors")
  assert {"blocks.attention.qkv.kernel", "frontend.kernels.0", "head.bias"} <= weights.keys()
  assert (lab / "shared" / "model.safetensors").stat().st_mode & 0o44 == 0o44


def test_commands_take_the_folder(lab, capfd):
  path = str(lab / "audio" / "test-00.flac")
  said = []
  for model in ("run", "shared"):
    assert command_line.main(["transcribe", str(lab / model), path]) == 0
    said.append(capfd.readouterr().out)
  assert said[0] == said[1]


def test_a_teacher_may_be_such_a_folder(lab):
  found = sources.find(str(lab / "shared"), pool=2, dtype="bfloat16")
  assert found.frame_samples == 640  # its own, and its own arithmetic
  same_params(found.load(mesh_lib.make_mesh()), jaxkd.load(lab / "run").model)
  both = sources.find(f"{lab / 'shared'}, {lab / 'run'}", pool=1, dtype="float32")
  assert both.vocabulary == characters(" abc")


def test_it_is_loaded_without_the_hubs_client(lab, monkeypatch):
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  assert jaxkd.load(lab / "shared").model.labels == characters(" abc").symbols


def test_files_beside_the_classes_go_along(lab, tmp_path):
  run = shutil.copytree(lab / "run", tmp_path / "run")
  vocabulary = phonemes(Lexicon((("ab", (("A", "B"),)),)))  # as many classes
  assert len(vocabulary.symbols) == 5
  vocabulary.save(run / workdirs.LABELS)
  assert command_line.main(["convert", str(run), "--", str(tmp_path / "out")]) == 0
  assert (tmp_path / "out" / "lexicon.txt").exists()
  shutil.rmtree(run)
  assert jaxkd.load(tmp_path / "out").model.vocabulary == vocabulary


def test_the_card_has_the_runs_facts(lab):
  card = (lab / "shared" / "README.md").read_text()
  header = card.split("---")[1]
  assert "# license: apache-2.0  # fill in" in header and "# language: en  # fill in" in header
  for line in (
    "library_name: jaxkd",
    "pipeline_tag: automatic-speech-recognition",
    "metrics:\n- wer\n",
  ):
    assert f"\n{line}" in header
  parameters = jaxkd.load(lab / "run").model.parameter_count
  assert f"parameters: {parameters:,}." in card and "each 40 ms one of 5 classes" in card
  # 8 errors in 160 words, each in an utterance of its own: binomial.
  low, high = map(
    float, re.search(r"this one \| 5\.0 \| ([\d.]+) to ([\d.]+) \| 1\.0", card).groups()
  )
  assert 1 < low < 3 and 7 < high < 9
  assert "| its teacher | 0.6 | 0.0 to" in card
  assert "- Data: `train.jsonl`, 100 utterances, 1.5 h." in card
  assert "- Teacher: `big`, 1,200,000 parameters." in card
  assert "(selection symmetric) alone; no transcripts" in card and "commit abcdef0123" in card
  assert "\n# run\n" in card and "jaxkd transcribe FOLDER audio.wav" in card
  # Where it was made is nobody's business.
  assert str(lab) not in card and "--config.data.dev=dev.jsonl" in card


def test_the_command_of_the_card_gives_the_config_again(lab, monkeypatch):
  card = (lab / "shared" / "README.md").read_text()
  line = re.search(r"```bash\npython -m (jaxkd\.main .*)\n", card)[1]
  monkeypatch.chdir(corpus.ROOT)
  config, _ = overrides.parse(line.split(" "))
  stored = json.loads((lab / "run" / "config.json").read_text())
  assert json.loads(json.dumps(config.student.to_dict())) == stored["student"]


def test_a_card_that_is_there_is_kept(lab, tmp_path, caplog):
  caplog.set_level("INFO")
  (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
  assert command_line.main(["convert", str(lab / "run"), str(tmp_path)]) == 0
  assert (tmp_path / "README.md").read_text() == "---\nlicense: mit\n---\n"
  assert "README.md is kept as it is" in caplog.text


def test_a_run_without_figures_has_a_card(lab, tmp_path):
  run = shutil.copytree(lab / "run", tmp_path / "run")
  (run / "results.json").write_text('{"teacher_workdir": null}')
  assert command_line.main(["convert", str(run)]) == 0
  card = (run / "huggingface" / "README.md").read_text()
  assert "no transcribed data" in card and "commit unknown" in card


def refuse(words: str, *arguments: str) -> None:
  with pytest.raises(UserError, match=words) as error:
    command_line.main(list(arguments))
  assert "\n" not in str(error.value)


def test_mistakes_are_one_line(lab, tmp_path, monkeypatch):
  run, shared, audio = (str(lab / name) for name in ("run", "shared", "audio"))
  (tmp_path / "file").write_text("")
  refuse("file cannot be written: ", "convert", run, str(tmp_path / "file"))
  refuse("run is a workdir, whose config.json would be lost", "convert", run, run)
  refuse("shared is neither a finished workdir", "convert", shared)
  refuse("has no teacher beside it", "transcribe", shared, audio, "--model=teacher")
  refuse("--private is of what --push", "convert", run, "--private")
  monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
  refuse(r"pip install 'jaxkd\[hf\]'", "convert", run, str(tmp_path / "out"))
  monkeypatch.setitem(sys.modules, "safetensors", None)
  refuse(r"pip install 'jaxkd\[hf\]'", "transcribe", shared, audio)


CONFIGS = {
  "cut": ("config.json cannot be read", lambda c: None),
  "structure": (
    "misshapen: .*norm.bias \\(1×16 instead of 1×32\\).* and 32 more",
    {"student": {"width": 32}},
  ),
  "heads": ("config.student.width is 16: it must be a multiple of", {"student": {"heads": 3}}),
  "text": ("config.json: config.student.layers is '1'", {"student": {"layers": "1"}}),
  "block": ("config.json: config.student is None", {"student": None}),
  "other": (
    "config.student.name is 'huggingface'|config.student",
    {"student": {"name": "huggingface"}},
  ),
  "newer": ("schema is 99, .*take a newer one", {"schema": 99}),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_does_not_fit_is_one_line(lab, tmp_path, case):
  words, change = CONFIGS[case]
  folder = shutil.copytree(lab / "shared", tmp_path / "shared")
  path = folder / "config.json"
  found = json.loads(path.read_text())
  if case == "cut":
    path.write_text(path.read_text()[:-5])
  else:
    for name, value in change.items():
      found[name] = found[name] | value if isinstance(value, dict) else value
    path.write_text(json.dumps(found))
  with pytest.raises(UserError, match=words) as error:
    jaxkd.load(folder)
  assert "\n" not in str(error.value) and str(folder) in str(error.value)


def test_a_config_that_lacks_a_field_is_one_line(lab, tmp_path):
  folder = shutil.copytree(lab / "shared", tmp_path / "shared")
  (folder / "config.json").write_text('{"model_type": "jaxkd-conformer", "dtype": "float32"}')
  with pytest.raises(UserError, match="config.json: it lacks schema, student, features"):
    jaxkd.load(folder)


@pytest.mark.parametrize("size", [0, 4, 500, 20_000])
def test_cut_weights_are_one_line(lab, tmp_path, size):
  folder = shutil.copytree(lab / "shared", tmp_path / "shared")
  path = folder / "model.safetensors"
  path.write_bytes(path.read_bytes()[:size])
  with pytest.raises(UserError, match="model.safetensors cannot be read") as error:
    jaxkd.load(folder)
  assert "\n" not in str(error.value)


def test_weights_of_another_model_are_one_line(lab, tmp_path):
  folder = shutil.copytree(lab / "shared", tmp_path / "shared")
  weights = load_file(folder / "model.safetensors")
  weights["tail.bias"] = weights.pop("head.bias")
  save_file(weights, folder / "model.safetensors")
  with pytest.raises(UserError, match="missing: head.bias; unused: tail.bias"):
    jaxkd.load(folder)
  weights["head.bias"] = weights.pop("tail.bias").astype(np.int32)
  save_file(weights, folder / "model.safetensors")
  with pytest.raises(UserError, match="head.bias holds int32"):
    jaxkd.load(folder)


def test_it_is_pushed_and_fetched_again(lab, tmp_path):
  """By the hub's own client, from a server here that plays the hub."""
  audio = str(lab / "audio" / "test-00.flac")
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "diary.txt").write_text("mine")
  with hub_lib.running() as server:
    own = {"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_x", "HF_HOME": str(tmp_path / "hf")}
    start = lambda *words: subprocess.run(
      [sys.executable, "-m", "jaxkd", *words],
      env={k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"} | own,
      capture_output=True,
      text=True,
      timeout=300,
      check=True,
    )
    out = str(tmp_path / "out")
    done = start("convert", str(lab / "run"), out, "--push=my-org/my.model", "--private")
    assert done.stdout.splitlines() == [f"{server.url}/my-org/my.model", out]
    files = server.models["my-org/my.model"]
    assert files.keys() == {"README.md", "config.json", "labels.json", "model.safetensors"}
    assert files["model.safetensors"] == (lab / "shared" / "model.safetensors").read_bytes()
    assert b"jaxkd transcribe my-org/my.model audio.wav" in files["README.md"]
    assert server.private == {"my-org/my.model": True}
    heard = start("transcribe", "my-org/my.model", audio).stdout
  assert heard.strip() == jaxkd.load(lab / "run").transcribe(audio).text


@pytest.fixture
def client(monkeypatch):
  """The hub's client, logged in, and a function that says where the hub is."""
  constants = pytest.importorskip("huggingface_hub.constants")
  monkeypatch.setenv("HF_TOKEN", "hf_x")
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
  return lambda url: monkeypatch.setattr(constants, "ENDPOINT", url)


def push(folder: pathlib.Path) -> str:
  """What `push` says is wrong."""
  with pytest.raises(UserError) as error:
    hub.push(folder, [folder / "config.json"], "org/name", private=False)
  assert "\n" not in str(error.value)
  return str(error.value)


@pytest.mark.parametrize(
  ("status", "words"),
  [
    (401, "does not know this login: log in with `hf auth login`"),
    (403, "may not write there"),
    (400, "the hub refuses it: "),
  ],
)
def test_what_the_hub_refuses_is_one_line(lab, client, status, words):
  with hub_lib.running() as server:
    client(server.url)
    server.status = status
    assert words in push(lab / "shared")


def test_a_hub_that_is_not_there_is_one_line(lab, client):
  with hub_lib.running() as server:
    url = server.url
  client(url)
  assert f"{url} cannot be reached" in push(lab / "shared")


@pytest.mark.parametrize(
  "name", ["name", "a/b/c", "/b", "a/", "a b/c", "a/b--c", "a/.b", "a/b.git"]
)
def test_a_malformed_name_is_one_line(lab, tmp_path, name):
  refuse("must be ORG/NAME", "convert", str(lab / "run"), str(tmp_path / "out"), f"--push={name}")
  assert not (tmp_path / "out").exists()


def test_who_is_not_logged_in_is_told_before_the_work(lab, tmp_path, monkeypatch):
  given = ["convert", str(lab / "run"), str(tmp_path / "out"), "--push=org/name"]
  client = pytest.importorskip("huggingface_hub")
  monkeypatch.setattr(client, "get_token", lambda: None)
  refuse("not logged in .*`hf auth login`, or set HF_TOKEN", *given)
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)
  refuse(r"--push=org/name needs huggingface-hub: pip install 'jaxkd\[hf\]'", *given)
  assert not (tmp_path / "out").exists()
