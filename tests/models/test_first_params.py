"""What a head that is drawn says before it has learnt anything."""

import jax
import numpy as np
import pytest

from jaxkd.config import overrides
from jaxkd.labels import Vocabulary
from jaxkd.models import registry

pytestmark = pytest.mark.usefixtures("quick_to_compile")
VOCABULARY = Vocabulary(("a", "<blank>", " ", "b"), 1)


@pytest.mark.parametrize("name", ["conformer", "fastconformer"])
def test_heads_prefer_the_blank(name, monkeypatch):
  monkeypatch.setattr(registry, "_BLANK_FIRST", 3.0)
  more = ["--config.features.kind=nemo", "--config.features.normalise=none"]
  config, _ = overrides.parse(["", "--config=ctc", f"--config.student.name={name}", *more])
  config.student.update(layers=2, width=8, heads=2)
  inner = name == "conformer"
  if inner:
    config.student.inner_layers = (1,)
  made = registry.architecture(config.student, config.features, dtype="float32")
  params = made.first_params(VOCABULARY, inner_heads=inner)(jax.random.key(0))
  np.testing.assert_array_equal(params["head"]["bias"][...], [0, 3, 0, 0])
  if inner:
    np.testing.assert_array_equal(params["inner_heads"]["bias"][...], [[0, 3, 0, 0]])
