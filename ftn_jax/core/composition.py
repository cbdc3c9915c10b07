"""Which of several sets of components answer well together: a search over sets, and a test of what it finds.

The sets are the masks of earlier tasks. A relaxed mask over them with values u_t is, for component h, the probability
that some set which has h is on: 1 - prod_t (1 - u_t [h in t]).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from ftn_jax.core.configurer import propose, whole_vector
from ftn_jax.core.shortlist import least

MOST = 3  # sets that are put together
LEVEL = 0.01  # how often sets are taken for helpful where none is, at most

_START, _STEPS, _ETA = 0.05, 15, 1.0


def union(members: jax.Array, values: jax.Array) -> jax.Array:
    """The relaxed mask f32[H] of sets ``members`` [M, H] with ``values`` [M]."""
    return 1 - jnp.prod(1 - members * values[:, None], axis=0)


def search_sets(
    losses: Callable[[jax.Array], jax.Array], members: jax.Array, eligible: jax.Array, *, most: int, size: int
) -> jax.Array:
    """The sets that together leave less loss: Algorithm 1 with a set as its unit and without smoothing.

    Fifteen steps of the gradient proposal on one logit a set, from a relaxed mask of 0.05: nearly nothing is on, so
    that a set is judged by what it does alone and beside the few that help, not beside all the others. Wanted are the
    sets whose logits have risen, those that rose most first, as long as their union has no more than ``size``
    components.

    Args:
      losses: mask f32[H] -> loss f32[B] of each example.
      members: bool[M, H], the sets.
      eligible: bool[M], those that there are.
      most: sets that may be wanted.
      size: components that their union may have.

    Returns:
      The numbers of the wanted sets int32[min(most, M)], what rose most first, padded with M.
    """
    rows = jnp.where(eligible[:, None], members, False).astype(jnp.float32)
    share = eligible.sum().astype(jnp.float32) / len(members)  # of the logits, whose scale the others would change
    risen, _ = propose(
        lambda values: losses(union(rows, values)).mean(),
        len(members),
        steps=_STEPS,
        optimizer=whole_vector(_ETA * jnp.sqrt(share)),
        start=_START,
    )
    values, order = jax.lax.top_k(jnp.where(eligible, risen, -jnp.inf), min(most, len(members)))
    together = jnp.cumsum(rows[order], axis=0) > 0  # [most, H], the unions of the first, the first two, ...
    wanted = (values > 0) & (together.sum(1) <= size)
    return jnp.where(jnp.cumprod(wanted), order, len(members)).astype(jnp.int32)


def critical_values(sets: int, most: int, examples: int, level: float = LEVEL) -> np.ndarray:
    """What Student's t of ``examples`` differences has to exceed, f64[M + 1], where 0 ... M sets could be combined.

    Bonferroni's correction: all combinations of at most ``most`` sets might have been found, and each is tested at its
    part of ``level``. Infinite where nothing can be told.
    """
    if examples < 2:
        return np.full(sets + 1, np.inf)
    tried = [sum(math.comb(m, r) for r in range(1, most + 1)) for m in range(1, sets + 1)]
    return np.append(np.inf, scipy.special.stdtrit(examples - 1, 1 - level / np.array(tried)))


def paired_t(differences: jax.Array) -> jax.Array:
    """Student's t of differences f32[B]; 0 where all are 0, infinite where all are the same."""
    mean, spread = differences.mean(), jnp.std(differences, ddof=1)
    t = mean * jnp.sqrt(jnp.float32(len(differences))) / jnp.where(spread > 0, spread, 1)
    return jnp.where(spread > 0, t, jnp.where(mean == 0, 0.0, jnp.copysign(jnp.inf, mean)))


def certainly_less(after: jax.Array, before: jax.Array, eligible: jax.Array, *, most: int) -> jax.Array:
    """Whether losses ``after`` f32[B] are less than those of the same examples ``before``: bool[].

    A paired t-test at `LEVEL`, corrected for every combination of at most ``most`` of the ``eligible`` sets. It holds
    its level where the two losses of an example are alike in distribution, however skewed that is.
    """
    needed = jnp.asarray(critical_values(len(eligible), most, len(after)), jnp.float32)
    return paired_t(before - after) > needed[eligible.sum()]


def helpful(
    losses: Callable[[jax.Array], jax.Array], members: jax.Array, eligible: jax.Array, *, most: int, size: int
) -> jax.Array:
    """The sets, bool[M], that certainly leave less loss together than nothing does; arguments as of `search_sets`.

    All that the search wants; where these do not pass the test, the one that rose most alone; else none.
    """
    count = len(members)
    wanted = search_sets(losses, members, eligible, most=most, size=size)
    together = jnp.zeros(count, bool).at[wanted].set(True, mode="drop")
    first = jnp.zeros(count, bool).at[wanted[0]].set(True, mode="drop")
    before = losses(jnp.zeros(members.shape[1]))

    def passes(chosen):
        after = losses(jnp.any(members & chosen[:, None], axis=0).astype(jnp.float32))
        return certainly_less(after, before, eligible, most=most)

    return together & passes(together) | first & passes(first) & ~passes(together)


def better_together(
    losses: Callable[[jax.Array], jax.Array], members: jax.Array, eligible: jax.Array, *, most: int, size: int
) -> jax.Array:
    """The sets, bool[M], that the search wants, if they certainly leave less loss than the best single set; else that.

    The best single set is found by `ftn_jax.core.shortlist.least`. Arguments as of `search_sets`, with at least one
    eligible set.
    """
    members, count = jnp.asarray(members), len(members)

    def alone(number):
        return losses(members[number].astype(jnp.float32))

    def first_order():
        without, slopes = jax.value_and_grad(lambda mask: losses(mask).mean())(jnp.zeros(members.shape[1]))
        return without, jnp.where(members, slopes[None], 0).sum(1)

    best = least(lambda number: alone(number).mean(), eligible, first_order)
    wanted = search_sets(losses, members, eligible, most=most, size=size)
    together = jnp.zeros(count, bool).at[wanted].set(True, mode="drop")
    after = losses(jnp.any(members & together[:, None], axis=0).astype(jnp.float32))
    better = together.any() & certainly_less(after, alone(best), eligible, most=most)
    return jnp.where(better, together, jnp.arange(count) == best)
