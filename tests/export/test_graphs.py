"""ONNX graphs of a student against the student, in onnxruntime."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
from flax import nnx

from jaxkd.export import check, conformer, folder, online, runtimes, slots
from jaxkd.export.graph import FLOAT, INT, Graph
from jaxkd.labels import SubwordVocabulary, Vocabulary
from jaxkd.models.acoustic import AcousticModel, Chunks
from jaxkd.models.conformer import ConformerConfig, ConformerCTC
from jaxkd.models.features import HOP, LogMel, log_mel
from jaxkd.models.layers import spread

KINDS = [
  ("logmel", "none"),
  ("logmel", "utterance"),
  ("kaldi", "utterance"),
  ("sherpa", "none"),
  ("nemo", "none"),
]
# What says little more than the others.
RARE = (("logmel", "utterance"), ("kaldi", "utterance"))
SOME = [
  pytest.param(*kind, marks=pytest.mark.exhaustive) if kind in RARE else kind for kind in KINDS
]
SYMBOLS = ("a", "b", "<blank>", " ", "d", "e", "f")


def make_model(kind="logmel", normalise="none", symbols=SYMBOLS, clip=5) -> AcousticModel:
  """Three blocks with drawn parameters; the blank is class 2."""
  config = ConformerConfig(3, 32, 4, 4, 7, 0.1, clip, (4, 4, 8, 8), ((2, 2), (2, 2)))
  settings = LogMel(kind, mels=80, normalise=normalise)
  network = ConformerCTC(config, settings, len(symbols), rngs=nnx.Rngs(0))
  graphdef, params = nnx.split(network)
  rng = np.random.default_rng(0)
  moved = lambda x: (x + 0.1 * rng.normal(size=x.shape)).astype(np.float32)
  return AcousticModel(graphdef, jax.tree.map(moved, params), Vocabulary(symbols, 2), 640)


def run(graph, **inputs):
  return opened(graph).run(None, inputs)


def opened(graph) -> onnxruntime.InferenceSession:
  options = onnxruntime.SessionOptions()
  options.log_severity_level = 3
  options.intra_op_num_threads = 1  # others spin, ten times as long beside another worker
  return onnxruntime.InferenceSession(
    graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
  )


@pytest.fixture(scope="module")
def audio():
  """f32[2, S] with garbage behind the shorter row, and i64[2]."""
  rng = np.random.default_rng(0)
  return (0.1 * rng.normal(size=(2, 16_123))).astype(np.float32), np.array([16_123, 9000])


def said(model, audio, lengths):
  """Log probabilities of the real frames of each row, the blank first."""
  out = model(jnp.asarray(audio), jnp.asarray(lengths, jnp.int32))
  log_probs = np.asarray(jax.nn.log_softmax(out.logits))[..., conformer.classes(model)]
  return [row[mask] for row, mask in zip(log_probs, np.asarray(out.mask), strict=True)]


def slot(name: str) -> slots.Slot:
  return next(slot for slot in slots.SLOTS if slot.folder == name)


@pytest.mark.parametrize(("kind", "normalise"), SOME)
def test_padded_audio(kind, normalise, audio):
  model = make_model(kind, normalise)
  samples, lengths = audio
  graph = slot("onnx-asr").build(model, False)
  log_probs, frames = run(graph, input_values=samples, input_lengths=lengths)
  for row, count, expected in zip(log_probs, frames, said(model, *audio), strict=True):
    assert count == len(expected)
    np.testing.assert_allclose(row[:count], expected, atol=2e-5)
    assert not row[count:].argmax(-1).any()  # blank


@pytest.mark.parametrize(("kind", "normalise"), [k for k in SOME if k != ("sherpa", "none")])
def test_one_recording(kind, normalise, audio):
  model = make_model(kind, normalise)
  graph = slot("omnilingual").build(model, False)
  for row, length, expected in zip(*audio, said(model, *audio), strict=True):
    (log_probs,) = run(graph, x=row[None, :length])
    np.testing.assert_array_equal(log_probs[0, ::2], log_probs[0, 1::2])  # a frame every 20 ms
    np.testing.assert_allclose(log_probs[0, ::2][: len(expected)], expected, atol=2e-5)


@pytest.mark.parametrize("name", ["zipformer", "onnx-asr-nemo"])
def test_features_of_the_runtime(name, audio):
  model = make_model("sherpa" if name == "zipformer" else "nemo")
  settings = dataclasses.replace(slots.settings_of(model), normalise="none")
  features, mask = log_mel(jnp.asarray(audio[0]), jnp.asarray(audio[1], jnp.int32), settings)
  features = np.where(mask[..., None], features, -23.03).astype(np.float32)
  lengths = np.asarray(mask.sum(1), np.int64)
  graph = slot(name).build(model, False)
  if name == "zipformer":
    log_probs, frames = run(graph, x=features, x_lens=lengths)
  else:
    (log_probs,) = run(graph, audio_signal=features.transpose(0, 2, 1), length=lengths)
    frames = (lengths - 1) // 4 + 1
  for row, count, expected in zip(log_probs, frames, said(model, *audio), strict=True):
    assert count == len(expected)
    np.testing.assert_allclose(row[:count], expected, atol=2e-5)


@pytest.mark.parametrize(
  "chunks", [Chunks(3, 5), pytest.param(Chunks(1, 0), marks=pytest.mark.exhaustive)]
)
def test_a_stream_window_by_window(chunks, audio, tmp_path):
  model = dataclasses.replace(make_model("sherpa"), chunks=chunks)
  heard = online.padded(model, audio[0][0, :9000])
  (here,) = said(model, heard[None], np.array([len(heard)]))
  inputs = check.INPUTS["online"](heard, slots.settings_of(model))
  path = tmp_path / "model.onnx"
  for half, close in (False, 1e-4), (True, 0.1):
    path.write_bytes(online.SLOT.build(model, half).SerializeToString())
    there = runtimes.streamed_log_probs(path)(**inputs)[0]
    assert len(there) == online.frames_heard(model, len(heard)) >= 15
    np.testing.assert_allclose(there, here[: len(there)], atol=close)


@pytest.mark.parametrize("kind", ["sherpa", "kaldi"])
def test_a_stream_of_audio(kind, audio):
  """As a page hears it: samples of a window, and what the graph gave back before."""
  model = dataclasses.replace(make_model(kind), chunks=Chunks(3, 5))
  heard = online.padded(model, audio[0][0, :9000])
  (here,) = said(model, heard[None], np.array([len(heard)]))
  lead = online.lead(model)
  there = window_by_window(online.from_audio(model), model, np.r_[heard[:lead][::-1], heard])
  assert len(there) >= min(15, online.frames_heard(model, len(heard)))
  np.testing.assert_allclose(there, here[: len(there)], atol=1e-4)


def window_by_window(graph, model, samples: np.ndarray) -> np.ndarray:
  """log_probs f32[T, V] of a graph of `online.from_audio`."""
  session = opened(graph)
  dtypes = {FLOAT: np.float32, INT: np.int64}
  states = {
    name: np.zeros([1 if size == "N" else size for size in shape], dtypes[dtype])
    for name, (dtype, shape) in online.states_of(model).items()
  }
  given, found = online.window(model), []
  for start in range(0, len(samples) - given.samples + 1, given.shift * HOP):
    piece = samples[None, start : start + given.samples]
    log_probs, *after = session.run(None, {"audio": piece, **states})
    states = dict(zip(states, after, strict=True))
    found.append(log_probs[0])
  return np.concatenate(found)


@pytest.mark.exhaustive
@pytest.mark.parametrize("samples", [400, 639, 641, 1280])
def test_short_recordings(samples, audio):
  model = make_model()
  row = audio[0][:1, :samples]
  (expected,) = said(model, row, np.array([samples]))
  (log_probs,) = run(slot("omnilingual").build(model, False), x=row)
  np.testing.assert_allclose(log_probs[0, ::2], expected, atol=2e-5)


@pytest.mark.parametrize("frames", [1, 2, 5, 23])
@pytest.mark.parametrize("clip", [1, 4, 30])
def test_the_shear_is_the_models(frames, clip):
  scores = np.random.default_rng(0).normal(size=(2, 3, frames, 2 * clip + 1)).astype(np.float32)
  g = Graph()
  places = conformer.distances(g, "x", clip)
  g.named(conformer.spread(g, "scores", places), "out")
  inputs = {
    "x": (FLOAT, [2, "T", 4]),
    "scores": (FLOAT, [2, 3, "T", 2 * clip + 1]),
  }
  graph = g.model(inputs, {"out": (FLOAT, [2, 3, "T", "T"])}, {})
  (out,) = run(graph, x=np.zeros((2, frames, 4), np.float32), scores=scores)
  np.testing.assert_array_equal(out, spread(jnp.asarray(scores), frames, clip))


def test_half_is_near_and_smaller(audio):
  model = make_model("logmel", "utterance")
  whole, half = (slot("omnilingual").build(model, narrow) for narrow in (False, True))
  loud = 20 * audio[0][:1]
  (a,), (b,) = run(whole, x=loud), run(half, x=loud)
  assert np.isfinite(b).all() and 1e-6 < np.abs(a - b).max() < 0.1
  assert half.ByteSize() < whole.ByteSize()


@pytest.mark.exhaustive
@pytest.mark.parametrize(
  ("vocabulary", "tokens"),
  [
    (Vocabulary(("a", "<blank>", " "), 1), ["<blk>", "a", "▁"]),
    (Vocabulary(("<pad>", "|", "E"), 0, "|"), ["<blk>", "▁", "E"]),
  ],
)
def test_tokens(vocabulary, tokens, tmp_path):
  model = dataclasses.replace(make_model(symbols=vocabulary.symbols), vocabulary=vocabulary)
  slots.write_tokens(model, tmp_path)
  lines = (tmp_path / "tokens.txt").read_text(encoding="utf-8").splitlines()
  assert lines == [f"{token} {index}" for index, token in enumerate(tokens)]


def test_what_is_no_number_is_no_difference_of_0(tmp_path, audio):
  model = make_model()
  place = tmp_path / "onnx-asr"
  place.mkdir()
  broken = dataclasses.replace(model, params=jax.tree.map(lambda x: x * np.nan, model.params))
  path = place / "model.onnx"
  path.write_bytes(slot("onnx-asr").build(broken, False).SerializeToString())
  heard = check.Heard([audio[0][0]], [], {}, [], False)
  assert check.difference(model, path, heard) is None
  facts = {"largest_difference": None}
  assert check.wrong(facts) == "it says no numbers (NaN)"


def subwords(*symbols, **tokenizer) -> SubwordVocabulary:
  """Pieces of a tokenizer.json; the blank is last."""
  model = {"type": "BPE", "vocab": {piece: i for i, piece in enumerate(symbols)}, "merges": []}
  found = json.dumps({"model": model, "decoder": None} | tokenizer)
  return SubwordVocabulary((*symbols, "<pad>"), len(symbols), "", found)


def test_pieces_without_a_decoder_are_words_there_too():
  vocabulary = subwords("ab", "c")
  model = dataclasses.replace(make_model(symbols=vocabulary.symbols), vocabulary=vocabulary)
  assert slots.tokens(model) == ["<blk>", "▁ab", "▁c"]


def test_what_runtimes_write_otherwise_is_counted(monkeypatch):
  """They know no steps of a tokenizer."""
  joins = {"type": "Replace", "pattern": {"String": "##"}, "content": ""}
  marks = {"type": "Metaspace", "replacement": "▁"}
  decoder = {"type": "Sequence", "decoders": [marks, joins]}
  vocabulary = subwords("▁ab", "##c", "▁d", decoder=decoder)
  model = dataclasses.replace(make_model(symbols=vocabulary.symbols), vocabulary=vocabulary)
  paths = [[0, 3, 1, 3], [0, 3, 2, 2]]
  frames = [check.Frames(np.array(path), np.ones(4), None, 0.16) for path in paths]
  monkeypatch.setattr(check, "_listen", lambda *given: iter(frames))
  given = check.Recordings([np.ones(2560)] * 2, ["abc", None], 0)
  heard = check.hear(model, given, (), lambda: None)
  assert heard.texts == ["ab##c", "ab d"] and heard.joined_otherwise == 1
  assert not heard.transcribed and heard.references == []


def test_without_transcripts_there_is_no_wer(tmp_path, monkeypatch):
  """What a smaller form changes is known all the same."""
  (tmp_path / "zipformer").mkdir()
  (path := tmp_path / "zipformer" / "model.onnx").write_bytes(b"graph")
  monkeypatch.setattr(check, "difference", lambda *given: 0.0)
  texts = {"zipformer": ("it", lambda path: lambda audio: "a b c x")}
  monkeypatch.setattr(runtimes, "RUNTIMES", texts)
  monkeypatch.setattr(runtimes, "version", lambda name: name)
  heard = check.Heard([np.ones(16_000)], ["a b c d"], {}, [], False)
  facts = check.check(make_model(), path, heard, lambda: None)
  assert facts["wer"] is None and facts["wer_here"] is None and facts["words_changed"] == 0.25
  assert check.lost({"wer": None, "words_changed": 0.0}, facts) == 25
  assert check.lost({"wer": 0.1, "words_changed": 0.0}, {"wer": 0.1, "words_changed": 0.5}) == 0


def test_smaller_forms_are_judged_without_their_runtime(tmp_path, monkeypatch):
  """By the best path in onnxruntime: what loses too much is not kept."""
  monkeypatch.setattr(runtimes, "RUNTIMES", {"onnx-asr": ("onnx-asr", not_read)})
  model, small = talkative(make_model(), 1), talkative(make_model(), 0)
  (place := tmp_path / "onnx-asr").mkdir()
  for name, of in ("model.onnx", model), ("model.int8.onnx", small):
    (place / name).write_bytes(slot("onnx-asr").build(of, False).SerializeToString())
  given = check.Recordings(tones(), ["a b", "f"], 0)
  heard, facts, updates = check.hear(model, given, (), lambda: None), {}, []
  for path in sorted(place.iterdir()):
    name = f"onnx-asr/{path.name}"
    facts[name] = check.check(model, path, heard, lambda: updates.append(0))
    assert facts[name]["not_run"] == "not this one" and "real_time_factor" not in facts[name]
    assert facts[name]["runtime"].startswith("onnxruntime ")
  whole, broken = facts["onnx-asr/model.onnx"], facts["onnx-asr/model.int8.onnx"]
  assert whole["same_texts"] == 1 and whole["wer"] == whole["wer_here"] and len(updates) == 4
  assert whole["words_changed"] == 0 and broken["wer"] is not None and broken["words_changed"] > 0
  for facts_ in facts.values():
    facts_["wer"] = None  # as where nothing is transcribed
  folder._drop_what_is_wrong(tmp_path, facts, 0.5)
  assert "% more of the words" in broken["not_kept"] and "not_kept" not in whole
  assert [path.name for path in place.iterdir()] == ["model.onnx"]


def talkative(model: AcousticModel, seed: int) -> AcousticModel:
  """Says something of `tones`."""
  rng = np.random.default_rng(seed)
  moved = lambda x: (x + 0.2 * rng.normal(size=x.shape)).astype(np.float32)
  return dataclasses.replace(model, params=jax.tree.map(moved, model.params))


def tones() -> list[np.ndarray]:
  """Two recordings whose frames are not all alike."""
  rng, time = np.random.default_rng(0), np.arange(1600) / 16_000
  pairs = zip(rng.uniform(100, 7000, 10), rng.uniform(0.01, 0.9, 10), strict=True)
  whole = np.concatenate([g * np.sin(2 * np.pi * f * time) for f, g in pairs]).astype(np.float32)
  return [whole, whole[:9000]]


def not_read(path):
  raise runtimes.NotRead("not this one")


@pytest.mark.parametrize("name", ["omnilingual", "online"])
def test_the_best_path_in_onnxruntime_is_the_students(name, tmp_path):
  """Of audio as the runtime would hear it, and of too little of it."""
  kind = ("logmel", "utterance") if name == "omnilingual" else ("sherpa", "none")
  model = talkative(make_model(*kind), 1)
  if name == "online":
    model = dataclasses.replace(model, chunks=Chunks(3, 5))
  path = tmp_path / name / "model.onnx"
  path.parent.mkdir()
  build = online.SLOT.build if name == "online" else slot(name).build
  path.write_bytes(build(model, False).SerializeToString())
  given = check.Recordings(tones(), [None, None], 0)
  heard = check.hear(model, given, (name,), lambda: None)
  listen, padded = check._best_path(model, path), online.padded if name == "online" else None
  texts = [check.normalise(listen(padded(model, x) if padded else x)) for x in heard.audio]
  assert texts == heard.prepared.get(name, heard.texts) and all(texts)
  if padded:
    assert listen(np.zeros(400, np.float32)) == ""


def test_models_of_an_earlier_export_are_taken_away(tmp_path):
  kept = ["online/mine.onnx", "online/tokens.txt", "onnx-asr/model.onnx", "model.onnx"]
  gone = ["online/model.onnx", "online/model.int8.onnx", "zipformer/model.fp16.onnx"]
  for name in kept + gone:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
  folder._remove_others([slot("onnx-asr"), slot("omnilingual")], tmp_path)
  there = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
  assert there == set(kept)
