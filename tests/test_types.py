"""The values that travel."""

import jax
import numpy as np
import pytest

from jaxkd.types import BATCH_FIELDS, HYPOTHESES, TRANSCRIPTS, Batch, batch_like


def test_the_table_has_every_field_and_says_which_may_be_none():
  assert (*BATCH_FIELDS, "taught") == Batch._fields
  asked = {name for name, field in BATCH_FIELDS.items() if field.need is not None}
  assert asked | {"taught"} == set(Batch._field_defaults)


@pytest.mark.parametrize(
  ("needs", "there"),
  [
    ((), "audio audio_len"),
    ((TRANSCRIPTS,), "audio audio_len labels label_len"),
    ((HYPOTHESES, "what no batch has"), "audio audio_len hypothesis hypothesis_len"),
  ],
)
def test_a_batch_has_what_is_asked_for(needs, there):
  batch = batch_like(np.zeros, needs, rows=3, samples=50, labels=7)
  assert {name for name, field in batch._asdict().items() if field is not None} == {*there.split()}
  shapes = batch_like(jax.ShapeDtypeStruct, needs, rows=3, samples=50, labels=7)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), batch) == jax.tree.map(
    lambda x: (x.shape, x.dtype), shapes
  )
  assert (batch.audio.dtype, batch.audio.shape) == (np.float32, (3, 50))
  for ids, lengths in ((batch.labels, batch.label_len), (batch.hypothesis, batch.hypothesis_len)):
    if ids is not None:
      assert (ids.shape, lengths.shape) == ((3, 7), (3,)) and ids.dtype == lengths.dtype == np.int32
