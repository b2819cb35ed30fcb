"""Words as they become final, against those of the same frames all at once."""

import functools
import io
import wave

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import padding
from jaxkd.data import microphone
from jaxkd.data.audio import BrokenAudio
from jaxkd.errors import UserError
from jaxkd.inference import live, recogniser
from jaxkd.inference.listening import Frames
from jaxkd.labels import Vocabulary
from jaxkd.models import conformer, features
from jaxkd.models.acoustic import AcousticModel, Chunks

pytestmark = pytest.mark.usefixtures("quick_to_compile")

SYMBOLS = ("<blank>", " ", "a", "b", "c", "d", "e")
CHUNKS = Chunks(2, 5)


@functools.cache
def model(kind="sherpa", **changes):
  """A Conformer that says something else in every few frames."""
  sizes = (2, 16, 2, 2, 5, 0.0, 3, (3, 4, 4, 2), ((2, 1), (2, 1)))
  config = conformer.ConformerConfig(*sizes, **changes)
  settings = features.LogMel(kind, mels=12)
  net = conformer.ConformerCTC(config, settings, len(SYMBOLS), rngs=nnx.Rngs(params=0))
  graphdef, params = padding.randomised(net, seed=3)
  audio = make_audio(seed=1)[None]
  logits = nnx.merge(graphdef, params)(audio, np.array([audio.shape[1]], np.int32)).logits
  params["head"]["bias"][...] -= logits.mean((0, 1))
  return AcousticModel(graphdef, params, Vocabulary(SYMBOLS, 0), 640)


def make_audio(seconds=6.0, seed=0):
  rng = np.random.default_rng(seed)
  envelope = np.repeat(rng.uniform(0, 0.5, int(seconds * 10)), 1600)
  return (envelope * rng.normal(size=len(envelope))).astype(np.float32)


def at_once(audio):
  """The words of all frames that a stream tells, cut at pauses as it does."""
  heard = AcousticModel(**vars(model()) | {"chunks": CHUNKS})
  output = heard(audio[None], np.array([len(audio)], np.int32))
  path = np.asarray(output.logits.argmax(-1)[0][output.mask[0]])
  labels = recogniser.runs(path, 0)
  frames = Frames(path, np.ones(len(path)), None, np.inf)
  spans = heard.vocabulary.words([label for label, _, _ in labels])
  return list(recogniser.timed(labels, spans, frames, 0.04))


@pytest.mark.parametrize("size", [160, 1_000, 96_000])
def test_words_of_a_stream_are_those_of_all_its_frames(size):
  audio = make_audio()
  packets = [audio[i : i + size] for i in range(0, len(audio), size)]
  found, wanted = list(live.words(model(), CHUNKS, packets)), at_once(audio)
  assert len(wanted) > 3
  assert [w.text for w in found] == [w.text for w in wanted]
  for word, other in zip(found, wanted, strict=True):
    np.testing.assert_allclose((word.start_s, word.end_s), (other.start_s, other.end_s))
    assert 0 <= word.confidence <= 1


