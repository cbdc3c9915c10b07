"""What a run would need on other machines: memory, FLOPs and exchanged bytes.

Compiles the real training step and mask search for virtual devices, with abstract arrays; needs no weights, no such
devices and no network.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.struct
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ftn_jax.core.rules import Config
from ftn_jax.methods import Method, Selection
from ftn_jax.models import decoder, hub
from ftn_jax.models.config_json import decoder_config
from ftn_jax.models.pretrained import Base, open_gguf
from ftn_jax.models.published import published_config
from ftn_jax.models.tokens import Tokens, check_length
from ftn_jax.pools.base import Pool
from ftn_jax.pools.lora import LoraPool, TokenBatch
from ftn_jax.report import tables
from ftn_jax.runs.build import build, check, filled, make_pool, make_problem, mesh_for, seeds_of, training_of
from ftn_jax.runs.program_costs import Exchange, count_flops, exchanges_of
from ftn_jax.streams import TEXT, Context, Stream
from ftn_jax.training.loop import find
from ftn_jax.training.state import Training, init_state, is_gathered, sharding_of
from ftn_jax.training.step import abstract_moments, chunk_settings, enter, leave, train_chunk

_SMALL = 1e4  # bytes per call; smaller exchanges are not listed


class Machine(NamedTuple):
    """One device."""

    memory: float  # bytes
    flops: float  # per second
    bandwidth: float  # bytes per second from other devices


DEVICES = {
    "h100": Machine(80e9, 989e12, 450e9),  # SXM, NVLink
    "a100": Machine(80e9, 312e12, 300e9),  # SXM of 80 GB, NVLink
    "l4": Machine(24e9, 121e12, 32e9),  # PCI Express 4
    "t4": Machine(16e9, 65e12, 16e9),  # PCI Express 3
    "v5e": Machine(16e9, 197e12, 200e9),  # TPU, interconnect of a pod
}
"""The makers' figures: dense products in bfloat16 (T4: float16), and links in one direction.

A run reaches a part of them; in float32 products are half as fast or slower.
"""


class Program(NamedTuple):
    """A compiled program, per device."""

    name: str
    runs: str  # how often it runs, such as "each step"
    flops: float
    temporary: int  # bytes, without its arguments and results
    exchanged: list[Exchange]


class Plan(NamedTuple):
    """What a run of one method needs on a mesh."""

    method: str
    mesh: Mesh
    parameters: dict[str, int]  # kind -> elements, of one seed
    held: dict[str, int]  # kind -> bytes on each device
    programs: list[Program]

    @property
    def peak(self) -> int:
        """Bytes on each device: all that is held, plus the temporary memory of the largest program."""
        return sum(self.held.values()) + max(program.temporary for program in self.programs)


def make_plan(config: Config) -> Plan:
    """The plan of the config's first method.

    Programs on a base in bfloat16 are planned in float32: the CPU, for which they are compiled, multiplies bfloat16 by
    way of copies in float32, which no other device makes. So a device needs no more temporary memory for them, and may
    exchange fewer bytes. Scoring and growth are not planned.

    Raises:
      InputError: a base whose shape is not known here, or an impossible mesh.
    """
    config = filled(config)
    check(config)
    name = config.methods[0]
    method, training, mesh, seeds = build(config, name), training_of(config), mesh_for(config), seeds_of(config)
    with jax.set_mesh(mesh):
        pool, batches, data, axis = _abstract_problem(config, mesh)
        pool = method.adapt_pool(pool)
        base = _bytes(pool)
        if type(pool) is LoraPool and pool.model.dtype == "bfloat16":
            pool = _in_float32(pool)
        state = _shapes(
            functools.partial(init_state, method=method, training=training), pool, np.asarray(seeds, np.int32)
        )
        state = _placed(state, sharding_of(state, training.optimizer, mesh))
        moments, programs = _programs(pool, method, training, state, batches, data, axis, mesh)
    held = {
        "base": base,
        "data": _bytes(data),
        "components": _bytes((state.params, state.extra)),
        "moments": moments,
    }
    parameters = {"base": _elements(pool), "components": _elements((state.params, state.extra)) // len(seeds)}
    return Plan(name, mesh, parameters, held, programs)


@flax.struct.dataclass
class _Apart(LoraPool):
    """A pool whose updates stay apart from the weights, as they do in bfloat16."""

    def merges(self, module, rank, batch):
        return False


def _in_float32(pool: LoraPool) -> LoraPool:
    base = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float32, sharding=leaf.sharding), pool.base)
    changed = {"base": base, "model": dataclasses.replace(pool.model, dtype="float32")}
    names = (field.name for field in dataclasses.fields(pool) if field.name != "kind")
    return _Apart(**{name: changed.get(name, getattr(pool, name)) for name in names})


def _abstract_problem(config: Config, mesh: Mesh) -> tuple[Pool, Any, Any, int | None]:
    """(pool, (the batches of a chunk, the support), the data that steps draw from, its seed axis).

    The leaves of batches and support are [E, ...].
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    seeds = len(seeds_of(config))
    if "base" not in config:
        problem = make_problem(config, None)
        data = problem.stream.tasks[0]
        support = _shapes(
            jax.vmap(lambda data, key: data.support(key, config.configurer.support), (problem.stream.axis, 0)),
            data,
            _shapes(jax.vmap(jax.random.key), np.arange(seeds, dtype=np.int32)),
        )
        return problem.pool, (None, support), data, problem.stream.axis
    family, model = _model_of(config)
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, model.dtype, sharding=everywhere), decoder.abstract_params(model)
    )
    base = Base(config.base, "", model, params, Tokens(None, (), (0,), model.vocabulary), family)
    check_length(config.stream.max_length, base)
    pool = make_pool(config, Context(seeds_of(config), base), Stream((), [], "cross_entropy", TEXT))
    length = config.stream.max_length
    by_seed = NamedSharding(mesh, PartitionSpec("seed"))

    def batch(*rows):
        leaves: Any = (
            jax.ShapeDtypeStruct((seeds, *rows, length), kind, sharding=by_seed)
            for kind in (np.int32, np.int32, np.int32, np.float32)
        )
        return TokenBatch(*leaves)

    training = training_of(config)
    return pool, (batch(training.chunk, training.batch), batch(config.configurer.support)), (), None


