"""A trained model: recover the components that fit some examples, predict with them, forget them."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from ftn_jax.core.composition import MOST, better_together
from ftn_jax.core.errors import InputError
from ftn_jax.lifelong.novelty import Sample, at_home
from ftn_jax.lifelong.reuse import blocks_of, dependents
from ftn_jax.lifelong.unlearning import check_forgettable
from ftn_jax.methods import Given, Method, Selection, Stage
from ftn_jax.pools.base import Params, Pool, component_count, mean_losses
from ftn_jax.runs.user_masks import routing_of, variants_of
from ftn_jax.training.evaluation import remains
from ftn_jax.training.state import RECOVER, fold, renewed


class Recovery(NamedTuple):
    """A mask that was found from examples, and how well it fits them; losses are in the pool's unit."""

    active: np.ndarray  # int32[k], sorted
    loss: float  # of the examples under the mask
    base_loss: float  # of the examples with no component
    overlap: dict[str, float]  # task -> share of the mask that is also in the task's stored mask
    mine: bool | None = None  # whether the examples may be of a trained task; None: the run kept nothing to judge by
    parts: tuple[str, ...] = ()  # the tasks whose masks it is made of, if they were composed
    variant: int = 0  # the variant of the params that answers, for methods with several, such as SupSup's weight masks

    @property
    def fits(self) -> bool:
        """Whether the mask does better than no component; if not, nothing in the pool fits the examples."""
        return self.loss < self.base_loss


