"""Seeds, rows and components spread over devices: the numbers of one device."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from ftn_jax.core.errors import InputError
from ftn_jax.core.mesh import AXES, over_seeds
from ftn_jax.runs.build import mesh_for


@pytest.mark.parametrize(("seeds", "devices"), [(1, 1), (2, 2), (3, 1), (4, 2)])
def test_seeds_are_divided_among_the_devices(seeds, devices):
    x = np.arange(3.0 * seeds, dtype=np.float32).reshape(seeds, 3)
    total = jax.jit(over_seeds(lambda row, shared: {"sum": (row * shared).sum()}, (0, None)))(x, jnp.arange(3.0))["sum"]
    np.testing.assert_array_equal(total, [row[1] + 2 * row[2] for row in x])
    shards = sorted(total.addressable_shards, key=lambda shard: shard.index)
    assert [shard.device for shard in shards] == jax.devices()[:devices]
    np.testing.assert_array_equal(np.concatenate([shard.data for shard in shards]), total)


@pytest.mark.slow
def test_two_devices_compute_the_bits_of_one(tmp_path):
    """Two seeds a device, compiled as for a user: a loop over a single one would be unrolled, and rounded otherwise."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    one, two = mesh_run(tmp_path, environment, "neurons", "ftn_slow", "1x1x1", "2x1x1").values()
    assert all("seed" in axes for axes in two["axes"])
    for what in ("params", "moments", "extra", "losses", "masks", "recovered", "scores"):
        jax.tree.map(np.testing.assert_array_equal, two[what], one[what])


def mesh_run(folder, environment, *arguments):
    """What tests/mesh_run.py gives, by shape."""
    command = [sys.executable, Path(__file__).parents[1] / "mesh_run.py", folder / "results", *arguments]
    subprocess.run(command, env=environment, check=True, timeout=550)
    with (folder / "results").open("rb") as file:
        return pickle.load(file)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pool", "method", "shapes"),
    [
        ("lora", "lora_ftn", ("2x2x2",)),
        ("neurons", "ftn_slow", ("1x1x4", "2x2x2")),
    ],
)
def test_a_mesh_computes_what_one_device_does(pool, method, shapes, tmp_path):
    """In float64: the same masks, numbers within 1e-10, other rows bit for bit, and nobody collects the pool."""
    environment = os.environ | {"JAX_ENABLE_X64": "1", "JAX_NUM_CPU_DEVICES": "8"}
    results = mesh_run(tmp_path, environment, pool, method, "1x1x1", *shapes)
    one = results["1x1x1"]
    assert one["losses"][0].dtype == np.float64
    for shape, mesh in results.items():
        used = [axis for axis, count in zip(AXES, shape.split("x"), strict=True) if count != "1"]
        assert all(("pool" in axes) == ("pool" in used) for axes in mesh["axes"])
        assert all(("seed" in axes) == ("seed" in used) for axes in mesh["axes"])
        for what in ("masks", "recovered"):
            jax.tree.map(np.testing.assert_array_equal, mesh[what], one[what])
        for what in ("params", "moments", "losses", "scores"):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-10), mesh[what], one[what])
        for before, after, masks in zip(mesh["params"], mesh["params"][1:], mesh["masks"], strict=False):
            for seed, moved in enumerate(masks):
                leaves = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
                changed = np.any([rows_that_differ(a, b, seed) for a, b in leaves], axis=0)
                assert changed.any() and not changed.all()
                assert not np.setdiff1d(np.flatnonzero(changed), moved).size
        sums = [exchange for exchange in mesh["exchanged"] if exchange.kind == "all-reduce"]
        assert bool(sums) == ("pool" in used or "data" in used)
        # What is exchanged are masks [H], what components answer together, and rows of the k active: no leaf [H, ...].
        # A leaf [H, 1] has a mask's shape, and the others of its row would go with it.
        leaves = {dims_of(leaf.shape[1:]) for leaf in jax.tree.leaves(one["params"][0])} - {(16,)}
        exchanged = re.findall(r"\[([\d,]*)\]", " ".join(exchange.result for exchange in mesh["exchanged"]))
        assert leaves.isdisjoint(dims_of(int(size) for size in sizes.split(",") if size) for sizes in exchanged)


def dims_of(shape):
    return tuple(size for size in shape if size != 1)


def rows_that_differ(before, after, seed):
    """bool[H]: whether a bit of the row is another."""
    return (before[seed].view(np.int64) != after[seed].view(np.int64)).reshape(len(before[seed]), -1).any(1)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (2, 1, 1)),
        ({"seeds": 1}, (1, 2, 1)),
        ({"seeds": 3}, (1, 2, 1)),
        ({"seeds": 3, "mesh__data": 1}, (1, 1, 1)),
        ({"mesh__seed": 1}, (1, 2, 1)),
        ({"mesh__pool": 2}, (1, 1, 2)),
        ({"seeds": 1, "stream__batch": 7}, (1, 1, 1)),
        ({"mesh__data": 2}, (1, 2, 1)),
    ],
)
def test_the_mesh_of_a_config(settings, expected):
    assert tuple(mesh_for(mesh_config(**settings)).shape.values()) == expected


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mesh__seed": 2, "mesh__data": 2}, "x config.mesh.pool is 2 x 2 x 1, expected"),
        ({"mesh__pool": 3}, "at most the 2 devices that are visible"),
        ({"seeds": 3, "mesh__seed": 2}, "config.mesh.seed is 2, expected a divisor of 3, the number of seeds"),
        ({"stream__batch": 7, "mesh__data": 2}, "config.mesh.data is 2, expected a divisor of 1, the greatest common"),
        ({"pool__size": 81, "mesh__pool": 2}, "config.mesh.pool is 2, expected a divisor of 81, config.pool.size"),
    ],
)
def test_a_mesh_that_cannot_be(settings, said):
    with pytest.raises(InputError, match=re.escape(said)):
        mesh_for(mesh_config(**settings))


def mesh_config(**settings):
    return toys.styles_config(
        "x",
        **{"stream.batch": 4, "configurer.support": 8}
        | {name.replace("__", "."): value for name, value in settings.items()},
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "seeds", "expected"),
    [
        ({}, len(os.sched_getaffinity(0)), len(os.sched_getaffinity(0))),
        ({"JAX_NUM_CPU_DEVICES": "3"}, 2, 3),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}, 2, 4),
    ],
)
def test_cores_are_devices_for_seeds_unless_the_user_says_how_many(setting, seeds, expected):
    code = f"from ftn_jax.core.mesh import use_cores; use_cores({seeds}); import jax; print(jax.device_count())"
    env = {key: value for key, value in os.environ.items() if key not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")}
    done = subprocess.run([sys.executable, "-c", code], env=env | setting, capture_output=True, text=True, check=True)
    assert int(done.stdout) == expected
