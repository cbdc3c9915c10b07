"""What a trained language model writes for held-out examples."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftn_jax.evaluation import active_rows
from ftn_jax.methods import Method, Selection
from ftn_jax.models.generate import greedy, pad_prompts
from ftn_jax.models.pretrained import Base
from ftn_jax.streams import Stream
from ftn_jax.streams.text import encode
from ftn_jax.trainer import State


def write_samples(
    stream: Stream, base: Base, pool: Any, method: Method, state: State, recovered: list[Selection]
) -> list[dict[str, str]]:
    """What the first seed writes for a held-out sentence of each task, under the recovered masks: one batch.

    It writes as many tokens as the longest target has, or as the base has positions left.
    """
    first = jax.device_put(jax.tree.map(lambda leaf: leaf[:1], (state, recovered)), jax.devices()[0])
    rows = [active_rows(first[0], selection, method=method) for selection in first[1]]
    adapters = pool.adapters(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *rows))
    pairs = [pairs[0] for pairs in stream.pairs]
    prompts = [encode(prompt, None, base.tokenizer).prompt for prompt, _ in pairs]
    tokens, valid = pad_prompts(prompts, base.tokenizer.eos_token_id, multiple=1)
    room = base.config.n_positions - tokens.shape[1]
    steps = min(room, max(task.test().labels.shape[1] for task in stream.tasks))
    written = greedy(base.params, adapters, tokens, valid, config=base.config, steps=steps)
    return [
        {
            "task": name,
            "prompt": prompt,
            "target": target,
            "output": base.tokenizer.decode(np.asarray(row).tolist(), skip_special_tokens=True),
        }
        for name, (prompt, target), row in zip(stream.names, pairs, written, strict=True)
    ]
