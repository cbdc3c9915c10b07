"""The pool of small networks: y = sum_k m_k W_k MLP_k(x) (section 2; Experiment 1)."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ftn_jax.core.errors import InputError
from ftn_jax.core.mesh import over_components
from ftn_jax.pools.base import Params, Pool, Sums, drawn, gather, said_of

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": jax.nn.gelu,  # the tanh form
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}

INITS: dict[str, Callable[[int, int], float]] = {
    "he_normal": lambda fan_in, fan_out: (2 / fan_in) ** 0.5,
    "lecun_normal": lambda fan_in, fan_out: (1 / fan_in) ** 0.5,
    "xavier_normal": lambda fan_in, fan_out: (2 / (fan_in + fan_out)) ** 0.5,
}
"""Standard deviation of a weight, from its layer's fans."""


_BLOCK = 16  # components computed at a time on the CPU


def build(
    context: Any, stream: Any, *, size: int, layers: int, width: int, activation: str, weights: str, dropout: float
) -> "NeuronPool":
    """Builds the pool of a config.

    Raises:
      InputError: the stream is not one of points, or is not measured by accuracy or squared error.
    """
    spec = stream.spec
    if spec is None or spec.tokens:
        raise InputError(f"config.pool.name is 'neurons', expected another for a stream of {said_of(spec)}")
    metric = "accuracy" if spec.classes else "mse"
    if stream.metric != metric:
        raise InputError(f"the stream's metric is {stream.metric!r}, expected {metric!r} for {said_of(spec)}")
    return NeuronPool(
        size=size,
        inputs=spec.inputs,
        layers=layers,
        width=width,
        classes=spec.classes,
        activation=activation,
        weights=weights,
        dropout=dropout,
    )


class PointBatch(NamedTuple):
    """Inputs with their targets: classes, or values."""

    x: jax.Array | np.ndarray  # f32[B, d]
    y: jax.Array | np.ndarray  # int32[B] or f32[B]


