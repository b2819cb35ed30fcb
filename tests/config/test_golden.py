"""Golden dumps: no default changes unseen, and today's recipes are yesterday's."""

import pytest

import golden_configs
from jaxkd import config as config_lib


@pytest.mark.parametrize("recipe", golden_configs.RECIPES)
def test_recipes_and_variants_are_as_recorded(recipe):
  path = golden_configs.FOLDER / f"{recipe}.txt"
  found, wanted = golden_configs.dump(recipe), path.read_text() if path.exists() else ""
  assert found == wanted, f"a default has changed: if that is meant, run {golden_configs.RENEW}"


def test_no_dump_is_of_a_recipe_that_is_gone():
  assert {p.stem for p in golden_configs.FOLDER.glob("*.txt")} == set(golden_configs.RECIPES)


@pytest.mark.parametrize("recipe", sorted(config_lib.DATA.keys() & golden_configs.RECORDED.keys()))
def test_recipes_without_a_size_are_what_they_were_before_there_were_sizes(recipe):
  now = config_lib.stored(config_lib.base(recipe))
  assert now.pop("schema") == config_lib.SCHEMA
  assert now["teacher"].pop("language") == "" and not now["teacher"].pop("cache")
  assert now["teacher"].pop("decay") == 0.999
  for name in ("scale_ramp", "temperature_ramp", "n_ramp"):
    assert now["kd"].pop(name) == []
  assert (now["kd"].pop("delays"), now["kd"].pop("softness")) == ([0], 1.0)
  assert (now["kd"].pop("blank_scale"), now["kd"].pop("consistency")) == (1.0, 0.0)
  assert now["kd"].pop("targets") == "hypotheses" and not now["kd"].pop("inner_scale")
  assert now["kd"].pop("ctc") == "transcripts"
  assert not now["kd"].pop("co_teacher") and now["kd"].pop("delay_of") == "frame"
  for model in (now["student"], now["teacher"]["model"]):
    assert model.pop("chunk_frames", []) == model.pop("left_frames", []) == []
    assert model.pop("inner_layers", []) == []
  for training in (now["training"], now["teacher"]["training"]):
    assert training.pop("batch_seconds_per_device") == 0 and training.pop("row_multiple") < 2
  now["teacher"]["training"]["remat"] = False
  assert now["checkpoint"].pop("every_minutes") == 10
  assert (now["data"].pop("min_seconds"), now["data"].pop("max_seconds")) == (0.1, 40.0)
  # The characters were said; auto finds the same ones in English.
  assert now["labels"]["alphabet"] == config_lib.AUTO
  now["labels"]["alphabet"] = config_lib.ALPHABET
  assert now["kd"].pop("loss") == "kl" and now["kd"].pop("hypotheses") == 10
  assert now["student"].pop("init") == now["teacher"]["model"].pop("init") == ""
  before = golden_configs.RECORDED[recipe]
  before = before | {"kd": {k: v for k, v in before["kd"].items() if k != "hypotheses"}}
  assert now == before


@pytest.mark.parametrize("recipe", config_lib.DATA)
def test_size_of_its_own_can_be_said(recipe):
  data, size = config_lib.parts(recipe)
  assert data == recipe
  found, wanted = config_lib.base(f"{data}-{size}"), config_lib.base(recipe)
  assert found.recipe == f"{data}-{size}" and wanted.recipe == recipe
  with found.unlocked():
    found.recipe = recipe
  assert found.to_dict() == wanted.to_dict()