def _model_of(config: Config) -> tuple[str, decoder.DecoderConfig]:
    """The family and the shape of the config's base, by its name or from its `config.json`."""
    name = hub.ALIASES[config.base][0] if config.base in hub.ALIASES else config.base
    raw, place = published_config(name), name
    if raw is None:
        _, place = hub.resolve(name)
        raw = open_gguf(place).config if place.is_file() else hub.read_json(place / "config.json")
    model = decoder_config(raw, place, dtype=config.model.dtype, remat=config.model.remat)
    return raw["model_type"], model


def _programs(
    pool: Pool,
    method: Method,
    training: Training,
    state: Any,
    batches: Any,
    data: Any,
    axis: int | None,
    mesh: Mesh,
) -> tuple[int, list[Program]]:
    """The bytes of moments while a block is trained, and all programs."""
    moving = method.every == "batch"
    settings = chunk_settings(method, training) | {"length": training.chunk, "axis": axis}
    chosen = {"select": method.install or method.select, "oracle": method.oracle}
    by_seed = NamedSharding(mesh, PartitionSpec("seed"))
    number = np.int32(0)
    search = functools.partial(find, **chosen)
    held = None
    if method.reserves:

        def indices(*count: int) -> Any:
            shape = (len(state.keys), pool.size // method.reserves, *count)
            return jax.ShapeDtypeStruct(shape, np.int32, sharding=by_seed)

        held = Selection(indices(method.reserves), indices(), indices(method.reuses) if method.reuses else None)
    selection = _placed(_shapes(search, pool, state, held, batches[1], number, state.keys), by_seed)
    gathered = is_gathered(method, training)
    if state.opt_state is None and not gathered:
        begun = state._replace(opt_state=abstract_moments(state, 0, method=method, training=training))
        state = _placed(begun, sharding_of(begun, training.optimizer, mesh))
    rows, whole = (state.params, state.opt_state, state.extra), None
    if gathered:
        whole = state.params, state.extra
        taken = functools.partial(enter, training=training)
        rows = _placed(_shapes(taken, *rows, selection.active), by_seed)

    def calls(devices: int) -> list[tuple[str, str, int, Any, tuple, dict]]:
        """The programs as (name, how often they run, runs per call, function, arguments, settings).

        The rows of a batch are divided by ``devices``.
        """
        given, support = _fewer(batches[0], 2, devices), _fewer(batches[1], 1, devices)
        step = (pool, *rows, whole, selection, held, data, given, state.keys, number, number, number)
        drawn = settings | {"batch": training.batch // devices}
        found: list[tuple[str, str, int, Any, tuple, dict]] = []
        if method.trains:
            found.append(("step", "each step", training.chunk, train_chunk, step, drawn))
        if not moving:
            arguments = (pool, state, held, support, number, state.keys)
            found.append(("mask search", "each task", 1, find, arguments, chosen))
            if method.install:
                found.append(("recovery", "each task scored", 1, find, arguments, chosen | {"select": method.select}))
        if gathered:
            every, own = (state.params, state.opt_state), {"training": training}
            found.append(("gather", "each task", 1, enter, (*every, state.extra, selection.active), own))
            found.append(("scatter", "each task", 1, leave, (*every, selection.active, *rows[:2]), own))
        return found

    # On the CPU, for which this is compiled, the seeds of a device run one after another.
    side_by_side = len(state.keys) // mesh.shape["seed"]
    programs = []
    for whole, part in zip(calls(1), calls(mesh.shape["data"]), strict=True):
        name, runs, share, function, arguments, static = whole
        compiled = function.trace(*arguments, **static).lower().compile()
        flops = count_flops(function.trace(*part[4], **part[5]).jaxpr) / share
        memory = compiled.memory_analysis()
        exchanged = [e._replace(times=e.times / share) for e in exchanges_of(compiled.as_text())]
        # Gather and scatter handle all seeds at once; on the CPU they are a loop whose memory includes the results.
        whole_pool = name in ("gather", "scatter")
        temporary = memory.temp_size_in_bytes
        temporary = max(0, temporary - memory.output_size_in_bytes) if whole_pool else side_by_side * temporary
        programs.append(Program(name, runs, flops, temporary, exchanged))
    return _bytes(rows[1]), programs


def _fewer(batch: Any, axis: int, devices: int) -> Any:
    """Abstract arrays with ``axis`` divided by the number of devices."""

    def part(leaf):
        shape = list(leaf.shape)
        shape[axis] //= devices
        return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype, sharding=leaf.sharding)

    return jax.tree.map(part, batch)


def _shapes(function: Any, *arguments: Any) -> Any:
    """`jax.eval_shape` of arguments without their shardings."""
    bare = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
    return jax.eval_shape(function, *bare)


def _placed(tree: Any, sharding: Any) -> Any:
    """Abstract arrays with a sharding, one for all or a tree of them."""
    if isinstance(sharding, NamedSharding):
        sharding = jax.tree.map(lambda _: sharding, tree)
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree, sharding
    )


