"""Streams whose task boundaries are not announced, for methods that reserve components.

With ``config.stream.boundaries`` "unknown" the mask of the previous block stays in use until the loss rises. Then a
support batch of the current data decides. If the data are of a task that has a mask, training continues with this mask;
if they are new, a mask is installed on free components. If the mask changes, the old mask's components are restored to
the start of the chunk of steps in which the loss rose. Each seed decides for itself.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftn_jax.core.errors import InputError
from ftn_jax.core.mesh import over_seeds, to_host
from ftn_jax.lifelong.growth import free_components
from ftn_jax.lifelong.novelty import Memory
from ftn_jax.lifelong.progress import Progress, place
from ftn_jax.methods import Method, Selection
from ftn_jax.pools.base import Pool
from ftn_jax.training.evaluation import remains
from ftn_jax.training.loop import OnChunk, draw_support, held_masks, install, train_task
from ftn_jax.training.state import WATCH, State, Training, of_a_block
from ftn_jax.training.step import enter, init_optimizer, leave


def remember(
    pool: Pool, method: Method, training: Training, progress: Progress, data: Any, *, axis: int | None
) -> None:
    """Adds the mask of the block that has just ended to the memories, with its `remains` on its own support batches.

    A mask that was there before has changed with the block, and is remembered anew.
    """
    block = progress.task
    masks = _alone(progress.selection(block))
    progress.memories = memories = progress.memories or [Memory() for _ in masks.active]
    for memory, number in zip(memories, progress.used[block].tolist(), strict=True):
        if number < len(memory.own):
            memory.renew(number)
        else:
            memory.add()
    for at in range(2):
        left = remains_of(pool, method, training, progress.state, data, masks, (block, at), axis=axis)
        for memory, (own,) in zip(memories, left, strict=True):
            memory.note(own)
    for memory in memories:
        memory.current = -1  # no mask is in training now


def remains_of(
    pool: Pool,
    method: Method,
    training: Training,
    state: State,
    data: Any,
    masks: Selection,
    path: tuple[int, int],
    *,
    axis: int | None,
) -> np.ndarray:
    """`remains` [E, M, 2, n] of n support examples, which are never trained on, under masks with leaves [E, M, ...].

    ``path`` is folded into the key that draws the examples.
    """
    _, batch = draw_support(data, state.keys, (WATCH, *path), split="support", size=training.support, axis=axis)
    return np.asarray(to_host(_remains(pool, state, batch, masks, method=method)), float)


@functools.partial(jax.jit, static_argnames=("method",))
def _remains(pool, state, batch, masks, *, method):
    def one(pool, params, extra, batch, masks):
        return remains(pool, method, params, extra, masks, batch)

    return over_seeds(one, (None, 0, 0, 0, 0))(pool, state.params, state.extra, batch, masks)


def train_unannounced(
    pool: Pool,
    method: Method,
    training: Training,
    progress: Progress,
    data: Any,
    *,
    axis: int | None,
    feed: Callable[[int, int, int], Any] | None,
    on_chunk: OnChunk,
    room: Callable[[Pool], Pool],
) -> Pool:
    """Trains the remaining steps of a block whose start is not announced, and updates ``progress``.

    Args:
      pool: the pool that the method trains.
      method: a method that reserves components.
      training: the settings of training.
      progress: the run's progress.
      data: the current data, from which batches are drawn.
      axis: as in `ftn_jax.training.loop.train_task`.
      feed: as there.
      on_chunk: as there.
      room: pool -> the pool with room for one more mask, if it may grow; also updates ``progress``.

    Returns:
      The pool, which may have grown.

    Raises:
      InputError: there is no room for a new task.
      NonFiniteLoss: names the seed, the block and the step.
    """
    block = progress.task
    if block + progress.step == 0:
        progress.begin(_install(pool, method, training, progress, data, axis=axis))
        progress.memories = [Memory() for _ in progress.used[0]]
        for memory in progress.memories:
            memory.add()
            memory.events.append({"block": 0, "step": 0, "mask": 0, "new": True})
    elif progress.step == 0:
        progress.used.append(progress.used[-1])
    for first in range(progress.step, training.steps, training.chunk):
        until = min(first + training.chunk, training.steps)
        before, selection = progress.state, progress.selection(block)
        held = enter(before.params, before.opt_state, before.extra, selection.active, training=training)
        told: list[np.ndarray] = []
        progress.state, _ = train_task(
            pool,
            method,
            training,
            before,
            data,
            block,
            axis=axis,
            start=first,
            until=until,
            begun=selection,
            feed=feed,
            on_chunk=lambda step, losses, *_, told=told: told.append(losses),
        )
        own = remains_of(pool, method, training, progress.state, data, _alone(selection), (block, until), axis=axis)
        alarms = []
        for memory, losses, (examples,) in zip(progress.memories, told[0], own, strict=True):
            alarms.append(memory.changes.update(losses))
            if alarms[-1] is None:
                memory.note(examples)
        raised = np.array([alarm is not None for alarm in alarms])
        if raised.any():
            state = progress.state
            trained = enter(state.params, state.opt_state, state.extra, selection.active, training=training)
            progress.state = _replaced(state, selection.active, held, raised, training=training)
            steps = [None if alarm is None else first + alarm + 1 for alarm in alarms]
            pool, stays = _decide(pool, method, training, progress, data, steps, until, axis=axis, room=room)
            active = progress.selection(block).active
            progress.state = _replaced(progress.state, active, trained, stays, training=training)
        on_chunk(until, told[0], None, lambda: (progress.state, progress.selection(block)))
    return pool


def _alone(selection: Selection) -> Selection:
    """A selection, leaves [E, ...], as M = 1 masks of each seed."""
    return jax.tree.map(lambda leaf: leaf[:, None], selection)


def _replaced(state: State, active: jax.Array, rows: Any, seeds: np.ndarray, *, training: Training) -> State:
    """The state with active rows of params and moments replaced by ``rows`` of `enter`, only for ``seeds`` bool[E]."""
    now = enter(state.params, state.opt_state, state.extra, active, training=training)
    params_k, opt_k = _either(seeds, rows[:2], now[:2])
    params, opt_state = leave(state.params, state.opt_state, active, params_k, opt_k, training=training)
    return state._replace(params=params, opt_state=opt_state)


@jax.jit
def _either(flags, yes, no):
    def one(flag, yes, no):
        return jax.tree.map(lambda a, b: jnp.where(flag, a, b), yes, no)

    return over_seeds(one, (0, 0, 0))(flags, yes, no)


def _decide(pool, method, training, progress, data, steps, until, *, axis, room):
    """Chooses a known or a new mask for each seed that raised an alarm (``steps`` has its step, None without alarm).

    Returns:
      The pool, and bool[E]: whether a seed keeps its mask.
    """
    block, memories = progress.task, progress.memories
    held = held_masks(pool, method, progress.state, progress.masks)
    assert held is not None  # such methods reserve components
    left = remains_of(pool, method, training, progress.state, data, held, (block, until), axis=axis)
    chosen = [
        memory.current if step is None else memory.decide(seed[: len(memory.own)])
        for memory, seed, step in zip(memories, left, steps, strict=True)
    ]
    if None in chosen:
        pool = room(pool)
        undecided = np.array([choice is None for choice in chosen])
        if min(np.array(free_components(pool, method, progress))[undecided]) < method.reserves:
            raise InputError(
                f"config.pool.size is {pool.size}: data of a new task came, and fewer than config.configurer.k = "
                f"{method.reserves} components are free: take a larger pool from the start, or set config.pool.grow"
            )
        _add(progress, _install(pool, method, training, progress, data, axis=axis), undecided)
    switched = []
    for memory, choice, step in zip(memories, chosen, steps, strict=True):
        switched.append(choice != memory.current)
        if choice is None:
            memory.add()
        elif step is not None:
            memory.use(choice)
        if step is not None:
            memory.events.append({"block": block, "step": step, "mask": memory.current, "new": choice is None})
    progress.used[block] = np.array([memory.current for memory in memories])
    if training.reset:
        state = progress.state
        if of_a_block(method, training):
            active = progress.selection(block).active
            _, fresh, _ = enter(state.params, None, state.extra, active, training=training)
        else:
            fresh = init_optimizer(state.params, training=training)
        progress.state = state._replace(opt_state=_either(np.array(switched), fresh, state.opt_state))
    return pool, ~np.array(switched)


def _install(pool, method, training, progress, data, *, axis):
    """Installs a mask for every seed on components that are in none of the seed's masks."""
    support, masks = training.support, progress.held
    return install(pool, method, progress.state, data, progress.task, support=support, axis=axis, installed=masks)


def _add(progress: Progress, installed: Selection, seeds: np.ndarray) -> None:
    """Adds the newly installed masks to ``progress.masks``, only for ``seeds`` bool[E]."""
    installed, masks = to_host(installed), list(to_host(progress.masks))
    numbers = np.array([len(memory.own) for memory in progress.memories])
    if numbers[seeds].max() == len(masks):
        masks.append(jax.tree.map(lambda leaf: np.full_like(leaf, progress.size), installed))
    for number in range(len(masks)):
        new = seeds & (numbers == number)

        def either(now, then, new=new):
            return np.where(new.reshape(-1, *[1] * (now.ndim - 1)), then, now)

        masks[number] = jax.tree.map(either, masks[number], installed)
    progress.masks = [place(mask) for mask in masks]
