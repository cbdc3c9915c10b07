"""The candidate with the least loss: against the rules written out in Python, and by which losses it was found."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ftn_jax.core.shortlist import least

SIZE, LENGTH, WITHOUT = 40, 5, 3.0
DIGITS = float(np.finfo(np.float32).eps) ** 0.5 * WITHOUT


def problem(seed):
    """(scores, losses, there, blind): scores that tell something of the losses, and every eighth time one of the traps.

    The scores of those that are ``blind`` tell nothing, in every other problem.
    """
    rng = np.random.default_rng(seed)
    losses = (WITHOUT + rng.normal(-0.5, 1, SIZE)).astype(np.float32)
    scores = (losses - WITHOUT + rng.normal(0, 0.5, SIZE)).astype(np.float32)
    there = rng.random(SIZE) < rng.choice([0.1, 0.5, 1.0])
    there[rng.integers(SIZE)] = True
    match seed % 8:
        case 0:  # untrained
            scores[:], losses[:] = 0, WITHOUT
        case 1:  # nothing is promised
            scores = np.abs(scores)
        case 2:  # what is promised is rounding
            scores *= DIGITS / np.abs(scores).max() / 2
        case 3:  # the promise is not kept, unless by the candidate of the worst score
            losses[np.argsort(scores)[:-1]] = WITHOUT + rng.random(SIZE - 1)
        case 4:
            losses[rng.integers(SIZE)] = np.nan
        case 5:
            scores[rng.integers(SIZE)] = np.nan
        case 6:  # many equals
            losses, scores = losses.round(), scores.round()
        case 7:  # the longer the shortlist, the better, up to a place
            losses[np.argsort(scores)] = WITHOUT - 0.1 * np.minimum(np.arange(1, SIZE + 1), rng.integers(1, SIZE))
    blind = rng.random(SIZE) < (rng.choice([0.1, 0.5]) if seed // 8 % 2 else 0)
    scores[blind] = rng.choice([-1e3, 1e3, np.nan], blind.sum())
    return scores, losses, there, blind


def literal(scores, losses, there, blind):
    """The choice, and the candidates that have to be compared."""
    numbers = [i for i in range(SIZE) if there[i]]
    compared, told = numbers, [i for i in numbers if not blind[i]]
    if len(numbers) > LENGTH and np.isfinite(scores[told]).all() and min(scores[told], default=0) < -DIGITS:
        compared = listed([i for i in numbers if blind[i]], sorted(told, key=lambda i: scores[i]), losses)
    unknown = [i for i in sorted(compared) if np.isnan(losses[i])]
    return unknown[0] if unknown else min(compared, key=lambda i: (losses[i], i)), compared


def listed(beside, order, losses):
    limit = LENGTH
    while limit < len(order):
        compared = beside + order[:limit]
        if not losses[compared].min() < WITHOUT - DIGITS:  # or unknown
            break
        lowest = min(compared, key=lambda i: (losses[i], i))
        if lowest in beside or order.index(lowest) < limit / 2:
            return compared
        limit *= 2
    return beside + order


def choice(scores, losses, there, blind):
    first_order = lambda: (jnp.float32(WITHOUT), scores)  # noqa: E731
    return least(lambda i: losses[i], there, first_order, unforeseen=blind, length=LENGTH)


def test_the_choice_and_what_is_compared_are_those_of_the_literal_rules():
    seen = []

    def look(number, losses):
        seen.append(int(number))
        return losses[number]

    @jax.jit
    def found(scores, losses, there, blind):
        def loss_of(number):
            return jax.pure_callback(look, jax.ShapeDtypeStruct((), jnp.float32), number, losses)

        return least(loss_of, there, lambda: (jnp.float32(WITHOUT), scores), unforeseen=blind, length=LENGTH)

    counts = set()
    for seed in range(200):
        scores, losses, there, blind = problem(seed)
        seen.clear()
        number = int(found(scores, losses, there, blind))
        wanted, compared = literal(scores, losses, there, blind)
        assert (number, sorted(seen)) == (wanted, sorted(compared)), seed
        assert there[number]
        counts.add("all" if len(seen) == there.sum() else len(seen) - blind[seen].sum())
    assert counts == {"all", LENGTH, 2 * LENGTH, 4 * LENGTH}


def test_problems_that_are_mapped_do_not_disturb_each_other():
    """Each goes through a different number of candidates."""
    problems = [problem(seed) for seed in range(40)]
    found = jax.jit(jax.vmap(choice))(*(jnp.stack(part) for part in zip(*problems, strict=True)))
    assert found.tolist() == [literal(*given)[0] for given in problems]


def test_scores_are_only_computed_where_they_are_needed():
    calls = []

    def look(scores):
        calls.append(1)
        return scores

    def found(scores, losses, there):
        def first_order():
            shape = jax.ShapeDtypeStruct(scores.shape, scores.dtype)
            return jnp.float32(WITHOUT), jax.pure_callback(look, shape, scores)

        return least(lambda i: losses[i], there, first_order, length=LENGTH)

    scores, losses, *_ = problem(7)
    for count, needed in ((1, False), (LENGTH, False), (LENGTH + 1, True), (SIZE, True)):
        calls.clear()
        jax.block_until_ready(jax.jit(found)(scores, losses, np.arange(SIZE) < count))
        assert bool(calls) == needed, count


def test_without_scores_all_are_compared():
    for seed in range(16):
        _, losses, there, _ = problem(seed)
        losses = np.nan_to_num(losses)
        found = jax.jit(functools.partial(least, lambda i, losses=losses: jnp.asarray(losses)[i]))(there)
        assert int(found) == np.flatnonzero(there)[losses[there].argmin()]
