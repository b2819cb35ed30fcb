"""Every family of CTC models that is here, by its `model_type`."""

import dataclasses

from jaxkd.errors import UserError
from jaxkd.models.huggingface import (
  granite_speech5,
  lasr,
  omniasr,
  parakeet,
  sew,
  wav2vec2,
  wav2vec2_bert,
  wav2vec2_conformer,
)
from jaxkd.models.huggingface.family import Family

FAMILIES: dict[str, Family] = {
  **wav2vec2.FAMILIES,
  **omniasr.FAMILIES,
  **parakeet.FAMILIES,
  **wav2vec2_bert.FAMILIES,
  **wav2vec2_conformer.FAMILIES,
  **sew.FAMILIES,
  **lasr.FAMILIES,
  **granite_speech5.FAMILIES,
}


def of(config: dict, where: str) -> Family:
  """The family of a model.

  Args:
    config: of its config.json.
    where: folder or file, for errors.

  Raises:
    UserError: none of those that are here.
  """
  name = config.get("model_type")
  if name not in FAMILIES:
    raise UserError(
      f"{where}: config.json's model_type is {name!r}: it must be one of {', '.join(FAMILIES)}"
    )
  return FAMILIES[name]


def model_config(description: dict, where: str, *, pool: int = 1, dtype: str = "float32"):
  """The structure that a description stands for.

  Args:
    description: of `folder.read_description`.
    where: folder or file, for errors.
    pool: frames that are max-pooled into one before the head.
    dtype: of the arithmetic.

  Raises:
    UserError: another architecture, sampling rate, or a part that is not there.
  """
  given = description["config"]
  family = of(given, where)
  if quantised := given.get("quantization_config"):
    method = quantised.get("quant_method") if isinstance(quantised, dict) else None
    raise UserError(
      f"{where}: config.json has a quantization_config ({method or 'unnamed'}): quantised weights "
      "are not read: take the model that they were made of"
    )
  return dataclasses.replace(family.read(description, where), pool=pool, dtype=dtype)
