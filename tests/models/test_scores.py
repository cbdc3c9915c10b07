"""The loss by blocks of the vocabulary: optax's numbers and gradients, and never all scores in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toys

from ftn_jax.models import scores
from ftn_jax.models.decoder import logits

TOKENS, WIDTH = 103, 8


def problem(dtype):
    rng = np.random.default_rng(0)
    head, hidden = 3 * rng.standard_normal((TOKENS, WIDTH)), rng.standard_normal((2, 5, WIDTH))
    labels = rng.integers(0, TOKENS, (2, 5))
    labels[0, 0], labels[0, 1] = 0, TOKENS - 1  # at both ends of the vocabulary
    labels[1] = (hidden[1] @ head.T).argmax(-1)
    return jnp.asarray(head, dtype), jnp.asarray(hidden, dtype), jnp.asarray(labels, jnp.int32)


@pytest.mark.parametrize("size", [1, 10, 64, TOKENS, 1000])
def test_blocks_give_the_whole_s_losses_and_gradients(size):
    """103 is a multiple of no other size: the last block has tokens of the one before."""
    with jax.enable_x64():
        head, hidden, labels = problem(jnp.float64)

        weights = jnp.arange(5.0)[None]

        def whole(hidden):
            return optax.softmax_cross_entropy_with_integer_labels(logits({"embed": head}, hidden), labels)

        losses, hits = jax.jit(scores._by_blocks, static_argnums=3)(head, hidden, labels, size)
        np.testing.assert_allclose(losses, jax.jit(whole)(hidden), rtol=1e-12)
        np.testing.assert_array_equal(hits, (np.asarray(hidden) @ np.asarray(head).T).argmax(-1) == labels)
        assert hits[1].all() and not hits[0].all()
        gradient = jax.grad(lambda hidden: (scores._by_blocks(head, hidden, labels, size)[0] * weights).sum())
        expected = jax.grad(lambda hidden: (whole(hidden) * weights).sum())
        np.testing.assert_allclose(jax.jit(gradient)(hidden), jax.jit(expected)(hidden), rtol=1e-10, atol=1e-12)


def test_equal_scores_are_settled_as_by_argmax():
    head = jnp.array([[1.0], [2.0], [2.0], [2.0]])
    for label, hit in enumerate((False, True, False, False)):
        assert scores._by_blocks(head, jnp.ones((1, 1)), jnp.array([label]), 2)[1] == hit


def test_a_step_never_holds_all_scores(monkeypatch):
    """Two hundred tokens by blocks of sixteen, in a pool's loss: no array of the compiled step has all of them."""
    pool = toys.toy_pool(model=toys.toy_config(vocab_size=211))
    params, batch = toys.toy_params(pool), toys.toy_batch(rows=6)
    rows = jax.tree.map(lambda leaf: leaf[:4], params)

    def compiled():
        step = jax.jit(jax.value_and_grad(lambda rows: pool.active_loss(rows, batch)))
        return step.lower(rows).compile()

    whole = compiled()
    monkeypatch.setattr(scores, "_MOST", 0)
    monkeypatch.setattr(scores, "_BLOCK", 16)
    blocked = compiled()
    shape = f"[{','.join(map(str, (*batch.labels.shape, 211)))}]"
    assert shape in whole.as_text() and shape not in blocked.as_text()
    for a, b in zip(jax.tree.leaves(blocked(rows)), jax.tree.leaves(whole(rows)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)
