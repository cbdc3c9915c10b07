"""Finds the candidate with the least loss among many by the losses of a few: a shortlist by first-order scores.

A candidate's score is the slope of the loss in the candidate's gain, where every gain is 0. One gradient gives the
scores of all candidates, but a score is only a forecast: the candidates on the shortlist are compared by their losses.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

LENGTH = 8  # candidates on the shortlist, to begin with


def least(
    loss_of: Callable[[jax.Array], jax.Array],
    there: jax.Array,
    first_order: Callable[[], tuple[jax.Array, jax.Array]] | None = None,
    *,
    length: int = LENGTH,
) -> jax.Array:
    """The number int32[] of the candidate with the least loss; of equal losses, the first.

    At most ``length`` candidates are all compared. Of more, the ``length`` with the lowest scores are the shortlist. If
    the best of it is in its second half, the list is made twice as long, and so on. Where the scores can't tell, all
    candidates are compared:

    * No score promises less loss than there is without any candidate, or some score is not finite.
    * The shortlist does not keep the promise: none of its candidates leaves less loss than there is without any.

    Less is what differs in the first half of the digits, so that rounding counts as no difference.

    All comparisons are turns of one loop, so that under vmap it takes as many as one of the mapped problems needs; only
    the scores are then computed for few candidates, too.

    Args:
      loss_of: a candidate's number int32[] -> its loss f32[].
      there: bool[M], the candidates that exist; at least one.
      first_order: () -> (the loss f32[] without any candidate, the scores f32[M]); None compares all candidates.
      length: of the shortlist, to begin with.
    """
    there = jnp.asarray(there)
    count = there.sum(dtype=jnp.int32)
    numbers = jnp.argsort(~there).astype(jnp.int32)  # stable: those that exist in their order, then the others
    losses = jnp.full(len(there), jnp.inf)
    order, bound, limit = numbers, jnp.full_like(losses[0], -jnp.inf), count
    if first_order is not None and len(there) > length:

        def ranked():
            without, scores = first_order()
            known = jnp.where(there, scores, jnp.inf)
            digits = jnp.sqrt(jnp.finfo(scores.dtype).eps) * jnp.abs(without)
            tells = jnp.all(jnp.isfinite(scores) | ~there) & (known.min() < -digits)
            order = jnp.where(tells, jnp.argsort(known).astype(jnp.int32), numbers)
            return order, (without - digits).astype(losses.dtype), jnp.where(tells, length, count)

        unranked = order, bound, limit
        order, bound, limit = jax.lax.cond(count > length, ranked, lambda: unranked)

    place = jnp.argsort(order)

    def unfinished(carry):
        turn, limit, _ = carry
        return turn < limit

    def compare(carry):
        turn, limit, losses = carry
        number = order[turn]
        losses, turn = losses.at[number].set(loss_of(number)), turn + 1
        lowest = jnp.argmin(losses)
        late, kept = 2 * place[lowest] >= limit, losses[lowest] < bound
        longer = jnp.where(kept, jnp.where(late, jnp.minimum(2 * limit, count), limit), count)
        return turn, jnp.where(turn == limit, longer, limit), losses

    _, _, losses = jax.lax.while_loop(unfinished, compare, (jnp.int32(0), limit, losses))
    return jnp.argmin(losses).astype(jnp.int32)
