"""O-LoRA (Wang et al., 2023): one LoRA per task, whose A is kept orthogonal to those of earlier tasks."""

import jax.numpy as jnp

from ftn_jax.core.configurer import kwta
from ftn_jax.core.errors import InputError
from ftn_jax.methods.base import Configurer, Method, Selection

_RANK = 8  # the rank of the authors' adapters


def o_lora(configurer: Configurer, *, strength: float = 0.5) -> Method:
    """Each task trains k new components; those of all earlier tasks answer with them, frozen.

    The penalty lambda (8 / k r)^2 sum_{i < t} sum |A_i A_t^T|, summed over adapted modules and layers, is added to the
    loss, so that each update lies in a new subspace (section 3.2 of the paper). The factor (8 / k r)^2 is ours: the
    authors' adapters have rank 8, and with rank k r the sum has (k r / 8)^2 times as many terms, which would outweigh
    the rest of the loss. The paper's penalty on the norm of A is left out, as in the authors' runs. At evaluation the
    components of all tasks answer together; no mask is searched and no task label is used.

    `Method.adapt_pool` raises InputError unless the pool is one of LoRA components.

    Args:
      configurer: the settings of mask search; only k is used.
      strength: lambda; the authors use 0.5 in most runs.
    """

    def adapt_pool(pool):
        if not hasattr(pool, "rank"):
            raise InputError("config.methods: o_lora keeps LoRA's A apart, expected pool.name=lora")
        return pool

    def install(pool, params, extra, given):
        free = jnp.ones(pool.size).at[given.held.active].set(0, mode="drop")
        return Selection(kwta(free, configurer.k), frozen=given.held.active.reshape(-1))

    def select(pool, params, extra, given):
        return Selection(given.held.active[0], frozen=given.held.active[1:].reshape(-1))

    def penalty(params, extra, stage):
        overlaps = [
            jnp.abs(jnp.einsum("klri,mlsi->lkrms", own["a"], earlier["a"])).sum()
            for own, earlier in zip(params.values(), stage.frozen.values(), strict=True)
        ]
        k, _, r, _ = next(iter(params.values()))["a"].shape
        return strength * (_RANK / (k * r)) ** 2 * jnp.sum(jnp.stack(overlaps))

    return Method(
        select, install=install, adapt_pool=adapt_pool, penalty=penalty, reserves=configurer.k, exclusive=True
    )
