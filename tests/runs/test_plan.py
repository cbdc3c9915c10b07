"""The planner: counts by hand, and beside what a real run holds and exchanges."""

import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from kills import ROOT

from ftn_jax.core.errors import InputError
from ftn_jax.core.mesh import bytes_per_device, make_mesh, spread
from ftn_jax.models import decoder, pretrained
from ftn_jax.models.config_json import decoder_config
from ftn_jax.models.published import published_config
from ftn_jax.pools.base import gather
from ftn_jax.pools.lora import LoraPool
from ftn_jax.runs.build import build, make_problem
from ftn_jax.runs.plan import make_plan
from ftn_jax.runs.program_costs import count_flops, exchanges_of
from ftn_jax.training.state import init_state


def test_flops_of_products_in_loops_and_branches():
    def function(x, w):  # [3, 4], [4, 4]
        x = jax.lax.fori_loop(0, 5, lambda _, x: x @ w, x)  # 5 x 2 x 3 x 4 x 4
        x = jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)  # the larger: 2 x 2 x 3 x 4 x 4
        return jnp.tensordot(x, x, 2)  # over both axes: 2 x 3 x 4

    flops = count_flops(jax.jit(function).trace(jnp.ones((3, 4)), jnp.ones((4, 4))).jaxpr)
    assert flops == 7 * 96 + 24


def test_a_sum_in_a_loop_is_exchanged_as_often_as_the_loop_runs():
    mesh = make_mesh(1, 2, data=2)
    rows = spread(np.ones((2, 6), np.float32), mesh, "data")

    @jax.jit
    def function(rows, w):
        def step(w, _):
            return w + (rows @ w).T @ rows, None  # [6, 6], summed over the rows of both devices

        return jax.lax.scan(step, w, length=7)[0]

    text = function.lower(rows, spread(np.eye(6, dtype=np.float32), mesh)).compile().as_text()
    found = exchanges_of(text)
    assert sum(exchange.times for exchange in found) == 7
    assert {(exchange.kind, exchange.bytes) for exchange in found} == {("all-reduce", 6 * 6 * 4)}


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(2, 1, 1), (1, 2, 1), (1, 1, 2)])
def test_a_plan_holds_what_a_run_holds(base, mesh):
    names = dict(zip(("mesh.seed", "mesh.data", "mesh.pool"), mesh, strict=True))
    config = toys.styles_config(base, methods=("lora_ftn",), **names)
    plan = make_plan(config)
    problem, method = make_problem(config, base), build(config, "lora_ftn")
    with jax.set_mesh(problem.mesh):
        seeds = np.asarray(config.seeds, np.int32)
        state = init_state(problem.pool, seeds, method=method, training=problem.training)
    assert plan.held["base"] == bytes_per_device(problem.base.params)
    assert plan.held["components"] == bytes_per_device((state.params, state.extra))
    assert plan.held["components"] == 2 * 16 * 2 * (24 + 72) * 4 // (mesh[0] * mesh[2])  # of two seeds
    assert plan.parameters["components"] == 16 * 2 * (24 + 72)  # H r (d + 3 d) of one layer
    by_name = {program.name: program for program in plan.programs}
    assert list(by_name) == ["step", "mask search", "gather", "scatter"]
    exchanged = {name: sum(e.bytes * e.times for e in p.exchanged) for name, p in by_name.items()}
    active = 4 * 2 * (24 + 72) * 4  # bytes of k components
    assert plan.held["moments"] == 2 * (2 * active + 4) // mesh[0]  # and a count, of each seed
    if mesh == (1, 2, 1):  # for each seed the gradient of the merged weight, of which those of A and B are made
        merged = 24 * 72 * 4
        assert 2 * merged <= exchanged["step"] < 2.1 * merged
    elif mesh == (1, 1, 2):
        assert exchanged["step"] == 0 and exchanged["mask search"] > 0
        assert 2 * active <= exchanged["gather"] < 2 * 1.1 * active  # of two seeds
    else:
        assert not any(exchanged.values())


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_flops_of_a_step_by_hand(base, devices):
    plan = make_plan(toys.styles_config(base, methods=("lora_ftn",), seeds=1, **{"mesh.data": devices}))
    model = gpt2_of(base)
    rows, length, d, inner, active = 4 // devices, 64, model.width, model.inner, 4 * 2
    tokens, attention = rows * length, rows * length * length * d
    merge = active * d * 3 * d  # Delta W
    forward = tokens * d * (3 * d + d + 2 * inner) + 2 * attention + tokens * d * model.vocabulary
    # Nothing of the frozen weights' gradients but that of the adapted ones, which gives those of A and B.
    backward = tokens * d * (2 * 3 * d + d + 2 * inner) + 4 * attention + tokens * d * model.vocabulary
    assert plan.programs[0].flops == 2 * (3 * merge + forward + backward)


