"""The contract of a pool (`ftn_jax.pools.base`), as checks."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ftn_jax.pools.base import Params, Pool, gather
from ftn_jax.testing.expect import expect, expect_equal, expect_near

_SPREAD = 0.3  # standard deviation of the noise added to params, so that none is at its init's zero


class PoolCase(NamedTuple):
    """A pool with params and a batch to check it on."""

    pool: Pool
    params: Params  # leaves [H, ...], the init plus noise
    batch: Any
    active: Any  # NumPy's int32[k], sorted; a quarter of the pool

    @property
    def mask(self) -> np.ndarray:
        """``active`` as f32[H]."""
        return np.isin(np.arange(self.pool.size), self.active).astype(np.float32)

    @property
    def others(self) -> np.ndarray:
        """The components that are not active, int32[H - k]."""
        return np.setdiff1d(np.arange(self.pool.size, dtype=np.int32), self.active)


# At module level, so that all checks of a pool share the compiled functions.
_losses = jax.jit(lambda pool, *args: pool.example_losses(*args))
_loss = jax.jit(lambda pool, *args: pool.loss(*args))
_active_loss = jax.jit(lambda pool, *args: pool.active_loss(*args))
_init = jax.jit(lambda pool, key: pool.init(key))


def pool_case(pool: Pool, batch: Any, *, seed: int = 0) -> PoolCase:
    """The pool with random params, which stand for trained ones.

    Raises:
      AssertionError: the pool is not a pytree with static settings, or has fewer than four components.
    """
    a_pool_is_a_pytree_with_static_settings(pool)
    expect(pool.size >= 4, f"the pool has {pool.size} components, expected at least 4 to check it")
    rng = np.random.default_rng(seed)
    start = _init(pool, jax.random.key(seed))
    moved = jax.tree.map(lambda leaf: leaf + jnp.asarray(_SPREAD * rng.standard_normal(leaf.shape), leaf.dtype), start)
    active = np.sort(rng.permutation(pool.size)[: pool.size // 4]).astype(np.int32)
    return PoolCase(pool, moved, batch, active)


def check_pool(pool: Pool, batch: Any, *, seed: int = 0) -> None:
    """Checks a pool against its contract.

    Args:
      pool: with four or more components.
      batch: a batch that the pool reads, with two or more examples.
      seed: of the random params.

    Raises:
      AssertionError: says which rule is broken.
    """
    case = pool_case(pool, batch, seed=seed)
    for check in POOL_CHECKS:
        check(case)


def a_pool_is_a_pytree_with_static_settings(pool: Any) -> None:
    expect(isinstance(pool, Pool), f"the pool is {type(pool).__name__}, expected a subclass of ftn_jax.Pool")
    is_leaf = jax.tree_util.all_leaves([pool])
    expect(not is_leaf, "the pool is not a pytree: register it, as flax.struct.dataclass does")
    for leaf in jax.tree.leaves(pool):
        expect(
            isinstance(leaf, jax.Array),
            f"{leaf!r} is data of the pool, expected arrays: mark settings with pytree_node=False",
        )
    empty = jax.tree.map(lambda _: 0.0, pool)
    try:
        equal = jax.tree.structure(copy.deepcopy(empty)) == jax.tree.structure(empty)
    except ValueError as error:  # a setting is an array
        raise AssertionError(f"the pool's settings can't be compared, as jit does ({error})") from error
    expect(equal, "the settings of two equal pools do not compare equal, so that each would be compiled separately")


def every_leaf_of_the_params_has_the_component_axis_first(case: PoolCase) -> None:
    params = _init(case.pool, jax.random.key(0))
    expect(jax.tree.leaves(params), "init gives no params")
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path)
        first = leaf.shape[:1]
        expect(first == (case.pool.size,), f"params{name} has shape {leaf.shape}, expected [{case.pool.size}, ...]")
        expect(jnp.issubdtype(leaf.dtype, jnp.floating), f"params{name} is {leaf.dtype}, expected a floating type")


def init_is_a_function_of_the_key(case: PoolCase) -> None:
    first, again, other = (_init(case.pool, jax.random.key(seed)) for seed in (0, 0, 1))
    expect_equal(again, first, "init of one key")
    differ = [np.any(a != b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True)]
    expect(any(differ), "init of two keys gives the same params")
    rows = np.concatenate([np.reshape(leaf, (case.pool.size, -1)) for leaf in jax.tree.leaves(first)], axis=1)
    expect(len(np.unique(rows, axis=0)) == case.pool.size, "two components have the same init")


def the_losses_agree(case: PoolCase) -> None:
    """`loss`, `active_loss` and `mask_loss` against the sum of `example_losses` over its counts."""
    pool, params, batch, active, mask = *case[:4], case.mask
    sums, counts = _losses(pool, params, mask, batch)
    rows = _rows(batch)
    expect(np.shape(sums) == (rows,) == np.shape(counts), f"example_losses gives {np.shape(sums)}, expected [{rows}]")
    mean = sum(map(float, sums)) / sum(map(float, counts))
    expect_near(_loss(pool, params, mask, batch), mean, "loss under a mask")
    expect_near(_loss(pool, params, active, batch), mean, "loss under active indices")
    expect_near(_active_loss(pool, gather(params, active), batch), mean, "active_loss")
    searched = jax.jit(lambda pool, params, batch, mask: pool.mask_loss(params, batch)(mask))
    expect_near(searched(pool, params, batch, mask), mean, "mask_loss")


def mask_loss_is_the_loss_of_relaxed_masks_gradients_included(case: PoolCase) -> None:
    """Compared with the same mask given once per row, where `loss` can't precompute anything for the whole batch."""
    pool, params, batch, rows = case.pool, case.params, case.batch, _rows(case.batch)
    mask = np.random.default_rng(0).uniform(0, 1, pool.size).astype(np.float32)
    both = jax.jit(
        lambda pool, params, mask, batch: (
            jax.value_and_grad(pool.mask_loss(params, batch))(mask),
            jax.value_and_grad(lambda mask: pool.loss(params, jnp.tile(mask[None], (rows, 1)), batch))(mask),
        )
    )
    (value, slope), (wanted, wanted_slope) = both(pool, params, mask, batch)
    expect_near(value, wanted, "mask_loss under a relaxed mask")
    expect_near(slope, wanted_slope, "the gradient of mask_loss", rtol=1e-3, atol=1e-5)
    still = np.flatnonzero(slope == 0)
    expect(not len(still), f"components {still.tolist()} change no loss of the batch, whatever the mask")


