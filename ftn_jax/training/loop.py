"""The training loop, for every method and both experiments.

Arrays of a run have the seed axis E first; the pool and, if seeds share them, the task's data do not.
Everything random is a pure function of (seed, task, step): the seed's key is folded with a purpose, then with the rest.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ftn_jax.core.errors import NonFiniteLoss
from ftn_jax.core.mesh import over_seeds, split, to_host
from ftn_jax.methods import Given, Method, Selection, Stage
from ftn_jax.methods.base import joined, own_rows
from ftn_jax.pools.base import Pool, component_count, gather_padded, kind_of, scatter
from ftn_jax.streams.base import check_drawn
from ftn_jax.training.state import FINISH, INSTALL, TRAIN, State, Training, fold, map_moments, split_moments

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
    on_chunk: OnChunk = lambda step, losses, masks, snapshot: None,
) -> tuple[State, Selection]:
    """Trains one block of the stream: install, ``training.steps`` steps (none if the method does not train), finish.

    Args:
      pool: the pool that the method trains.
      method: the method.
      training: the settings of training.
      state: at the block's start, or a snapshot. Its buffers are donated: use the returned state from then on.
      data: the task's data; see `ftn_jax.streams`.
      task: the task's index; only oracles are told it, otherwise it is just folded into keys.
      axis: 0 if every seed has its own data, else None.
      start: steps of the block that the snapshot has done, a multiple of ``training.chunk``.
      until: the number of steps of the block after which training stops; None: all of them.
      begun: the snapshot's selection; None installs one.
      installed: the selections of earlier blocks; a method that ``reserves`` chooses other components.
      feed: (first step, steps, batch) -> the batches of these steps, leaves [E, steps, batch, ...], which
        ``data.mix`` may change; None draws them from ``data``. See `Method.training_feed`.
      on_chunk: called after each chunk with (steps done, losses [E, chunk], active indices int32[E, chunk, k] of each
        step or None if the mask does not move, a function that returns a snapshot). The next chunk donates the
        snapshot's buffers.

    Returns:
      The state at the boundary and the block's selection, leaves [E, ...] (that of its last batch, if the mask moves).

    Raises:
      NonFiniteLoss: names the seed, the task and the step.
    """
    check_drawn(data, batch=training.batch if feed is None else 0)
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
        opt_state = _init_optimizer(params, training=training)
    rows = params, opt_state, state.extra
    if gathered:
        rows = enter(*rows, selection.active, training=training)
    params_k, opt_k, extra_k = rows

    def snapshot() -> tuple[State, Selection]:
        whole, moments = params_k, opt_k
        if gathered:
            whole, moments = _scattered(params, opt_state, selection.active, params_k, opt_k, training=training)
        return State(whole, moments, state.extra, state.keys), selection

    steps = training.steps if method.trains else 0
    until = steps if until is None else until
    for first in range(start, until, training.chunk):
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
        on_chunk(first + length, losses, masks, snapshot)
    if gathered:
        params, opt_state = leave(params, opt_state, selection.active, params_k, opt_k, training=training)
    else:
        params, opt_state = params_k, opt_k
    state = state._replace(params=params, opt_state=opt_state)
    if until == steps:
        state = finish(pool, state, data, selection, index, method=method, axis=axis)
    return state, selection


def is_gathered(method: Method, training: Training) -> bool:
    """Whether only a block's rows are trained: gathered first, and written back at the end."""
    return training.rows == "active" and method.every == "task"


def chunk_settings(method: Method, training: Training) -> dict[str, Any]:
    """The static arguments of `train_chunk`; methods with the same functions share its programs."""
    moving = method.every == "batch"
    return {
        "select": method.select if moving and method.search is None else None,
        "search": method.search if moving else None,
        "oracle": method.oracle and moving,
        "realise": method.realise,
        "penalty": method.penalty,
        "gradients": method.gradients,
        "updates": method.updates,
        "optimizer": training.optimizer,
        "batch": training.batch,
        "accumulate": training.accumulate,
    }


def _check_finite(losses: np.ndarray, first: int, task: int) -> None:
    bad = np.argwhere(~np.isfinite(losses))
    if bad.size:
        seed, step = bad[bad[:, 1].argmin()]
        raise NonFiniteLoss(float(losses[seed, step]), int(seed), task, int(first + step + 1), first)


@functools.partial(jax.jit, static_argnames=("training",))
def _init_optimizer(params, *, training):
    optimizer = training.optimizer

    def one(params):
        return split_moments(optimizer.init(params), optimizer)

    return over_seeds(one, (0,))(params)


@functools.partial(jax.jit, static_argnames=("training",))
def enter(params, opt_state, extra, active, *, training):
    """Gathers a block's rows of params, optimizer state and extra; leaves without a component axis, as counts, stay."""

    def one(params, opt_state, extra, active):
        rows = optax.tree_utils.tree_map_params(training.optimizer, lambda leaf: gather_padded(leaf, active), opt_state)
        return gather_padded(params, active), rows, gather_padded(extra, active)

    return over_seeds(one, (0, 0, 0, 0))(params, opt_state, extra, active)


