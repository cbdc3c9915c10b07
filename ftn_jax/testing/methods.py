"""The contract of a method (`ftn_jax.methods.base`), as checks on a short run over a stream."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ftn_jax.methods import Method, Selection
from ftn_jax.pools.base import Pool
from ftn_jax.streams import Stream
from ftn_jax.testing.compilations import counted_compilations
from ftn_jax.testing.expect import expect, expect_alike, expect_equal
from ftn_jax.training.evaluation import Row, evaluate_row
from ftn_jax.training.loop import train_task
from ftn_jax.training.state import State, Training, init_state, make_optimizer


class MethodRun(NamedTuple):
    """A method's run over a stream, with what was recorded."""

    pool: Pool  # the pool that the method trains
    stream: Stream
    method: Method
    training: Training
    states: list[State]  # at the start and after each task
    installed: list[Selection]  # of each task, leaves [E, ...]
    masks: list[np.ndarray]  # those of each task's steps, int32[E, steps, k]; [E, 1, k] if the mask does not move
    rows: list[Row]
    compilations: list[int]  # programs compiled while each task was trained and evaluated


def method_run(
    method: Method, pool: Pool, stream: Stream, *, training: Training | None = None, seeds: Sequence[int] = (3, 7)
) -> MethodRun:
    """Trains and evaluates a method on a stream; arguments as in `check_method`."""
    training = training or Training(make_optimizer("adam", 0.02, 0.0), steps=4, batch=8, support=8, chunk=2)
    pool, axis = method.adapt_pool(pool), stream.axis
    state = init_state(pool, np.asarray(seeds, np.int32), method=method, training=training)
    run = MethodRun(pool, stream, method, training, [_copy(state)], [], [], [], [])
    for i in range(len(stream.tasks)):
        moved: list[np.ndarray | None] = []
        with counted_compilations() as count:
            state, selection = train_task(
                pool, method, training, state, method.training_data(stream.tasks, i, axis), i, axis=axis,
                installed=run.installed,
                feed=method.training_feed(stream.feed, len(stream.tasks), i),
                on_chunk=lambda step, losses, masks, _, to=moved: to.append(masks),
            )  # fmt: skip
            run.installed.append(selection)
            k, wanted = selection.active.shape[-1], method.reserves or selection.active.shape[-1]
            expect(k == wanted, f"block {i} has {k} components, expected the {wanted} of reserves")
            row = evaluate_row(pool, method, state, stream.tasks, i, run.installed, support=training.support, axis=axis)
        run.compilations.append(count())
        run.rows.append(row)
        run.states.append(_copy(state))
        told = [masks for masks in moved if masks is not None]
        run.masks.append(np.concatenate(told, axis=1) if told else np.asarray(selection.active)[:, None])
    return run


def check_method(
    method: Method, pool: Pool, stream: Stream, *, training: Training | None = None, seeds: Sequence[int] = (3, 7)
) -> None:
    """Checks a method against its contract, in a short run.

    Args:
      method: as its builder returns it.
      pool: the pool before ``method.adapt_pool``.
      stream: two or more tasks, all of the same shape (see `ftn_jax.testing.check_stream`).
      training: by default four steps of eight examples.
      seeds: the seeds, which train side by side.

    Raises:
      AssertionError: says which rule is broken.
    """
    run = method_run(method, pool, stream, training=training, seeds=seeds)
    for check in METHOD_CHECKS:
        check(run)


def after_the_first_task_nothing_is_compiled(run: MethodRun) -> None:
    """Training steps, configurer and evaluation are all compiled for the first task; another mask needs no other."""
    later = run.compilations[1:]
    expect(not any(later), f"{later} programs are compiled for the tasks after the first, expected none")


def the_state_keeps_its_structure_dtypes_and_shapes(run: MethodRun) -> None:
    before, *later = run.states
    for i, state in enumerate(later):
        expect_alike(state, before, f"the state after task {i}")


def params_and_extras_have_the_component_axis_first(run: MethodRun) -> None:
    state = run.states[-1]
    expect(jax.tree.leaves(state.params), "the method trains nothing")
    wanted = len(state.keys), run.pool.size
    for path, leaf in jax.tree_util.tree_leaves_with_path({"params": state.params, "extra": state.extra}):
        name = jax.tree_util.keystr(path)
        expect(leaf.shape[:2] == wanted, f"{name} of all seeds has shape {leaf.shape}, expected {[*wanted]} first")


