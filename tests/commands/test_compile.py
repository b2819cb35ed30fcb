"""Counts against closed forms, remat against none, and a step compiled for a slice of TPUs."""

import importlib.util
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxkd.commands import line as command_line
from jaxkd.commands import plan_tpu
from jaxkd.config import overrides, recipes
from jaxkd.devices import flops, hlo, mesh, slices
from jaxkd.errors import UserError
from jaxkd.models import stack
from jaxkd.models.conformer import ConformerConfig, ConformerCTC
from jaxkd.models.features import LogMel
from jaxkd.models.huggingface import families, known
from jaxkd.models.wav2vec2 import Wav2Vec2CTC
from jaxkd.training import ahead

ROOT = pathlib.Path(__file__).parents[2]
needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)

needs_cuda = pytest.mark.skipif(
  importlib.util.find_spec("jax_cuda13_plugin") is None, reason="no plugin for CUDA is installed"
)


def counted(f, *shapes) -> float:
  return flops.count(jax.make_jaxpr(f)(*(jnp.zeros(s) for s in shapes)))


def test_products_are_counted():
  assert counted(lambda a, b: jnp.sin(a @ b) + 1, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
  batched = lambda a, b: jnp.einsum("bij,bjk->bik", a, b)
  assert counted(batched, (4, 3, 5), (4, 5, 7)) == 4 * 2 * 3 * 5 * 7
  assert counted(jax.grad(lambda a, b: (a @ b).sum(), (0, 1)), (3, 5), (5, 7)) == 3 * 2 * 3 * 5 * 7


def test_what_runs_often_counts_often_and_of_branches_the_dearest():
  product, once = lambda x, _: (x @ x, None), 2 * 4**3
  assert counted(lambda x: jax.lax.scan(product, x, length=9)[0], (4, 4)) == 9 * once
  outer = lambda x, _: (jax.jit(lambda x: jax.lax.scan(product, x, length=3)[0])(x), None)
  assert counted(lambda x: jax.lax.scan(outer, x, length=5)[0], (4, 4)) == 15 * once
  either = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x @ x @ x, x)
  assert counted(either, (4, 4)) == 2 * once
  layer = jax.checkpoint(lambda x: jnp.sin(x @ x))
  plain = counted(jax.grad(lambda x: jnp.sin(x @ x).sum()), (4, 4))
  assert counted(jax.grad(lambda x: layer(x).sum()), (4, 4)) == plain + once


