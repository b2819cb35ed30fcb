"""Variants that are more than a selection: soft weights, warm-up, hypotheses, ensembles."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import objectives
import reference
from jaxkd import files, losses, selection
from jaxkd.config import fields
from jaxkd.data.sources import Source
from jaxkd.devices import mesh as mesh_lib
from jaxkd.errors import UserError
from jaxkd.inference import hypotheses as hypotheses_lib
from jaxkd.labels import characters
from jaxkd.masks import length_mask
from jaxkd.models.acoustic import AcousticModel
from jaxkd.teacher.ensemble import ensemble
from jaxkd.training import objective
from jaxkd.training import step as step_lib
from jaxkd.training.terms import LOSSES, TEACHER_ENCODINGS, TEACHER_FRAMES
from jaxkd.types import HYPOTHESES, TRANSCRIPTS, Batch, FrameOutput
from objectives import BLANK, CLASSES, FRAME, WIDTH

pytestmark = pytest.mark.usefixtures("quick_to_compile")

VOCABULARY = characters("a ")


def soft(logits, mask, **options):
  return np.asarray(selection.soft(logits, mask, blank_id=BLANK, **options))


def test_soft_weights_are_label_masses():
  probs = np.array([[[0.5, 0.3, 0.2], [0.05, 0.05, 0.9], [0.0, 1e-7, 1.0], [0.2, 0.2, 0.6]]])
  logits = np.log(np.maximum(probs, 1e-30)).astype(np.float32) + 4
  mask = np.array([[True, True, True, False]])
  found = soft(logits, mask)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, [[1, 0.1, 1e-7, 0]], rtol=1e-4)
  np.testing.assert_allclose(soft(logits, mask, min_weight=0.2), [[1, 0.2, 0.2, 0]], rtol=1e-4)
  logits[:, 3] = np.nan
  np.testing.assert_array_equal(soft(logits, mask), found)


def test_soft_weights_are_at_their_ends_other_selections():
  logits = jax.random.normal(jax.random.key(0), (2, 9, CLASSES)) + jnp.array([[[0, 0, 2.0]]])
  mask = length_mask(jnp.array([9, 6]), 9)
  np.testing.assert_array_equal(soft(logits, mask, min_weight=1.0), mask)
  certain = logits + 200 * jax.nn.one_hot(jnp.argmax(logits, -1), CLASSES)
  np.testing.assert_array_equal(
    soft(certain, mask), selection.nonblank(certain, mask, blank_id=BLANK)
  )


def test_cosine_distance_in_closed_form():
  a = np.array([[[1.0, 0], [3, 4], [1, 1], [np.nan, 1]]], np.float32)
  b = np.array([[[0.0, 2], [6, 8], [-5, -5], [1, np.nan]]], np.float32)
  weights = np.array([[1.0, 1.0, 0.5, 0.0]], np.float32)
  found = losses.cosine_distance(a, b, weights)
  np.testing.assert_allclose([found.total, found.weight], [1 + 0 + 0.5 * 2, 2.5], atol=1e-6)


def test_cosine_distance_has_finite_gradients_to_the_student_alone():
  a, b = jnp.zeros((1, 2, 4)).at[0, 1].set(jnp.arange(4.0)), jnp.ones((1, 2, 4))
  mean = lambda a, b: losses.cosine_distance(a, b, jnp.ones((1, 2), bool)).mean()
  to_student, to_teacher = jax.grad(mean, (0, 1))(a, b)
  assert np.isfinite(to_student).all() and np.abs(to_student[0, 1]).max() > 1e-3
  assert not to_teacher.any()
  # Only the direction counts.
  np.testing.assert_allclose(mean(7 * a, b), mean(a, 0.1 * b), rtol=1e-6)


NONBLANK = dict(name="nonblank")


def test_warmup_brings_encoders_together_and_then_is_over():
  batch = objectives.make_batch()
  plain = objectives.distill(objectives.make(BLANK, selection=NONBLANK), batch)
  settings = objectives.make(BLANK, selection=NONBLANK, warmup=2)
  first, early, late = (objectives.distill(settings, batch, epoch) for epoch in range(3))
  np.testing.assert_allclose(late[0], plain[0], rtol=1e-6)
  for name in ("kd/kl", "selected"):
    np.testing.assert_allclose(late[1][name].total, plain[1][name].total, rtol=1e-6)
  assert float(late[1]["kd/cosine"].weight) == 0
  assert not late[2]["to"][...].any() and np.abs(late[2]["outer"][...]).max() > 0
  # Before: one minus the cosine of every real frame, which the head has no part in.
  student, teacher = objectives.Frames(1, project_to=WIDTH + 2), objectives.Frames(2, WIDTH + 2)
  a, mask = student.encode(batch.audio, batch.audio_len)
  a, b = (np.asarray(x, np.float64) for x in (student.projection(a), teacher.encode(*batch[:2])[0]))
  cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
  np.testing.assert_allclose(early[0], (1 - cosine)[np.asarray(mask)].mean(), rtol=1e-4)
  np.testing.assert_allclose(first[0], early[0], rtol=1e-6)
  assert float(early[1]["selected"].mean()) == 1 and float(early[1]["kd/kl"].weight) == 0
  assert np.abs(early[2]["to"][...]).max() > 0 and not early[2]["outer"][...].any()


def test_losses_that_a_config_may_name_are_those_of_the_table():
  """And the warm-up's, which none names."""
  assert {*fields.LOSSES, "cosine"} == set(LOSSES)