@flax.struct.dataclass
class NeuronPool(Pool):
    """H private MLPs with d inputs, L hidden layers of one width and a scalar output, and a readout without bias.

    Params: "w" and "b" list the layers' weights [H, fan_in, fan_out] and biases [H, fan_out], from input to output;
    row h of "readout" [H, C] is component h's column of W_out. C is ``classes``, or 1 for regression.
    """

    size: int = flax.struct.field(pytree_node=False)  # H
    inputs: int = flax.struct.field(pytree_node=False, default=2)  # d
    layers: int = flax.struct.field(pytree_node=False, default=8)  # L
    width: int = flax.struct.field(pytree_node=False, default=8)
    classes: int = flax.struct.field(pytree_node=False, default=2)  # 0: regression, squared error
    activation: str = flax.struct.field(pytree_node=False, default="gelu")
    weights: str = flax.struct.field(pytree_node=False, default="he_normal")  # a name in `INITS`
    dropout: float = flax.struct.field(pytree_node=False, default=0.2)  # share of the outputs z_k that are zeroed

    def init(self, key: jax.Array) -> Params:
        widths = (self.inputs, *(self.width,) * self.layers, 1)
        keys = jax.random.split(key, len(widths))
        outputs, bound = max(self.classes, 1), self.size**-0.5

        def weights(key, shape):
            return INITS[self.weights](*shape[1:]) * jax.random.normal(key, shape)

        return {
            "w": drawn(weights, keys[:-1], [(self.size, *fans) for fans in itertools.pairwise(widths)]),
            "b": [jnp.zeros((self.size, fan_out)) for fan_out in widths[1:]],
            # The default init of PyTorch's Linear layer with H inputs.
            "readout": jax.random.uniform(keys[-1], (self.size, outputs), minval=-bound, maxval=bound),
        }

    def example_losses(self, params, routing, batch, key=None):
        y = self._answers(params, routing, batch.x, key)
        return self._losses(y, batch.y), jnp.ones(len(batch.x))

    def predict(self, params: Params, routing: jax.Array, x: jax.Array) -> jax.Array:
        """The likeliest class int32[B], or the predicted value f32[B], of each input f32[B, d]."""
        y = self._answers(params, routing, x, None)
        return y.argmax(1).astype(jnp.int32) if self.classes else y[:, 0]

    def inputs_of(self, inputs: Any) -> np.ndarray:
        """A user's inputs, checked, as f32[B, d].

        Raises:
          InputError: an array of another shape, no rows, or values that are not finite.
        """
        x = _numbers(inputs, "inputs")
        if x.ndim != 2 or x.shape[1] != self.inputs or not len(x):
            raise InputError(f"inputs have shape {x.shape}, expected (n, {self.inputs}), n above 0")
        return x.astype(np.float32)

    def batch_of(self, examples: Any) -> PointBatch:
        """Examples (x [n, d], y [n]) as a batch.

        Raises:
          InputError: arrays of other shapes, values that are not finite, or an unknown class.
        """
        if not isinstance(examples, tuple | list) or len(examples) != 2:
            raise InputError(f"examples are {type(examples).__name__}, expected inputs and targets, (x, y)")
        x, y = self.inputs_of(examples[0]), _numbers(examples[1], "targets")
        if y.shape != (len(x),):
            raise InputError(f"targets have shape {y.shape}, expected ({len(x)},), one for each input")
        if not self.classes:
            return PointBatch(x, y.astype(np.float32))
        wrong = y[(y % 1 != 0) | (y < 0) | (y >= self.classes)]
        if len(wrong):
            raise InputError(f"a target is {wrong[0]}, expected a class from 0 to {self.classes - 1}")
        return PointBatch(x, y.astype(np.int32))

    def active_loss(self, params_k: Params, batch: PointBatch, key: jax.Array | None = None) -> jax.Array:
        y = self._read(self._outputs(params_k, batch.x), params_k["readout"], None, key)
        return self._losses(y, batch.y).mean()

    def mask_loss(self, params: Params, batch: PointBatch) -> Callable[[jax.Array], jax.Array]:
        z, readout = self._outputs(params, batch.x), params["readout"]
        return lambda mask: self._losses(self._read(z, readout, mask, None), batch.y).mean()

    def metrics(self, params_k: Params, batch: PointBatch) -> Sums:
        """Accuracy, or squared error."""
        y = self._read(self._outputs(params_k, batch.x), params_k["readout"], None, None)
        count = jnp.float32(len(batch.x))
        if self.classes:
            return {"accuracy": ((y.argmax(1) == batch.y).sum().astype(jnp.float32), count)}
        return {"mse": (self._losses(y, batch.y).sum(), count)}

    def _answers(self, params, routing, x, key):
        """The prediction [B, C] under a routing."""
        if not jnp.issubdtype(routing.dtype, jnp.integer):
            return self._read(self._outputs(params, x), params["readout"], routing, key)
        if not routing.shape[-1]:
            return jnp.zeros((len(x), params["readout"].shape[1]))
        rows = gather(params, routing)
        if routing.ndim == 1:
            return self._read(self._outputs(rows, x), rows["readout"], None, key)
        z = jax.vmap(lambda rows, x: self._outputs(rows, x[None])[0])(rows, x)  # [B, k]
        return jnp.einsum("bk,bkc->bc", self._drop(z, key), rows["readout"])

    def _outputs(self, params: Params, x: jax.Array | np.ndarray) -> jax.Array:
        """The components' scalar outputs z [B, H]."""
        activation = ACTIVATIONS[self.activation]

        def network(layers, x):
            h = x.T
            for w, b in layers[:-1]:
                h = activation(w.T @ h + b[:, None])
            w, b = layers[-1]
            return (w.T @ h + b[:, None])[0]

        return _each(network, list(zip(params["w"], params["b"], strict=True)), x).T

    def _read(self, z, readout, mask, key):
        """The prediction [B, C] from z [B, n], gated by a mask [n] or [B, n]."""
        z = self._drop(z, key)
        if mask is not None:
            z = z * (mask if mask.ndim == 2 else mask[None])
        return z @ readout

    def _drop(self, z, key):
        if key is None or self.dropout == 0:
            return z
        keep = 1 - self.dropout
        return jnp.where(jax.random.bernoulli(key, keep, z.shape), z / keep, 0)

    def _losses(self, y, target):
        if self.classes:
            return optax.softmax_cross_entropy_with_integer_labels(y, target)
        return (y[:, 0] - target) ** 2


def _numbers(given: Any, what: str) -> np.ndarray:
    """An array of finite real numbers, or InputError."""
    try:
        found = np.asarray(given)
    except ValueError as error:  # rows of different length
        raise InputError(f"{what} are rows of different length, expected an array") from error
    if found.dtype.kind not in "biuf" or not np.isfinite(found).all():
        raise InputError(f"{what} are {found.dtype} or not finite, expected an array of finite numbers")
    return found


def _each(network: Callable[[Params, Any], jax.Array], params: Params, x: jax.Array | np.ndarray) -> jax.Array:
    """``network`` of each component on x, [H, B]: by vmap, or on the CPU in blocks whose layers stay in the cache.

    On the CPU the backward pass computes each block again, which is cheaper than reading back stored activations.
    """
    if jax.default_backend() != "cpu":
        return jax.vmap(network, (0, None))(params, x)

    def blocks(params, x):
        return jax.lax.map(jax.checkpoint(lambda layers: network(layers, x)), params, batch_size=_BLOCK)

    return over_components(blocks, params, x)
