"""The training loop, for every method and both experiments.

Arrays of a run have the seed axis E first; the pool and, if seeds share them, the task's data do not.
Everything random is a pure function of (seed, task, step): the seed's key is folded with a purpose, then with the rest.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ftn_jax.core.errors import InputError, NonFiniteLoss
from ftn_jax.core.mesh import over_seeds, split, to_host
from ftn_jax.methods import Given, Method, Selection
from ftn_jax.pools.base import Pool, kind_of
from ftn_jax.streams.base import check_drawn
from ftn_jax.training import validation as best
from ftn_jax.training.state import FINISH, INSTALL, State, Training, fold, is_gathered
from ftn_jax.training.step import chunk_settings, enter, init_optimizer, leave, scattered, train_chunk

# (steps done, losses, masks, snapshot); see `train_task`.
OnChunk = Callable[[int, np.ndarray, np.ndarray | None, Callable[[], tuple[State, Selection]]], None]


def install(
    pool: Pool,
    method: Method,
    state: State,
    data: Any,
    task: int,
    *,
    support: int,
    axis: int | None,
    installed: Sequence[Selection] = (),
) -> Selection:
    """Searches a task's mask on its training data; returns the selection for its block, leaves [E, ...].

    ``installed`` has the selections of earlier blocks: a method that ``reserves`` takes none of their components.
    """
    check_drawn(data, batch=support)
    held = held_masks(pool, method, state, installed)
    keys, batch = draw_support(data, state.keys, (INSTALL, task), split="batch", size=support, axis=axis)
    return find(pool, state, held, batch, task, keys, select=method.install or method.select, oracle=method.oracle)


def held_masks(pool: Pool, method: Method, state: State, installed: Sequence[Selection]) -> Selection | None:
    """The distinct masks of selections with leaves [E, ...], in order, as one with leaves [E, M, ...] padded with H.

    M is a multiple of the H // k masks of k that the pool has room for: tasks that reuse others may have fewer
    components of their own. None unless the method ``reserves``.
    """
    if not method.reserves:
        return None
    masks = to_host(list(installed))
    known = [
        {tuple(mask.active[seed].tolist()): mask for mask in masks if mask.active[seed, 0] < pool.size}
        for seed in range(len(state.keys))
    ]
    block = max(pool.size // method.reserves, 1)
    shape = len(known), block * max(1, -(-max(map(len, known)) // block))
    active = np.full((*shape, method.reserves), pool.size, np.int32)
    frozen = np.full((*shape, method.reuses), pool.size, np.int32) if method.reuses else None
    for seed, own in enumerate(known):
        for row, (indices, mask) in enumerate(own.items()):
            active[seed, row] = indices
            if frozen is not None and mask.frozen is not None:
                frozen[seed, row] = mask.frozen[seed]
    return _placed(Selection(active, np.zeros(shape, np.int32), frozen))  # pyright: ignore


@jax.jit
def _placed(held):
    return over_seeds(lambda held: held, (0,))(held)


def draw_support(data, keys, path: tuple, *, split: str, size: int, axis: int | None) -> tuple[jax.Array, Any]:
    """For each seed, a key for a search and ``size`` examples of the "batch" or "support" data; leaves [E, ...]."""
    return _draw_support(data, keys, path, split=split, size=size, axis=axis, kind=kind_of(data))


@functools.partial(jax.jit, static_argnames=("split", "size", "axis", "kind"))
def _draw_support(data, keys, path, *, split, size, axis, kind):
    def one(key, data):
        key = fold(key, *path)
        return fold(key, 1), getattr(data, split)(fold(key, 0), size)

    return over_seeds(one, (0, axis))(keys, data)


# All installs and recoveries with batches of one shape share one program.
@functools.partial(jax.jit, static_argnames=("select", "oracle"))
def find(pool, state: State, held, support, task, keys, *, select: Callable[..., Selection], oracle: bool) -> Selection:
    """The result of ``select`` for each seed, leaves [E, ...]; only an oracle is told the ``task``."""

    def one(pool, params, extra, held, support, key):
        params, extra, support = split(params, "pool"), split(extra, "pool"), split(support, "data")
        return select(pool, params, extra, Given(support, task if oracle else None, held, key))

    return over_seeds(one, (None, 0, 0, 0, 0, 0))(pool, state.params, state.extra, held, support, keys)


def train_task(
    pool: Pool,
    method: Method,
    training: Training,
    state: State,
    data: Any,
    task: int,
    *,
    axis: int | None = None,
    start: int = 0,
    until: int | None = None,
    begun: Selection | None = None,
    installed: Sequence[Selection] = (),
    feed: Callable[[int, int, int], Any] | None = None,
    validation: Any = None,
    on_chunk: OnChunk = lambda step, losses, masks, snapshot: None,
    on_validation: Callable[[int, np.ndarray], None] = lambda step, losses: None,
) -> tuple[State, Selection]:
    """Trains one block of the stream: install, ``training.steps`` steps (none if the method does not train), finish.

    With ``training.eval_steps`` each seed ends with the parameters of its best step, and the block may end early.

    Args:
      pool: the pool that the method trains.
      method: the method.
      training: the settings of training.
      state: at the block's start, or a snapshot. Its buffers are donated: use the returned state from then on.
      data: the task's data; see `ftn_jax.streams`.
      task: the task's index; only oracles are told it, otherwise it is just folded into keys.
      axis: 0 if every seed has its own data, else None.
      start: steps of the block that the snapshot has done, a multiple of ``training.chunk``.
      until: the number of steps of the block after which training stops; None: all of them, and moments that the next
        block resets are dropped at the end.
      begun: the snapshot's selection; None installs one.
      installed: the selections of earlier blocks; a method that ``reserves`` chooses other components.
      feed: (first step, steps, batch) -> the batches of these steps, leaves [E, steps, batch, ...], which
        ``data.mix`` may change; None draws them from ``data``. See `Method.training_feed`.
      validation: the batch by whose loss the best step is chosen, leaves [E, ...] if ``axis`` is 0; None: that of
        ``data``, if it has one.
      on_chunk: called after each chunk with (steps done, losses [E, chunk], active indices int32[E, chunk, k] of each
        step or None if the mask does not move, a function that returns a snapshot). The next chunk donates the
        snapshot's buffers.
      on_validation: called after each validation with (steps done, losses [E]).

    Returns:
      The state at the boundary and the block's selection, leaves [E, ...] (that of its last batch, if the mask moves).

    Raises:
      NonFiniteLoss: names the seed, the task and the step.
      InputError: there are no validation examples, and ``training.eval_steps`` asks for them.
    """
    check_drawn(data, batch=training.batch if feed is None else 0)
    validation = getattr(data, "validation", None) if validation is None else validation
    validates = training.eval_steps > 0 and method.trains
    if validates and validation is None:
        raise InputError(f"task {task} has no validation examples, and training.eval_steps is {training.eval_steps}")
    index = np.int32(task)  # a NumPy scalar, as a JAX array would be on one device only
    settings = chunk_settings(method, training)
    gathered = is_gathered(method, training)
    selection = begun or install(
        pool, method, state, data, task, support=training.support, axis=axis, installed=installed
    )
    held = held_masks(pool, method, state, installed) if method.every == "batch" else None
    drawn = data if feed is None or hasattr(data, "mix") else None  # tasks of any size share programs if not drawn from
    params, opt_state = state.params, state.opt_state
    if training.reset and not begun:
        opt_state = None
    if opt_state is None and not gathered:
        opt_state = init_optimizer(params, training=training)
    rows: Any = params, opt_state, state.extra
    if gathered:
        rows = enter(*rows, selection.active, training=training)
    params_k, opt_k, extra_k = rows
    if validates and not start:
        opt_k = best.begun(opt_k)

    def snapshot() -> tuple[State, Selection]:
        whole, moments = params_k, opt_k
        if gathered:
            whole, moments = scattered(params, opt_state, selection.active, params_k, opt_k, training=training)
        return State(whole, moments, state.extra, state.keys), selection

    steps = training.steps if method.trains else 0
    announced = until is None
    until = steps if announced else until
    over = False
    for first in range(start, until, training.chunk):
        over = validates and best.is_over(opt_k, training.patience)
        if over:
            break
        length = min(training.chunk, until - first)
        (params_k, opt_k, selection, left), (losses, masks) = train_chunk(
            pool,
            params_k,
            opt_k,
            extra_k,
            (state.params, state.extra) if gathered else None,
            selection,
            held,
            drawn,
            feed and feed(first, length, training.batch),
            state.keys,
            index,
            np.int32(first),
            np.int32(steps),
            length=length,
            axis=axis,
            kind=kind_of(drawn),
            **settings,
        )
        if left is not None:
            state, extra_k = state._replace(extra=left), left
        losses, masks = to_host((losses, masks))
        _check_finite(losses, first, task)
        step = first + length
        if validates and (step // training.eval_steps > first // training.eval_steps or step == steps):
            whole = (state.params, state.extra) if gathered else None
            arguments = pool, params_k, extra_k, whole, selection, validation
            found = best.validation_loss(*arguments, method=method, axis=axis)
            opt_k = best.judged(opt_k, params_k, found)
            on_validation(step, np.asarray(to_host(found)))
        on_chunk(step, losses, masks, snapshot)
    ends = until == steps or over
    if validates and ends:
        params_k = best.best_of(opt_k, params_k)
    if gathered:
        params, opt_state = leave(params, opt_state, selection.active, params_k, opt_k, training=training)
    else:
        params, opt_state = params_k, opt_k
    drops = announced and training.reset  # so that checkpoints don't tell of a forgotten task by its moments
    state = state._replace(params=params, opt_state=None if drops else opt_state)
    if ends:
        state = finish(pool, state, data, selection, index, method=method, axis=axis)
    return state, selection


def _check_finite(losses: np.ndarray, first: int, task: int) -> None:
    bad = np.argwhere(~np.isfinite(losses))
    if bad.size:
        seed, step = bad[bad[:, 1].argmin()]
        raise NonFiniteLoss(float(losses[seed, step]), int(seed), task, int(first + step + 1), first)


def finish(pool, state: State, data, selection, task, *, method: Method, axis: int | None) -> State:
    """The state after ``method.finish``, called with the selection that the block was trained with."""
    return _finish(pool, state, data, selection, task, method=method, axis=axis, kind=kind_of(data))


@functools.partial(jax.jit, static_argnames=("method", "axis", "kind"))
def _finish(pool, state, data, selection, task, *, method, axis, kind):
    def one(pool, state, data, selection):
        key = fold(state.keys, FINISH, task)
        params, extra = split(method.finish(pool, state.params, state.extra, data, selection, key), "pool")
        return state._replace(params=params, extra=extra)

    return over_seeds(one, (None, 0, axis, 0))(pool, state, data, selection)