@pytest.mark.parametrize(
  ("changes", "names", "needs"),
  [
    (dict(scale=0.0, warmup=2), "ctc", {TRANSCRIPTS}),
    (dict(scale=1.0), "kd/kl", {TEACHER_FRAMES}),
    (dict(scale=0.5, normalization="labels"), "kd/kl ctc", {TEACHER_FRAMES, TRANSCRIPTS}),
    (dict(scale=1.0, warmup=2), "kd/cosine kd/kl", {TEACHER_FRAMES, TEACHER_ENCODINGS}),
    (dict(scale=0.5, loss="hypotheses"), "hypotheses ctc", {HYPOTHESES, TRANSCRIPTS}),
    (dict(scale=1.0, loss="hypotheses"), "hypotheses", {HYPOTHESES}),
    (dict(scale=0.25, ctc="hypotheses"), "kd/kl ctc", {TEACHER_FRAMES, HYPOTHESES}),
  ],
)
def test_terms_and_what_they_need(changes, names, needs):
  """A term whose scale is 0 for good is not there, and nothing is asked for it."""
  found = objectives.make(BLANK, **changes)
  assert [term.name for term in found.terms] == names.split() and found.needs == needs
  assert objective.needs(objectives.kd(**changes)) == needs
  assert found.asks_teacher == (TEACHER_FRAMES in needs)
  measures = {term.name for term in found.measures}
  assert ("selected" in measures) == (TEACHER_FRAMES in needs) and "blank" in measures
  assert ("infeasible" in measures) == bool(needs & {TRANSCRIPTS, HYPOTHESES})


@pytest.mark.parametrize(("epoch", "name"), [(0, "kd/cosine"), (1, "kd/kl")])
def test_warmup_keeps_the_share_of_ctc(epoch, name):
  loss, terms, _ = objectives.distill(
    objectives.make(BLANK, scale=0.25, warmup=1), objectives.make_batch(), epoch
  )
  expected = 0.25 * terms[name].mean() + 0.75 * terms["ctc"].mean()
  np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("case", ["a", "b"])
def test_normalization_by_labels_is_the_authors_standard(case):
  case = reference.golden(case)
  wanted = case["variants"]["standard"]
  student, teacher = case["student_logits"], case["teacher_logits"]
  rows, frames, classes = student.shape
  lengths = case["label_lengths"].astype(np.int32)
  batch = Batch(
    np.zeros((rows, frames), np.int16),
    np.full(rows, frames, np.int32),
    case["labels"].astype(np.int32),
    lengths,
  )
  mask = jnp.ones((rows, frames), bool)
  settings = objectives.make(classes - 1, scale=0.9, normalization="labels")
  model = lambda *args, **options: FrameOutput(jnp.asarray(student), mask)
  taught = step_lib.Taught(FrameOutput(jnp.asarray(teacher), mask))
  view = step_lib.observe(model, taught, batch, jax.random.key(0), jnp.int32(0), settings)
  loss, terms = settings(view)
  # Theirs is divided by rows in the sum, and by labels after it.
  expected = float(wanted["kl_sum"]) / float(wanted["kl_norm"])
  np.testing.assert_allclose(terms["kd/kl"].mean(), expected, rtol=1e-5)
  ctc = float(wanted["ctc_sum"]) / float(wanted["ctc_norm"])
  np.testing.assert_allclose(loss, 0.9 * expected + 0.1 * ctc, rtol=1e-5)


