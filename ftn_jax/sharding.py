"""Where the seeds of a run are computed: spread over the devices, and on each in an order that suits it."""

import os
from collections.abc import Callable

import jax
import numpy as np


def use_cores() -> None:
    """Makes each core of the CPU a device; to be called before jax has looked for devices.

    Networks of a few units keep one core busy, not several. A number that the user has set stays.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if "JAX_NUM_CPU_DEVICES" not in os.environ and "host_platform_device_count" not in flags:
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


def seed_sharding(seeds: int) -> jax.sharding.NamedSharding:
    """How arrays [E, ...] of so many seeds are spread: over as many devices as E can be divided by."""
    devices = jax.devices()
    count = max(n for n in range(1, len(devices) + 1) if seeds % n == 0)
    mesh = jax.sharding.Mesh(np.array(devices[:count]), ("seed",))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("seed"))


def over_seeds(function: Callable, in_axes: tuple[int | None, ...]) -> Callable:
    """``function`` for each seed, spread over devices as `seed_sharding` says.

    Those of one device are a vmap; on the CPU they go one after the other, which is faster by a third.

    Args:
      function: of one seed.
      in_axes: for each argument 0 (leaves [E, ...]) or None (shared by the seeds).
    """

    def on_device(*args):
        if jax.default_backend() != "cpu":
            return jax.vmap(function, in_axes)(*args)

        def one(own):
            rest = iter(own)
            return function(*(next(rest) if axis == 0 else arg for axis, arg in zip(in_axes, args, strict=True)))

        return jax.lax.map(one, [arg for axis, arg in zip(in_axes, args, strict=True) if axis == 0])

    def mapped(*args):
        seeds = len(jax.tree.leaves([arg for axis, arg in zip(in_axes, args, strict=True) if axis == 0])[0])
        sharding = seed_sharding(seeds)
        return jax.shard_map(
            on_device,
            mesh=sharding.mesh,
            in_specs=tuple(sharding.spec if axis == 0 else jax.sharding.PartitionSpec() for axis in in_axes),
            out_specs=sharding.spec,
            check_vma=False,
        )(*args)

    return mapped
