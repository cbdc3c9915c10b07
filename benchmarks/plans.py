"""The planner's figures for the GPT-2 family on 1, 8 and 64 devices, what each axis exchanges, memory of a real run.

python benchmarks/plans.py              # the tables of docs/scaling.md
python benchmarks/plans.py --check      # memory that is planned beside what a process takes, on the packaged base
"""

import ctypes
import functools
import os
import pathlib
from collections.abc import Callable
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np
from absl import app, flags

from ftn_jax.cli.command import load_config
from ftn_jax.core.rules import Config
from ftn_jax.models.config_json import decoder_config
from ftn_jax.models.published import published_config
from ftn_jax.pools.lora import TokenBatch
from ftn_jax.report import tables
from ftn_jax.runs.build import build, filled, make_problem
from ftn_jax.runs.plan import make_plan
from ftn_jax.training.loop import find, install
from ftn_jax.training.state import init_state, is_gathered
from ftn_jax.training.step import chunk_settings, enter, init_optimizer, train_chunk

_CHECK = flags.DEFINE_bool("check", False, "Compare memory with a real run's instead, on the packaged base.")

_CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
_LORA, _POINTS = "lora.py", "synthetic.py:classification"
_METHODS = {_LORA: "lora_ftn", _POINTS: "ftn_slow"}
_BASES = {"distilgpt2": ("float32", False), "gpt2-medium": ("float32", False), "gpt2-xl": ("bfloat16", True)}
_BASE_OF = {_LORA: "packaged", _POINTS: None}  # of the check
_DEVICES = 64


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if _CHECK.value:
        print(tables.markdown(memory_of_a_process()))
        return
    jax.config.update("jax_num_cpu_devices", _DEVICES)
    for table in (family(), exchanged()):
        print(tables.markdown(table), end="\n\n")


def config_of(file: str, base: str | None = None, **mesh: int) -> Config:
    config = filled(load_config(str(_CONFIGS / file)))
    config.methods, config.seeds = (_METHODS[file],), mesh.get("seed", 1)
    config.mesh.seed, config.mesh.data, config.mesh.pool = (mesh.get(axis, 1) for axis in ("seed", "data", "pool"))
    if base is not None:
        config.base = base
    return config


def family() -> tables.Table:
    """A seed of LoRA-FTN on bases of every size."""
    rows = []
    for base, (dtype, remat) in _BASES.items():
        for data, pool in ((1, 1), (8, 1), (8, 8)):
            config = config_of(_LORA, base, data=data, pool=pool)
            config.model.dtype, config.model.remat = dtype, remat
            plan = make_plan(config)
            programs = {program.name: program for program in plan.programs}
            temporary = [programs[name].temporary / 1e9 for name in ("step", "mask search")]
            work = [programs[name].flops / 1e12 for name in ("step", "mask search")]
            sizes = [plan.held[kind] / 1e9 for kind in ("base", "components", "moments")]
            cells = [f"{number:.3g}" for number in (*sizes, *temporary, plan.peak / 1e9, *work)]
            rows.append((base, dtype, f"{data * pool}: {data} x {pool}", *cells))
    columns = (
        *("base", "computed in", "devices: data x pool", "base", "pool", "moments"),
        *("in a step", "in a search", "in all", "TFLOP a step", "a search"),
    )
    note = "GB on a device. gpt2-xl with gradient checkpointing."
    return tables.Table("A seed of LoRA-FTN", columns, tuple(rows), note, left=columns[:3])


def exchanged() -> tables.Table:
    """What a device receives on each axis of eight, beside the least."""
    rows = []
    for file, base in ((_LORA, "distilgpt2"), (_POINTS, None)):
        for axis in ("seed", "data", "pool"):
            config = config_of(file, base, **{axis: 8})
            plan, bounds = make_plan(config), least(config, axis)
            for program in plan.programs:
                moved = sum(exchange.bytes * exchange.times for exchange in program.exchanged)
                rows.append((_METHODS[file], axis, program.name, _mega(moved), _mega(bounds.get(program.name, 0))))
    columns = ("method", "axis, 8 devices", "program", "MB", "least MB")
    return tables.Table("What is exchanged", columns, tuple(rows), left=columns[:3])


