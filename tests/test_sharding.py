"""Seeds spread over devices: the same numbers as one after the other, each on its own device."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import VARIANTS, toy_configurer, toy_neurons, toy_synthetic, toy_training

from ftn_jax.methods import build_method
from ftn_jax.sharding import over_seeds
from ftn_jax.trainer import init_state, train_task


@pytest.mark.parametrize(("seeds", "devices"), [(1, 1), (2, 2), (3, 1), (4, 2)])
def test_seeds_are_divided_among_the_devices(seeds, devices):
    x = np.arange(3.0 * seeds, dtype=np.float32).reshape(seeds, 3)
    total = jax.jit(over_seeds(lambda row, shared: {"sum": (row * shared).sum()}, (0, None)))(x, jnp.arange(3.0))["sum"]
    np.testing.assert_array_equal(total, [row[1] + 2 * row[2] for row in x])
    shards = sorted(total.addressable_shards, key=lambda shard: shard.index)
    assert [shard.device for shard in shards] == jax.devices()[:devices]
    np.testing.assert_array_equal(np.concatenate([shard.data for shard in shards]), total)


@pytest.mark.parametrize("name", ["ftn_slow", "supsup"])
def test_two_devices_compute_the_bits_of_one(name, monkeypatch):
    """Two seeds a device: a loop over a single one would be unrolled, and rounded otherwise."""
    seeds = (3, 7, 1, 4)

    def run():
        method, training = build_method(name, toy_configurer(), VARIANTS[name]), toy_training()
        pool = method.adapt_pool(toy_neurons())
        state = init_state(pool, np.array(seeds, np.int32), method=method, training=training)
        losses = []
        for i, data in enumerate(toy_synthetic(seeds=seeds).tasks[:2]):
            state, selection = train_task(
                pool, method, training, state, data, i, axis=0, on_chunk=lambda _, loss, *__: losses.append(loss)
            )
        used = {shard.device for shard in jax.tree.leaves(state.params)[0].addressable_shards}
        return jax.device_get((state.params, state.opt_state, state.extra, selection, losses)), used

    both, used = run()
    assert used == set(jax.devices())
    first = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: first)
    jax.clear_caches()
    one, used = run()
    assert len(used) == 1
    jax.tree.map(np.testing.assert_array_equal, both, one)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ({}, len(os.sched_getaffinity(0))),
        ({"JAX_NUM_CPU_DEVICES": "3"}, 3),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}, 4),
    ],
)
def test_each_core_is_a_device_unless_the_user_says_how_many(setting, expected):
    code = "from ftn_jax.sharding import use_cores; use_cores(); import jax; print(jax.device_count())"
    env = {key: value for key, value in os.environ.items() if key not in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")}
    done = subprocess.run([sys.executable, "-c", code], env=env | setting, capture_output=True, text=True, check=True)
    assert int(done.stdout) == expected
