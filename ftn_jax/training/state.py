"""The state that is trained, saved and restored; its optimizer and random keys."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ftn_jax.core.mesh import over_seeds, spec_of, split
from ftn_jax.methods import Method
from ftn_jax.pools.base import Params, Pool, gather, scatter
from ftn_jax.training.validation import keep_best

CHUNK = 10  # steps that run on the device before control returns to the host, unless a `Training` says otherwise
INIT, INSTALL, TRAIN, FINISH, RECOVER, WATCH = range(6)  # the purposes of keys, see `fold`


class State(NamedTuple):
    """The state of a run; leaves [E, ...], those of params and extra [E, H, ...].

    Moments have [E, H, ...] too, but only [E, k, ...] where they are those of one block's rows; see `of_a_block`.
    """

    params: Params  # the method's trainable params; `Method.params_of` makes the pool's params of them
    opt_state: Any  # None: moments begin with the next block
    extra: Any  # other state of the method
    keys: jax.Array  # [E], one for each seed; never consumed, only folded


@dataclasses.dataclass(frozen=True)
class Training:
    """The settings of training (``config.optimizer`` and ``config.stream``).

    Attributes:
      optimizer: any optax transformation.
      steps: per task.
      batch: examples per step.
      accumulate: parts of a batch that are computed one after another, which takes less memory; their gradients are
        summed, so that the step is that of the whole batch. Divides ``batch``.
      support: examples in the support batch; a method that searches on every batch uses the batch instead.
      rows: "active" gathers the rows of a task's mask and trains only these; "dense" gives the optimizer every row,
        with zero gradients for inactive ones (Remark 2.2 describes the effect).
      reset: whether optimizer moments are reset at task boundaries.
      chunk: steps that run on the device before control returns to the host.
      eval_steps: after so many steps, a multiple of ``chunk``, the loss on validation examples is computed; at the end
        of a block each seed has the parameters of its best step (`ftn_jax.training.validation`). 0: no validation.
      patience: validations without a lower loss, in every seed, after which a block ends early; 0: never.
    """

    optimizer: optax.GradientTransformation
    steps: int
    batch: int
    support: int
    rows: str = "active"
    reset: bool = True
    chunk: int = CHUNK
    accumulate: int = 1
    eval_steps: int = 0
    patience: int = 0

    def __post_init__(self):
        if self.eval_steps:
            object.__setattr__(self, "optimizer", keep_best(self.optimizer))


def is_gathered(method: Method, training: Training) -> bool:
    """Whether only a block's rows are trained: gathered first, and written back at the end."""
    return training.rows == "active" and method.every == "task"


def of_a_block(method: Method, training: Training) -> bool:
    """Whether moments are those of a block's rows only: no other row is trained, and the next block resets them."""
    return is_gathered(method, training) and training.reset


def fold(key: jax.Array, *path: Any) -> jax.Array:
    """The key folded with each part of a path in turn, such as a purpose, a task and a step."""
    return functools.reduce(jax.random.fold_in, path, key)


def make_optimizer(
    name: str,
    learning_rate: float,
    weight_decay: float,
    *,
    lr_scheduler_type: str = "constant",
    warmup_steps: int = 0,
    steps: int = 0,
    max_grad_norm: float = 0.0,
    mu_dtype: str = "float32",
) -> optax.GradientTransformation:
    """Adam, without weight decay, or AdamW.

    Args:
      name: "adam" or "adamw".
      learning_rate: eta, or its largest value in a block.
      weight_decay: of "adamw"; 0 for "adam".
      lr_scheduler_type: what follows the warm-up in each block: a "constant" rate, or a "linear" or "cosine" decay to 0
        at the block's end.
      warmup_steps: the first steps of a block, in which the rate rises linearly from 0.
      steps: of a block; needed for a rate that is not the same in all of them.
      max_grad_norm: gradients of a larger norm, over all that is trained in a block, are scaled to it; 0 scales none.
      mu_dtype: of the first moment, as it is kept; the second stays in float32, since a step changes it by a
        thousandth, which bfloat16 can't hold.

    Raises:
      ValueError: another name, a decay, which adam would ignore, or steps that can't have such a rate.
    """
    if lr_scheduler_type == "constant" and not warmup_steps:
        steps = 0
    return _optimizer(
        name, learning_rate, weight_decay, lr_scheduler_type, warmup_steps, steps, max_grad_norm, mu_dtype
    )


@functools.cache  # equal settings give the same object, since it is a static argument of compiled functions
def _optimizer(name, learning_rate, weight_decay, lr_scheduler_type, warmup_steps, steps, max_grad_norm, mu_dtype):
    rate = learning_rate
    kept = None if mu_dtype == "float32" else mu_dtype  # None: as the params are
    if lr_scheduler_type != "constant" or warmup_steps:
        rate = _schedule(learning_rate, lr_scheduler_type, warmup_steps, steps)
    if name == "adamw":
        optimizer = optax.adamw(rate, weight_decay=weight_decay, mu_dtype=kept)
    elif name != "adam":
        raise ValueError(f"optimizer.name must be 'adam' or 'adamw', got {name!r}")
    elif weight_decay:
        raise ValueError(f"optimizer.weight_decay is {weight_decay}, but adam has no decay: use adamw")
    else:
        optimizer = optax.adam(rate, mu_dtype=kept)
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), optimizer) if max_grad_norm else optimizer


