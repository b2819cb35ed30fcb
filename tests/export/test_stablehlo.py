"""A model as one file that JAX alone runs."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax import export

import corpus
from jaxkd.config import overrides
from jaxkd.errors import UserError
from jaxkd.export import stablehlo
from jaxkd.labels import characters, phonemes
from jaxkd.labels.lexicon import Lexicon
from jaxkd.models import registry
from jaxkd.models.acoustic import AcousticModel

# What docs/transcribe.md says; the rest of the process is there to be looked at.
SCRIPT = """\
import jax, numpy as np
from jax import export
model = jax.jit(export.deserialize(open("model.jax", "rb").read()).call)
given = np.load("given.npz")
found = [model(given[f"audio{i}"], given[f"audio_len{i}"]) for i in range(len(given) // 2)]
import sys
assert not {"jaxkd", "flax", "orbax", "safetensors"} & {m.split(".")[0] for m in sys.modules}
np.savez("found.npz", **{f"{k}{i}": x for i, out in enumerate(found) for k, x in zip("pf", out)})
"""


def drawn(tmp_path, vocabulary, *flags: str) -> AcousticModel:
  """A Conformer, or what flags name, with drawn parameters."""
  given = corpus.flags(tmp_path, "symmetric", tmp_path / "run", *flags)
  config, _ = overrides.parse(given)
  model = registry.architecture(config.student, config.features, dtype=config.dtype)
  structure = model.structure(len(vocabulary.symbols))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32), structure[1])
  return AcousticModel(structure[0], jax.device_put(params), vocabulary, model.frame_samples)


def batches(frame_samples: int) -> list[tuple[np.ndarray, np.ndarray]]:
  """Audio whose padding is NaN, of two lengths and two numbers of rows."""
  rng = np.random.default_rng(1)
  found = []
  for lengths in ([30_000, 900], [20_480, 1, 15_000]):
    audio_len = np.array(lengths, np.int32)
    size = -(-max(lengths) // frame_samples) * frame_samples
    audio = rng.normal(scale=0.1, size=(len(lengths), size)).astype(np.float32)
    found.append((np.where(np.arange(size) < audio_len[:, None], audio, np.nan), audio_len))
  return found


@pytest.mark.parametrize(
  "flags",
  [
    (),
    ("--config.features.kind=kaldi", "--config.features.normalise=utterance"),
    (
      "--config.student.name=fastconformer",
      "--config.features.kind=nemo",
      "--config.features.normalise=none",
    ),
  ],
)
def test_jax_alone_calls_it(tmp_path, flags):
  model = drawn(tmp_path, characters(" abc"), *flags)
  paths = stablehlo.write(model, tmp_path / "out")
  assert [path.name for path in paths] == ["model.jax", "vocabulary.json"]
  assert json.loads(paths[1].read_text())["symbols"] == list(model.labels)
  exported = export.deserialize(paths[0].read_bytes())
  assert exported.platforms == ("cpu", "cuda", "tpu") and exported.nr_devices == 1
  given = batches(model.frame_samples)
  arrays = {f"audio{i}": audio for i, (audio, _) in enumerate(given)}
  arrays |= {f"audio_len{i}": audio_len for i, (_, audio_len) in enumerate(given)}
  np.savez(tmp_path / "out" / "given.npz", **arrays)
  subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path / "out", check=True, timeout=300)
  found = np.load(tmp_path / "out" / "found.npz")
  for i, (audio, audio_len) in enumerate(given):
    out = model(audio, audio_len)
    mask, log_probs = np.asarray(out.mask), np.asarray(jax.nn.log_softmax(out.logits))
    np.testing.assert_array_equal(found[f"f{i}"], mask.sum(-1))
    assert found[f"p{i}"].shape == log_probs.shape and found[f"p{i}"].dtype == np.float32
    np.testing.assert_allclose(found[f"p{i}"][mask], log_probs[mask], atol=1e-5, rtol=0)


def test_files_beside_the_vocabulary_are_named(tmp_path):
  lexicon = Lexicon((("ab", (("AA", "B"),)),))
  model = drawn(tmp_path, phonemes(lexicon))
  paths = stablehlo.write(model, tmp_path)
  assert [path.name for path in paths] == ["model.jax", "vocabulary.json", "lexicon.txt"]
  assert all(path.exists() for path in paths)


def test_mistakes_are_one_line(tmp_path, monkeypatch):
  model = drawn(tmp_path, characters(" abc"))
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match=f"{tmp_path / 'file'} cannot be written") as error:
    stablehlo.write(model, tmp_path / "file")
  assert "\n" not in str(error.value)
  monkeypatch.setitem(sys.modules, "flatbuffers", None)
  with pytest.raises(UserError, match=r"pip install 'jaxkd\[export\]'"):
    stablehlo.write(model, tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_a_program_that_differs_by_length_is_one_line(tmp_path):
  hf_models = pytest.importorskip("hf_models")
  from jaxkd import teacher

  for family, norm in (("hubert", "layer"), ("wavlm", "layer")):
    hf_models.make(tmp_path / family, family, norm)
  stablehlo.write(teacher.from_huggingface(tmp_path / "hubert"), tmp_path / "out")
  model = teacher.from_huggingface(tmp_path / "wavlm")
  with pytest.raises(UserError, match="cannot be exported to StableHLO") as error:
    stablehlo.write(model, tmp_path / "wavlm-out")
  assert "\n" not in str(error.value) and not (tmp_path / "wavlm-out").exists()
