"""What a method costs: sizes counted by hand, the speed of the steps that were timed, the peak of memory."""

import re
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from toys import SEEDS, toy_method, toy_neurons, toy_pool, toy_training

from ftn_jax.lifelong.progress import Progress
from ftn_jax.lifelong.touched import Touched
from ftn_jax.runs.cost import Peak, cost_of, peak_memory
from ftn_jax.training.state import init_state

LOW, HIGH = Peak(0, "process"), Peak(2**60, "process")


def cost(pool, own, name="ftn_reserve", before=LOW, **pace):
    state = init_state(pool, np.array(SEEDS, np.int32), method=toy_method(name), training=toy_training())
    progress = Progress(state, Touched(2, 2, pool.size), pace={"steps": 0, "seconds": 0.0} | pace)
    return cost_of(pool, progress, own, batch=8, before=before)


def test_sizes_of_networks():
    """W [2, 4], [4, 4] and [4, 1], b [4], [4] and [1], the readout [2]: 39. Tasks own 4, 2, 1 and 1 components."""
    found = cost(toy_neurons(), [[[0, 1, 2, 3], [4, 5]], [[0], [1]]])
    assert (found["parameters"], found["bytes"], found["trained"]) == (2 * 39, 2 * 39 * 4, 2 * 39)


def test_sizes_of_adapters():
    """Rank 2 in two layers: A [2, 2, 24] and B [2, 2, 72] are 384, and a second module's, [24] to [24], 192."""
    assert cost(toy_pool(), [[[0], [1]]] * 2)["parameters"] == 384
    found = cost(toy_pool(modules=("attn.c_attn", "attn.c_proj")), [[[0, 3], [1, 2]]] * 2)
    assert (found["parameters"], found["bytes"]) == (2 * (384 + 192), 2 * (384 + 192) * 4)


def test_parameters_that_are_not_trained():
    """SupSup trains scores for the weights, 8 + 16 + 4 a network, and leaves the networks as they are."""
    found = cost(toy_neurons(), [[range(16)]] * 2, "supsup_weights")
    assert (found["parameters"], found["trained"]) == (16 * 39, 16 * 28)


def test_speed_is_of_all_seeds_and_of_timed_steps_only():
    own = [[[0]]] * 2
    assert cost(toy_neurons(), own, steps=30, seconds=1.5)["examples_per_second"] == pytest.approx(30 * 8 * 2 / 1.5)
    assert cost(toy_neurons(), own)["examples_per_second"] is None


def test_a_peak_that_was_reached_before_is_a_bound():
    assert cost(toy_neurons(), [[[0]]] * 2, before=LOW)["memory"]["at_most"] is False
    assert cost(toy_neurons(), [[[0]]] * 2, before=HIGH)["memory"]["at_most"] is True


def test_the_peak_of_a_process_is_its_largest_resident_size():
    def resident():
        return 1024 * int(re.search(r"^VmRSS:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[1])

    before = resident()
    block = np.ones(10**7)
    during = resident()
    assert during - before > 70e6
    del block
    found = peak_memory()
    assert found.of == "process" and during - 1e6 < found.bytes < during + 20e9


def test_a_device_that_tells_its_peak_is_believed(monkeypatch):
    def device(peak):
        return types.SimpleNamespace(memory_stats=lambda: peak and {"peak_bytes_in_use": peak, "bytes_in_use": 1})

    monkeypatch.setattr(jax, "local_devices", lambda: [device(7), device(9), device(8)])
    assert peak_memory() == Peak(9, "device")
    monkeypatch.setattr(jax, "local_devices", lambda: [device(7), device(None)])
    assert peak_memory().of == "process"
