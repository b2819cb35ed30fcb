"""The place of sherpa-onnx that hears streams: `OnlineRecognizer.from_zipformer2_ctc`.

The runtime gives windows of its own features, one every `decode_chunk_len`, and keeps what the
graph returns from one to the next. Of a Zipformer's states, which are 0 at first, a Conformer uses
five and hands back the others:
    cached_val1_I, cached_val2_I   keys and values of block I's left context, f32[L, N, D]
    cached_conv1_I                 what its convolution read last, f32[N, D, taps]
    embed_states                   the last features, in a row
    processed_lens                 frames heard, i64[N]
The runtime's place for NeMo's models computes NeMo's features, which no student has in streams.

The page of `export.web` runs the same graph with the features in it.
"""

import pathlib
from typing import NamedTuple

import numpy as np
import onnx
from flax import nnx

from jaxkd import files
from jaxkd.export import conformer
from jaxkd.export.features import length_mask, log_mel_of_windows
from jaxkd.export.graph import FLOAT, INT, Graph
from jaxkd.export.slots import Slot, settings_of, write_tokens
from jaxkd.models import streaming
from jaxkd.models.acoustic import AcousticModel, Chunks
from jaxkd.models.features import HOP, WINDOW
from jaxkd.types import SAMPLE_RATE_HZ

_FRAME_MS = 40
_HEARD, _FEATURES, _FEATURES_SHAPE = "processed_lens", "embed_states", (128, 3, 19)
_ROW = 128 * 3 * 19
# What `conformer.Past` keeps → the state, and the order of its axes.
_PLACES = {
  "keys": ("cached_val1", [1, 0, 2]),
  "values": ("cached_val2", [1, 0, 2]),
  "inputs": ("cached_conv1", [0, 2, 1]),
}
_README = """\
# Streaming speech recognition with sherpa-onnx

Chunks of {chunk_ms:g} ms, each heard {latency_ms:.0f} ms after its first sample at the latest, with
{left_ms:g} ms before it.

```python
import numpy, sherpa_onnx, soundfile  # pip install sherpa-onnx soundfile

recogniser = sherpa_onnx.OnlineRecognizer.from_zipformer2_ctc(
  tokens="tokens.txt", model="model.onnx", feature_dim={mels}, num_threads=1
)
stream = recogniser.create_stream()
audio, rate = soundfile.read("talk.wav", dtype="float32")  # or packets of a microphone
for packet in numpy.array_split(audio, 100):
  stream.accept_waveform(rate, packet)
  while recogniser.is_ready(stream):
    recogniser.decode_stream(stream)
  print(recogniser.get_result(stream))
# The runtime hears whole windows: {tail_ms:g} ms of silence let it hear the last words.
stream.accept_waveform(rate, numpy.zeros(rate * {tail_ms:g} // 1000, numpy.float32))
stream.input_finished()
while recogniser.is_ready(stream):
  recogniser.decode_stream(stream)
print(recogniser.get_result(stream))
```

sherpa-onnx's own programs take the same files, from a microphone too; they add silence themselves:

```bash
files="--tokens=tokens.txt --zipformer2-ctc-model=model.onnx --feat-dim={mels} --num-threads=1"
sherpa-onnx $files talk.wav
sherpa-onnx-microphone $files
```
"""


