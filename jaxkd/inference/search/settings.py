"""Which searches there are, and what is asked of them; without JAX, as help is made of it."""

import dataclasses
from typing import NamedTuple

from jaxkd.inference.search.lexicon import Options

MODELS = ("student", "teacher")


class Kind(NamedTuple):
  """A kind of search.

  Attributes:
    title: in tables.
    timed: what search.json calls its real-time factor.
  """

  title: str
  timed: str


# By the names in search.json.
KINDS = {
  "greedy": Kind("greedy", "greedy"),
  "prefix_beam": Kind("prefix beam", "prefix_beam"),
  "lexicon": Kind("lexicon", "lexicon"),
  "lexicon_lm": Kind("lexicon + LM", "search"),
}


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
