"""Sets that answer together: against a literal NumPy version, and how often the test is wrong where nothing helps."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from ftn_jax.core.composition import LEVEL, better_together, critical_values, helpful, paired_t, search_sets, union
from ftn_jax.core.shortlist import LENGTH


def problem(seed, sets=6, components=20, examples=24):
    """Losses of a linear model with one output for each example, random sets that overlap, and those that there are."""
    rng = np.random.default_rng(seed)
    members = rng.random((sets, components)) < 0.2
    weights = rng.normal(size=(components, examples))
    helps = [np.zeros(components), members[0], members[0] | members[1]][seed % 3]
    target = helps @ weights + (0.3 if seed % 3 else 3.0) * rng.normal(size=examples)
    return weights, target, members, rng.random(sets) < 0.9


def losses_of(weights, target):
    return lambda mask: jnp.square(mask @ jnp.asarray(weights) - jnp.asarray(target))


@functools.partial(jax.jit, static_argnames="most")
def found_by(weights, target, members, eligible, *, most, size):
    """(what the search wants, what is helpful of it)"""
    losses, limits = losses_of(weights, target), {"most": most, "size": size}
    return search_sets(losses, members, eligible, **limits), helpful(losses, members, eligible, **limits)


def literal(weights, target, members, eligible, *, most, size):
    """What the search wants in order, one set at a time in float64, and what is helpful of it."""
    there = [i for i in range(len(members)) if eligible[i]]

    def losses(mask):
        return (mask @ weights - target) ** 2

    moved = dict.fromkeys(there, 0.0)
    for _ in range(15):
        values = {i: 1 / (1 + np.exp(-(np.log(0.05 / 0.95) + moved[i]))) for i in there}
        off = {i: 1 - values[i] * members[i] for i in there}
        mask = 1 - np.prod([off[i] for i in there], axis=0) if there else np.zeros(members.shape[1])
        by_component = (2 * (mask @ weights - target) * weights).mean(1)
        slopes = {}
        for i in there:
            others = np.prod([off[j] for j in there if j != i] or [np.ones(members.shape[1])], axis=0)
            slopes[i] = (by_component * members[i] * others).sum() * values[i] * (1 - values[i])
        rms = np.sqrt(sum(slope**2 for slope in slopes.values()) / max(len(there), 1)) or 1.0
        moved = {i: moved[i] - slopes[i] / rms for i in there}
    wanted = []
    for i in sorted(there, key=lambda i: -moved[i])[:most]:
        if moved[i] <= 0 or np.any(members[[*wanted, i]], axis=0).sum() > size:
            break
        wanted.append(i)
    combinations = sum(1 for r in range(1, most + 1) for _ in itertools.combinations(there, r))
    for chosen in (wanted, wanted[:1]):
        after = losses(np.any(members[chosen], axis=0).astype(float))
        p = scipy.stats.ttest_rel(losses(np.zeros(members.shape[1])), after, alternative="greater").pvalue
        if chosen and p * combinations < LEVEL:
            return wanted, sorted(chosen)
    return wanted, []


def test_search_and_choice_are_those_of_the_literal_version():
    sizes = set()
    with jax.enable_x64():
        for seed in range(30):
            weights, target, members, eligible = problem(seed)
            limits = {"most": 3, "size": 4 + seed % 8}
            wanted, helps = map(np.asarray, found_by(weights, target, members, eligible, **limits))
            chosen = np.flatnonzero(helps).tolist()
            expected = literal(weights, target, members, eligible, **limits)
            assert (wanted[wanted < 6].tolist(), chosen) == expected, seed
            padded = np.pad(members, ((0, 5), (0, 0)), constant_values=True), np.pad(eligible, (0, 5))
            with_padding = np.asarray(found_by(weights, target, *padded, **limits)[0])
            assert with_padding.tolist() == np.where(wanted < 6, wanted, 11).tolist()
            sizes.add((len(expected[0]), len(expected[1])))
    assert {wanted for wanted, _ in sizes} >= {1, 2, 3} and {chosen for _, chosen in sizes} >= {0, 1, 2}


@pytest.mark.parametrize("noise", ["normal", "skewed", "harmful"])
def test_where_nothing_helps_one_run_in_a_hundred_chooses_something_at_most(noise):
    """Each of eight sets only replaces an example's loss by another of the same distribution, or a larger one."""
    trials, rng = 3000, np.random.default_rng(0)
    scales = np.concatenate([[1.0], np.full(8, 1.2 if noise == "harmful" else 1.0)])[:, None]
    shape = (trials, 9, 16)
    drawn = 5 + rng.standard_normal(shape) if noise == "normal" else scales * rng.gamma(0.5, 2.0, shape)

    def one(losses):
        """The first row are the losses without a set; the relaxed mask goes from them to the mean of its sets."""
        return helpful(
            lambda mask: (
                losses[0] + jnp.clip(mask.sum(), max=1) * (mask @ losses[1:] / (mask.sum() + 1e-9) - losses[0])
            ),
            jnp.eye(8, dtype=bool),
            jnp.ones(8, bool),
            most=3,
            size=8,
        ).any()

    drawn = jnp.asarray(drawn, jnp.float32)
    wrong = float(jax.jit(lambda drawn: jax.lax.map(one, drawn, batch_size=100))(drawn).mean())
    assert wrong <= LEVEL + 3 * (LEVEL / trials) ** 0.5


