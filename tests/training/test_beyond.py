"""Objectives that the paper has not: other losses, views, ramps, and the student's own past."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import objectives
from jaxkd import losses, selection
from jaxkd.config import overrides
from jaxkd.masks import length_mask
from jaxkd.teacher import store
from jaxkd.training import objective
from jaxkd.training import step as step_lib
from jaxkd.training.terms import TEACHER_FRAMES, TWO_VIEWS
from jaxkd.types import HYPOTHESES, TRANSCRIPTS, FrameOutput, StoredFrames
from objectives import BLANK, WIDTH

pytestmark = pytest.mark.usefixtures("quick_to_compile")
NONBLANK = dict(name="nonblank")


def both(batch):
  """What student and teacher of `objectives.distill` say, and the mask of both."""
  student = objectives.Frames(1, project_to=WIDTH + 2)(batch.audio, batch.audio_len)
  teacher = objectives.Frames(2, WIDTH + 2)(batch.audio, batch.audio_len)
  return student.logits, teacher.logits, teacher.mask


def expected(name, batch):
  """Of each loss, from the library alone, with the selection of label frames."""
  student, teacher, mask = both(batch)
  chosen = selection.nonblank(teacher, mask, blank_id=BLANK)
  lengths = mask.sum(-1, dtype=jnp.int32)
  occupied = lambda labels, count: losses.ctc_occupancy(
    teacher, lengths, labels, count, blank_id=BLANK
  )
  half = jnp.where(mask, 0.5, 0)
  return {
    "delayed": lambda: losses.delayed_kl(
      student, teacher, chosen, mask, temperature=2.0, delays=(0, 2), softness=0.5
    ),
    "split": lambda: losses.split_kl(
      student, teacher, half, chosen, mask, temperature=2.0, blank_id=BLANK
    ),
    "guided": lambda: losses.guided_ctc(student, teacher, chosen),
    "soft": lambda: losses.soft_cross_entropy(
      student, occupied(batch.hypothesis, batch.hypothesis_len), chosen
    ),
    "transcribed": lambda: losses.soft_cross_entropy(
      student, occupied(batch.labels, batch.label_len), chosen
    ),
  }[name]()


LOSSES = {
  "delayed": dict(loss="kl", delays=(0, 2), softness=0.5),
  "split": dict(loss="split_kl", blank_scale=0.5),
  "guided": dict(loss="guided"),
  "soft": dict(loss="soft_ctc"),
  "transcribed": dict(loss="soft_ctc", targets="transcripts"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_terms_are_the_library_on_what_is_selected(name):
  batch = objectives.make_batch()
  made = objectives.make(BLANK, selection=NONBLANK, **LOSSES[name])
  loss, terms, grads = objectives.distill(made, batch)
  wanted = expected(name, batch)
  found = terms[f"kd/{LOSSES[name]['loss']}"]
  np.testing.assert_allclose([found.total, found.weight], [wanted.total, wanted.weight], rtol=1e-4)
  np.testing.assert_allclose(loss, wanted.mean(), rtol=1e-4)
  assert np.abs(grads["inner"][...]).max() > 0


@pytest.mark.parametrize("loss", ["kl", "split_kl"])
def test_a_late_student_is_taught_nothing_that_a_store_does_not_know(loss):
  """Of six classes two are kept; one that says the same a frame later has no loss."""
  rng = np.random.default_rng(0)
  log_probs = np.asarray(jax.nn.log_softmax(3 * rng.normal(size=(12, 6)).astype(np.float32)))
  how = store.Settings(6, 5, 2.0, 2, "float32")
  kept = store.decode(store.encode(log_probs, 12 * objectives.FRAME, how), how)
  mask = jnp.ones((1, 12), bool)
  taught = StoredFrames(kept.log_probs[None], kept.tail[None], mask, kept.ids[None])
  batch = objectives.make_batch(rows=1, frames=12)._replace(taught=taught)
  late = np.roll(log_probs, 1, 0)[None]
  model = lambda *args, **options: FrameOutput(jnp.asarray(late), mask)
  made = objectives.make(5, loss=loss, delays=(1,))
  told = step_lib.retell(batch, how)
  view = step_lib.observe(model, told, batch, jax.random.key(0), jnp.int32(0), made)
  assert float(made(view)[0]) == pytest.approx(0, abs=1e-5)


def test_rows_that_soft_ctc_has_no_path_for_are_in_neither_sum():
  batch = objectives.make_batch()
  less = np.array(batch.hypothesis_len)
  less[0], less[1] = -1, 99
  made = objectives.make(BLANK, loss="soft_ctc")
  _, terms, _ = objectives.distill(made, batch._replace(hypothesis_len=less))
  frames = -(-batch.audio_len // objectives.FRAME)
  assert float(terms["kd/soft_ctc"].weight) == frames[2:].sum()


@pytest.mark.parametrize(
  ("changes", "names", "needs"),
  [
    (dict(loss="split_kl"), "kd/split_kl", {TEACHER_FRAMES}),
    (dict(loss="guided", scale=0.5), "kd/guided ctc", {TEACHER_FRAMES, TRANSCRIPTS}),
    (dict(loss="soft_ctc"), "kd/soft_ctc", {TEACHER_FRAMES, HYPOTHESES}),
    (
      dict(loss="soft_ctc", targets="transcripts"),
      "kd/soft_ctc",
      {TEACHER_FRAMES, TRANSCRIPTS},
    ),
    (dict(scale=1.0, scale_ramp=(0.0, 2)), "kd/kl ctc", {TEACHER_FRAMES, TRANSCRIPTS}),
    (dict(scale=0.0, consistency=0.2), "ctc consistency", {TRANSCRIPTS, TWO_VIEWS}),
    (dict(consistency=0.2), "kd/kl consistency", {TEACHER_FRAMES, TWO_VIEWS}),
  ],
)
def test_what_terms_need(changes, names, needs):
  found = objectives.make(BLANK, **changes)
  assert [term.name for term in found.terms] == names.split() and found.needs == needs
  assert objective.needs(objectives.kd(**changes)) == needs


SYMMETRIC = dict(scale=0.5, selection=dict(name="symmetric", n=2))
# epoch → scale, temperature, n
RAMPED = {0: (0.1, 4.0, 0), 1: (0.2, 3.0, 0), 2: (0.3, 2.0, 1), 9: (0.5, 2.0, 2)}


def test_ramps_move_to_their_value_and_stay_there():
  batch = objectives.make_batch()
  ramps = dict(scale_ramp=(0.1, 4), temperature_ramp=(4.0, 2), n_ramp=(0, 3))
  ramped = objectives.make(BLANK, **SYMMETRIC, **ramps)
  for epoch, (scale, temperature, n) in RAMPED.items():
    there = dict(scale=scale, temperature=temperature, selection=dict(name="symmetric", n=n))
    wanted = objectives.distill(objectives.make(BLANK, **there), batch)[0]
    np.testing.assert_allclose(objectives.distill(ramped, batch, epoch)[0], wanted, rtol=1e-5)


@pytest.mark.parametrize(
  ("first", "last", "epochs"), [(0, 5, 25), (8, 2, 6), (8, 2, 42), (0, 7, 49)]
)
def test_a_ramp_of_n_steps_in_the_epoch_that_it_should(first, last, epochs):
  """One label in the middle: 2 n + 1 frames, n rounded down."""
  mask = jnp.ones((1, 31), bool)
  logits = jnp.zeros((1, 31, 3)).at[:, :, BLANK].set(3.0).at[:, 15, 0].set(9.0)
  kd = objectives.kd(selection=dict(name="symmetric", n=last), n_ramp=(first, epochs))
  select = objective.make_selector(kd, blank_id=BLANK, log_prior=None)
  count = jax.jit(lambda epoch: select(logits, mask, jax.random.key(0), epoch).sum())
  found = [int(count(jnp.int32(epoch))) for epoch in range(epochs + 3)]
  n = [first + (last - first) * min(epoch, epochs) // epochs for epoch in range(epochs + 3)]
  assert found == [2 * x + 1 for x in n]


@pytest.mark.parametrize("more", [{}, dict(normalization="labels")])
def test_a_second_view_changes_no_figure_of_the_first(more):
  """Of a model that hears both alike: means of losses, and rows without a path."""
  batch = objectives.make_batch()
  batch = batch._replace(label_len=np.array([3, 1, 99, 2], np.int32))
  one, two = (objectives.make(BLANK, scale=0.5, consistency=c, **more) for c in (0.0, 0.2))
  one, two = (objectives.distill(made, batch)[1] for made in (one, two))
  for name in ("kd/kl", "ctc"):
    np.testing.assert_allclose(two[name].mean(), one[name].mean(), rtol=1e-5)
  for found in (one, two):
    assert (found["infeasible"].total, found["infeasible"].weight) == (1, 4)


class Views(objectives.Frames):
  """Of each row its own factor, as dropout would draw it."""

  def encode(self, audio, audio_len, *, key=None, spec_augment=None, augment_on=True):
    x, mask = super().encode(audio, audio_len)
    factors = jnp.ones(len(audio)) if key is None else jnp.linspace(0.5, 1.5, len(audio))
    return x * factors[:, None, None], mask


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_two_views_learn_from_each_other(scale):
  batch = objectives.make_batch()
  made = objectives.make(BLANK, scale=scale, consistency=0.2)
  model, teacher = Views(1), objectives.Frames(2, WIDTH + 2)
  taught = None
  if made.asks_teacher:
    taught = step_lib.teach(teacher, batch, made.needs)
    taught = step_lib.Taught(step_lib.twice(taught.output))
  view = step_lib.observe(
    model, taught, step_lib.twice(batch), jax.random.key(0), jnp.int32(0), made
  )
  loss, terms = made(view)
  frames = -(-batch.audio_len // objectives.FRAME)
  one, other = view.output.logits[::2], view.output.logits[1::2]
  mask = length_mask(frames, one.shape[1])
  pairs = ((one, other), (other, one))
  kl = sum(losses.kd_kl(*pair, mask, temperature=1.0).total for pair in pairs) / 2
  count = batch.label_len.sum() if scale == 0 else frames.sum()
  np.testing.assert_allclose(terms["consistency"].mean(), kl / count, rtol=1e-5)
  main = "ctc" if scale == 0 else "kd/kl"
  wanted = terms[main].mean() + 0.2 * kl / count
  np.testing.assert_allclose(loss, wanted, rtol=1e-5)
  if scale == 0:
    rows = [
      losses.ctc_loss(x, frames, batch.labels, batch.label_len, blank_id=BLANK).sum()
      for x in (one, other)
    ]
    np.testing.assert_allclose(terms["ctc"].mean(), sum(rows) / 2 / count, rtol=1e-5)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_inner_heads_have_their_share_of_every_loss(scale):
  """Two heads that say the same as the model leave the loss as it is."""
  batch = objectives.make_batch()
  teacher = objectives.Frames(2, WIDTH + 2)

  class Deep(objectives.Frames):
    def with_inner(self, audio, audio_len, **options):
      output = self(audio, audio_len, **options)
      other = objectives.Frames(5)(audio, audio_len)
      return output, [output, other]

  def found(made):
    taught = step_lib.teach(teacher, batch, made.needs) if made.asks_teacher else None
    args = batch, jax.random.key(0), jnp.int32(0), made
    return made(step_lib.observe(Deep(1), taught, *args))

  plain, terms = found(objectives.make(BLANK, scale=scale))
  loss, inner = found(objectives.make(BLANK, scale=scale, inner_scale=0.4))
  of_heads = 0.0
  for name, share in (("kd/kl", scale), ("ctc", 1 - scale)):
    if share:
      np.testing.assert_allclose(inner[name].total, terms[name].total, rtol=1e-6)
      assert float(inner[f"inner/{name}"].weight) == 2 * float(inner[name].weight)
      of_heads += share * inner[f"inner/{name}"].mean()
  np.testing.assert_allclose(loss, 0.6 * plain + 0.4 * of_heads, rtol=1e-5)


def test_two_views_have_more_masks_in_time():
  """As Yao et al. 2025 have."""
  one, two = (objectives.make(BLANK, spec_augment=True, consistency=c) for c in (0.0, 0.2))
  assert (one.spec_augment.more_time_masks, two.spec_augment.more_time_masks) == (1.0, 2.5)


def test_the_average_of_its_own_past_is_the_teacher():
  batch = objectives.make_batch()
  made = objectives.make(BLANK, scale=0.5, average_decay=0.15)
  assert not made.asks_teacher
  graphdef, params = nnx.split(objectives.Frames(1))
  optimizer = optax.sgd(0.1)
  state = step_lib.TrainState.fresh(params, optimizer.init(params), made)
  step = step_lib.make_train_step(graphdef, None, made, optimizer)
  average = jax.tree.map(np.asarray, params)
  for number in range(3):
    before = jax.tree.map(np.asarray, state.params)
    state = step(state, None, batch, jnp.int32(0), jax.random.key(0))
    if number == 0:  # it starts where the student does
      np.testing.assert_allclose(state.terms["kd/kl"].total, 0, atol=1e-4)
    decay = min(0.15, (1 + number) / (10 + number))
    mix = lambda a, b, decay=decay: decay * a + (1 - decay) * np.asarray(b)
    average = jax.tree.map(mix, average, state.params)
    assert not np.array_equal(before["inner"][...], state.params["inner"][...])
  for a, b in zip(jax.tree.leaves(average), jax.tree.leaves(state.average), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  assert float(state.terms["kd/kl"].total) > 1e-3


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_average_decays_by_updates_and_not_by_batches(accumulate):
  config = overrides.parse(
    ["", "--config=self_distillation:demo", f"--config.training.accumulate={accumulate}"]
  )[0]
  made = objective.of_config(config, blank_id=BLANK, log_prior=None)
  np.testing.assert_allclose(made.average_decay**accumulate, config.teacher.decay, rtol=1e-12)
