"""HAT, hard attention to the task (Serra et al., 2018), with the pool's components as the gated units."""

import jax
import jax.numpy as jnp

from ftn_jax.core.errors import InputError
from ftn_jax.core.masks import all_ones
from ftn_jax.methods.base import Configurer, Method, Selection

_LARGEST = 6.0  # embeddings are clipped to this magnitude, as in the authors' code


def hat(configurer: Configurer, *, strength: float = 0.75, sharpness: float = 400.0) -> Method:
    """A learned gate a_t = sigmoid(s e_t) for each task and component; components of earlier tasks are hardly trained.

    During a block s rises from 1 / s_max to s_max (equation 3 of the paper). The gradient of the embeddings e is
    compensated for this (section 2.5): the factor s_max / s [cosh(s e) + 1] / [cosh(e) + 1] turns the gate's slope
    s sigmoid'(s e) into s_max sigmoid'(e). The code uses this slope directly, since the original slope of an open gate
    vanishes in float32. The penalty lambda sum a (1 - u) / sum (1 - u) is added to the loss, where u is each
    component's largest gate in an earlier task (section 2.6). Updates of a component's weights are multiplied by 1 - u
    (equation 2); the inputs and the readout, which tasks share here, have no gates. The paper multiplies gradients
    instead: with its SGD that is the same, but Adam would undo it.

    The method is told the task, in training and at evaluation. `Method.adapt_pool` raises InputError unless the pool
    is one of small networks.

    Args:
      configurer: the settings of mask search; only the number of tasks is used.
      strength: lambda.
      sharpness: s_max.
    """

    def adapt_pool(pool):
        if not hasattr(pool, "width"):
            raise InputError("config.methods: hat gates small networks, expected pool.name=neurons")
        return pool

    def init(pool, params, key):
        embeddings = jax.random.normal(key, (pool.size, configurer.tasks))
        return {"networks": params, "embeddings": embeddings}, {"used": jnp.zeros(pool.size)}

    def scale(stage):
        done = jnp.minimum(stage.step / jnp.maximum(stage.steps - 1, 1), 1)
        return 1 / sharpness + (sharpness - 1 / sharpness) * done

    def gates(trainable, stage):
        e = trainable["embeddings"][:, stage.variant]
        slope = sharpness * jax.nn.sigmoid(e)
        # Straight-through: the added difference is exactly zero, and gives the gate its gradient.
        return jax.lax.stop_gradient(jax.nn.sigmoid(scale(stage) * e)) + (slope - jax.lax.stop_gradient(slope))

    def realise(trainable, extra, stage):
        networks = trainable["networks"]
        return networks | {"readout": networks["readout"] * gates(trainable, stage)[:, None]}

    def penalty(trainable, extra, stage):
        free = 1 - extra["used"]
        return strength * jnp.sum(gates(trainable, stage) * free) / jnp.maximum(jnp.sum(free), 1e-6)

    def updates(updates, trainable, extra, stage):
        def protected(leaf):
            return leaf * (1 - extra["used"]).reshape(-1, *[1] * (leaf.ndim - 1))

        e = trainable["embeddings"]
        mine = jnp.arange(e.shape[1])[None] == stage.variant
        moved = jnp.clip(e + updates["embeddings"], -_LARGEST, _LARGEST) - e
        return {
            "networks": jax.tree.map(protected, updates["networks"]),
            "embeddings": jnp.where(mine, moved, 0),
        }

    def finish(pool, trainable, extra, task_data, selection, key):
        gate = jax.nn.sigmoid(sharpness * trainable["embeddings"][:, selection.variant])
        return trainable, {"used": jnp.maximum(extra["used"], gate)}

    def select(pool, trainable, extra, given):
        return Selection(all_ones(pool.size), jnp.asarray(given.task, jnp.int32))

    return Method(
        select,
        adapt_pool=adapt_pool,
        init=init,
        realise=realise,
        penalty=penalty,
        updates=updates,
        finish=finish,
        oracle=True,
    )