Mask = Recovery | str | np.ndarray | Sequence[int] | jax.Array
"""A recovery, a task's name, active indices, or a binary mask [H]; see `ftn_jax.runs.user_masks.active_of`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A pool that a run has trained, for one method and seed. Made by `load`.

    Examples have the form that the pool's `batch_of` takes; for small networks (x [n, d], y [n]).
    """

    pool: Pool
    method: Method
    method_name: str
    params: Params  # leaves [H, ...]
    extra: Any  # the method's other state
    stored: dict[str, np.ndarray]  # task -> int32[k], the mask that its block was trained with
    source: str  # the workdir
    k: int  # components of a mask
    seed: int = 0  # of the run
    claims: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # task -> int32[k], if the method reserves
    variants: dict[str, int] = dataclasses.field(default_factory=dict)  # task -> `Recovery.variant` of its stored mask
    forgotten: tuple[str, ...] = ()  # tasks that are removed from this model but not from its workdir
    own: dict[str, list[Sample]] = dataclasses.field(default_factory=dict)  # task -> `remains` of its own examples
    # task -> protocol -> the metric on its test examples at the end of the run, as far as it was scored
    scores: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)

    def recover(self, examples: Any, seed: int = 0, *, compose: bool = False) -> Recovery:
        """Finds the mask that fits examples of one task, without the task's name, from a cold start (Algorithm 1).

        Args:
          examples: labelled examples of one task.
          seed: seed of the noise that breaks ties.
          compose: find the stored masks, at most three, that together leave the least loss, if that is certainly less
            than the best single one leaves; else that one. See `ftn_jax.core.composition`.

        Raises:
          InputError: no examples, a method that must be told the task, or one whose masks can't be composed.
        """
        if self.method.oracle:
            raise InputError(f"{self.method_name} must be told the task and can't recover a mask: name another method")
        check_seed(seed)
        batch, key = self._batch(examples), fold(jax.random.key(seed), RECOVER)
        given = Given(batch, None, self._held(), key)
        parts = self._parts(batch) if compose else ()
        mask = None
        if parts:
            active = np.unique(np.concatenate([self.stored[task] for task in parts]))
            mask = Selection(active, np.int32(0))  # pyright: ignore
        selection, losses = _recover(self.pool, self.params, self.extra, given, mask, method=self.method)
        active = jax.tree.map(lambda leaf: leaf[None], selection).answering(0, self.pool.size)
        base_loss, loss = np.asarray(losses).tolist()
        overlap = {task: np.isin(active, mask).mean().item() for task, mask in self.stored.items()}
        return Recovery(active, loss, base_loss, overlap, self._is_mine(batch), parts, int(selection.variant))

    def _parts(self, batch: Any) -> tuple[str, ...]:
        """The tasks whose masks fit a batch best, together or one of them alone."""
        if not self.method.reserves:
            raise InputError(
                f"{self.method_name} does not reserve components, so its masks can't be composed: name a method that "
                "does, such as lora_ftn_compose"
            )
        names = list(self.claims)
        members = np.zeros((len(names), self.pool.size), bool)
        for own, name in zip(members, names, strict=True):
            own[self.stored[name]] = True
        size = MOST * max(self.k, *map(len, self.stored.values()))
        chosen = np.asarray(_composed(self.pool, self.params, members, batch, size=size))
        return tuple(name for name, there in zip(names, chosen, strict=True) if there)

    def _held(self) -> Selection | None:
        if not self.method.reserves:
            return None
        if not self.claims:
            raise InputError(f"{self.method_name} has no task left, expected at least one to be recovered")
        return self._selections(self.claims)

    def _selections(self, tasks: Iterable[str]) -> Selection:
        """The stored masks of tasks with components of their own, leaves [M, ...], padded with H."""

        def padded(indices: np.ndarray, length: int) -> np.ndarray:
            return np.pad(indices, (0, length - len(indices)), constant_values=self.pool.size).astype(np.int32)

        own = [self.claims[task] for task in tasks]
        beside = [np.setdiff1d(self.stored[task], self.claims[task]) for task in tasks]
        active = np.stack([padded(indices, self.k) for indices in own])
        frozen = np.stack([padded(indices, self.method.reuses) for indices in beside]) if self.method.reuses else None
        return Selection(active, np.zeros(len(active), np.int32), frozen)  # pyright: ignore

    def _is_mine(self, batch: Any) -> bool | None:
        """Whether some stored mask fits the examples as well as it fits examples of its own task."""
        if not self.own or self.own.keys() != self.stored.keys():
            return None
        masks = self._selections(self.own)
        left = _remains(self.pool, self.method, self.params, self.extra, masks, batch)
        return at_home(left, list(self.own.values())) is not None

    def example_losses(self, examples: Any, mask: Mask | Sequence[Mask] | None) -> np.ndarray:
        """The loss f32[B] of each example, under one mask for all or one for each; None is no component.

        Raises:
          InputError: no examples, or a wrong number of masks.
        """
        batch = self._batch(examples)
        rows = len(jax.tree.leaves(batch)[0])

        def losses(params, routing, batch):
            sums, counts = _example_losses(self.pool, params, routing, batch)
            return sums / counts

        return self._by_variant(losses, mask, rows, batch)

    def predict(self, inputs: Any, mask: Mask | Sequence[Mask]) -> np.ndarray:
        """The predictions of a pool of networks: the class int32[B] of each input, or its value f32[B].

        Args:
          inputs: f32[B, d].
          mask: one mask for all inputs, or a sequence with one for each.

        Raises:
          InputError: inputs of a wrong shape, a wrong number of masks, or a pool that can't predict.
        """
        if not hasattr(self.pool, "predict"):
            raise InputError(f"a {type(self.pool).__name__} can't predict, expected a pool with a method predict")
        pool: Any = self.pool
        x = pool.inputs_of(inputs)
        return self._by_variant(functools.partial(_predict, pool), mask, len(x), x)

    def forget(self, task: str, *, with_dependents: bool = False) -> Self:
        """This model without a task: its components are as they were before any training, and free again.

        Every other component stays the same, bit for bit. Nothing changes on disk; see `ftn_jax.runs.forget` for that.

        Args:
          task: its name.
          with_dependents: forget the tasks that reuse it, too; without it, such a task is refused.

        Raises:
          InputError: no such task, or one that shares components with others.
        """
        own = {name: self.claims.get(name, mask) for name, mask in self.stored.items()}
        if with_dependents and task in own and (reusing := dependents(own, self.stored, task)):
            return self.forget(reusing[-1]).forget(task, with_dependents=True)  # which nothing reuses in its turn
        check_forgettable(self.method_name, self.method, own, self.stored, task)
        going = blocks_of(own, task) if self.method.reserves else [task]
        kept = self.stored, self.claims, self.variants, self.own
        rest, claims, variants, own = ({name: v for name, v in items.items() if name not in going} for items in kept)
        active, key = jnp.asarray(self.claims.get(task, self.stored[task])), jax.random.key(self.seed)
        params, extra = renewed(self.pool, self.method, self.params, self.extra, active, key)
        left: dict[str, Any] = {"stored": rest, "claims": claims, "variants": variants, "own": own}
        left["forgotten"] = (*self.forgotten, task)
        return dataclasses.replace(self, params=params, extra=extra, **left)

    def _by_variant(self, function: Callable, mask: Mask | Sequence[Mask] | None, rows: int, batch: Any) -> np.ndarray:
        """``function(params, routing, batch)`` for each row, with the variant of the params that its mask needs."""
        routing = self._routing(mask, rows)
        variants = np.broadcast_to(variants_of(mask, self.variants), rows)
        found = {}
        for variant in np.unique(variants).tolist():
            params = self._realised(variant)
            own = np.flatnonzero(variants == variant)
            part = jax.tree.map(lambda leaf, own=own: leaf[own], batch) if len(own) < rows else batch
            of_part = routing[own] if routing.ndim == 2 else routing
            found |= zip(own.tolist(), np.asarray(function(params, of_part, part)), strict=True)
        return np.array([found[row] for row in range(rows)])

    def params_under(self, mask: Mask) -> Params:
        """The params, leaves [H, ...], as they answer under one mask: those of its variant."""
        variant = variants_of(mask, self.variants)
        assert isinstance(variant, int)
        return self._realised(variant)

    def _realised(self, variant: int) -> Params:
        return self.method.realise(self.params, self.extra, Stage(np.int32(variant), np.int32(1), np.int32(1)))

    def _routing(self, mask: Mask | Sequence[Mask] | None, rows: int) -> np.ndarray:
        return np.zeros(0, np.int32) if mask is None else routing_of(mask, self.stored, self.pool.size, rows)

    def _batch(self, examples: Any) -> Any:
        return self.pool.batch_of(examples)


def check_seed(seed: Any) -> None:
    """Raises InputError unless ``seed`` can be the seed of a random key."""
    if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed!r}, expected a whole number from 0 to 2**32 - 1")


@functools.partial(jax.jit, static_argnames=("method",))
def _recover(pool, params, extra, given, mask, *, method):
    """The method's selection, or the ``mask``, and the support's losses f32[2] without and with it."""
    selection = method.select(pool, params, extra, given) if mask is None else mask
    rows = method.params_of(params, extra, selection)
    gains = jnp.zeros(component_count(rows)), jnp.ones(component_count(rows))
    return selection, jnp.stack([pool.loss(rows, gain, given.support) for gain in gains])


@functools.partial(jax.jit, static_argnames=("size",))
def _composed(pool, params, members, batch, *, size):
    losses = mean_losses(pool, params, batch)
    return better_together(losses, members, jnp.ones(len(members), bool), most=MOST, size=size)


@jax.jit
def _example_losses(pool, params, routing, batch):
    return pool.example_losses(params, routing, batch)


_remains = jax.jit(remains, static_argnames=("method",))


@jax.jit
def _predict(pool, params, routing, x):
    return pool.predict(params, routing, x)
