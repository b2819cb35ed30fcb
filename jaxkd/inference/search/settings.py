"""Which searches there are, and what is asked of them; without JAX, as help is made of it."""

import dataclasses
from typing import NamedTuple

from jaxkd import workdirs
from jaxkd.inference.search.lexicon import Options


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
  """What a finished run is searched with.

  Attributes:
    models: of the run; what it has of them is searched with.
    lm: an ARPA file; "train" for one that is estimated from training transcripts, or "none".
    order: of the model that is estimated.
    lexicon: a file with a word a line; "" for the words of the language model.
    data: in the place of the run's test data; "" for that.
    prefix_beam: prefixes that are kept without a lexicon.
    search: with a lexicon; what is tuned takes the place of its weights.
    lm_weights, prior_scales, word_scores: every combination is tried on dev.
  """

  models: tuple[str, ...] = workdirs.MODELS
  lm: str = "train"
  order: int = 4
  lexicon: str = ""
  data: str = ""
  prefix_beam: int = 16
  search: Options = Options()
  lm_weights: tuple[float, ...] = (0.4, 0.8, 1.2, 1.6, 2.0)
  prior_scales: tuple[float, ...] = (0.0, 0.1, 0.3, 0.5, 0.7)
  word_scores: tuple[float, ...] = (0.0,)
