"""Tiny models of transformers, saved for the tests of folders in Hugging Face's layout."""

import functools
import pathlib
import shutil

import pytest


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """(family, norm, **over) → a tiny model's folder and itself; each is made once."""
  hf_models = pytest.importorskip("hf_models")

  @functools.cache
  def get(family="hubert", norm="layer", **over):
    folder = tmp_path_factory.mktemp("model")
    return folder, hf_models.make(folder, family, norm, **over)

  return get


@pytest.fixture
def folder(saved, tmp_path) -> pathlib.Path:
  """A copy of a good folder, to be damaged."""
  return shutil.copytree(saved()[0], tmp_path / "model")