def _schedule(learning_rate: float, lr_scheduler_type: str, warmup_steps: int, steps: int) -> optax.Schedule:
    """The learning rate by the number of updates so far, the same in every block of ``steps``."""
    if not 0 <= warmup_steps < steps:
        raise ValueError(f"optimizer.warmup_steps is {warmup_steps}, expected fewer than the {steps} of a block")
    left = steps - warmup_steps
    decay = {
        "constant": lambda: optax.constant_schedule(learning_rate),
        "linear": lambda: optax.linear_schedule(learning_rate, 0.0, left),
        "cosine": lambda: optax.cosine_decay_schedule(learning_rate, left),
    }[lr_scheduler_type]()
    rise = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    in_block = optax.join_schedules([rise, decay], [warmup_steps]) if warmup_steps else decay
    return lambda count: in_block(jnp.mod(count, steps))  # moments that are kept go on counting


def split_state(state: State, optimizer: optax.GradientTransformation) -> State:
    """One seed's state with its components spread over the mesh."""
    moments = split_moments(state.opt_state, optimizer)
    return state._replace(params=split(state.params, "pool"), opt_state=moments, extra=split(state.extra, "pool"))


def split_moments(opt_state: Any, optimizer: optax.GradientTransformation) -> Any:
    if opt_state is None:
        return None
    return optax.tree_utils.tree_map_params(optimizer, lambda leaf: split(leaf, "pool"), opt_state)


def map_moments(function: Callable, optimizer: optax.GradientTransformation, opt_state: Any, *others: Any) -> Any:
    """Maps ``function`` over those leaves of optimizer states that have a component axis; keeps the first's others."""
    of_components = optax.tree_utils.tree_map_params(
        optimizer, lambda _: True, opt_state, transform_non_params=lambda _: False
    )
    return jax.tree.map(
        lambda chosen, leaf, *rest: function(leaf, *rest) if chosen else leaf, of_components, opt_state, *others
    )


def moved_moments(function: Callable, state: State, params: Params, *, method: Method, training: Training) -> Any:
    """The optimizer state with ``function``(old, fresh) for each leaf of all components; fresh ones are of ``params``.

    Moments of a block's rows only stay as they are.
    """
    if state.opt_state is None or of_a_block(method, training):
        return state.opt_state
    return map_moments(function, training.optimizer, state.opt_state, training.optimizer.init(params))


def sharding_of(state: State, optimizer: optax.GradientTransformation, mesh: Mesh) -> Any:
    """A State that has, in the place of each leaf [E, ...], its sharding."""

    def components(tree):
        return jax.tree.map(lambda leaf: NamedSharding(mesh, spec_of(leaf.shape, mesh, "seed", "pool")), tree)

    by_seed = NamedSharding(mesh, PartitionSpec("seed"))
    moments = state.opt_state
    if moments is not None:
        moments = optax.tree_utils.tree_map_params(
            optimizer, components, moments, transform_non_params=lambda _: by_seed
        )
    return State(components(state.params), moments, components(state.extra), keys=by_seed)  # pyright: ignore


def init_state(pool: Pool, seeds: Any, *, method: Method, training: Training) -> State:
    """The state before the first task.

    Args:
      pool: as returned by ``method.adapt_pool``.
      seeds: int[E], as an array or a sequence; each seed trains its own model, side by side.
      method: the method.
      training: the settings of training.
    """
    seeds = np.asarray(seeds, np.int32) if isinstance(seeds, Sequence) else seeds
    return _init_state(pool, seeds, method=method, training=training)


@functools.partial(jax.jit, static_argnames=("method", "training"))
def _init_state(pool, seeds, *, method, training):
    def one(pool, seed):
        key = jax.random.key(seed)
        params, extra = untrained(pool, method, key)
        moments = None if training.reset else training.optimizer.init(params)
        return split_state(State(params, moments, extra, key), training.optimizer)

    return over_seeds(one, (None, 0))(pool, seeds)


def untrained(pool: Pool, method: Method, key: jax.Array) -> tuple[Params, Any]:
    """(trainable, extra) of one seed before the first task; ``key`` is the seed's, and is only folded."""
    return method.init(pool, pool.init(fold(key, INIT, 0)), fold(key, INIT, 1))


def renewed(
    pool: Pool, method: Method, trainable: Params, extra: Any, active: jax.Array, key: jax.Array
) -> tuple[Params, Any]:
    """(trainable, extra) of one seed with the components ``active`` int32[k] reset to their `untrained` values."""
    return scatter((trainable, extra), active, gather(untrained(pool, method, key), active))


@functools.partial(jax.jit, static_argnames=("method", "training"))
def renew(pool: Pool, state: State, active: jax.Array, *, method: Method, training: Training) -> State:
    """The state with only the components ``active`` int32[E, k] reset to their values before the first task.

    No block that has begun trains them.
    """

    def one(pool, state, active):
        params, extra = renewed(pool, method, state.params, state.extra, active, state.keys)

        def put(old, new):
            return scatter(old, active, gather(new, active))

        moments = moved_moments(put, state, params, method=method, training=training)
        return split_state(State(params, moments, extra, state.keys), training.optimizer)

    return over_seeds(one, (None, 0, 0))(pool, state, active)