def test_hypotheses_are_ctc_targets_beside_transcripts():
  batch = objectives.make_batch()
  learnt = dict(loss="hypotheses", hypotheses=3)
  settings = objectives.make(BLANK, scale=0.75, **learnt)
  assert not settings.asks_teacher
  loss, terms, _ = objectives.distill(settings, batch)
  out = objectives.Frames(1)(batch.audio, batch.audio_len)
  frames = np.asarray(out.mask.sum(1))
  for term, labels, lengths in (
    (terms["ctc"], batch.labels, batch.label_len),
    (terms["hypotheses"], batch.hypothesis, batch.hypothesis_len),
  ):
    rows = [
      reference.ctc_forward(x[:t], y[:u], BLANK)
      for x, t, y, u in zip(np.asarray(out.logits), frames, labels, lengths, strict=True)
    ]
    np.testing.assert_allclose([term.total, term.weight], [sum(rows), lengths.sum()], rtol=1e-4)
  expected = 0.75 * terms["hypotheses"].mean() + 0.25 * terms["ctc"].mean()
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  assert float(terms["infeasible"].weight) == 8 and "selected" not in terms
  # Nothing else of the teacher, and no transcript, is read at scale 1.
  blind = batch._replace(labels=None, label_len=None)
  beside = objectives.make(BLANK, scale=0.75, ctc="hypotheses")
  whole, heard, _ = objectives.distill(beside, blind)
  np.testing.assert_allclose(heard["ctc"].total, terms["hypotheses"].total, rtol=1e-6)
  frames = objectives.distill(objectives.make(BLANK), batch)[0]
  np.testing.assert_allclose(whole, 0.75 * frames + 0.25 * heard["ctc"].mean(), rtol=1e-6)
  alone, _, _ = objectives.distill(objectives.make(BLANK, **learnt), blind)
  np.testing.assert_allclose(alone, terms["hypotheses"].mean(), rtol=1e-6)


def of(model: nnx.Module) -> AcousticModel:
  return AcousticModel(*nnx.split(model), VOCABULARY, FRAME)


def test_ensemble_is_the_mean_of_probabilities():
  batch = objectives.make_batch()
  teachers = [of(objectives.Frames(seed, width)) for seed, width in ((1, 4), (2, 6), (3, 4))]
  found = ensemble(teachers)(batch.audio, batch.audio_len)
  each = [t(batch.audio, batch.audio_len) for t in teachers]
  mean = np.mean([jax.nn.softmax(out.logits) for out in each], 0)
  np.testing.assert_allclose(jax.nn.softmax(found.logits), mean, atol=1e-6)
  np.testing.assert_array_equal(found.mask, each[0].mask)
  alone = ensemble([teachers[1]] * 2)(batch.audio, batch.audio_len)
  np.testing.assert_allclose(alone.logits, jax.nn.log_softmax(each[1].logits), atol=1e-5)


class Shorter(objectives.Frames):
  """One frame less, as another padding convention would have it."""

  def __call__(self, audio, audio_len, **options):
    out = super().__call__(audio, audio_len, **options)
    return FrameOutput(out.logits[:, :-1], out.mask[:, 1:])


def test_ensemble_is_cut_to_the_shortest():
  batch = objectives.make_batch()
  found = ensemble([of(objectives.Frames(1)), of(Shorter(2))])(batch.audio, batch.audio_len)
  mask = np.asarray(objectives.Frames(1)(batch.audio, batch.audio_len).mask)
  np.testing.assert_array_equal(found.mask, mask[:, 1:])
  assert found.logits.shape[1] == mask.shape[1] - 1


def make_source() -> Source:
  """Two utterances of noise."""
  audio = objectives.make_batch(2).audio
  durations = np.full(2, audio.shape[1] / 16_000)
  return Source("noise", ["x", "y"], durations, [None, None], [], lambda i: audio[i])


def find(path, source=None, count=3):
  source = source or make_source()
  devices = mesh_lib.make_mesh(devices=jax.devices()[:1])
  return hypotheses_lib.find(of(objectives.Frames(1)), source, path, devices, count=count)


