"""The contract of a pool, and the rows of its components.

Every leaf of a pool's params is [H, ...]; row h is component h and nothing else. *Routing* says which components
answer: a mask (float [H], or [B, H] with one mask a row) or active indices (int32 [k], or [B, k]).
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from ftn_jax.core.mesh import split

Params = Any  # a pytree with leaves [H, ...]
Sums = dict[str, tuple[jax.Array, jax.Array]]  # metric -> (sum, count)


class Pool:
    """Base class of pools: registered pytrees whose arrays are frozen data and whose settings are static.

    A pool gives ``size`` (H), `init`, `example_losses` and `metrics`. The other losses follow from these; a pool
    overrides `mask_loss` where part of the work does not depend on the mask.
    """

    size: int
    kind: type

    def __init_subclass__(cls, **settings: Any):
        super().__init_subclass__(**settings)
        # JAX holds two dataclasses with equal fields for one tree, and then runs the program of one for the other.
        cls.__annotations__ = {**inspect.get_annotations(cls), "kind": type}
        cls.kind = flax.struct.field(pytree_node=False, default=cls, kw_only=True, repr=False)

    def init(self, key: jax.Array) -> Params:
        """Fresh params, leaves [H, ...]. The key is consumed."""
        raise NotImplementedError

    def example_losses(
        self, params: Params, routing: jax.Array, batch: Any, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """(sum [B], count [B]) of the loss of each example; the reference semantics. A key turns dropout on."""
        raise NotImplementedError

    def metrics(self, params_k: Params, batch: Any) -> Sums:
        """What is reported, for gathered params [k, ...]: metric -> (sum f32[], count f32[])."""
        raise NotImplementedError

    def batch_of(self, examples: Any) -> Any:
        """The batch that a user's labelled examples are; a pool that says no more takes batches alone.

        Raises:
          InputError: examples that it can't read.
        """
        return examples

    def loss(self, params: Params, routing: jax.Array, batch: Any, key: jax.Array | None = None) -> jax.Array:
        """Sum over sum of counts, f32[]."""
        sums, counts = self.example_losses(params, routing, batch, key)
        return sums.sum() / counts.sum()

    def active_loss(self, params_k: Params, batch: Any, key: jax.Array | None = None) -> jax.Array:
        """`loss` of params that are already gathered to [k, ...]."""
        return self.loss(params_k, jnp.ones(component_count(params_k)), batch, key)

    def mask_loss(self, params: Params, batch: Any) -> Callable[[jax.Array], jax.Array]:
        """mask [H] -> `loss`, with all that does not depend on the mask computed once."""
        return lambda mask: self.loss(params, mask, batch)


def said_of(spec: Any) -> str:
    """The batches of a stream with this spec, in words."""
    if spec is None:
        return "batches of which it says nothing (Stream.spec)"
    if spec.tokens:
        return "text"
    return f"points of {spec.inputs} inputs and {f'{spec.classes} classes' if spec.classes else 'a value'}"


def kind_of(tree: Any) -> Any:
    """The classes of a tree's nodes, which programs are told besides.

    In JAX 0.10 `jax.jit` may take dataclasses of equal fields for one another, and run the program of the wrong one.
    """

    def of(structure):
        node = structure.node_data()
        return node and node[0], *map(of, structure.children())

    return of(jax.tree.structure(tree))


def resized(pool: Any, size: int) -> Any:
    """The pool with another number of components; it has to be a dataclass where that differs."""
    return pool if pool.size == size else dataclasses.replace(pool, size=size)


def component_count(params: Params) -> int:
    """The length of the component axis."""
    return jax.tree.leaves(params)[0].shape[0]


def gather(params: Params, active: jax.Array) -> Params:
    """The rows ``active`` int32[k] (or [B, k]) of every leaf: [k, ...] (or [B, k, ...])."""
    return jax.tree.map(lambda leaf: leaf[active], params)


def gather_padded(params: Params, indices: jax.Array) -> Params:
    """As `gather`, for indices int32[m] of which those that are H are padding: their rows are zeros.

    Components whose params are all zero answer nothing.
    """
    return jax.tree.map(lambda leaf: leaf.at[indices].get(mode="fill", fill_value=0), params)


def scatter(params: Params, active: jax.Array, rows: Params) -> Params:
    """``params`` with the rows ``active`` int32[k] (sorted, distinct) replaced; no other row is written.

    Indices that are H are padding: their rows are dropped.
    """
    # Each device writes what lies on it; the compiler alone might spread other axes and then collect the leaves.
    params = split(params, "pool")
    return split(
        jax.tree.map(lambda leaf, row: leaf.at[active].set(row, indices_are_sorted=True, mode="drop"), params, rows),
        "pool",
    )
