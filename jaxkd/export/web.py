"""A page that hears in the browser: a folder of static files with the model in it."""

import base64
import dataclasses
import hashlib
import io
import json
import pathlib
import shutil
import subprocess
import tarfile

from jaxkd import files
from jaxkd.data import cache
from jaxkd.errors import UserError
from jaxkd.export import online, slots
from jaxkd.export.conformer import classes
from jaxkd.export.graph import INT
from jaxkd.labels.lexicon import WORD_END
from jaxkd.labels.pieces import WORD_START
from jaxkd.models.acoustic import LONGEST_SECONDS, AcousticModel, Chunks, Windows
from jaxkd.models.features import HOP
from jaxkd.types import SAMPLE_RATE_HZ

PACKAGE = "onnxruntime-web@1.30.0"
# The package's, as npm states it.
_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
RUNTIME_FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
_GRAPH = "onnx-asr"  # the slot whose graph takes audio as it is, with lengths
_PAGE = pathlib.Path(__file__).parent / "page"
_NPM_SECONDS = 300


def write(
  model: AcousticModel,
  folder: pathlib.Path,
  runtime: pathlib.Path | None = None,
  chunks: Chunks | None = None,
) -> list[pathlib.Path]:
  """Writes the page, the model and onnxruntime-web, which need no network any more.

  Args:
    model: a Conformer.
    folder: is made; files of the same names are replaced.
    runtime: folder of the npm package onnxruntime-web, or its dist; None for the user's cache,
      which npm fills at the first time.
    chunks: in which it also hears the microphone while a person speaks; None for not at all.

  Returns:
    The files.

  Raises:
    UserError: the model is no Conformer, there is no onnxruntime-web, or no place to write.
  """
  slot = next(slot for slot in slots.fitting(model)[0] if slot.folder == _GRAPH)
  content = {path.name: path.read_bytes() for path in sorted(_PAGE.iterdir()) if path.is_file()}
  for path in runtime_files(runtime):
    content[f"runtime/{path.name}"] = path.read_bytes()
  content["model.onnx"] = slot.build(model).SerializeToString()
  graphs, facts = ["model.onnx"], described(model)
  if chunks is not None:
    streamed = dataclasses.replace(model, chunks=chunks)
    content["stream.onnx"] = online.from_audio(streamed).SerializeToString()
    graphs, facts = [*graphs, "stream.onnx"], facts | {"stream": described_stream(streamed)}
  facts["bytes"] = {name: len(content[name]) for name in (*graphs, f"runtime/{RUNTIME_FILES[1]}")}
  content["model.json"] = json.dumps(facts, ensure_ascii=False, indent=2).encode()
  try:
    for name, data in content.items():
      files.write_bytes(folder / name, data)
    if chunks is None:
      (folder / "stream.onnx").unlink(missing_ok=True)  # of an earlier page
  except OSError as error:
    raise UserError(f"{folder} cannot be written: {error.strerror}") from error
  return [folder / name for name in content]


def described(model: AcousticModel) -> dict:
  """What the page's recogniser.js knows of a model beside its graph."""
  windows = Windows.of(model.frame_samples)
  return {
    "sample_rate_hz": SAMPLE_RATE_HZ,
    "frame_samples": model.frame_samples,
    "longest_samples": int(LONGEST_SECONDS * SAMPLE_RATE_HZ),
    "window_frames": windows.size,
    "margin_frames": windows.margin,
    "parameters": model.parameter_count,
    "classes": [_class(model, index) for index in classes(model)],
    "pronounced": _pronounced(model),
  }


def described_stream(model: AcousticModel) -> dict:
  """What the page's stream.js and worker.js know of stream.onnx, of a model with chunks."""
  given = online.window(model)
  return {
    "piece_samples": given.samples,
    "shift_samples": given.shift * HOP,
    "lead_samples": online.lead(model),
    "states": {
      name: {
        "type": "int64" if kind == INT else "float32",
        "dims": [1 if size == "N" else size for size in shape],
      }
      for name, (kind, shape) in online.states_of(model).items()
    },
  }


def _class(model: AcousticModel, index: int) -> dict:
  """Its text, and whether a word starts before it or ends behind it."""
  vocabulary = model.vocabulary
  symbol, text = vocabulary.symbols[index], vocabulary.decode([index])
  if vocabulary.kind == "phonemes":
    ends = symbol.endswith(WORD_END)
    return {"text": symbol, "starts": False, "ends": ends}
  if vocabulary.kind == "subwords":
    return {"text": text, "starts": vocabulary.starts_word(index), "ends": False}
  if vocabulary.kind in ("sentencepiece", "pieces"):
    return {"text": text, "starts": symbol.startswith(WORD_START), "ends": False}
  apart = vocabulary.kind == "tokens" or index in vocabulary.space_ids() or symbol == " "
  return {"text": text, "starts": apart, "ends": apart}


def _pronounced(model: AcousticModel) -> dict[str, str] | None:
  """Phonemes of a word, `AE B#` → the first word that has them; None where classes are letters."""
  if model.vocabulary.kind != "phonemes":
    return None
  found: dict[str, str] = {}
  for word, spoken in model.vocabulary.lexicon.entries:
    for sounds in spoken:
      found.setdefault(" ".join(sounds) + WORD_END, word)
  return found


def runtime_files(given: pathlib.Path | None = None) -> list[pathlib.Path]:
  """The files of onnxruntime-web that a page needs: its smallest build, for any CPU.

  Args:
    given: folder of the npm package, or its dist; None for the user's cache, filled by npm.

  Raises:
    UserError: they are not there, or npm cannot get them.
  """
  if given is None:
    folder = cache.made(PACKAGE.replace("@", "-"), _from_npm)
  else:
    folder = given / "dist" if (given / "dist").is_dir() else given
  found = [folder / name for name in RUNTIME_FILES]
  if absent := [path.name for path in found if not path.is_file()]:
    raise UserError(
      f"{folder} has no {' and no '.join(absent)}: it must be the folder of npm's {PACKAGE}"
    )
  return found


def _from_npm(folder: pathlib.Path) -> None:
  """Fills a folder with the files of the package."""
  otherwise = (
    f"where there is a network, `npm install {PACKAGE}`, then --runtime=FOLDER with its "
    "node_modules/onnxruntime-web"
  )
  if shutil.which("npm") is None:
    raise UserError(f"the page needs {PACKAGE}, and npm to get it is not here: {otherwise}")
  command = ["npm", "pack", PACKAGE, "--loglevel=error", "--fetch-retries=1"]
  try:
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=_NPM_SECONDS)
    said = [line.removeprefix("npm error ") for line in run.stderr.splitlines() if line.strip()]
    failed = (said or ["it does not say why"])[0] if run.returncode else ""
  except subprocess.TimeoutExpired:
    failed = f"no answer in {_NPM_SECONDS} s"
  archives = list(folder.glob("*.tgz"))
  if failed or not archives:
    raise UserError(f"npm cannot get {PACKAGE} ({failed or 'no file came'}): {otherwise}")
  data = archives[0].read_bytes()
  if base64.b64encode(hashlib.sha512(data).digest()).decode() != _SHA512:
    raise UserError(f"what npm gave as {PACKAGE} is not the file that is expected: {otherwise}")
  with tarfile.open(fileobj=io.BytesIO(data)) as archive:
    for name in RUNTIME_FILES:
      (folder / name).write_bytes(archive.extractfile(f"package/dist/{name}").read())
  archives[0].unlink()