def least(config: Config, axis: str) -> dict[str, float]:
    """Program -> the fewest bytes that every device has to be given, in float32.

    On "data": in a step the gradients of the k active components, and in each step of a search one number for each of
    the H masks. On "pool": the same k components where a block begins; in each step of a search what the components
    answer together (on a GPT-2 the sum of their weights instead, or of their outputs and of the gradients of their
    inputs, whichever is less). FTN-Slow searches, and takes the k components, in every step.
    """
    k, h, s = config.configurer.k, config.pool.size, config.configurer.steps
    if axis == "seed":
        return {}
    if "base" in config:
        shape = decoder_config(published_config(config.base), config.base)
        a_component = config.pool.rank * shape.layers * 4 * shape.width
        d, rows = shape.width, config.configurer.support * config.stream.max_length
        answers = shape.layers * min(d * 3 * d, rows * 4 * d)
        if axis == "data":
            return {"step": 4 * k * a_component, "mask search": 4 * s * h}
        return {"mask search": 4 * s * answers, "gather": 4 * k * a_component}
    pool = make_plan(config).parameters["components"] // h
    if axis == "data":
        return {"step": 4 * (k * pool + s * h)}
    return {"step": 4 * (k * pool + s * config.stream.batch * 2)}


def _mega(size: float) -> str:
    return f"{size / 1e6:.4g}"


def memory_of_a_process() -> tables.Table:
    """What the programs take in this process beside what is planned for them."""
    rows = []
    for file, method in _METHODS.items():
        plan = {program.name: program for program in make_plan(config_of(file, _BASE_OF[file])).programs}
        for name, call in calls_of(file).items():
            planned, found = plan[name].temporary, growth(call)
            rows.append((method, name, f"{planned / 1e6:.1f}", f"{found / 1e6:.1f}", f"{found / planned:.2f}"))
    columns = ("method", "program", "planned MB", "measured MB", "measured / planned")
    note = "Measured: the peak of the process's memory in a second call, beyond what it held before."
    return tables.Table("Temporary memory, one device", columns, tuple(rows), note, left=columns[:2])


def calls_of(file: str) -> dict[str, Callable[[], Any]]:
    """The step and the search of a real problem, each called once; a GPT-2 reads full examples, as a plan has it."""
    config = config_of(file, _BASE_OF[file])
    problem, method = make_problem(config, config.get("base")), build(config, _METHODS[file])
    pool, training, stream = problem.pool, problem.training, problem.stream
    index = np.int32(0)
    with jax.set_mesh(problem.mesh):
        state = init_state(pool, np.array([0], np.int32), method=method, training=training)
        settings = chunk_settings(method, training) | {"length": training.chunk, "axis": stream.axis}
        if file == _POINTS:
            data, given = stream.tasks[0], None
            selection = install(pool, method, state, data, 0, support=training.support, axis=stream.axis)
        else:
            data, given = (), full_batch(config, training.chunk, training.batch)
            search = functools.partial(find, select=method.select, oracle=False)
            support = full_batch(config, training.support)
            selection = search(pool, state, None, support, index, state.keys)
        if is_gathered(method, training):
            whole = state.params, state.extra
            rows = enter(state.params, None, state.extra, selection.active, training=training)
        else:
            whole, rows = None, (state.params, init_optimizer(state.params, training=training), state.extra)

    def step():
        nonlocal rows  # whose buffers a call takes
        with jax.set_mesh(problem.mesh):
            args = (whole, selection, None, data, given, state.keys, index, index, np.int32(training.steps))
            (params, moments, *_), losses = train_chunk(pool, *rows, *args, **settings)
        rows = params, moments, rows[2]
        return losses

    def search_once():
        with jax.set_mesh(problem.mesh):
            return search(pool, state, None, support, index, state.keys)

    calls = {"step": step} if file == _POINTS else {"step": step, "mask search": search_once}
    for call in calls.values():
        jax.block_until_ready(call())
    return calls


def full_batch(config: Config, *rows: int) -> TokenBatch:
    """Random examples, of which every column is read and scored."""
    shape, rng = (1, *rows, config.stream.max_length), np.random.default_rng(0)
    columns = np.broadcast_to(np.arange(shape[-1], dtype=np.int32), shape)
    tokens, labels = (rng.integers(0, 512, shape, np.int32) for _ in range(2))
    return TokenBatch(tokens, columns, labels, np.ones(shape, np.float32))


def growth(call: Callable[[], Any]) -> int:
    """Bytes by which a call's peak exceeds what the process held before."""
    ctypes.CDLL(None).malloc_trim(0)  # gives back what earlier calls have freed
    before = status("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    jax.block_until_ready(call())
    return status("VmHWM") - before


def status(field: str) -> int:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    app.run(main)