def _bytes(tree: Any) -> int:
    """The bytes of a tree on one device."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        shape = leaf.sharding.shard_shape(leaf.shape)
        total += int(np.prod(shape)) * leaf.dtype.itemsize
    return total


def _elements(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def describe(plan: Plan, machine: Machine) -> list[tables.Table]:
    """A plan as tables."""
    axes = " x ".join(f"{axis} {count}" for axis, count in plan.mesh.shape.items())
    memory = [(kind, _elements_of(plan, kind), _giga(size)) for kind, size in plan.held.items()]
    temporary = max(plan.programs, key=lambda program: program.temporary)
    memory.append((f"temporary, {temporary.name}", "", _giga(temporary.temporary)))
    fits = "fits" if plan.peak <= machine.memory else "does not fit"
    memory.append(("in all", "", f"{_giga(plan.peak)} of {_giga(machine.memory)}: {fits}"))
    work = []
    for program in plan.programs:
        moved = sum(exchange.bytes * exchange.times for exchange in program.exchanged)
        computing, moving = program.flops / machine.flops, moved / machine.bandwidth
        limit = "computing" if computing >= moving else "exchange"
        work.append(
            (program.name, program.runs, f"{program.flops / 1e9:.4g}", f"{moved / 1e6:.4g}",
             f"{1e3 * computing:.3g}", f"{1e3 * moving:.3g}", limit)
        )  # fmt: skip
    exchanged = [
        (
            program.name,
            exchange.kind,
            exchange.result,
            f"{exchange.times:g}",
            f"{exchange.bytes / 1e6:.4g}",
            _short(exchange.source),
        )
        for program in plan.programs
        for exchange in sorted(program.exchanged, key=lambda e: -e.bytes * e.times)
        if exchange.bytes * exchange.times >= _SMALL
    ]
    described = [
        tables.Table(
            f"Memory of a device, {plan.method}, {axes}", ("what", "elements", "GB"), tuple(memory),
            "Elements are those of one seed on all devices; data is that of one task. Temporary memory is what the "
            "CPU's compiler asks for in float32, with all seeds of a device running at once.",
            left=("what",),
        ),
        tables.Table(
            "Work of a device",
            ("program", "runs", "GFLOP", "MB exchanged", "ms computing", "ms exchanging", "limited by"),
            tuple(work),
            f"At {machine.flops:.3g} FLOP and {machine.bandwidth:.3g} bytes per second, without overlap. FLOPs are "
            "those of matrix products; work that the pool axis divides is counted in full.",
            left=("program", "runs", "limited by"),
        ),
        tables.Table(
            "What is exchanged", ("program", "collective", "shape", "times", "MB", "from"), tuple(exchanged),
            "Exchanges of at least 10 kB per call.",
            left=("program", "collective", "shape", "from"),
        ),
    ]  # fmt: skip
    return [table for table in described if table.rows]


def _elements_of(plan: Plan, kind: str) -> str:
    return f"{plan.parameters[kind]:,}" if kind in plan.parameters else ""


def _giga(size: float) -> str:
    return f"{size / 1e9:.4g}"


def _short(source: str) -> str:
    return "/".join(part for part in source.split("/") if part not in ("while", "body", "closed_call"))[-60:]
