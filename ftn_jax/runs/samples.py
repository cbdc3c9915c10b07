"""What a trained language model writes for held-out examples."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftn_jax.core.mesh import to_host
from ftn_jax.methods import Method, Selection
from ftn_jax.models import decoder
from ftn_jax.models.chat import Chat
from ftn_jax.models.generate import generate, pad_prompts
from ftn_jax.models.pretrained import Base
from ftn_jax.models.tokens import Text, encode
from ftn_jax.pools.prompts import prefix_of
from ftn_jax.streams import Stream
from ftn_jax.streams.text.task import padded
from ftn_jax.training.evaluation import active_rows, recovery_support
from ftn_jax.training.state import State


def write_samples(
    stream: Stream,
    base: Base,
    pool: Any,
    method: Method,
    state: State,
    recovered: list[Selection],
    *,
    support: int,
) -> list[dict[str, str]]:
    """What the first seed's model writes for one held-out example of each task, under the recovered masks.

    All prompts form one batch. It writes at least as many tokens as the longest target has, at most half of the base's
    positions; under a method that is ``in_context``, which has the ``support`` examples in each prompt, at most as many
    as these leave.
    """
    rows = [active_rows(state, selection, method=method) for selection in recovered]
    first = [to_host(jax.tree.map(lambda leaf: leaf[0], row)) for row in rows]
    pairs = [pairs[0] for pairs in stream.pairs]
    positions, text = base.config.positions, base.tokens
    longest = max(int((np.asarray(task.test().weights) > 0).sum(1).max()) for task in stream.tasks)
    steps = min(positions // 2, padded(longest, positions))
    prompts = [example.prompt for example in encode(pairs, text)]
    if method.in_context:
        contexts = _contexts(stream, state, len(recovered) - 1, positions, support=support)
        prompts = [[*before, *prompt] for before, prompt in zip(contexts, prompts, strict=True)]
        steps = min(steps, positions - max(map(len, prompts)))
    prompts = [prompt[steps - positions :] for prompt in prompts]
    tokens, valid = pad_prompts(prompts, text.ends[0], max(map(len, prompts)))
    params = jax.tree.map(lambda leaf: leaf.addressable_data(0), base.params)
    with jax.set_mesh(None):  # each process computes this by itself, on one device
        adapters = pool.adapters(jax.tree.map(lambda *leaves: jnp.stack(leaves), *first))
        layers = decoder.apart(adapters, base.config)
        written = generate(params, layers, tokens, valid, config=base.config, steps=steps, ends=text.ends)
    return [
        {"task": name, **_shown(pair), "output": text.text(row)}
        for name, pair, row in zip(stream.names, pairs, np.asarray(written).tolist(), strict=True)
    ]


def _shown(text: Text) -> dict[str, str]:
    """What a report shows of an example; of a conversation, the last question and its answer."""
    if isinstance(text, Chat):
        return {"prompt": text.prompt.last, "target": text.messages[len(text.prompt.messages)][1]}
    return dict(zip(("prompt", "target"), text, strict=True))


def _contexts(stream: Stream, state: State, row: int, positions: int, *, support: int) -> list[list[int]]:
    """The tokens of the support examples of each task, for the first seed, that are in its prompts at this row."""
    found = []
    for j, task in enumerate(stream.tasks):
        _, examples = recovery_support(task, state, row, j, support=support, axis=stream.axis)
        first = jax.tree.map(lambda leaf: leaf[0], to_host(examples))
        with jax.set_mesh(None):
            tokens, valid = prefix_of(first, positions)
        found.append(np.asarray(tokens)[np.asarray(valid)].tolist())
    return found
