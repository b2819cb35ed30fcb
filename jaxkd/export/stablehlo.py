"""A model as one file of JAX's own, which CPUs, NVIDIA GPUs and TPUs run without jaxkd.

The file holds the program for all three, in StableHLO, and the parameters in it as constants: who
reads it needs jax and numpy, and no package for weights.
"""

import pathlib

import jax
import jax.numpy as jnp
from flax import nnx
from jax import export

from jaxkd import files
from jaxkd.errors import UserError
from jaxkd.models import parameters
from jaxkd.models.acoustic import AcousticModel

# What reads it is `jax.export.deserialize`, and no tool for StableHLO.
MODEL, VOCABULARY = "model.jax", "vocabulary.json"
PLATFORMS = ("cpu", "cuda", "tpu")
# The shortest audio, in frames: in less, models of the waveform have none.
_SHORTEST = 2


def write(model: AcousticModel, folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes `model.jax`, and `vocabulary.json` with what belongs to it.

  The program is the model's, called with all of the audio at once, whatever its length:

      audio f32[b, n·t] of full scale 1 at 16 kHz, where n is `model.frame_samples` and t ≥ 2;
      audio_len i32[b], real samples; what follows them may be anything
      → log_probs f32[b, t', v], frames i32[b]; log_probs of a row after its frames mean nothing

  with t' = t for a Conformer.

  Args:
    model: of a run, or another one.
    folder: made if absent; of the same names it has the new files.

  Returns:
    The files that were written.

  Raises:
    UserError: the folder cannot be written, flatbuffers is not installed, or a model whose program
      is another for each length.
  """
  program = _serialised(model)
  path = folder / MODEL
  try:
    files.write_bytes(path, program)
    beside = model.vocabulary.save(folder / VOCABULARY)
  except OSError as error:
    raise UserError(f"{folder} cannot be written: {error.strerror}") from error
  return [path, *beside]


def _serialised(model: AcousticModel) -> bytes:
  """The file's bytes.

  Raises:
    UserError: see `write`.
  """
  _check_can_serialise()
  # From wherever they are laid out: the program is for one device.
  params = jax.device_get(model.params)

  def call(audio, audio_len):
    out = nnx.merge(model.graphdef, params)(audio, audio_len)
    log_probs = jax.nn.log_softmax(out.logits.astype(jnp.float32))
    return log_probs, out.mask.sum(-1, dtype=jnp.int32)

  b, t = export.symbolic_shape("b, t", constraints=[f"t >= {_SHORTEST}"])
  audio = jax.ShapeDtypeStruct((b, model.frame_samples * t), jnp.float32)
  audio_len = jax.ShapeDtypeStruct((b,), jnp.int32)
  try:
    exported = export.export(jax.jit(call), platforms=PLATFORMS)(audio, audio_len)
    return bytes(exported.serialize())
  except Exception as error:  # JAX's many kinds, of shapes that it cannot reason about
    raise UserError(
      "this model has no program for audio of any length, so it cannot be exported to StableHLO "
      f"(a Conformer can): {type(error).__name__}: {parameters.reason(error)}"
    ) from error


def _check_can_serialise() -> None:
  """UserError where a package that JAX wants for it is not installed."""
  try:
    import flatbuffers  # noqa: F401
  except ImportError as error:
    raise UserError("writing StableHLO needs flatbuffers: pip install 'jaxkd[export]'") from error