class Window(NamedTuple):
  """The features that the graph gets at once.

  Attributes:
    size: of them, and `shift` from one window to the next.
    before: that it keeps of earlier ones.
  """

  size: int
  shift: int
  before: int

  @property
  def samples(self) -> int:
    """Samples that its features read."""
    return (self.size - 1) * HOP + WINDOW

  @property
  def tail(self) -> int:
    """Samples of silence behind a recording with which all of its frames are heard."""
    return (self.size + 1) * HOP  # the runtime waits for one feature more

  def windows(self, samples: int) -> int:
    """That the runtime hears of so many samples that have ended."""
    return max(0, -(-((samples + HOP // 2) // HOP - self.size) // self.shift))


def window(model: AcousticModel) -> Window:
  """The window that a model with chunks reads."""
  behind, before = streaming.margins(_network(model).config.frontend_pool)
  shift = model.chunks.chunk * model.frame_samples // HOP
  return Window(shift + behind, shift, before)


def padded(model: AcousticModel, audio: np.ndarray) -> np.ndarray:
  """f32[S] with the silence that lets the runtime hear all of it."""
  return np.pad(audio, (0, window(model).tail))


def frames_heard(model: AcousticModel, samples: int) -> int:
  """Frames that the runtime tells of so many samples."""
  return window(model).windows(samples) * model.chunks.chunk


def _network(model: AcousticModel):
  return nnx.merge(model.graphdef, model.params)


def _lacks(model: AcousticModel) -> str:
  settings = settings_of(model)
  if reason := streaming.unfit(settings):
    return reason
  if settings.kind != "sherpa":
    return f"the runtime computes features.kind=sherpa, the student has {settings.kind}"
  return "" if model.frame_ms == _FRAME_MS else f"frames must be of {_FRAME_MS} ms"


def lead(model: AcousticModel) -> int:
  """Samples before a stream that its first window reads, the stream's own first ones mirrored."""
  return (WINDOW - HOP) // 2 if settings_of(model).kind == "sherpa" else 0


def states_of(model: AcousticModel) -> dict[str, tuple[int, list]]:
  """name → (type, shape with N for rows) of the graph's states, in the runtime's order."""
  return _states(model, _network(model))


def from_audio(model: AcousticModel) -> onnx.ModelProto:
  """The graph for runtimes without features: `audio` f32[N, S] of a window in place of `x`."""
  return _build(model, audio=True)


def _build(model: AcousticModel, half: bool = False, audio: bool = False) -> onnx.ModelProto:
  """A window f32[N, M, F] and states → log_probs f32[N, C, V], and the states behind it."""
  g, net, given, chunks = Graph(half), _network(model), window(model), model.chunks
  states = _states(model, net)
  heard = {"x": (FLOAT, ["N", given.size, net.features.mels])}
  if audio:
    heard = {"audio": (FLOAT, ["N", given.samples])}
    g.named(log_mel_of_windows(g, "audio", net.features), "x")
  past = _unpacked(g, net)
  row = g("Reshape", _FEATURES, [0, -1])
  kept = given.before * net.features.mels
  before = g("Reshape", g("Slice", row, [0], [kept], [1]), [0, given.before, net.features.mels])
  features = g("Concat", before, "x", axis=1)
  x = _front_end(g, features, net, given, chunks.chunk)
  seen = conformer.Seen(
    conformer.sinusoids(net.config),
    conformer.distances(g, x, net.config.rel_clip, _room(chunks)),
    None,
    _keys(g, chunks),
    past,
  )
  log_probs = conformer.head(g, conformer.blocks(g, x, seen, net), net, model)
  after = _packed(g, past)
  last = g("Slice", features, [given.shift], [given.shift + given.before], [1])
  row = g("Concat", g("Reshape", last, [0, -1]), g("Slice", row, [kept], [_ROW], [1]), axis=1)
  after[_FEATURES] = g("Reshape", row, [0, *_FEATURES_SHAPE])
  after[_HEARD] = g("Add", _HEARD, chunks.chunk)
  g.named(log_probs, "log_probs")
  for name in states:
    g.named(after.get(name, name), f"new_{name}")
  inputs = {**heard, **states}
  outputs = {"log_probs": (FLOAT, ["N", chunks.chunk, len(model.labels)])}
  outputs |= {f"new_{name}": of for name, of in states.items()}
  return g.model(inputs, outputs, _metadata(model, net))


def _room(chunks: Chunks) -> int:
  """Frames that are kept of the left context, at least one."""
  return max(1, chunks.left)


def _states(model: AcousticModel, net) -> dict:
  """name → (type, shape), in the runtime's order."""
  room, width = _room(model.chunks), net.config.width
  values, inputs = [room, "N", width], ["N", width, net.config.conv_kernel // 2]
  of_layer = {
    "cached_key": [room, "N", 1],
    "cached_nonlin_attn": [1, "N", room, 3 * width // 4],
    "cached_val1": values,
    "cached_val2": values,
    "cached_conv1": inputs,
    "cached_conv2": inputs,
  }
  layers = range(net.config.layers)
  found = {f"{name}_{i}": (FLOAT, shape) for i in layers for name, shape in of_layer.items()}
  return found | {_FEATURES: (FLOAT, ["N", *_FEATURES_SHAPE]), _HEARD: (INT, ["N"])}


def _metadata(model: AcousticModel, net) -> dict[str, str]:
  """What the runtime reads, which makes the states of it."""
  given, config = window(model), net.config
  found = {
    "model_type": "jaxkd-conformer",
    "T": given.size,
    "decode_chunk_len": given.shift,
    "encoder_dims": config.width,
    "query_head_dims": 1,
    "value_head_dims": config.width,
    "num_heads": 1,
    "num_encoder_layers": config.layers,
    "cnn_module_kernels": config.conv_kernel,
    "left_context_len": _room(model.chunks),
  }
  return {name: str(value) for name, value in found.items()}


def _unpacked(g: Graph, net) -> conformer.Past:
  """The blocks' past."""
  g.prefix = "states/"
  before = {}
  for layer in range(net.config.layers):
    for name, (state, order) in _PLACES.items():
      before[name, layer] = g.narrow(g("Transpose", f"{state}_{layer}", perm=order))
  return conformer.Past(before, {})


def _packed(g: Graph, past: conformer.Past) -> dict[str, str]:
  """name → the state behind a chunk, f32."""
  g.prefix, found = "states/", {}
  for (name, layer), x in past.after.items():
    state, order = _PLACES[name]
    found[f"{state}_{layer}"] = g("Cast", g("Transpose", x, perm=order), to=FLOAT)
  return found


def _front_end(g: Graph, features: str, net, given: Window, chunk: int) -> str:
  """float[N, C, D] of a chunk; before the first one there are no features."""
  frame = given.shift // chunk
  heard = g("Mul", _HEARD, frame)
  missing = g("Sub", given.before, g("Min", heard, given.before))
  x, _, _ = conformer.front_end(g, g.narrow(features), missing, net.frontend, real=_behind)
  first = given.before // frame
  return g("Slice", x, [first], [first + chunk], [1])


def _keys(g: Graph, chunks: Chunks) -> str:
  """float[N, 1, 1, K], see `conformer.Seen`: of the frames that are kept, those heard count."""
  missing = g("Sub", _room(chunks), g("Min", _HEARD, chunks.left))
  low = conformer.keys(g, _behind(g, "cached_val1_0", missing, axis=0))
  return g("Pad", low, [0, 0, 0, 0, 0, 0, 0, chunks.chunk])


def _behind(g: Graph, x: str, missing: str, axis: int) -> str:
  """float[N, T, 1], 0 for the first i64[N] of an axis of x and 1 behind them."""
  return g("Sub", 1.0, length_mask(g, x, missing, axis))


def _write(model: AcousticModel, folder: pathlib.Path) -> None:
  write_tokens(model, folder)
  stream = _network(model).stream(*model.chunks)
  runtime_ms = 1000 * HOP / SAMPLE_RATE_HZ  # it waits for one feature more
  told = _README.format(
    chunk_ms=model.chunks.chunk * model.frame_ms,
    latency_ms=stream.latency_ms + runtime_ms,
    left_ms=model.chunks.left * model.frame_ms,
    mels=settings_of(model).mels,
    tail_ms=1000 * window(model).tail / SAMPLE_RATE_HZ,
  )
  files.write_text(folder / "README.md", told)


SLOT = Slot("online", _lacks, _build, _write)
