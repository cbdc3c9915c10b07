"""Methods that train components under a mask that is searched (FTN) or given (FixedMask), or without a mask."""

import jax
import jax.numpy as jnp

from ftn_jax.core.configurer import named_proposal, smooth_kwta
from ftn_jax.core.errors import InputError
from ftn_jax.core.masks import all_ones, fixed_block
from ftn_jax.methods.base import Configurer, Method, Selection
from ftn_jax.methods.claims import best


def ftn(
    configurer: Configurer,
    *,
    kernel: int = 3,
    lateral_steps: int = 15,
    every: str = "task",
    recovery_lateral_steps: int | None = None,
    b_std: float | None = None,
) -> Method:
    """Functional Task Networks: the mask of Algorithm 1, cold-started on the support batch.

    With ``configurer.moments`` "kept", the moments of the mask's optimizer carry over from batch to batch throughout
    the run; the mask itself is still cold-started, and recovery always starts with fresh moments.

    Args:
      configurer: the settings of mask search.
      kernel: s.
      lateral_steps: T in training.
      every: "task" installs the mask once per task, "batch" anew on every training batch (section 3, Experiment 1).
      recovery_lateral_steps: T in recovery; None is ``lateral_steps``. Smoothing a mask as often as the field that it
        was taken from, and taking k winners again, erodes its edges.
      b_std: standard deviation of the init of LoRA's B; None is the pool's. If it is not 0, untrained components have
        a gradient by which they can be ranked.

    Raises:
      InputError: moments are to be kept, but the mask is not searched on every batch, or the proposal has no moments.
        `adapt_pool` raises it if ``b_std`` is given for a pool without B.
    """
    kept = configurer.moments == "kept"
    optimizer = named_proposal(configurer.proposal, configurer.learning_rate)
    if kept and (every != "batch" or not jax.tree.leaves(jax.eval_shape(optimizer.init, 0.0))):
        raise InputError(
            f"configurer.moments is 'kept', expected 'fresh' where a mask is searched once per {every} by the proposal "
            f"{configurer.proposal!r}: only Adam has moments, and only a search on every batch can keep them"
        )
    train = search_with(configurer, kernel, lateral_steps)
    recover = train if recovery_lateral_steps is None else search_with(configurer, kernel, recovery_lateral_steps)

    def select(pool, params, extra, given):
        return Selection(recover(pool, params, given.support, given.key).active)

    def install(pool, params, extra, given):
        return Selection(train(pool, params, given.support, given.key).active)

    def adapt_pool(pool):
        if b_std is None:
            return pool
        if not hasattr(pool, "b_std"):
            raise InputError("config.methods: b_std is the spread of LoRA's B, expected pool.name=lora")
        return pool.replace(b_std=b_std)

    def init(pool, params, key):
        return params, {"moments": _rows(optimizer.init(jnp.zeros(pool.size)), pool.size)} if kept else {}

    def search(pool, params, extra, given):
        state = _state(extra["moments"], optimizer.init(jnp.zeros(pool.size))) if kept else None
        found = train(pool, params, given.support, given.key, state=state)
        return Selection(found.active), {"moments": _rows(found.state, pool.size)} if kept else {}

    same = train is recover
    return Method(
        select,
        install=None if same else install,
        search=None if same and not kept else search,
        adapt_pool=adapt_pool,
        init=init,
        every=every,
    )


def _rows(state, size):
    """An optimizer's state with the component axis on every leaf; scalars, such as a count, are repeated."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (size,)), state)


def _state(rows, like):
    """Reverses `_rows`; ``like`` is a state of the same optimizer."""
    return jax.tree.map(lambda row, leaf: row if jnp.ndim(leaf) else row[0], rows, like)


def reserve(configurer: Configurer, *, kernel: int = 3, lateral_steps: int = 15) -> Method:
    """FTN-Reserve: installs once per task, on components that no task has claimed, and recovers one of the claims.

    Tasks then train disjoint components, and Theorem 2.1 holds for all of them: under stored masks nothing is
    forgotten. No task label is used. Recovery takes the claim with the least support loss; of many claims it compares a
    shortlist only (`ftn_jax.methods.claims.best`). Algorithm 1 would start with all components half on, and fails among
    many claims.

    Raises:
      InputError: moments are to be kept.
    """
    if configurer.moments == "kept":
        raise InputError("configurer.moments is 'kept', expected 'fresh' where a mask is searched once per task")
    find = search_with(configurer, kernel, lateral_steps)

    def install(pool, params, extra, given):
        barred = jnp.zeros(pool.size).at[given.held.active].set(-jnp.inf, mode="drop")
        return Selection(find(pool, params, given.support, given.key, bias=barred).active)

    def select(pool, params, extra, given):
        return best(pool, params, given.held, given.support)

    return Method(select, install=install, reserves=configurer.k, exclusive=True)


def search_with(configurer, kernel, lateral_steps):
    """Algorithm 1 with these settings, as a function (pool, params, support, key) -> `MaskProposal`."""

    def search(pool, params, support, key, *, bias=None, state=None):
        return smooth_kwta(
            pool.mask_loss(params, support),
            pool.size,
            k=configurer.k,
            kernel=kernel,
            lateral_steps=lateral_steps,
            steps=configurer.steps,
            learning_rate=configurer.learning_rate,
            proposal=configurer.proposal,
            start=configurer.start,
            state=state,
            key=key,
            jitter=configurer.jitter,
            bias=bias,
        )

    return search


def fixed(configurer: Configurer) -> Method:
    """FixedMask, the oracle: task t owns the block of components t k ... (t + 1) k - 1."""

    def select(pool, params, extra, given):
        return Selection(fixed_block(given.task, configurer.k))

    return Method(select, oracle=True, exclusive=True)


def unmasked(configurer: Configurer) -> Method:
    """NoMask / LoRA-Naive: all components answer and are trained, always; naive fine-tuning."""

    def select(pool, params, extra, given):
        return Selection(all_ones(pool.size))

    return Method(select)


def bank(configurer: Configurer, *, b_std: float = 0.02) -> Method:
    """LoRA-Bank: of H / k adapters of rank k r, takes the one with the least support loss (section 3, Experiment 2).

    B is Gaussian, so that untrained adapters differ. `adapt_pool` raises InputError if the pool is not one of LoRA
    components, or if k does not divide H.
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

    def select(pool, params, extra, given):
        masks = jnp.arange(pool.size, dtype=jnp.int32)[:, None]
        return best(pool, params, Selection(masks, jnp.zeros(pool.size, jnp.int32)), given.support, shortlist=False)

    return Method(select, adapt_pool=adapt_pool)