def selections_are_sorted_distinct_indices_and_a_variant(run: MethodRun) -> None:
    for selection in [*run.installed, *run.rows[-1].recovered]:
        active, variant = np.asarray(selection.active), np.asarray(selection.variant)
        seeds = len(run.states[0].keys)
        expect(variant.dtype == np.int32, f"a selection's variant is {variant.dtype}, expected int32")
        expect(variant.shape == (seeds,), f"a selection's variant has shape {variant.shape[1:]}, expected []")
        expect(active.dtype == np.int32, f"active indices are {active.dtype}, expected int32")
        expect(active.ndim == 2, f"active indices have shape {active.shape[1:]}, expected [k]")
        padding = active == run.pool.size if selection.frozen is not None else np.zeros(active.shape, bool)
        steps = np.diff(active, axis=1)
        distinct = np.all((steps > 0) | ((steps == 0) & padding[:, 1:]))
        expect(distinct, f"active indices {active.tolist()} are not sorted and distinct")
        inside = np.all(((active >= 0) & (active < run.pool.size)) | padding) and not padding[:, 0].any()
        expect(inside, f"active indices {active.tolist()} are not all of the pool's {run.pool.size} components")
        if selection.frozen is not None:
            frozen = np.asarray(selection.frozen)
            expect(frozen.dtype == np.int32, f"frozen indices are {frozen.dtype}, expected int32")
            both = [_shared(*pair, run.pool.size) for pair in zip(frozen, active, strict=True)]
            expect(not any(both), f"components {both} are both active and frozen")


def a_method_that_reserves_gives_each_task_free_components(run: MethodRun) -> None:
    """No earlier task has any of them."""
    if not run.method.reserves:
        return
    expect(not run.method.oracle, "the method is told the task and reserves components, expected one or the other")
    for e in range(len(run.states[0].keys)):
        taken = np.zeros(0, np.int32)
        for i, selection in enumerate(run.installed):
            active = np.asarray(selection.active)[e]
            again = _shared(active, taken, run.pool.size)
            expect(not again, f"block {i} is given components {again}, which an earlier task has")
            taken = np.union1d(taken, active)


def exclusive_methods_forget_nothing_under_stored_masks(run: MethodRun) -> None:
    """Theorem 2.1: masks are disjoint, and each task keeps its score after its block, bit for bit, to the end."""
    if not run.method.exclusive:
        return
    for e in range(len(run.states[0].keys)):
        every = np.concatenate([np.asarray(selection.active)[e] for selection in run.installed])
        every = every[every < run.pool.size]
        expect(len(np.unique(every)) == len(every), "two tasks of an exclusive method share components")
    for metric, last in run.rows[-1].stored.items():
        for j, row in enumerate(run.rows):
            expect_equal(last[:, j], row.stored[metric][:, j], f"{metric} of task {j} at the end, beside its first")


def training_changes_the_rows_of_its_masks_and_no_other(run: MethodRun) -> None:
    """Theorem D.1, bit for bit: rows in none of a block's masks stay the same, and all other rows change.

    If the mask does not move, every leaf of its rows has to change; if it moves, one changed leaf per row is enough. A
    method that does not train changes nothing.
    """
    size, still = run.pool.size, run.method.every == "task"
    for i, (before, after, masks) in enumerate(zip(run.states, run.states[1:], run.masks, strict=False)):
        for e in range(len(before.keys)):
            moved = np.stack(
                [
                    np.any(np.reshape(old[e] != new[e], (size, -1)), axis=1)
                    for old, new in zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True)
                ]
            )
            touched = np.isin(np.arange(size), masks[e])
            written = np.flatnonzero(moved.any(0) & ~touched).tolist()
            expect(not written, f"block {i} changes components {written}, which no mask of it has")
            if not run.method.trains:
                expect(not moved.any(), f"block {i} changes components, and the method does not train")
                continue
            if run.method.updates:  # the method may keep some rows fixed
                expect(moved.any(), f"block {i} trains no component")
                continue
            trained = moved.all(0) if still else moved.any(0)
            kept = np.flatnonzero(touched & ~trained).tolist()
            expect(not kept, f"block {i} does not train components {kept} of its mask")


def every_score_is_finite_where_a_mask_exists(run: MethodRun) -> None:
    tasks, seeds = np.arange(len(run.stream.tasks)), len(run.states[0].keys)
    for i, row in enumerate(run.rows):
        for metric, values in row.reconfig.items():
            expect(values.shape == (seeds, len(tasks)), f"{metric} has shape {values.shape} for {len(tasks)} tasks")
            expect(np.isfinite(values).all(), f"{metric} of recovered masks after task {i} is {values.tolist()}")
            stored, wanted = np.isfinite(row.stored[metric]), np.broadcast_to(tasks <= i, (seeds, len(tasks)))
            expect_equal(stored, wanted, f"where {metric} of stored masks after task {i} is finite")


METHOD_CHECKS: tuple[Callable[[MethodRun], None], ...] = (
    params_and_extras_have_the_component_axis_first,
    the_state_keeps_its_structure_dtypes_and_shapes,
    selections_are_sorted_distinct_indices_and_a_variant,
    after_the_first_task_nothing_is_compiled,
    a_method_that_reserves_gives_each_task_free_components,
    exclusive_methods_forget_nothing_under_stored_masks,
    training_changes_the_rows_of_its_masks_and_no_other,
    every_score_is_finite_where_a_mask_exists,
)


def _shared(one: np.ndarray, other: np.ndarray, size: int) -> list[int]:
    """The components that two masks have, without padding."""
    both = np.intersect1d(one, other)
    return both[both < size].tolist()


def _copy(tree):
    return jax.tree.map(jnp.copy, tree)
