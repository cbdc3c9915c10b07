"""The contract of a pool, and how the rows of components are gathered and written back.

Every leaf of a pool's params is [H, ...]; row h is component h and nothing else. *Routing* says which components
answer: a mask (float [H], or [B, H] with one mask per row) or active indices (int32 [k], or [B, k]).
"""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from ftn_jax.core.mesh import split

Params = Any  # a pytree with leaves [H, ...]
Sums = dict[str, tuple[jax.Array, jax.Array]]  # metric -> (sum, count)


class Pool:
    """Base class of pools: registered pytrees whose arrays are frozen data and whose settings are static.

    A pool defines ``size`` (H), `init`, `example_losses` and `metrics`. The other losses follow from these; a pool
    overrides `mask_loss` if part of the work does not depend on the mask.

    A pool may also define ``slopes(batch)``, if it costs less than the losses of many masks: it returns the loss f32[]
    without components, and a function params_k [k, ...] -> f32[k], the slope of the loss in each component's gain where
    all gains are 0.
    """

    size: int
    kind: type

    def __init_subclass__(cls, **settings: Any):
        super().__init_subclass__(**settings)
        # JAX may take two dataclasses with equal fields for the same tree, and run the program of the wrong one.
        cls.__annotations__ = {**inspect.get_annotations(cls), "kind": type}
        cls.kind = flax.struct.field(pytree_node=False, default=cls, kw_only=True, repr=False)

    def init(self, key: jax.Array) -> Params:
        """Fresh params, leaves [H, ...]. The key is consumed."""
        raise NotImplementedError

    def example_losses(
        self, params: Params, routing: jax.Array, batch: Any, key: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """(sum [B], count [B]) of each example's loss; the other losses have to agree. A key turns dropout on.

        In a routing int32[B, k] H is padding: it stands for no component (`gather` reads it so).
        """
        raise NotImplementedError

    def metrics(self, params_k: Params, batch: Any) -> Sums:
        """The reported metrics of gathered params [k, ...]: metric -> (sum f32[], count f32[])."""
        raise NotImplementedError

    def batch_of(self, examples: Any) -> Any:
        """A user's labelled examples as a batch; unless a pool overrides this, the examples have to be one already.

        Raises:
          InputError: the pool can't read the examples.
        """
        return examples

    def loss(self, params: Params, routing: jax.Array, batch: Any, key: jax.Array | None = None) -> jax.Array:
        """The sum of all examples' losses divided by the sum of their counts, f32[]."""
        sums, counts = self.example_losses(params, routing, batch, key)
        return sums.sum() / counts.sum()

    def active_loss(self, params_k: Params, batch: Any, key: jax.Array | None = None) -> jax.Array:
        """`loss` of params that are already gathered to [k, ...]."""
        return self.loss(params_k, jnp.ones(component_count(params_k)), batch, key)

    def mask_loss(self, params: Params, batch: Any) -> Callable[[jax.Array], jax.Array]:
        """A function mask [H] -> `loss`; a pool may compute what does not depend on the mask once, beforehand."""
        return lambda mask: self.loss(params, mask, batch)


def mean_losses(pool: Pool, params: Params, batch: Any) -> Callable[[jax.Array], jax.Array]:
    """routing -> the mean loss f32[B] of each example; see `Pool.example_losses`."""

    def losses(routing):
        sums, counts = pool.example_losses(params, routing, batch)
        return sums / counts

    return losses


def said_of(spec: Any) -> str:
    """Describes the batches of a stream with this spec, in words."""
    if spec is None:
        return "batches that it does not describe (Stream.spec)"
    if spec.tokens:
        return "text"
    return f"points of {spec.inputs} inputs and {f'{spec.classes} classes' if spec.classes else 'a value'}"


def kind_of(tree: Any) -> Any:
    """The classes of a tree's nodes, as a static argument for compiled functions.

    In JAX 0.10 `jax.jit` may confuse dataclasses with equal fields, and run the program of the wrong one.
    """

    def of(structure):
        node = structure.node_data()
        return node and node[0], *map(of, structure.children())

    return of(jax.tree.structure(tree))


def resized(pool: Any, size: int) -> Any:
    """The pool with ``size`` components; if its size changes, the pool has to be a dataclass."""
    return pool if pool.size == size else dataclasses.replace(pool, size=size)


def drawn(
    draw: Callable[[jax.Array, tuple[int, ...]], jax.Array], keys: jax.Array, shapes: Sequence[tuple[int, ...]]
) -> list[jax.Array]:
    """``draw(key, shape)`` for each key [N] and shape, bit for bit, in one call for all of a shape.

    XLA takes about a second to compile each call, which at start is longer than the drawing itself.
    """
    of_shape: dict[tuple[int, ...], list[int]] = {}
    for number, shape in enumerate(shapes):
        of_shape.setdefault(tuple(shape), []).append(number)
    found: dict[int, jax.Array] = {}
    for shape, numbers in of_shape.items():
        together = jax.vmap(lambda key, shape=shape: draw(key, shape))(keys[jnp.array(numbers)])
        found |= zip(numbers, together, strict=True)
    return [found[number] for number in range(len(shapes))]


def component_count(params: Params) -> int:
    """The length of the component axis."""
    return jax.tree.leaves(params)[0].shape[0]


def gather(params: Params, active: jax.Array) -> Params:
    """The rows ``active`` int32[k] of every leaf, [k, ...].

    Of indices int32[B, k], one set for each row of a batch, it gives [B, k, ...]; there H is padding, see
    `gather_padded`.
    """
    if getattr(active, "ndim", 1) == 2:
        return gather_padded(params, active)
    return jax.tree.map(lambda leaf: leaf[active], params)


def gather_padded(params: Params, indices: jax.Array) -> Params:
    """As `gather`, for indices int32[m] in which H is padding: its rows are zeros.

    Components whose params are all zero contribute nothing.
    """
    return jax.tree.map(lambda leaf: leaf.at[indices].get(mode="fill", fill_value=0), params)


def scatter(params: Params, active: jax.Array, rows: Params) -> Params:
    """``params`` with the rows ``active`` int32[k] (sorted, distinct) replaced; no other row is written.

    Indices that are H are padding: their rows are dropped.
    """
    # Each device writes its own components. Without this the compiler may spread other axes and gather the leaves.
    params = split(params, "pool")
    return split(
        jax.tree.map(lambda leaf, row: leaf.at[active].set(row, indices_are_sorted=True, mode="drop"), params, rows),
        "pool",
    )