def _scatter_rows(params, opt_state, active, params_k, opt_k, *, training):
    """Params and optimizer state with a block's rows written back."""

    def one(params, opt_state, active, params_k, opt_k):
        moments = map_moments(lambda row, whole: scatter(whole, active, row), training.optimizer, opt_k, opt_state)
        return scatter(params, active, params_k), moments

    return over_seeds(one, (0, 0, 0, 0, 0))(params, opt_state, active, params_k, opt_k)


_scattered = jax.jit(_scatter_rows, static_argnames=("training",))
leave = jax.jit(_scatter_rows, static_argnames=("training",), donate_argnums=(0, 1))


@functools.partial(
    jax.jit,
    static_argnames=(
        "select",
        "search",
        "oracle",
        "realise",
        "penalty",
        "gradients",
        "updates",
        "optimizer",
        "batch",
        "accumulate",
        "length",
        "axis",
        "kind",
    ),
    donate_argnums=(1, 2),
)
def train_chunk(
    pool, trainable, opt_state, extra, whole, selection, held, data, fed, keys, task, first, steps,
    *, select, search, oracle, realise, penalty, gradients, updates, optimizer, batch, accumulate, length, axis,
    kind=None,
):  # fmt: skip
    """Runs ``length`` of a block's ``steps``, beginning with step ``first``.

    If ``whole``, the (params, extra) of all components, is given, then ``trainable`` has only the active rows, and all
    of them are trained. If it is None, ``trainable`` has every row, and the inactive ones get zero gradients. If
    ``select`` or ``search`` is given, it finds a new mask on each batch.

    Returns:
      ((trainable, opt_state, selection, extra), (losses [E, length], masks)). ``extra`` is the last one returned by
      ``search``, None without a search. ``masks`` int32[E, length, k] are those of each step, None if the mask does
      not move.
    """

    def one(pool, trainable, opt_state, extra, whole, selection, held, data, fed, key):
        def step(carry, now):
            (trainable, opt_state, selection, left), (i, examples) = carry, now
            step_key = fold(key, TRAIN, task, i)
            if examples is None:
                examples = data.batch(fold(step_key, 0), batch)
            elif hasattr(data, "mix"):
                examples = data.mix(fold(step_key, 0), examples, batch)
            examples = split(examples, "data")
            given = Given(examples, task if oracle else None, held, fold(step_key, 2))
            if search is not None:
                selection, left = search(pool, trainable, left, given)
            elif select is not None:
                selection = select(pool, trainable, extra, given)
            mine = trainable, extra if search is None else left
            every = mine if whole is None else whole
            stage = Stage(selection.variant, i, steps, whole=every)
            others = None
            if selection.frozen is not None:
                frozen = gather_padded(every, selection.frozen)
                stage = stage._replace(frozen=frozen[0])
                others = realise(*frozen, stage)
            rows, extra_rows = mine if whole is not None else own_rows(mine, selection)

            def objective(rows, examples, key, share=None):
                params = joined(realise(rows, extra_rows, stage), others)
                loss, extra_loss = pool.active_loss(params, examples, key), penalty(rows, extra_rows, stage)
                return loss + extra_loss if share is None else share * loss + extra_loss / accumulate

            noise = fold(step_key, 1)
            if accumulate == 1:
                loss, grads = jax.value_and_grad(objective)(rows, examples, noise)
            else:
                params = joined(realise(rows, extra_rows, stage), others)
                loss, grads = _by_parts(pool, params, objective, rows, examples, noise, accumulate)
            if whole is None:
                grads = scatter(jax.tree.map(jnp.zeros_like, trainable), selection.active, grads)
            if gradients:
                grads = gradients(grads, *mine, stage)
            moved, opt_state = optimizer.update(grads, opt_state, trainable)
            if updates:
                moved = updates(moved, *mine, stage)
            trainable = optax.apply_updates(trainable, moved)
            return (trainable, opt_state, selection, left), (loss, selection.active if select or search else None)

        begin = trainable, opt_state, selection, extra if search else None
        return jax.lax.scan(step, begin, (first + jnp.arange(length), fed))

    per_seed = trainable, opt_state, extra, whole, selection, held, data, fed, keys
    return over_seeds(one, (None, 0, 0, 0, 0, 0, 0, axis, 0, 0))(pool, *per_seed)


def _by_parts(pool, params, objective, rows, examples, key, count):
    """Loss and gradient of ``objective`` as those of a batch's parts, each by its share of what the loss averages."""
    parts = jax.tree.map(lambda leaf: leaf.reshape(-1, count, *leaf.shape[1:]).swapaxes(0, 1), examples)
    routing = jnp.ones(component_count(params))
    counts = jax.lax.map(lambda part: pool.example_losses(params, routing, part)[1].sum(), parts)

    def add(total, part):
        number, share, examples = part
        found = jax.value_and_grad(objective)(rows, split(examples, "data"), fold(key, number), share)
        return jax.tree.map(jnp.add, total, found), None

    none = jnp.zeros(()), jax.tree.map(jnp.zeros_like, rows)
    return jax.lax.scan(add, none, (jnp.arange(count), counts / counts.sum(), parts))[0]


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