@pytest.mark.parametrize("chunk", [1, 2])
def test_frames_of_a_chunk_come_67_5_ms_after_its_last_sample(chunk, monkeypatch):
  heard, size, counts = live.Live(model(), Chunks(chunk, 5)), 120, []
  monkeypatch.setattr(heard, "_add", lambda output: counts.append(int(output.mask.sum())))
  came = []
  for sample in range(size, 32_000, size):
    heard.hear(np.ones(size, np.float32))
    came += [sample] * any(counts)
    assert set(counts) <= {0, chunk}
    counts.clear()
  complete = range(chunk * 640 + 1080, sample, chunk * 640)
  assert came == [-(-end // size) * size for end in complete]
  assert heard.latency_ms == 40 * chunk + 67.5


def told(path):
  """Frames of a stream, of which each is sure."""
  logits = 9.0 * jnp.eye(len(SYMBOLS))[jnp.array(path, jnp.int32)][None]
  return conformer.FrameOutput(logits, jnp.ones((1, len(path)), bool))


def test_a_word_is_final_when_another_begins_or_after_a_pause():
  heard = live.Live(model(), CHUNKS)

  def say(*path, ends=False):
    heard._add(told(path))
    return [(w.text, round(w.start_s, 2), round(w.end_s, 2)) for w in heard._final(ends=ends)]

  assert say(0, 2, 2) == []
  assert say(2, 0, 3) == []
  assert say(1, 0) == [("ab", 0.04, 0.24)]
  assert say(4, 4) == []
  assert say(*[0] * 19) == []
  assert say(0) == [("c", 0.32, 0.4)]
  assert say(0, 4, 0, 4) == []
  assert say(ends=True) == [("cc", 1.24, 1.36)]


def test_silence_is_not_kept():
  """Nor behind a label that is no word."""
  heard = live.Live(model(), CHUNKS)
  for path, words in [((2, 1), ["a"]), ((0,) * 19, []), ((0,) * 9, []), ((1, 0, 3), [])]:
    heard._add(told(path))
    assert [w.text for w in heard._final(ends=False)] == words
    assert len(heard._path) < 22
  assert [(w.text, w.start_s) for w in heard._final(ends=True)] == [("b", 32 * 0.04)]


def test_words_before_a_break_are_not_lost():
  def packets():
    yield audio
    raise BrokenAudio("it ends too early")

  audio, found = make_audio(), []
  with pytest.raises(BrokenAudio, match="too early"):
    for word in live.words(model(), CHUNKS, packets()):
      found.append(word.text)
  assert found == [word.text for word in at_once(audio)]


def test_a_model_that_says_nan_is_named():
  params = jax.tree.map(lambda p: p * np.nan, model().params)
  broken = AcousticModel(**vars(model()) | {"params": params})
  with pytest.raises(UserError, match="the model's output has NaN or infinities"):
    list(live.words(broken, CHUNKS, iter([make_audio()])))


class Pipe(io.BytesIO):
  """Gives a few bytes at a time."""

  def read1(self, size=-1):
    return super().read1(min(size, 7))


def as_wav(samples, rate=16_000, channels=1):
  file = io.BytesIO()
  with wave.open(file, "wb") as out:
    out.setnchannels(channels), out.setsampwidth(2), out.setframerate(rate)
    out.writeframes(samples.tobytes())
  return file.getvalue()


@pytest.mark.parametrize("header", [True, False])
def test_a_pipe_brings_samples_with_or_without_a_header(header):
  samples = np.random.default_rng(0).integers(-(2**15), 2**15, 100).astype("<i2")
  data = as_wav(samples) if header else samples.tobytes()
  found = np.concatenate(list(microphone.packets(Pipe(data))))
  np.testing.assert_array_equal(found * 32768, samples)
  # A sample that is cut in two is left.
  found = np.concatenate(list(microphone.packets(Pipe(data[:-1]))))
  np.testing.assert_array_equal(found * 32768, samples[:-1])


def test_nothing_in_a_pipe_is_nothing():
  assert list(microphone.packets(Pipe(b""))) == []


@pytest.mark.parametrize(
  ("data", "words"),
  [
    (as_wav(np.zeros(9, "<i2"), rate=8000), "1 channels of 16 bits at 8000 Hz"),
    (as_wav(np.zeros(8, "<i2"), channels=2), "2 channels of 16 bits at 16000 Hz"),
    (as_wav(np.zeros(8, "<i2"))[:30], "cut short"),
    (b"RIFF", "cut short"),
    (b"fLaC" + bytes(99), "begins as FLAC does .*ffmpeg -i FILE -f s16le -ac 1 -ar 16000 -"),
    (b"\0\0\0\x20ftypM4A " + bytes(99), "begins as MP4 or M4A does"),
    (b"\x1aE\xdf\xa3" + bytes(99), "begins as WebM or Matroska does"),
    (b"OggS" + bytes(99), "begins as Ogg does"),
    (b"ID3\4" + bytes(99), "begins as MP3 does"),
  ],
)
def test_other_samples_get_one_line(data, words):
  with pytest.raises(BrokenAudio, match=words):
    list(microphone.packets(Pipe(data)))


def test_chunks_are_of_whole_frames():
  assert live.chunks(model(), 80, "it") == Chunks(2, 64)
  assert live.chunks(model(left_frames=(3, 9)), 40, "it") == Chunks(1, 9)
  for wrong in (0, 50):
    with pytest.raises(UserError, match=f"--stream={wrong}ms must be a multiple of a frame, 40 ms"):
      live.chunks(model(), wrong, "it")
  assert live.has_learnt(model(chunk_frames=(2,))) and not live.has_learnt(model())


def test_models_that_need_everything_are_refused():
  with pytest.raises(UserError, match="over the whole utterance"):
    live.chunks(model("logmel"), 80, "it")
  with pytest.raises(UserError, match="it hears whole recordings only"):
    live.chunks(object(), 80, "it")
