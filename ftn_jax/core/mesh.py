"""The mesh of devices that a run uses, and how arrays are spread over its axes.

Seeds [E, ...] are spread over the axis "seed", the rows of a batch over "data", components [H, ...] over "pool". Every
other array is replicated on all devices. The compiler (SPMD) inserts the communication; one device needs none.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ftn_jax.core.errors import InputError

AXES = ("seed", "data", "pool")


def use_cores(seeds: int) -> None:
    """Makes CPU cores JAX devices, as many as the seeds can be spread over; call it before JAX looks for devices.

    Networks of a few units keep only one core busy. A number of devices that the user has set is kept.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "JAX_NUM_CPU_DEVICES" not in os.environ and "host_platform_device_count" not in flags:
        jax.config.update("jax_num_cpu_devices", _divisor(seeds, len(os.sched_getaffinity(0))))


def make_mesh(seeds: int, rows: int = 1, components: int = 1, *, seed: int = 0, data: int = 0, pool: int = 1) -> Mesh:
    """The mesh of a run: the visible devices go to "seed" first, the remaining ones to "data".

    Args:
      seeds: E.
      rows: B, in training and mask search; where the two differ, their greatest common divisor.
      components: H.
      seed: devices along "seed"; 0 takes the largest available number that divides E.
      data: devices along "data"; 0 takes the largest number of the remaining devices that divides ``rows``.
      pool: devices along "pool".

    Raises:
      InputError: more devices than are visible, or a number that does not divide the axis to be spread.
    """
    devices = jax.devices()
    if pool * max(seed, 1) * max(data, 1) > len(devices):
        raise InputError(
            f"config.mesh.seed x config.mesh.data x config.mesh.pool is {max(seed, 1)} x {max(data, 1)} x {pool}, "
            f"expected at most the {len(devices)} devices that are visible"
        )
    for name, count, whole, what in (
        ("seed", seed, seeds, "the number of seeds"),
        ("data", data, rows, "the greatest common divisor of config.stream.batch and config.configurer.support"),
        ("pool", pool, components, "config.pool.size"),
    ):
        if count and whole % count:
            raise InputError(f"config.mesh.{name} is {count}, expected a divisor of {whole}, {what}")
    seed = seed or _divisor(seeds, len(devices) // (pool * max(data, 1)))
    data = data or _divisor(rows, len(devices) // (pool * seed))
    shape = (seed, data, pool)
    return Mesh(np.array(devices[: seed * data * pool]).reshape(shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _divisor(whole: int, most: int) -> int:
    return max(n for n in range(1, most + 1) if whole % n == 0)


def mesh_of(seeds: int) -> Any:
    """The mesh set by `jax.set_mesh`; where none is set, the mesh of `make_mesh` for this number of seeds."""
    mesh = jax.sharding.get_abstract_mesh()
    return make_mesh(seeds) if mesh.empty else mesh


def concrete_mesh(seeds: int) -> Mesh:
    """As `mesh_of`, with concrete devices; not for use inside a compiled function."""
    mesh = jax.sharding.get_mesh()
    return make_mesh(seeds) if mesh.empty else mesh


def over_seeds(function: Callable, in_axes: tuple[int | None, ...]) -> Callable:
    """``function`` for each seed, spread over the "seed" axis; within a seed the compiler spreads rows and components.

    The seeds of one device are a vmap; on the CPU they run one after the other, which is faster by a third.

    Args:
      function: computes one seed; every array it needs must be an argument, since closed-over arrays are not on the
        mesh.
      in_axes: for each argument 0 (leaves [E, ...]) or None (shared by the seeds).
    """

    def on_device(*args):
        if jax.default_backend() != "cpu":
            return jax.vmap(function, in_axes)(*args)

        def one(own):
            rest = iter(own)
            return function(*(next(rest) if axis == 0 else arg for axis, arg in zip(in_axes, args, strict=True)))

        own = [arg for axis, arg in zip(in_axes, args, strict=True) if axis == 0]
        if len(jax.tree.leaves(own)[0]) > 1:
            return jax.lax.map(one, own)
        # XLA evaluates a one-iteration loop over constants at compile time, which takes seconds for a pool's moments.
        return jax.tree.map(lambda leaf: leaf[None], one(jax.tree.map(lambda leaf: leaf[0], own)))

    def mapped(*args):
        seeds = len(jax.tree.leaves([arg for axis, arg in zip(in_axes, args, strict=True) if axis == 0])[0])
        return jax.shard_map(
            on_device,
            mesh=mesh_of(seeds),
            in_specs=tuple(PartitionSpec("seed") if axis == 0 else PartitionSpec() for axis in in_axes),
            out_specs=PartitionSpec("seed"),
            axis_names={"seed"},
            check_vma=False,
        )(*args)

    return mapped


def split(tree: Any, axis: str) -> Any:
    """The same leaves, their first axis spread over a mesh axis where the sizes divide; for use inside `over_seeds`.

    Without a mesh the tree is returned as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, spec_of(leaf.shape, mesh, axis)), tree)


def spec_of(shape: tuple[int, ...], mesh: Any, *axes: str) -> PartitionSpec:
    """The spec that puts the first axes of an array along these mesh axes, each where its size can be divided."""
    return PartitionSpec(
        *(axis if size % mesh.shape[axis] == 0 else None for size, axis in zip(shape, axes, strict=False))
    )


def over_components(function: Callable[..., jax.Array], params: Any, *shared: Any) -> jax.Array:
    """``function(params, *shared)``, [n, ...], of params with leaves [n, ...]; each device computes its components.

    For functions that loop over components: the compiler cannot spread a loop.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or len(jax.tree.leaves(params)[0]) % mesh.shape["pool"]:
        return function(params, *shared)
    spec, whole = PartitionSpec("pool"), (PartitionSpec(),) * len(shared)
    spread = jax.shard_map(function, in_specs=(spec, *whole), out_specs=spec, axis_names={"pool"}, check_vma=False)
    return spread(params, *shared)


def spread(tree: Any, mesh: Mesh, *axes: str) -> Any:
    """Puts leaves that this process has whole on the mesh, with their first axes along the named mesh axes."""
    sharding = NamedSharding(mesh, PartitionSpec(*axes))

    def put(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf)))
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda part: whole[part])

    return jax.tree.map(put, tree)


def bytes_per_device(tree: Any) -> int:
    """The bytes that the leaves occupy on one device."""
    return sum(leaf.addressable_data(0).nbytes for leaf in jax.tree.leaves(tree))


def to_host(tree: Any) -> Any:
    """The leaves as NumPy arrays, whole on every process."""
    return multihost_utils.process_allgather(tree, tiled=True)