def rows_of_a_batch_may_be_routed_apart(case: PoolCase) -> None:
    """Routing [B, H] and [B, k] is compared with runs that give one row's routing to the whole batch.

    Every second row has a component less; among active indices H is padding.
    """
    pool, params, batch, rows = case.pool, case.params, case.batch, _rows(case.batch)
    rng = np.random.default_rng(0)
    active = np.stack([np.sort(rng.permutation(pool.size)[: len(case.active)]) for _ in range(rows)]).astype(np.int32)
    active[::2, -1] = pool.size
    masks = np.stack([np.isin(np.arange(pool.size), row) for row in active]).astype(np.float32)
    each = [_losses(pool, params, mask, batch) for mask in masks]
    for routing, kind in ((active, "[B, k]"), (masks, "[B, H]")):
        sums, counts = _losses(pool, params, routing, batch)
        for row in range(rows):
            expect_near(sums[row], each[row][0][row], f"loss of row {row} under routing {kind}", rtol=1e-4)
            expect(counts[row] == each[row][1][row], f"count of row {row} under routing {kind} is another")
    expect(len(np.unique([sums[0] for sums, _ in each])) > rows / 2, "losses do not depend on the routing")


def slopes_are_the_gradient_at_the_empty_mask(case: PoolCase) -> None:
    """For pools that define `slopes`: against the gradient of `mask_loss`."""
    if not hasattr(case.pool, "slopes"):
        return
    zeros = np.zeros(case.pool.size, np.float32)

    def both(pool, params, batch):
        loss, of = pool.slopes(batch)
        return (loss, of(params)), jax.value_and_grad(pool.mask_loss(params, batch))(zeros)

    (loss, found), (wanted_loss, wanted) = jax.jit(both)(case.pool, case.params, case.batch)
    expect_near(loss, wanted_loss, "the loss of slopes, without components")
    expect_near(found, wanted, "slopes", rtol=1e-3, atol=1e-5)