def test_hypotheses_are_found_once_and_kept(tmp_path):
  path = tmp_path / "nbest.jsonl"
  found = find(path)
  rows = files.read_jsonl(path)
  assert [row["id"] for row in rows] == ["x", "y"]
  for row, labels, weights in zip(rows, found.labels, found.weights, strict=True):
    assert [h["labels"] for h in row["nbest"]] == [x.tolist() for x in labels]
    assert len({tuple(x) for x in labels}) == len(labels) == 3
    assert [h["text"] for h in row["nbest"]] == [VOCABULARY.decode(x) for x in labels]
    np.testing.assert_allclose(weights.sum(), 1)
    assert list(weights) == sorted(weights, reverse=True) and weights[0] > weights[2]
  written = path.stat().st_mtime_ns
  again = find(path)
  assert path.stat().st_mtime_ns == written
  jax.tree.map(np.testing.assert_array_equal, again.labels, found.labels)
  assert list(found.longest()) == [max(map(len, x)) for x in found.labels]


def test_hypotheses_weigh_by_probability(tmp_path):
  """With a search over all sequences the weights are their exact probabilities, renormalised."""
  batch = objectives.make_batch(2)
  found = find(tmp_path / "nbest.jsonl", count=3)
  out = objectives.Frames(1)(batch.audio, np.full(2, batch.audio.shape[1], np.int32))
  for row in range(2):
    log_p = [
      -reference.ctc_forward(np.asarray(out.logits[row]), labels, BLANK)
      for labels in found.labels[row]
    ]
    expected = np.exp(log_p - np.logaddexp.reduce(log_p))
    np.testing.assert_allclose(found.weights[row], expected, atol=0.1)


@pytest.mark.parametrize("broken", ["not json\n", '{"id": "x"}\n', '{"id": "z", "nbest": []}\n'])
def test_hypotheses_of_other_data_or_damaged_are_one_line(tmp_path, broken):
  path = tmp_path / "nbest.jsonl"
  path.write_text(broken)
  with pytest.raises(UserError, match=r"nbest\.jsonl") as caught:
    find(path)
  assert "\n" not in str(caught.value)


def test_draws_follow_the_weights_and_join_with_a_space():
  a, b, c = (np.array(x, np.int32) for x in ([0], [0, 0], []))
  space = np.array([1], np.int32)
  found = hypotheses_lib.Hypotheses(
    ((a, b), (c,), ()), (np.array([0.3, 0.7]), np.ones(1), np.zeros(0)), space
  )
  rng = np.random.default_rng(0)
  lengths = np.array([len(found.draw([0], rng)) for _ in range(4000)])
  assert abs((lengths == 2).mean() - 0.7) < 0.03
  joined = {tuple(found.draw([0, 0], rng)) for _ in range(200)}
  assert joined == {(0, 1, 0), (0, 0, 1, 0), (0, 1, 0, 0), (0, 0, 1, 0, 0)}
  assert found.draw([1], rng).shape == (0,)
  assert (
    found.draw([2], rng) is None and found.draw([0, 2], rng) is None
  )  # no target, and no silence
  assert list(found.longest()) == [2, 0, 0]


def test_train_step_of_a_warmup_moves_all_but_the_head():
  graphdef, params = nnx.split(objectives.Frames(1, project_to=WIDTH + 2))
  teacher_graphdef, teacher_params = nnx.split(objectives.Frames(2, WIDTH + 2))
  before = jax.device_get(params)
  optimizer = optax.sgd(0.3)
  settings = objectives.make(BLANK, warmup=1)
  update = step_lib.make_train_step(graphdef, teacher_graphdef, settings, optimizer)
  state = step_lib.TrainState.fresh(params, optimizer.init(params), settings)
  distances = []
  for _ in range(20):
    state = update(state, teacher_params, objectives.make_batch(), jnp.int32(0), jax.random.key(0))
    distances.append(float(state.terms["kd/cosine"].mean()))  # of all updates so far
  assert distances == sorted(distances, reverse=True) and distances[-1] < distances[0] - 0.01
  np.testing.assert_array_equal(state.params["outer"][...], before["outer"][...])
  for moved in ("inner", "to"):
    assert np.abs(state.params[moved][...] - before[moved][...]).max() > 1e-3