def gpt2_of(folder):
    return pretrained.load(folder).config


@pytest.mark.slow
def test_a_base_in_bfloat16_takes_half_the_memory_and_no_copies_in_float32(base, monkeypatch):
    merging, half = (
        make_plan(toys.styles_config(base, methods=("lora_fixed",), **{"model.dtype": dtype}))
        for dtype in ("float32", "bfloat16")
    )
    monkeypatch.setattr(LoraPool, "merges", lambda *_: False)
    jax.clear_caches()  # of programs that merge
    plain = make_plan(toys.styles_config(base, methods=("lora_fixed",)))
    assert half.held == plain.held | {"base": plain.held["base"] // 2}
    assert half.programs == plain.programs != merging.programs


@pytest.mark.slow
def test_a_plan_of_points():
    plan = make_plan(toys.points_config(methods=("ftn_slow",)))
    assert [program.name for program in plan.programs] == ["step"]  # which searches at every batch
    assert plan.programs[0].flops > 0 and plan.held["components"] > 0
    plan = make_plan(toys.points_config("regression", methods=("fixedmask",)))
    assert [program.name for program in plan.programs] == ["step", "mask search", "gather", "scatter"]


@pytest.mark.slow
def test_the_command_prints_the_plan():
    flags = ["--config=configs/lora.py", "--config.base=distilgpt2", "--config.seeds=2", "--devices=4",
             "--config.mesh.data=2", "--config.methods=('lora_fixed',)", "--device=t4", "--memory=1e8"]  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "ftn_jax.plan", *flags], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "seed 2 x data 2 x pool 1" in " ".join(done.stdout.split())
    assert "81,912,576" in done.stdout and "of 0.1: does not fit" in done.stdout and "all-reduce" in done.stdout
    assert "At 6.5e+13 FLOP and 1.6e+10 bytes per second" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mesh.pool": 4}, "x config.mesh.pool is 1 x 1 x 4, expected"),
        ({"stream.max_length": 2000}, "1024 positions"),
        ({"base": "no_such_base"}, "no_such_base"),
    ],
)
def test_what_cannot_be_planned(settings, said):
    config = toys.styles_config("distilgpt2", **settings)
    with pytest.raises(InputError, match=said):
        make_plan(config)


@pytest.mark.slow
def test_a_step_of_gpt2_xls_width():
    """One of its 48 layers, in bfloat16 with gradient checkpointing: the loss falls, and is nearly float32's."""
    shape = published_config("gpt2-xl") | {"n_layer": 1, "vocab_size": 4096}
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: np.float32(0.02) * rng.standard_normal(leaf.shape, np.float32),
        decoder.abstract_params(decoder_config(shape, "gpt2-xl")),
    )
    losses = [losses_at_full_width(shape, params, *kind) for kind in (("bfloat16", True), ("float32", False))]
    for before, after in itertools.pairwise(np.transpose(losses)):
        assert (after < before).all()
    np.testing.assert_allclose(*losses, rtol=0.02)


def losses_at_full_width(shape, params, dtype, remat):
    config = decoder_config(shape, "gpt2-xl", dtype=dtype, remat=remat)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
    pool = LoraPool(base=params, model=config, size=16, rank=4, modules=("attn.c_attn",))
    components = gather(pool.init(jax.random.key(1)), np.arange(8))
    batch = toys.toy_batch(4, length=48, targets=12)
    step = jax.jit(jax.value_and_grad(lambda rows, pool: pool.active_loss(rows, batch)))
    losses = []
    for _ in range(2):
        loss, grads = step(components, pool)
        components = jax.tree.map(lambda row, gradient: row - gradient, components, grads)
        losses.append(float(loss))
    return losses