def test_the_best_set_alone_is_tested_at_its_level():
    """Of one set there is nothing to search, and the test alone decides: it errs as often as it may."""
    gains = jnp.asarray(np.random.default_rng(0).standard_normal((20000, 16)), jnp.float32)

    def one(gain):
        return helpful(lambda mask: 5 - mask * gain, jnp.ones((1, 1), bool), jnp.ones(1, bool), most=3, size=1)[0]

    assert float(jax.jit(jax.vmap(one))(gains).mean()) == pytest.approx(LEVEL, rel=0.25)


def test_what_is_better_together_is_tested_against_the_best_alone():
    together_of = jax.jit(
        lambda weights, target, *sets, size: better_together(losses_of(weights, target), *sets, most=3, size=size)
    )
    chosen = []
    with jax.enable_x64():
        for seed in range(30):
            weights, target, members, eligible = problem(seed, examples=300)
            limits = {"most": 3, "size": 4 + seed % 8}
            found = np.flatnonzero(together_of(weights, target, members, eligible, size=limits["size"])).tolist()
            alone = {i: (members[i] @ weights - target) ** 2 for i in np.flatnonzero(eligible)}
            best = min(alone, key=lambda i: alone[i].mean())
            wanted, _ = literal(weights, target, members, eligible, **limits)
            together = (np.any(members[wanted], axis=0).astype(float) @ weights - target) ** 2
            p = scipy.stats.ttest_rel(alone[best], together, alternative="greater").pvalue
            combinations = sum(1 for r in (1, 2, 3) for _ in itertools.combinations(alone, r))
            assert found == (sorted(wanted) if wanted and p * combinations < LEVEL else [best]), seed
            chosen.append(len(found))
    assert set(chosen) >= {1, 2}


def test_the_best_of_many_sets_is_sought_on_a_shortlist():
    """No union may be wanted, so that the best single set is left; where none helps, it is that of all."""

    @jax.jit
    def best(weights, target, members, eligible):
        return better_together(losses_of(weights, target), members, eligible, most=1, size=0)

    missed, kept = 0, []
    with jax.enable_x64():
        for seed in range(60):
            weights, target, members, eligible = problem(seed, sets=40, components=60)
            weights *= np.random.default_rng(seed).lognormal(-1, 1.5, (60, 1))  # the large ones promise too much
            there = np.flatnonzero(eligible)
            order = there[np.argsort((members @ (-2 * target * weights).mean(1))[there])]
            alone = ((members @ weights - target) ** 2).mean(1)
            length, known = LENGTH, alone[order]
            while known[:length].argmin() >= length / 2 and length < len(order):
                length *= 2
            kept.append(known[:LENGTH].min() < (1 - 1e-7) * (target**2).mean())
            expected = order[known[: length if kept[-1] else None].argmin()]
            assert np.flatnonzero(best(weights, target, members, eligible)).tolist() == [expected], seed
            missed += expected != order[known.argmin()]
    assert missed and set(kept) == {True, False}


def test_what_certainly_helps_is_chosen_within_the_limits():
    gains = np.random.default_rng(1).normal(0, 0.1, (24, 16)).astype(np.float32)
    gains[[3, 17]] += 1
    members, there = np.eye(24, dtype=bool), np.ones(24, bool)

    @functools.partial(jax.jit, static_argnames="most")
    def chosen(gains, there, *, most, size):
        return helpful(lambda mask: 5.0 - mask @ gains, members, there, most=most, size=size)

    assert np.flatnonzero(chosen(gains, there, most=2, size=24)).tolist() == [3, 17]
    assert np.sum(chosen(gains, there, most=3, size=1)) == 1
    assert not np.any(chosen(gains, np.zeros(24, bool), most=3, size=24))
    assert not np.any(chosen(gains[:, :1], there, most=3, size=24))  # of one example


def test_the_union_and_the_values_of_t():
    members, values = np.array([[1, 1, 0], [0, 1, 0]]), np.array([0.5, 0.25])
    np.testing.assert_allclose(union(jnp.asarray(members, jnp.float32), jnp.asarray(values)), [0.5, 0.625, 0])
    found = critical_values(3, 2, 16)
    assert found[0] == np.inf
    np.testing.assert_allclose(found[1:], scipy.stats.t.isf(LEVEL / np.array([1, 3, 6]), 15))
    d = np.random.default_rng(0).normal(0.2, 1, 10)
    np.testing.assert_allclose(paired_t(jnp.asarray(d)), scipy.stats.ttest_1samp(d, 0).statistic, rtol=1e-5)
    assert [float(paired_t(jnp.full(3, gain))) for gain in (1.0, 0.0, -1.0)] == [np.inf, 0.0, -np.inf]
