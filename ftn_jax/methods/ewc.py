"""Elastic weight consolidation (Kirkpatrick et al., 2017): the regularization baseline."""

import jax
import jax.numpy as jnp

from ftn_jax.core.masks import all_ones
from ftn_jax.methods.base import Configurer, Method, Selection

_BLOCK = 16  # per-example gradients computed at a time


def ewc(configurer: Configurer, *, strength: float = 400.0, examples: int = 1024) -> Method:
    """Trains all components with the penalty lambda / 2 sum_t F_t (theta - theta*_t)^2, one term per earlier task.

    F_t is the diagonal of the empirical Fisher information: the mean of squared per-example gradients at the true
    labels. The sum over tasks is kept exactly as one parabola for each parameter, F (theta - anchor)^2 + rest, with
    F the sum of the F_t and the anchor the mean of the theta*_t weighted by them, so memory does not grow with tasks.

    Args:
      configurer: the settings of mask search, which are not used.
      strength: lambda.
      examples: training examples per task from which its Fisher is estimated.
    """

    def init(pool, params, key):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return params, {"fisher": zeros, "anchor": zeros, "rest": zeros}

    def penalty(params, extra, stage):
        terms = jax.tree.map(
            lambda p, fisher, anchor, rest: (fisher * (p - anchor) ** 2 + rest).sum(),
            params,
            extra["fisher"],
            extra["anchor"],
            extra["rest"],
        )
        return 0.5 * strength * jnp.sum(jnp.stack(jax.tree.leaves(terms)))

    def finish(pool, params, extra, task_data, selection, key):
        fisher = fisher_diagonal(pool, params, task_data.batch(key, examples))
        total = jax.tree.map(jnp.add, extra["fisher"], fisher)

        def share(part, whole):
            return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), 0)

        shares = jax.tree.map(share, fisher, total)
        gaps = jax.tree.map(jnp.subtract, params, extra["anchor"])
        return params, {
            "fisher": total,
            "anchor": jax.tree.map(lambda anchor, s, gap: anchor + s * gap, extra["anchor"], shares, gaps),
            "rest": jax.tree.map(
                lambda rest, old, s, gap: rest + old * s * gap**2, extra["rest"], extra["fisher"], shares, gaps
            ),
        }

    def select(pool, params, extra, given):
        return Selection(all_ones(pool.size))

    return Method(select, init=init, penalty=penalty, finish=finish)


def fisher_diagonal(pool, params, batch):
    """The mean over examples of the squared gradient of each example's loss; leaves as ``params``."""
    count = len(jax.tree.leaves(batch)[0])

    def squared(example):
        grads = jax.grad(pool.active_loss)(params, jax.tree.map(lambda leaf: leaf[None], example))
        return jax.tree.map(jnp.square, grads)

    def add(total, block):
        sums = jax.tree.map(lambda leaf: leaf.sum(0), jax.vmap(squared)(block))
        return jax.tree.map(jnp.add, total, sums), None

    size = next(n for n in range(min(_BLOCK, count), 0, -1) if count % n == 0)
    blocks = jax.tree.map(lambda leaf: leaf.reshape(count // size, size, *leaf.shape[1:]), batch)
    total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), blocks)
    return jax.tree.map(lambda leaf: leaf / count, total)
