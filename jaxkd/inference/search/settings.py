"""What is asked of a search that is tuned; without JAX, since help is made of the defaults."""

import dataclasses

from jaxkd.inference.search.lexicon import Options

MODELS = ("student", "teacher")


@dataclasses.dataclass(frozen=True)
class Settings:
  """What the command line says, and what is done where it says nothing."""

  models: tuple[str, ...] = MODELS
  lm: str = "train"
  order: int = 4
  lexicon: str = ""
  data: str = ""
  prefix_beam: int = 16
  search: Options = Options()
  lm_weights: tuple[float, ...] = (0.4, 0.8, 1.2, 1.6, 2.0)
  prior_scales: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5, 0.7)
  word_scores: tuple[float, ...] = (0.0,)
