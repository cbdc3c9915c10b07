"""The compiled programs of a block: its rows gathered, trained for some steps, and written back."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ftn_jax.core.mesh import over_seeds, split
from ftn_jax.methods import Given, Method, Stage
from ftn_jax.methods.base import joined, own_rows
from ftn_jax.pools.base import component_count, gather_padded, scatter
from ftn_jax.training.state import TRAIN, State, Training, fold, map_moments, of_a_block, split_moments


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


@functools.partial(jax.jit, static_argnames=("training",))
def init_optimizer(params, *, training):
    optimizer = training.optimizer

    def one(params):
        return split_moments(optimizer.init(params), optimizer)

    return over_seeds(one, (0,))(params)


def abstract_moments(state: State, k: int, *, method: Method, training: Training) -> Any:
    """Shapes and types of the optimizer state in a block with ``k`` active components; ``state`` may be abstract."""
    params, extra = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (state.params, state.extra))
    if not of_a_block(method, training):
        return jax.eval_shape(functools.partial(init_optimizer, training=training), params)
    active = jax.ShapeDtypeStruct((len(state.keys), k), jnp.int32)
    return jax.eval_shape(functools.partial(enter, training=training), params, None, extra, active)[1]


@functools.partial(jax.jit, static_argnames=("training",))
def enter(params, opt_state, extra, active, *, training):
    """Gathers a block's rows of params, optimizer state and extra; leaves without a component axis, as counts, stay.

    An optimizer state that is None is a fresh one, and one that has only these rows is copied.
    """

    def one(params, opt_state, extra, active):
        rows = gather_padded(params, active)
        if opt_state is None:
            moments = training.optimizer.init(rows)
        elif _has_rows(training):
            moments = jax.tree.map(jnp.copy, opt_state)  # or it would be the argument's buffer, which may be donated
        else:
            moments = optax.tree_utils.tree_map_params(
                training.optimizer, lambda leaf: gather_padded(leaf, active), opt_state
            )
        return rows, moments, gather_padded(extra, active)

    return over_seeds(one, (0, 0, 0, 0))(params, opt_state, extra, active)


def _has_rows(training):
    """Whether the optimizer state of a method that searches once a block is `of_a_block`."""
    return training.rows == "active" and training.reset


def _scatter_rows(params, opt_state, active, params_k, opt_k, *, training):
    """Params and optimizer state with a block's rows written back."""

    def one(params, opt_state, active, params_k, opt_k):
        moments = opt_k
        if not _has_rows(training):
            moments = map_moments(lambda row, whole: scatter(whole, active, row), training.optimizer, opt_k, opt_state)
        return scatter(params, active, params_k), moments

    return over_seeds(one, (0, 0, 0, 0, 0))(params, opt_state, active, params_k, opt_k)


scattered = jax.jit(_scatter_rows, static_argnames=("training",))
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
