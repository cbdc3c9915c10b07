"""A method by its name: the same as a run's, and what is refused."""

import jax
import numpy as np
import pytest
import toys

import ftn_jax
from ftn_jax.core.errors import InputError
from ftn_jax.methods import METHODS, Configurer, build_method
from ftn_jax.methods.building import make_method

C = Configurer(k=4, tasks=3)


def test_a_method_is_the_one_that_a_run_builds():
    """The same results: what it trains, and which mask it finds."""
    stream, training = toys.toy_stream(1), toys.toy_training(steps=4, chunk=2)
    configurer, found = toys.toy_configurer(), []
    own_pool, own = make_method("lora_ftn", toys.toy_pool(), configurer, kernel=3, lateral_steps=2)
    run = build_method("lora_ftn", configurer, {"kernel": 3, "lateral_steps": 2})
    for pool, method in ((own_pool, own), (toys.toy_pool(), run)):
        state = ftn_jax.init_state(pool, [3], method=method, training=training)
        found.append(ftn_jax.train_task(pool, method, training, state, stream.tasks[0], 0))
    first, second = ((state.params["attn.c_attn"], selection.active) for state, selection in found)
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_the_pool_is_the_one_that_the_method_trains():
    pool, method = make_method("lora_bank", toys.toy_pool(), C, b_std=0.02)
    assert (pool.size, pool.rank) == (4, 8) and not method.oracle


WRONG = {
    "unknown method 'lora_ftm', known: ewc": ("lora_ftm", C, {}),
    "kernel is 2, expected an odd whole number": ("lora_ftn", C, {"kernel": 2, "lateral_steps": 2}),
    "method 'lora_ftn': .*'kernl'": ("lora_ftn", C, {"kernl": 3, "kernel": 3, "lateral_steps": 2}),
    "k is 17, expected 1 to the 16 components": ("lora_naive", Configurer(k=17, tasks=1), {}),
    "at least 20 since lora_fixed gives each of 5 tasks its own k = 4": ("lora_fixed", Configurer(k=4, tasks=5), {}),
    "kernel is 9, expected at most 2 D - 1 = 7 on a 4 x 4 torus": ("lora_ftn", C, {"kernel": 9, "lateral_steps": 2}),
    "expected pool.name=neurons": ("supsup", C, {"signed": False, "widen": 1}),
}


@pytest.mark.parametrize("says", WRONG)
def test_what_is_refused(says):
    name, configurer, settings = WRONG[says]
    with pytest.raises(InputError, match=says) as error:
        make_method(name, toys.toy_pool(), configurer, **settings)
    assert "\n" not in str(error.value)


def test_a_pool_that_is_no_square_is_refused_where_a_method_smooths():
    with pytest.raises(InputError, match="the pool has 15 components, expected a square"):
        make_method("lora_ftn", toys.toy_pool(size=15), C, kernel=3, lateral_steps=2)
    assert make_method("lora_ftn", toys.toy_pool(size=15), C, kernel=3, lateral_steps=0)[0].size == 15


def test_every_method_can_be_made():
    pools = {"lora": toys.toy_pool(), "neurons": toys.toy_neurons()}
    for name in [name for name, kind in METHODS.items() if kind.build.__module__.startswith("ftn_jax.")]:
        made = []
        for pool in pools.values():
            try:
                made.append(make_method(name, pool, C, **toys.VARIANTS.get(name, {})))
            except InputError as error:
                assert "expected pool.name=" in str(error)
        assert made
