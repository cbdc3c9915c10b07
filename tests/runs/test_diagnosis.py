"""A loss that is not finite is explained by its batch, where the batch is the cause."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from ftn_jax.core.errors import NonFiniteLoss
from ftn_jax.methods.rehearsal import Rehearsed
from ftn_jax.models.pretrained import Base
from ftn_jax.runs.diagnosis import cause_of
from ftn_jax.training.loop import train_task
from ftn_jax.training.state import TRAIN, fold, init_state

pytestmark = pytest.mark.slow  # one Python is enough: it compiles many programs

SEED, TASK, STEP = 7, 1, 9  # of the batch that is spoilt: the second seed's
SPOILT = fold(jax.random.key(SEED), TRAIN, TASK, STEP - 1, 0)


@flax.struct.dataclass
class Spoilt:
    """A task's data with one example that is not what it should be, in the batch of one key."""

    data: object
    field: str = flax.struct.field(pytree_node=False)
    value: float = flax.struct.field(pytree_node=False)

    def batch(self, key, size):
        batch = self.data.batch(key, size)
        hit = jnp.all(jax.random.key_data(key) == jax.random.key_data(SPOILT))
        leaf = jnp.asarray(getattr(batch, self.field))
        return batch._replace(**{self.field: jnp.where(hit, leaf.at[2].set(self.value), leaf)})

    def support(self, key, size):
        return self.data.support(key, size)


def cause(pool, data, *, feed=None, base=None, learning_rate=0.01):
    method, training = toys.toy_method("fixedmask"), toys.toy_training("adam", learning_rate)
    state = init_state(pool, np.asarray([3, SEED], np.int32), method=method, training=training)
    with pytest.raises(NonFiniteLoss) as caught:
        train_task(pool, method, training, state, data, TASK, feed=feed, on_chunk=lambda *told: None)
    error = caught.value
    said = cause_of(error, pool, training, data, jax.random.key([3, SEED][error.seed]), base, feed=feed)
    return (error.seed, error.step), said


def toy_base(scale=1.0):
    params = jax.tree.map(lambda leaf: scale * leaf, toys.toy_base_params())
    return Base("toy", "0", toys.toy_config(), params, toys.toy_tokens(), "gpt2")


def test_values_that_are_not_finite():
    points = toys.toy_synthetic(seeds=(0,)).tasks[0]
    data = Spoilt(jax.tree.map(lambda leaf: leaf[0], points), "x", float("inf"))
    assert cause(toys.toy_neurons(), data) == ((1, STEP), "example 2 of its batch has a value in x that is not finite")


def test_ids_outside_the_vocabulary():
    base = toy_base()
    found = cause(toys.toy_pool(), Spoilt(toys.toy_task(1), "labels", 10**6), base=base)
    said = f"has the token id 1000000, and base 'toy' has embeddings for {base.config.vocabulary} tokens"
    assert found == ((1, STEP), f"example 2 of its batch {said}")


def test_a_base_that_has_no_loss_for_an_example():
    base = toy_base(1e30)
    pool = toys.toy_pool(base=base.params)
    (_, step), said = cause(pool, toys.toy_task(1), base=base)
    assert step == 1 and said.startswith("example 0 of its batch has no finite loss under base 'toy' alone: ")


def test_what_the_host_has_read_is_read_again():
    points = toys.toy_points(rows=4)
    first = {}

    def feed(start, steps, size):
        assert first.setdefault(start, steps) == steps  # drawn as it was
        batch = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (2, steps, *leaf.shape)).copy(), points)
        if start <= STEP - 1 < start + steps:
            batch.x[0, STEP - 1 - start, 3, 1] = np.nan
        return batch

    data = jax.tree.map(lambda leaf: leaf[0], toys.toy_synthetic(seeds=(0,)).tasks[0])
    found = cause(toys.toy_neurons(), data, feed=feed)
    assert found == ((0, STEP), "example 3 of its batch has a value in x that is not finite")


def test_what_was_mixed_with_what_the_host_has_read_is_mixed_again():
    """Half of a batch is of the buffer, in which example 1 has no finite value."""
    points = toys.toy_points(rows=8)
    kept = jax.tree.map(np.copy, points)
    kept.x[1] = np.inf
    data = Rehearsed(jax.tree.map(lambda leaf: leaf[0], toys.toy_synthetic(seeds=(0,)).tasks[0]), kept, np.int32(8))

    def feed(start, steps, size):
        return jax.tree.map(lambda leaf: np.broadcast_to(leaf, (2, steps, *leaf.shape)), points)

    (seed, step), said = cause(toys.toy_neurons(), data, feed=feed)
    key = fold(jax.random.key([3, SEED][seed]), TRAIN, TASK, step - 1, 0)
    bad = np.flatnonzero(~np.isfinite(np.asarray(data.mix(key, points, 8).x)).all(1))
    assert said == f"example {bad[0]} of its batch has a value in x that is not finite" and bad[0] >= 4


def test_only_else_is_it_the_learning_rate():
    _, said = cause(toys.toy_pool(), toys.toy_task(1), base=toy_base(), learning_rate=1e9)
    assert said.startswith("every example of its batch had a finite loss before training; ")
    assert said.endswith("lower config.optimizer.learning_rate")