def inactive_components_have_no_say(case: PoolCase) -> None:
    pool, params, batch = case.pool, case.params, case.batch
    noise = jax.tree.map(lambda leaf: leaf.at[case.others].set(7.0), params)
    for routing, kind in ((case.mask, "a mask"), (case.active, "active indices")):
        found, wanted = _losses(pool, noise, routing, batch), _losses(pool, params, routing, batch)
        expect_equal(found, wanted, f"losses under {kind} with other inactive components")


def a_component_of_zeros_answers_nothing(case: PoolCase) -> None:
    """Losses are the same with or without it. Padding of masks relies on this, and so does the start from the base."""
    pool, batch, active = case.pool, case.batch, case.active
    zeros = jax.tree.map(lambda leaf: leaf.at[active].set(0.0), case.params)
    everything, rest = np.arange(pool.size, dtype=np.int32), case.others
    found, wanted = (_losses(pool, zeros, routing, batch)[0] for routing in (everything, rest))
    expect_near(found, wanted, "losses with components whose params are zero", rtol=1e-4, atol=1e-6)
    found = _losses(pool, zeros, active, batch)[0]
    none = _losses(pool, case.params, np.zeros(pool.size, np.float32), batch)[0]
    expect_near(found, none, "losses under components of zeros, and under an empty mask", rtol=1e-4, atol=1e-6)
    empty = _losses(pool, case.params, np.zeros(0, np.int32), batch)[0]
    expect_near(empty, none, "losses under no active index, and under an empty mask", rtol=1e-4, atol=1e-6)


def what_answers_is_trained(case: PoolCase) -> None:
    """A training step with a key, which turns dropout on; each component that answers has a gradient."""
    step = jax.jit(lambda pool, *args: jax.value_and_grad(lambda rows, *rest: pool.active_loss(rows, *rest))(*args))
    rows, key = gather(case.params, case.active), jax.random.key(0)
    loss, grads = step(case.pool, rows, case.batch, key)
    expect_equal(step(case.pool, rows, case.batch, key), (loss, grads), "active_loss of one key")
    expect(np.isfinite(loss), f"active_loss with a key is {loss}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        expect(np.isfinite(leaf).all(), f"the gradient of params{jax.tree_util.keystr(path)} is not finite")
    _, without = step(case.pool, rows, case.batch, None)
    moved = [np.any(np.reshape(leaf, (len(case.active), -1)), axis=1) for leaf in jax.tree.leaves(without)]
    still = case.active[~np.any(moved, axis=0)]
    expect(not len(still), f"components {still.tolist()} answer and have no gradient")


def metrics_are_sums_and_counts(case: PoolCase) -> None:
    found = jax.jit(lambda pool, *args: pool.metrics(*args))(case.pool, gather(case.params, case.active), case.batch)
    expect(found, "metrics gives none")
    for name, (total, count) in found.items():
        shapes = np.shape(total), np.shape(count)
        expect(shapes == ((), ()), f"metric {name!r} has shapes {shapes}, expected a sum and a count, both f32[]")
        expect(np.isfinite(total) and count > 0, f"metric {name!r} is {total} of {count}")


POOL_CHECKS: tuple[Callable[[PoolCase], None], ...] = (
    every_leaf_of_the_params_has_the_component_axis_first,
    init_is_a_function_of_the_key,
    the_losses_agree,
    mask_loss_is_the_loss_of_relaxed_masks_gradients_included,
    rows_of_a_batch_may_be_routed_apart,
    slopes_are_the_gradient_at_the_empty_mask,
    inactive_components_have_no_say,
    a_component_of_zeros_answers_nothing,
    what_answers_is_trained,
    metrics_are_sums_and_counts,
)


def _rows(batch: Any) -> int:
    return len(jax.tree.leaves(batch)[0])
