"""The page: its words are those of `transcribe`, in node and in a browser."""

import dataclasses
import json
import os
import pathlib
import shutil
import subprocess

import numpy as np
import pytest
import soundfile

pytest.importorskip("onnx", reason="needs onnx")

import browser
import corpus
import drawn_run
import jaxkd
from jaxkd import labels
from jaxkd.config import overrides
from jaxkd.errors import UserError
from jaxkd.export import web
from jaxkd.inference import listening, live, recogniser
from jaxkd.labels.lexicon import Lexicon
from jaxkd.labels.phonemes import phonemes
from jaxkd.labels.pieces import PieceVocabulary
from jaxkd.labels.tokens import TokenVocabulary
from jaxkd.models.acoustic import Windows

pytestmark = pytest.mark.usefixtures("quick_to_compile")
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
needs_browser = pytest.mark.skipif(
  browser.find() is None, reason="needs Chromium: name its program in JAXKD_TEST_BROWSER"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> pathlib.Path:
  """A student with drawn parameters."""
  folder = tmp_path_factory.mktemp("web")
  flags = corpus.flags(folder, "symmetric", folder / "run", "--config.labels.alphabet= abc")
  config, _ = overrides.parse(flags)
  return drawn_run.save(folder / "run", config, {"teacher_workdir": None})


@pytest.fixture(scope="module")
def heard(run):
  return jaxkd.load(run)


@pytest.fixture(scope="module")
def site(heard, tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp("site")
  try:
    web.runtime_files()
  except UserError as error:
    pytest.skip(f"needs onnxruntime-web: {error}")
  written = web.write(heard.model, folder)
  assert sorted(written) == sorted(path for path in folder.rglob("*") if path.is_file())
  return folder


@pytest.fixture(scope="module")
def listener(tmp_path_factory):
  """A student with drawn parameters that can hear streams."""
  folder = tmp_path_factory.mktemp("listener")
  more = ["--config.labels.alphabet= abc", "--config.features.kind=sherpa"]
  more += ["--config.features.normalise=none"]
  config, _ = overrides.parse(corpus.flags(folder, "symmetric", folder / "run", *more))
  return jaxkd.load(drawn_run.save(folder / "run", config, {"teacher_workdir": None}))


@pytest.fixture(scope="module")
def live_site(listener, site, tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp("live")
  web.write(listener.model, folder, chunks=live.chunks(listener.model, 320, "it"))
  return folder


def noise(seconds: float) -> np.ndarray:
  """f32[S] whose loudness and colour change, so that classes do."""
  rng = np.random.default_rng(int(seconds))
  size = int(16_000 * seconds)
  steps = lambda low, high: np.repeat(rng.uniform(low, high, size // 3200 + 1), 3200)[:size]
  tone = np.sin(2 * np.pi * np.cumsum(steps(100, 4000)) / 16_000)
  return (steps(0.01, 0.4) * (tone + 0.3 * rng.normal(size=size))).astype(np.float32)


def in_node(script: str, given, module: str = "recogniser.js"):
  """What a script finds, as JSON; `page` is a module of the page, `given` the data."""
  source = (pathlib.Path(web.__file__).parent / "page" / module).as_uri()
  program = (
    f"import * as page from {json.dumps(source)};\n"
    "import { readFileSync } from 'node:fs';\n"
    "const given = JSON.parse(readFileSync(0, 'utf8'));\n"
    f"console.log(JSON.stringify(await (async () => {{ {script} }})()));\n"
  )
  command = ["node", "--no-warnings", "--input-type=module", "-e", program]
  done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout)


def vocabularies() -> list[labels.Vocabulary]:
  spoken = Lexicon((("ab", (("A", "B"), ("B",))), ("a", (("A",),)), ("bee", (("B",),))))
  greek = ("<pad>", "<unk>", "|", "Σ", "Α", "İ", "ǆ", "e", "\u0301", "’", "i", "\u0307")
  found = [labels.characters(" abcσ'é"), labels.Vocabulary(greek, 0, "|")]
  found += [phonemes(spoken), TokenVocabulary(("<pad>", "n", "oʊ", "|"), 0, "|")]
  found.append(PieceVocabulary(("▁", "a", "▁ab", "é", "'", "<blank>"), 5, ""))
  marked = ("<unk>", "▁the", "▁cat", "s", "▁É", "'", "▁", "<blank>", "A")
  found.append(labels.MarkedVocabulary(marked, 7, ""))
  for decoder in ({"type": "Metaspace", "replacement": "▁"}, None):
    found.append(subwords("▁the", "▁cat", "s", "▁É", "'", decoder=decoder))
  return found


def subwords(*symbols: str, decoder: dict | None) -> labels.SubwordVocabulary:
  """Pieces of a tokenizer.json; the blank is last."""
  model = {"type": "BPE", "vocab": {piece: i for i, piece in enumerate(symbols)}, "merges": []}
  tokenizer = json.dumps({"model": model, "decoder": decoder})
  return labels.SubwordVocabulary((*symbols, "<pad>"), len(symbols), "", tokenizer)


def test_every_kind_of_vocabulary_is_tried():
  kinds = {kind.kind for kind in (labels.Vocabulary, *labels.Vocabulary.__subclasses__())}
  assert {vocabulary.kind for vocabulary in vocabularies()} == kinds


@needs_node
@pytest.mark.parametrize("vocabulary", vocabularies(), ids=lambda v: f"{v.kind}-{len(v.symbols)}")
def test_words_are_those_of_transcribe(heard, vocabulary):
  model = dataclasses.replace(heard.model, vocabulary=vocabulary)
  described = web.described(model)
  order = web.classes(model)
  rng = np.random.default_rng(0)
  rows = []
  for frames in (0, 1, 7, 60, 300):
    log_probs = np.log(rng.dirichlet(np.full(len(order), 0.1), frames) + 1e-30).astype(np.float32)
    logits = log_probs.reshape(frames, len(order))
    said = listening.said(logits, whole=False)
    seconds = max(0, frames - 0.4) * model.frame_ms / 1000
    found = listening.Frames(*map(np.asarray, said[:2]), None, seconds)
    words = recogniser.Recogniser(model, "")._words(found, None)
    want = [[w.text, w.start_s, w.end_s, w.confidence] for w in words]
    rows.append((logits[:, order].ravel().tolist(), frames, seconds, want))
  found = in_node(
    "return given.rows.map(([logProbs, count, seconds]) => {"
    "  const { length } = given.model.classes;"
    "  const frames = page.framesOf(Float32Array.from(logProbs), length, 0, count);"
    "  const labels = page.labelsOf(frames.path);"
    "  const words = page.wordsOf(labels, frames.confidence, seconds, given.model);"
    "  return words.map((w) => [w.text, w.start, w.end, w.confidence]);"
    "});",
    {"model": described, "rows": [row[:3] for row in rows]},
  )
  assert sum(len(row[3]) for row in rows) > 20
  for got, (*_, want) in zip(found, rows, strict=True):
    assert [word[0] for word in got] == [word[0] for word in want]
    np.testing.assert_allclose([w[1:] for w in got], [w[1:] for w in want], rtol=1e-4, atol=1e-5)


@needs_node
def test_windows_are_those_of_transcribe(heard):
  model = heard.model
  longest, size = 60 * 16_000, Windows.of(model.frame_samples).size * model.frame_samples
  lengths = [800, longest, longest + 1, longest + size, 3 * longest + 12_345]
  found = in_node(
    "return given.lengths.map((length) => page.pieces(length, given.model));",
    {"model": web.described(model), "lengths": lengths},
  )
  for length, got in zip(lengths, found, strict=True):
    samples = np.ones(length, np.float32)
    want = listening._pieces(samples, Windows.of(model.frame_samples), model.frame_samples)
    assert [(p["start"], p["end"], p["first"], p["last"]) for p in got] == [
      (p.start, p.start + len(p.samples), p.kept.start, p.kept.stop) for p in want
    ]


@needs_node
def test_the_picture_has_the_most_probable_classes():
  rng = np.random.default_rng(1)
  for classes in (2, 3, 4, 30):
    log_probs = np.log(rng.dirichlet(np.full(classes, 0.2), 50) + 1e-30)
    found = in_node(
      "const frames = page.framesOf(Float32Array.from(given.rows), given.classes, 0, 50);"
      "return { ids: [...frames.ids], p: [...frames.p], blank: [...frames.blank] };",
      {"rows": log_probs.ravel().tolist(), "classes": classes},
    )
    p = np.zeros((50, 4))
    best = np.sort(np.exp(log_probs[:, 1:]))[:, ::-1][:, :3]
    p[:, : best.shape[1]] = best
    np.testing.assert_allclose(np.reshape(found["p"], (50, 3)), p[:, :3], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["blank"], np.exp(log_probs[:, 0]), rtol=1e-4, atol=1e-6)
    ids = np.reshape(found["ids"], (50, 3))
    assert all(len(set(row) - {0}) == min(3, classes - 1) for row in ids)


@needs_node
@pytest.mark.parametrize("packet", [1, 999, 16_000])
def test_packets_of_any_size_are_the_same_windows(packet):
  stream = {"piece_samples": 700, "shift_samples": 320, "lead_samples": 120}
  samples = list(range(1, 3001))
  found = in_node(
    "const pieces = [];"
    "const hear = async (piece, states) => {"
    "  pieces.push([states, [...piece]]);"
    "  return { logProbs: new Float32Array(2), count: 1, states: pieces.length };"
    "};"
    "const stream = new page.Stream(given.model, hear);"
    "for (let i = 0; i < given.samples.length; i += given.packet)"
    "  await stream.push(Float32Array.from(given.samples.slice(i, i + given.packet)));"
    "return { pieces, frames: stream.frames.path.length };",
    {
      "model": {"classes": [{}, {}], "stream": stream},
      "samples": samples,
      "packet": packet,
    },
    "stream.js",
  )
  whole = [*samples[119::-1], *samples]
  starts = range(0, len(whole) - 700 + 1, 320)
  assert [states for states, _ in found["pieces"]] == [None, *range(1, len(starts))]
  assert [piece for _, piece in found["pieces"]] == [whole[i : i + 700] for i in starts]
  assert found["frames"] == len(starts)


@needs_node
@pytest.mark.parametrize("vocabulary", vocabularies(), ids=lambda v: f"{v.kind}-{len(v.symbols)}")
def test_words_of_a_stream_are_those_of_live(heard, vocabulary):
  """As they become final; frames of final words and of silence are forgotten."""
  model = dataclasses.replace(heard.model, vocabulary=vocabulary)
  order, rng = web.classes(model), np.random.default_rng(0)
  path = np.concatenate(
    [[*rng.integers(0, len(order), 9), *[0] * pause] for pause in 3 * (0, 3, 40, 1, 25)]
  )
  there = live.Live.__new__(live.Live)
  there._model, there._path, there._sure = model, np.empty(0, np.int32), np.empty(0, np.float32)
  there._start, want = 0, []
  for start in range(0, len(path), 8):
    there._path = np.concatenate([there._path, np.array(order)[path[start : start + 8]]])
    there._sure = np.append(there._sure, np.ones(len(there._path) - len(there._sure)))
    want.append([(w.text, w.start_s, w.end_s) for w in there._final(ends=False)])
  found = in_node(
    "let place = 0;"
    "const size = given.model.classes.length;"
    "const hear = async () => {"
    "  const path = given.path.slice(place, (place += 8));"
    "  const logProbs = new Float32Array(path.length * size).fill(-1e4);"
    "  path.forEach((id, t) => (logProbs[t * size + id] = 0));"
    "  return { logProbs, count: path.length, states: null };"
    "};"
    "const stream = new page.Stream(given.model, hear);"
    "const found = [];"
    "while (place < given.path.length) {"
    "  await stream.push(new Float32Array(1));"
    "  const { final, open } = stream.words();"
    "  const kept = stream.frames.path.length;"
    "  found.push([final.map((w) => [w.text, w.start, w.end]), open.length, kept]);"
    "}"
    "return found;",
    {
      "model": web.described(model)
      | {"stream": {"piece_samples": 1, "shift_samples": 1, "lead_samples": 0}},
      "path": path.tolist(),
    },
    "stream.js",
  )
  assert sum(map(len, want)) > 4 and max(kept for *_, kept in found) < 70
  for (final, _, _), words in zip(found, want, strict=True):
    assert [text for text, *_ in final] == [text for text, *_ in words]
    np.testing.assert_allclose([w[1:] for w in final], [w[1:] for w in words])
  assert {count for _, count, _ in found} <= {0, 1}


@needs_node
def test_every_microphone_that_is_opened_is_closed():
  """Also where another recording starts before one has stopped."""
  found = in_node(
    "const tracks = [];"
    "const mediaDevices = {"
    "  getUserMedia: async () => {"
    "    const track = { open: true, stop: () => (track.open = false) };"
    "    tracks.push(track);"
    "    return { getTracks: () => [track] };"
    "  },"
    "};"
    "Object.defineProperty(globalThis, 'navigator', { value: { mediaDevices } });"
    "globalThis.MediaRecorder = class {"
    "  state = 'inactive';"
    "  start() { this.state = 'recording'; }"
    "  stop() {"
    "    setTimeout(() => { this.ondataavailable({ data: 'said' }); this.onstop(); }, 20);"
    "  }"
    "};"
    "const microphone = new page.Microphone();"
    "await microphone.start();"
    "const first = microphone.stop();"
    "await microphone.start();"
    "const blobs = [await first, await microphone.stop()];"
    "const texts = await Promise.all(blobs.map((blob) => blob.text()));"
    "return [tracks.map(({ open }) => open), texts];",
    {},
    "audio.js",
  )
  assert found == [[False, False], ["said", "said"]]


SHOWN = "!document.getElementById('result').hidden"
FAILED = "document.getElementById('error').textContent"
READY = "document.getElementById('status').textContent.startsWith('Ready')"
ROWS = "[...document.querySelectorAll('#words tr')]"
WORDS = f"{ROWS}.map((row) => [...row.cells].map((cell) => cell.innerText))"
LOCKED = "document.getElementById('file').disabled"


def shown_seconds(clock: str) -> float:
  minutes, seconds = clock.split(":")
  return 60 * int(minutes) + float(seconds)


@needs_browser
def test_a_browser_shows_what_transcribe_says(heard, site, tmp_path):
  with browser.served(site) as (address, asked), browser.opened() as page:
    page.open(address)
    page.until(READY)
    for seconds in (3.0, 75.5, 130.0):
      path = tmp_path / f"{seconds}.wav"
      soundfile.write(str(path), noise(seconds), 16_000)
      want = heard.transcribe(path)
      page.choose("#file", path)
      page.until(f"{SHOWN} || {FAILED}")
      assert page.value(FAILED) == ""
      assert page.value("document.getElementById('text').textContent") == want.text
      assert len(want.words) > 2 * seconds / 3
      for got, word in zip(page.value(WORDS), want.words, strict=True):
        times = [shown_seconds(clock) for clock in got[1:3]]
        assert got[0] == word.text
        assert times == pytest.approx([word.start_s, word.end_s], abs=0.0051)
        assert float(got[3]) == pytest.approx(word.confidence, abs=0.0051)
    assert page.logged == []
    others = [a for a in page.addresses if not a.startswith((address, "blob:", "data:"))]
    assert others == [] and "/model.onnx" in asked


@needs_browser
def test_mistakes_are_a_line(site, tmp_path):
  (tmp_path / "x.wav").write_text("no sound")
  soundfile.write(str(tmp_path / "silent.wav"), np.zeros(16_000), 16_000)
  soundfile.write(str(tmp_path / "short.wav"), np.ones(100), 16_000)
  with browser.served(site) as (address, _), browser.opened() as page:
    page.open(address)
    page.until(READY)
    for name, words in [
      ("x.wav", "This browser cannot decode x.wav"),
      ("silent.wav", "silent.wav is silent"),
      ("short.wav", "short.wav is too short"),
    ]:
      page.choose("#file", tmp_path / name)
      page.until(f"{FAILED}.startsWith({json.dumps(words)})")
      assert page.value(SHOWN) is False and page.value(LOCKED) is False
    page.value("document.getElementById('record').click()")
    page.until(f"{FAILED}.includes('microphone')")


@needs_browser
@pytest.mark.parametrize("name", ["model.onnx", "model.json", "runtime/ort.wasm.bundle.min.mjs"])
def test_a_folder_that_lacks_a_file(site, tmp_path, name):
  folder = shutil.copytree(site, tmp_path / "site", copy_function=os.link)
  (folder / name).unlink()
  with browser.served(folder) as (address, _), browser.opened() as page:
    page.open(address)
    page.until(f"{FAILED}.startsWith('The model cannot be loaded: ')")
    assert page.value(LOCKED) is True
  with browser.opened() as page:
    page.open((folder / "index.html").as_uri())
    page.until(f"{FAILED}.includes('python -m http.server')")


@needs_browser
def test_the_microphone_and_threads(site, tmp_path):
  soundfile.write(str(tmp_path / "said.wav"), noise(5.0), 16_000)
  flags = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
  flags.append(f"--use-file-for-fake-audio-capture={tmp_path / 'said.wav'}")
  headers = {
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
  }
  with browser.served(site, headers) as (address, _), browser.opened(*flags) as page:
    page.open(address)
    page.until(READY)
    assert page.value("self.crossOriginIsolated") is True
    page.value("document.getElementById('record').click()")
    page.until("document.getElementById('record').textContent === 'Stop (2 s)'")
    page.value("document.getElementById('record').click()")
    page.until(f"{SHOWN} || {FAILED}")
    assert page.value(FAILED) == "" and len(page.value(WORDS)) > 1


LISTENED = """
new Promise((resolve, reject) => {
  const worker = new Worker("worker.js", { type: "module" });
  const [found, said] = [[], []];
  worker.onmessage = ({ data }) => {
    if (data.kind === "failed") reject(new Error(data.reason));
    if (data.kind === "live") {
      said.push(...data.final);
      found.push([...said, ...data.open]);
    }
    if (data.kind === "found") resolve(found);
  };
  const samples = Float32Array.from(SAMPLES, (value) => value / 32768);
  worker.postMessage({ kind: "begin" });
  for (let i = 0; i < samples.length; i += 1600)
    worker.postMessage({ kind: "packet", samples: samples.slice(i, i + 1600) });
  worker.postMessage({ kind: "whole", samples: samples.slice(0, 16000) });
})
"""


@needs_browser
def test_a_browser_writes_what_is_said_as_a_stream_does(listener, live_site):
  samples = (noise(7.0) * 20_000).clip(-32768, 32767).astype(np.int16)
  chunks = live.chunks(listener.model, 320, "it")
  model = dataclasses.replace(listener.model, chunks=chunks)
  frames = model.frame_samples
  out = model(samples[None], np.array([len(samples)], np.int32))
  path = np.asarray(out.logits)[0].argmax(-1)
  with browser.served(live_site) as (address, _), browser.opened() as page:
    page.open(address)
    page.until(READY)
    updates = page.value(LISTENED.replace("SAMPLES", json.dumps(samples.tolist())))
    assert page.logged == []
  assert len(updates) == (len(samples) - 67 * 16) // (8 * frames)
  heard = 8 * len(updates)
  blank, spoken = model.labels.index(model.vocabulary.symbols[model.vocabulary.blank_id]), []
  for t, label in enumerate(path[:heard]):
    if label != blank and (t == 0 or label != path[t - 1]):
      spoken.append(int(label))
  assert "".join(w["text"] for w in updates[-1]) == model.vocabulary.decode(spoken).replace(" ", "")
  assert len(updates[-1]) > 2 and len(updates[3]) < len(updates[-1])


@needs_browser
def test_words_come_while_one_speaks(live_site, tmp_path):
  soundfile.write(str(tmp_path / "said.wav"), noise(5.0), 16_000)
  flags = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
  flags.append(f"--use-file-for-fake-audio-capture={tmp_path / 'said.wav'}")
  words = "document.getElementById('live').textContent"
  with browser.served(live_site) as (address, asked), browser.opened(*flags) as page:
    page.open(address)
    page.until(READY)
    for _ in range(2):
      page.value("document.getElementById('record').click()")
      page.until(f"{words}.split(' ').length > 2")
      assert page.value("document.getElementById('live').hidden") is False
      page.value("document.getElementById('record').click()")
      assert page.value("document.getElementById('record').disabled")  # to a second click
      page.until(f"({SHOWN} && document.getElementById('live').hidden) || {FAILED}")
      assert page.value(FAILED) == "" and len(page.value(WORDS)) > 1
    assert page.logged == [] and "/stream.onnx" in asked
    page.value("AudioContext = class { constructor() { throw new Error('no'); } }; 0")
    page.value("document.getElementById('record').click()")
    page.until("document.getElementById('record').textContent === 'Stop (1 s)'")
    assert page.value("document.getElementById('live').hidden") is True
    page.value("document.getElementById('record').click()")
    page.until(f"{SHOWN} || {FAILED}")
    assert page.value(FAILED) == ""


def test_a_runtime_that_is_not_there_is_one_line(heard, tmp_path, monkeypatch):
  monkeypatch.setenv("JAXKD_CACHE", str(tmp_path / "cache"))
  with pytest.raises(UserError, match="has no ort.wasm.bundle.min.mjs and no .*wasm: it must be"):
    web.write(heard.model, tmp_path / "out", tmp_path)
  program = tmp_path / "bin" / "npm"
  program.parent.mkdir()
  monkeypatch.setenv("PATH", str(program.parent))
  with pytest.raises(UserError, match="npm to get it is not here: .*--runtime"):
    web.write(heard.model, tmp_path / "out")
  for script, words in [
    ("echo 'npm error code ENOTFOUND' >&2; exit 1", r"cannot get .* \(code ENOTFOUND\): "),
    ("exit 0", r"cannot get .* \(no file came\): "),
    ("echo other > a.tgz", "is not the file that is expected: "),
  ]:
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    with pytest.raises(UserError, match=words) as error:
      web.write(heard.model, tmp_path / "out")
    assert "\n" not in str(error.value)
  assert not (tmp_path / "out").exists() and not list((tmp_path / "cache").glob("onnx*"))


def test_a_folder_that_cannot_be_written_is_one_line(heard, tmp_path):
  (tmp_path / "file").touch()
  for name in web.RUNTIME_FILES:
    (tmp_path / name).touch()
  with pytest.raises(UserError, match="file/page cannot be written: "):
    web.write(heard.model, tmp_path / "file" / "page", tmp_path)
