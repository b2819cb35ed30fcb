"""Training does not take utterances whose attention no memory holds."""

import numpy as np
import pytest

from jaxkd.data.sources import Limits, Source
from jaxkd.errors import UserError
from jaxkd.training import assembly


@pytest.mark.parametrize(("seconds", "refused"), [(599.0, False), (1500.0, True)])
def test_a_recording_of_minutes_is_refused_before_it_is_allocated(seconds, refused):
  source = Source("talks", ["a", "b"], np.array([1.0, seconds]), [None, None], [], None)
  if not refused:
    return assembly._check_longest(source, Limits(0.1, 1e6))
  with pytest.raises(UserError, match="talks has an utterance of 1500 s, .* at most 600 s"):
    assembly._check_longest(source, Limits(0.1, 1e6))
