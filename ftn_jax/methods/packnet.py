"""PackNet (Mallya and Lazebnik, 2018): each task keeps the largest of the free weights, which are then frozen."""

import jax
import jax.numpy as jnp

from ftn_jax.core.errors import InputError
from ftn_jax.core.masks import all_ones, kth_largest
from ftn_jax.methods.base import Configurer, Method, Selection

_FREE = -1  # the owner of a weight that no task has kept


def packnet(configurer: Configurer, *, keep: float = 0.5, prune_at: float = 0.5) -> Method:
    """Trains all free weights, prunes them, and trains on with those that remain; these then belong to the task.

    Pruning keeps the free weights of the largest magnitude in each layer, over all networks together (section 3 of the
    paper). It sets the others to zero, and the next task may use them. A task answers with its own weights and those
    of earlier tasks. Biases belong to the first task, as in the paper. The readout, which tasks share here, is pruned
    like a layer; in the paper each task has its own.

    The method is told the task, in training and at evaluation. `Method.adapt_pool` raises InputError unless the pool
    is one of small networks.

    Args:
      configurer: the settings of mask search, which are not used.
      keep: share of the free weights that a task keeps.
      prune_at: share of a block's steps that it trains before it prunes.
    """

    def adapt_pool(pool):
        if not hasattr(pool, "width"):
            raise InputError("config.methods: packnet prunes small networks, expected pool.name=neurons")
        return pool

    def init(pool, params, key):
        return params, {"owner": jax.tree.map(lambda leaf: jnp.full(leaf.shape, _FREE, jnp.int32), params)}

    def realise(params, extra, stage):
        trains = stage.step < stage.steps

        def answering(leaf, owner):
            return jnp.where((owner <= stage.variant) & (trains | (owner != _FREE)), leaf, 0)

        return jax.tree.map(answering, params, extra["owner"])

    def updates(updates, params, extra, stage):
        """Updates free weights; at the pruning step sets the small ones to zero, and later updates only the others."""
        prunes = jnp.int32(prune_at * stage.steps)

        def of_layer(path, update, leaf, owner):
            free = owner == _FREE
            if _is_bias(path):
                return jnp.where(free, update, 0)
            kept = jax.lax.cond(
                stage.step == prunes,
                lambda: _largest(leaf, free, keep),
                lambda: (leaf != 0) | (stage.step < prunes),
            )
            return jnp.where(free, jnp.where(kept, update, -leaf), 0)

        return jax.tree.map_with_path(of_layer, updates, params, extra["owner"])

    def finish(pool, params, extra, task_data, selection, key):
        def of_layer(path, leaf, owner):
            mine = (owner == _FREE) & (True if _is_bias(path) else leaf != 0)
            return jnp.where(mine, selection.variant, owner)

        return params, {"owner": jax.tree.map_with_path(of_layer, params, extra["owner"])}

    def select(pool, params, extra, given):
        return Selection(all_ones(pool.size), jnp.asarray(given.task, jnp.int32))

    return Method(
        select, adapt_pool=adapt_pool, init=init, realise=realise, updates=updates, finish=finish, oracle=True
    )


def _is_bias(path):
    return path[0].key == "b"


def _largest(leaf, free, share):
    """bool, shaped as the leaf: this share, rounded up, of its free entries, those of the largest magnitude."""
    # Nonnegative floats are ordered like their bits as integers.
    bits = jnp.where(free, jax.lax.bitcast_convert_type(jnp.abs(leaf), jnp.int32), -1).ravel()
    count = jnp.ceil(share * free.sum()).astype(jnp.int32)
    return free & (bits >= kth_largest(bits, count, 31)).reshape(leaf.shape)
