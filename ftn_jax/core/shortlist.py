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
    unforeseen: jax.Array | None = None,
    length: int = LENGTH,
) -> jax.Array:
    """The number int32[] of the candidate with the least loss; of equal losses, the first.

    At most ``length`` candidates are all compared. Of more, the ``length`` with the lowest scores are the shortlist,
    which is compared beside those that are ``unforeseen``. If the best of all these is in the second half of the
    shortlist, the list is made twice as long, and so on. Where the scores can't tell, all candidates are compared:

    * No score promises less loss than there is without any candidate, or some score is not finite.
    * The promise is not kept: no candidate that was compared leaves less loss than there is without any.

    Less is what differs in the first half of the digits, so that rounding counts as no difference.

    All comparisons are turns of one loop, so that under vmap it takes as many as one of the mapped problems needs; only
    the scores are then computed for few candidates, too.

    Args:
      loss_of: a candidate's number int32[] -> its loss f32[].
      there: bool[M], the candidates that exist; at least one.
      first_order: () -> (the loss f32[] without any candidate, the scores f32[M]); None compares all candidates.
      unforeseen: bool[M], the candidates whose scores tell nothing of their losses; None: no candidate.
      length: of the shortlist, to begin with.
    """
    there = jnp.asarray(there)
    blind = jnp.zeros_like(there) if unforeseen is None else there & unforeseen
    known = there & ~blind
    count = there.sum(dtype=jnp.int32)
    numbers = jnp.argsort(~there).astype(jnp.int32)  # stable: those that exist in their order, then the others
    losses = jnp.full(len(there), jnp.inf)
    order, bound, beside, listed = numbers, jnp.full_like(losses[0], -jnp.inf), jnp.int32(0), count
    if first_order is not None and len(there) > length:

        def ranked():
            without, scores = first_order()
            scores = jnp.where(known, scores, jnp.inf)
            digits = jnp.sqrt(jnp.finfo(scores.dtype).eps) * jnp.abs(without)
            tells = jnp.all(jnp.isfinite(scores) | ~known) & (scores.min() < -digits)
            ranks = jnp.argsort(jnp.where(blind, -jnp.inf, scores)).astype(jnp.int32)
            beside, bound = blind.sum(dtype=jnp.int32), (without - digits).astype(losses.dtype)
            return jnp.where(tells, ranks, numbers), bound, beside, jnp.where(tells, length, count)

        unranked = order, bound, beside, listed
        order, bound, beside, listed = jax.lax.cond(count > length, ranked, lambda: unranked)

    place = jnp.argsort(order)

    def unfinished(carry):
        turn, listed, _ = carry
        return turn < jnp.minimum(beside + listed, count)

    def compare(carry):
        turn, listed, losses = carry
        number = order[turn]
        losses, turn = losses.at[number].set(loss_of(number)), turn + 1
        lowest = jnp.argmin(losses)
        late, kept = 2 * (place[lowest] - beside) >= listed, losses[lowest] < bound
        longer = jnp.where(kept, jnp.where(late, 2 * listed, listed), count)
        return turn, jnp.where(turn == beside + listed, longer, listed), losses

    _, _, losses = jax.lax.while_loop(unfinished, compare, (jnp.int32(0), listed, losses))
    return jnp.argmin(losses).astype(jnp.int32)
