"""Sizes: as many parameters as they say, and rows of joined utterances in the tiny one alone."""

import jax
import pytest

from jaxkd import config as config_lib
from jaxkd.models import registry


@pytest.mark.parametrize("size", config_lib.SIZES)
def test_students_are_as_large_as_their_size_says(size):
  config = config_lib.base(f"manifest-{size}")
  model = registry.architecture(config.student, config.features, dtype=config.dtype)
  _, like = model.structure(len(config.labels.alphabet) + 1)
  found = sum(leaf.size for leaf in jax.tree.leaves(like)) / 1e6
  said = float(config_lib.SIZES[size].about.split(" M ")[0])
  assert found == pytest.approx(said, rel=0.1)


@pytest.mark.parametrize("recipe", config_lib.RECIPES)
def test_only_tiny_joins_and_has_two_buckets(recipe):
  config = config_lib.base(recipe)
  tiny = config_lib.parts(recipe)[1] == "tiny"
  for block in (config.training, config.teacher.training):
    assert (block.join_seconds > 0) == tiny
    assert block.buckets == (2 if tiny else 8)
  assert config.dtype == ("float32" if tiny else "bfloat16")
  assert config.teacher.model.name == ("conformer" if tiny else "huggingface")


def test_what_a_corpus_needs_in_size_tiny_is_not_in_others():
  assert config_lib.base("prompts").training.join_seconds == 30.0
  assert config_lib.base("prompts-small").training.join_seconds == 0.0
  assert config_lib.base("demo").training.epochs == 8
  assert config_lib.base("demo-small").training.epochs == 100
  assert config_lib.base("librispeech").training.batch_seconds == 300.0
  assert config_lib.base("librispeech-tiny").training.batch_seconds == 40.0