@pytest.mark.parametrize(
  "stride, padding, dilation, groups, pairs",
  [
    (1, 0, 1, 1, 18 * 3),
    (2, 0, 1, 1, 9 * 3),
    (1, 1, 1, 2, 20 * 3 - 2),  # both ends of the kernel stand on padding once
    (3, 2, 2, 1, 6 * 3 + 1),
  ],
)
def test_convolutions_count_what_meets_real_positions(stride, padding, dilation, groups, pairs):
  def convolve(x, kernel):
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      (stride,),
      [(padding, padding)],
      rhs_dilation=(dilation,),
      dimension_numbers=("NWC", "WIO", "NWC"),
      feature_group_count=groups,
    )

  shapes = (2, 20, 4), (3, 4 // groups, 6)
  # The same from products: as many as there are ones in the result for ones.
  ones = convolve(*(jnp.ones(s) for s in shapes))
  assert float(ones.sum()) == 2 * 6 * 4 // groups * pairs
  assert counted(convolve, *shapes) == 2 * float(ones.sum())
  gradient = jax.grad(lambda *args: convolve(*args).sum(), (0, 1))
  assert counted(gradient, *shapes) == 3 * counted(convolve, *shapes)


def test_a_full_size_step_has_the_operations_of_the_benchmarks_formula():
  spec = importlib.util.spec_from_file_location("benchmark", ROOT / "benchmarks" / "step.py")
  benchmark = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(benchmark)
  flags = [f"--config={ROOT}/configs/symmetric.py:tedlium"]
  flags.append("--config.teacher.training.remat=False")
  config, _ = overrides.parse(["", *flags])
  devices = mesh.make_mesh(1, jax.devices()[:1])
  steps = {step.name: step for step in ahead.steps_of(config)}
  shape = ahead.shape_of(steps["student"], 8.0, 8)._replace(rows=1)
  sizes = types.SimpleNamespace(rows=1, seconds=shape.samples / 16_000)
  expected = benchmark.gflop(sizes)
  found = {
    name: flops.count(ahead.trace(step, shape, devices)[0].jaxpr) / 1e9
    for name, step in steps.items()
  }
  assert found["student"] == pytest.approx(expected["step"], rel=0.02)
  assert found["teacher"] == pytest.approx(3 * expected["forward"], rel=0.02)


@pytest.mark.parametrize("labels", ["characters", "sentencepiece"])
def test_a_step_beside_stored_frames_runs_no_teacher(labels):
  """Its batches hold them, each utterance alone; of many classes, the best."""
  flags = ["--config.teacher.cache=True", f"--config.labels.name={labels}"]
  config, _ = overrides.parse(["", f"--config={ROOT}/configs/symmetric.py:demo", *flags])
  _, step = ahead.steps_of(config)
  assert step.teacher is None and step.stored_as.top == (8 if labels == "sentencepiece" else 0)
  shape, devices = ahead.shape_of(step, 2.0, 1), mesh.make_mesh(1, jax.devices()[:1])
  assert shape.seconds < 3 < config.training.join_seconds
  _, (_, teacher, batch, *_) = ahead.trace(step, shape, devices)
  assert teacher is None and batch.taught.log_probs.shape[-1] == step.stored_as.slots


def test_rows_are_single_utterances_wherever_the_teacher_is_stored():
  """As in training, even where its frames are not in the batches."""
  flags = ["--config.teacher.cache=True"]
  config, _ = overrides.parse(["", f"--config={ROOT}/configs/hypotheses.py:demo", *flags])
  _, step = ahead.steps_of(config)
  assert step.stored_as is None
  assert ahead.shape_of(step, 2.0, 1).seconds < 3 < config.training.join_seconds


def test_a_student_of_streams_is_planned_with_its_chunks():
  config, _ = overrides.parse(["", f"--config={ROOT}/configs/streaming.py:demo"])
  _, step = ahead.steps_of(config)
  assert step.objective.chunk_frames == config.student.chunk_frames != ()


# As TPU's compiler writes it: S(1) is the core's own memory.
PROGRAM = """\
HloModule jit_f, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%x, %y)
}

%fused (p0: f32[12,8,128], p1: s32[]) -> f32[8,128] {
  %p0 = f32[12,8,128]{2,1,0:T(8,128)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  %zero = s32[] constant(0)
  ROOT %slice = f32[1,8,128]{2,1,0:T(8,128)} dynamic-slice(%p0, %p1, %zero, %zero)
}

%body (state: (s32[], f32[8,128], f32[12,8,128])) -> (s32[], f32[8,128], f32[12,8,128]) {
  %state = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}, /*index=2*/f32[12,8,128]{2,1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %a = f32[8,128]{1,0:T(8,128)} get-tuple-element(%state), index=1
  %stack = f32[12,8,128]{2,1,0:T(8,128)} get-tuple-element(%state), index=2
  %near = f32[8,128]{1,0:S(1)} fusion(%stack, %i), calls=%fused, b={"estimated_cycles":"100"}
  %sum.1 = f32[8,128]{1,0:T(8,128)} all-reduce(%near), channel_id=1, to_apply=%add
  %one = s32[]{:T(128)S(6)} constant(1)
  %next = s32[]{:T(128)S(6)} add(%i, %one), backend_config={"estimated_cycles":"1"}
  ROOT %out = (s32[], f32[8,128], f32[12,8,128]) tuple(%next, %sum.1, %stack)
}

%condition (state: (s32[], f32[8,128], f32[12,8,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  %state = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}, f32[12,8,128]{2,1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %main (p: f32[12,8,128]) -> f32[8,128] {
  %p = f32[12,8,128]{2,1,0:T(8,128)} parameter(0)
  %zero.1 = s32[] constant(0)
  %begin = f32[8,128]{1,0:T(8,128)} broadcast(%zero.1), dimensions={}
  %first = (s32[], f32[8,128], f32[12,8,128]) tuple(%zero.1, %begin, %p)
  %loop = (s32[], f32[8,128], f32[12,8,128]) while(%first), condition=%condition, body=%body
  ROOT %result = f32[8,128]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""


def test_a_loop_costs_its_rounds_a_slice_its_size_and_the_cores_own_memory_nothing():
  found, layer = hlo.cost(PROGRAM), 4 * 8 * 128
  assert found.collectives == {"all-reduce": 12 * layer}
  assert found.sent == 2 * 12 * layer
  assert found.cycles == 12 * 101
  # Begin and its constant; in a round the slice is read (and i), the sum written; i + 1 is read.
  assert found.hbm == layer + 4 + 12 * (layer + 4 + layer + 4)


def test_what_the_compiler_tells_no_cycles_of_is_named_and_not_free():
  line = "  %sum.1 = f32[8,128]{1,0:T(8,128)} all-reduce("
  moved = (
    '  %moved = f32[8,128]{1,0} reverse(%near), dimensions={0}, metadata={op_name="jit(f)/a/rev"}\n'
  )
  assert hlo.cost(PROGRAM).unknown == {"broadcast": 4 * 8 * 128}
  found = hlo.cost(PROGRAM.replace(line, moved + line))
  assert found.unknown == {"broadcast": 4 * 8 * 128, "reverse (a/rev)": 12 * 4 * 8 * 128}
  said = plan_tpu._unknown({"small (b)": 3.0, "reverse (a/rev)": 2e6, "less": 1.0})
  assert said == "reverse (a/rev) 2 MB, 2 kinds of less than 1 MB each"


@pytest.mark.parametrize(
  "line", ["  %x, %y = f32[] pair(%a)", "  %x = f32[8]{0}", "something else"]
)
def test_a_line_that_is_not_understood_is_an_error(line):
  place = "  ROOT %result"
  with pytest.raises(UserError, match="line 4[0-9] of the compiled program is not understood"):
    hlo.cost(PROGRAM.replace(place, f"{line}\n{place}"))


def test_gathers_in_a_loop_are_counted_for_every_layer():
  devices = mesh.make_mesh(8)
  where = lambda *spec: jax.NamedSharding(devices, jax.P(*spec))
  whole = lambda w: jax.lax.with_sharding_constraint(w, where())
  layer = lambda x, w: (jnp.tanh(x @ whole(w)), None)
  run = jax.jit(lambda x, ws: jax.lax.scan(layer, x, ws)[0], out_shardings=where(("data", "fsdp")))
  x = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=where(("data", "fsdp")))
  ws = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32, sharding=where(None, "fsdp"))
  found = hlo.cost(run.lower(x, ws).compile().as_text())
  assert found.collectives == {"all-gather": 5 * 64 * 64 * 4}


def models(remat: bool):
  block = recipes.conformer(2, 16, 2, 0.2, (4, 4, 4, 4), ((2, 2), (2, 2)))
  sizes = {k: v for k, v in block.items() if k not in ("name", "init")}
  config = ConformerConfig(**sizes, remat=remat)
  yield ConformerCTC(config, LogMel(mels=16), 5, rngs=nnx.Rngs(0))
  fields = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32)
  fields |= dict(conv_dim=(8,) * 7, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2)
  description = {"config": known.HUBERT_LARGE | fields, "preprocessor": {}}
  config = families.model_config(description, "", pool=2)
  config = type(config)(**vars(config) | {"remat": remat, "layer_drop": 0.3})
  yield Wav2Vec2CTC(config, 5, rngs=nnx.Rngs(0))


@pytest.mark.slow
@pytest.mark.usefixtures("quick_to_compile")
@pytest.mark.parametrize(
  "which", [0, pytest.param(1, marks=pytest.mark.exhaustive)], ids=["conformer", "hubert"]
)
def test_gradients_are_those_without_rematerialisation(which, monkeypatch):
  audio = np.random.default_rng(0).integers(-9000, 9000, (2, 9600)).astype(np.int16)
  audio_len = np.array([9600, 7000], np.int32)
  found = {}
  for kept in ("everything", "products", "nothing"):
    with monkeypatch.context() as patch:
      if kept == "everything":
        patch.setattr(stack, "recomputed", lambda step, everything: step)
      graphdef, params = nnx.split(list(models(kept == "nothing"))[which])

      def loss(params, key, graphdef=graphdef):
        out = nnx.merge(graphdef, params)(audio, audio_len, key=key)
        return jnp.where(out.mask[..., None], jax.nn.log_softmax(out.logits) ** 2, 0).sum()

      found[kept] = jax.jit(jax.value_and_grad(loss))(params, jax.random.key(3))
      traced = str(jax.make_jaxpr(loss)(params, jax.random.key(0)))
      evaluated = str(jax.make_jaxpr(lambda params, loss=loss: loss(params, None))(params))
    assert ("remat" in traced) is (kept != "everything")
    assert "remat" not in evaluated  # it has no gradient
  largest = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(found["everything"]))
  for others in ("products", "nothing"):
    for a, b in zip(*(jax.tree.leaves(found[k]) for k in ("everything", others)), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * largest)


SMALL = [
  *(f"--config.student.{field}" for field in ("layers=2", "width=64", "heads=2")),
  "--config.student.frontend_channels=(4, 4, 4, 4)",
  "--config.training.join_seconds=0",
]


def run(*arguments: str, config: str = "ctc.py:demo") -> int:
  return command_line.main(["plan-tpu", f"--config={ROOT}/configs/{config}", *arguments])


@needs_libtpu
@pytest.mark.slow
def test_a_step_is_compiled_for_a_slice_and_what_does_not_fit_is_told(capsys):
  sizes = ["--topology=v5e:2x4", "--config.mesh.fsdp=4", *SMALL]
  assert run(*sizes, "--utterance_seconds=1", "--hours=2") == 0
  printed = capsys.readouterr().out
  for part in ("8 × v5e", "data 2 × fsdp 4", "of 16.00 GiB", "all-gather", "at least", "of 2 h"):
    assert part in printed, part
  with pytest.raises(UserError) as error:
    run(*sizes, "--utterance_seconds=3600")
  for part in ("does not fit", "training.remat=True", "mesh.fsdp=8"):
    assert part in str(error.value), part


@pytest.mark.parametrize(
  "arguments, parts",
  [
    (["--topology=v9:2x4"], ["--topology=v9:2x4", "v5e:2x4", "v4:2x2x2"]),
    (["--topology="], ["--topology=", "v6e:2x2"]),
    (["--topology=h100:0"], ["h100:0", "CARD:NUMBER", "h100:8"]),
    (["--topology=h100:2x2"], ["h100:2x2", "CARD:NUMBER"]),
    (["--topology=v5e:2x4", "--utterance_seconds=15,x"], ["--utterance_seconds", "not x", "3600"]),
    (["--topology=v5e:2x4", "--hours=many"], ["hours", "many"]),
    (["--topology=v5e:2x4", "--topolgy=1"], ["topolgy"]),
    pytest.param(["--topology=v5e:3x5"], ["v5e:3x5", "v5e:2x4"], marks=needs_libtpu),
    pytest.param(
      ["--topology=v5e:2x4", "--config.mesh.fsdp=3"],
      ["config.mesh.fsdp is 3", "8 devices: 1, 2, 4, 8"],
      marks=needs_libtpu,
    ),
  ],
)
def test_mistakes_are_one_line(arguments, parts):
  with pytest.raises(UserError) as error:
    run(*arguments)
  assert "\n" not in str(error.value)
  for part in parts:
    assert part in str(error.value)


def test_without_libtpu_its_installation_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=r"pip install 'jaxkd\[tpu\]'"):
    slices.slice_of("v5e:2x4")


def test_without_a_plugin_for_cuda_its_installation_is_named(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(UserError, match=r"pip install 'jaxkd\[cuda\]'.*jax-cuda13-pjrt=="):
    slices.slice_of("h100:8")


@needs_cuda
@pytest.mark.slow
def test_a_step_is_compiled_for_gpus_and_what_does_not_fit_is_told(capsys):
  sizes = ["--topology=h100:2", *SMALL]
  assert run(*sizes, "--utterance_seconds=1") == 0
  printed = capsys.readouterr().out
  for part in ("2 × h100", "of 79.11 GiB", "arithmetic", "compiled in"):
    assert part in printed, part
  assert "cycles" not in printed
  with pytest.raises(UserError, match="79.*GiB|GiB are more than a chip has"):
    run(*sizes, "--utterance_seconds=3600", "--config.training.batch_seconds=400000")


def test_a_model_that_would_have_to_be_fetched_is_refused():
  source = "--config.teacher.model.source=facebook/hubert-xlarge-ll60k"
  config, _ = overrides.parse(["", f"--config={ROOT}/configs/symmetric.py:librispeech", source])
  with pytest.raises(UserError, match="teacher.model.source .* facebook/hubert-large-ll60k"):
    ahead.steps_of(config)


def test_help_names_topologies(capsys):
  assert command_line.main(["plan-tpu"]) == 0
  assert "v5e:2x4" in capsys.readouterr().out
