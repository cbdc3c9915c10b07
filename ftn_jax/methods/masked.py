"""Methods that train the components under a mask: searched (FTN), given (FixedMask), or none."""

import jax
import jax.numpy as jnp

from ftn_jax.configurer import smooth_kwta
from ftn_jax.errors import InputError
from ftn_jax.masks import all_ones, fixed_block
from ftn_jax.methods.base import Configurer, Method, Selection
from ftn_jax.pools.base import gather


def ftn(configurer: Configurer, *, kernel: int, lateral_steps: int, every: str = "task") -> Method:
    """Functional Task Networks: the mask of Algorithm 1, cold-started on the support batch.

    ``every`` "task" installs it once a task, "batch" on every training batch anew (section 3, Experiment 1).
    """

    def select(pool, params, extra, support, task, key):
        proposal = smooth_kwta(
            pool.mask_loss(params, support),
            pool.size,
            k=configurer.k,
            kernel=kernel,
            lateral_steps=lateral_steps,
            steps=configurer.steps,
            learning_rate=configurer.learning_rate,
            key=key,
            jitter=configurer.jitter,
        )
        return Selection(proposal.active)

    return Method(select, every=every)


def fixed(configurer: Configurer) -> Method:
    """FixedMask, the oracle: task t owns the block of components t k ... (t + 1) k - 1."""

    def select(pool, params, extra, support, task, key):
        return Selection(fixed_block(task, configurer.k))

    return Method(select, oracle=True)


def unmasked(configurer: Configurer) -> Method:
    """NoMask / LoRA-Naive: every component, always; naive fine-tuning."""

    def select(pool, params, extra, support, task, key):
        return Selection(all_ones(pool.size))

    return Method(select)


def bank(configurer: Configurer, *, b_std: float) -> Method:
    """LoRA-Bank: H / k adapters of rank k r, the one with the least support loss (section 3, Experiment 2).

    B is Gaussian, so that untrained adapters differ. `adapt_pool` raises InputError where k does not divide H.
    """

    def adapt_pool(pool):
        if not hasattr(pool, "rank"):
            raise InputError("config.methods: lora_bank joins the ranks of LoRA components, expected pool.name=lora")
        if pool.size % configurer.k:
            raise InputError(
                f"config.pool.size is {pool.size}, expected a multiple of config.configurer.k = {configurer.k} since "
                "lora_bank divides the pool into adapters of that many components"
            )
        return pool.replace(size=pool.size // configurer.k, rank=pool.rank * configurer.k, b_std=b_std)

    def select(pool, params, extra, support, task, key):
        def candidate(h):
            return pool.active_loss(gather(params, h[None]), support)

        losses = jax.lax.map(candidate, all_ones(pool.size))
        return Selection(jnp.argmin(losses).astype(jnp.int32)[None])

    return Method(select, adapt_pool=adapt_pool)
