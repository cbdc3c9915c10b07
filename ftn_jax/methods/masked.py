"""Methods that train the components under a mask: searched (FTN), given (FixedMask), or none."""

import operator

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
    return Method(_search(configurer, kernel, lateral_steps), every=every)


def reserve(configurer: Configurer, *, kernel: int, lateral_steps: int, recall_steps: int) -> Method:
    """FTN that installs once a task, on components that no task has claimed, and finds among the claimed again.

    Tasks then train disjoint components, and Theorem 2.1 holds for all of them: by stored masks nothing is forgotten.
    No label is used. A mask that had to fit in between others is not round, so ``recall_steps`` (T of recovery) are
    few: many would give back a round one.
    """
    install_on, find_among = (_search(configurer, kernel, steps) for steps in (lateral_steps, recall_steps))

    def init(pool, params, key):
        return params, {"claimed": jnp.zeros(pool.size, bool)}

    def install(pool, params, extra, support, task, key):
        return install_on(pool, params, extra, support, task, key, bias=jnp.where(extra["claimed"], -jnp.inf, 0.0))

    def select(pool, params, extra, support, task, key):
        return find_among(pool, params, extra, support, task, key, bias=jnp.where(extra["claimed"], 0.0, -jnp.inf))

    def finish(pool, params, extra, task_data, selection, key):
        return params, {"claimed": extra["claimed"].at[selection.active].set(True)}

    claimed = operator.itemgetter("claimed")
    return Method(select, install=install, init=init, finish=finish, claimed=claimed, exclusive=True)


def _search(configurer, kernel, lateral_steps):
    def select(pool, params, extra, support, task, key, bias=None):
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
            bias=bias,
        )
        return Selection(proposal.active)

    return select


def fixed(configurer: Configurer) -> Method:
    """FixedMask, the oracle: task t owns the block of components t k ... (t + 1) k - 1."""

    def select(pool, params, extra, support, task, key):
        return Selection(fixed_block(task, configurer.k))

    return Method(select, oracle=True, exclusive=True)


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
