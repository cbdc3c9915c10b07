"""`ftn_jax.testing` passes what keeps the contracts, and tells of each rule that a part breaks."""

import dataclasses
import functools
import json
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contracts.test_family_contract import BASES as FIXTURE_OF
from contracts.test_family_contract import FIXTURES

from ftn_jax.core.errors import InputError
from ftn_jax.methods import Method, Selection
from ftn_jax.models import FAMILIES, decoder, register_family
from ftn_jax.pools.base import Pool
from ftn_jax.pools.neurons import PointBatch
from ftn_jax.streams import Stream
from ftn_jax.testing import check_base, check_family, check_method, check_pool, check_stream

SIZE = 8


# --- parts that keep their contracts ------------------------------------------------------------------------------


@flax.struct.dataclass
class Lines(Pool):
    """y = sum_h m_h x W_h, of two inputs and two classes."""

    size: int = flax.struct.field(pytree_node=False, default=SIZE)
    data: Any = None
    setting: Any = flax.struct.field(pytree_node=False, default=None)

    def init(self, key):
        return {"w": jax.random.normal(key, (self.size, 2, 2))}

    def example_losses(self, params, routing, batch, key=None):
        if jnp.issubdtype(routing.dtype, jnp.integer):
            routing = jax.nn.one_hot(routing, self.size).sum(-2)
        return self.losses(self.answer(params, jnp.atleast_2d(routing), batch.x), batch.y), jnp.ones(len(batch.y))

    def active_loss(self, params_k, batch, key=None):
        return self.losses(self.answer(params_k, jnp.ones((1, len(params_k["w"]))), batch.x), batch.y).mean()

    def metrics(self, params_k, batch):
        hits = self.answer(params_k, jnp.ones((1, len(params_k["w"]))), batch.x).argmax(1) == batch.y
        loss = self.active_loss(params_k, batch)
        return {"accuracy": (hits.sum().astype(jnp.float32), jnp.float32(hits.size)), "loss": (loss, jnp.float32(1))}

    def answer(self, params, masks, x):
        return jnp.einsum("bh,bi,hio->bo", jnp.broadcast_to(masks, (len(x), masks.shape[1])), x, params["w"])

    def losses(self, answers, y):
        return optax.softmax_cross_entropy_with_integer_labels(answers, y)


@flax.struct.dataclass
class Sides:
    """On which side of a line a point lies."""

    normal: Any

    def batch(self, key, size):
        return self.draw(jax.random.fold_in(key, 0), size)

    def support(self, key, size):
        return self.draw(jax.random.fold_in(key, 1), size)

    def test(self):
        return self.draw(jax.random.fold_in(jax.random.key(0), 2), 16)

    def draw(self, key, size):
        x = jax.random.normal(key, (size, 2))
        return PointBatch(x, (x @ self.normal > 0).astype(jnp.int32))


def stream_of(data=Sides, **fields):
    tasks = [data(jnp.array([np.cos(a), np.sin(a)], jnp.float32)) for a in (0.0, 2.0, 4.0)]
    return Stream(**({"names": ("a", "b", "c"), "tasks": tasks, "metric": "accuracy"} | fields))


def block(pool, params, extra, given):
    """Two components for each task."""
    return Selection(2 * given.task + jnp.arange(2, dtype=jnp.int32))


def first(pool, params, extra, given):
    return Selection(jnp.arange(2, dtype=jnp.int32))


def free(pool, params, extra, given):
    """The first two components that nobody has."""
    taken = jnp.zeros(pool.size, bool).at[given.held.active].set(True, mode="drop")
    return Selection(jnp.sort(jnp.argsort(taken, stable=True)[:2]).astype(jnp.int32))


RESERVE = Method(first, install=free, reserves=2, exclusive=True)
BLOCKS = Method(block, oracle=True, exclusive=True)
POINTS = stream_of().tasks[0].batch(jax.random.key(0), 12)


@pytest.mark.slow
def test_parts_that_keep_their_contracts_pass():
    check_pool(Lines(), POINTS)
    check_stream(stream_of())
    for method in (BLOCKS, RESERVE):
        check_method(method, Lines(), stream_of())


# --- pools that break one rule each -------------------------------------------------------------------------------


class SharedBias(Lines):
    def init(self, key):
        return {**super().init(key), "bias": jnp.zeros(2)}


class WholeNumbers(Lines):
    def init(self, key):
        return jax.tree.map(lambda leaf: leaf.astype(int), super().init(key))


class OneSeed(Lines):
    def init(self, key):
        return super().init(jax.random.key(0))


class Twins(Lines):
    def init(self, key):
        return {"w": jnp.tile(jax.random.normal(key, (1, 2, 2)), (self.size, 1, 1))}


class SummedLoss(Lines):
    def active_loss(self, params_k, batch, key=None):
        return len(batch.y) * super().active_loss(params_k, batch, key)


class SearchesByOtherMask(Lines):
    def mask_loss(self, params, batch):
        return lambda mask: self.loss(params, mask**2, batch)


class NoGradientOfMasks(Lines):
    def mask_loss(self, params, batch):
        return lambda mask: self.loss(params, jax.lax.stop_gradient(mask), batch)


class DeafComponent(Lines):
    def answer(self, params, masks, x):
        return super().answer({"w": params["w"] * (jnp.arange(len(params["w"])) != 0)[:, None, None]}, masks, x)


class FirstRowsMask(Lines):
    def answer(self, params, masks, x):
        return super().answer(params, masks[:1], x)


class SpoiltByOthers(Lines):
    def example_losses(self, params, routing, batch, key=None):
        sums, counts = super().example_losses(params, routing, batch, key)
        return sums + (params["w"].max() > 6), counts


class ConstantAnswer(Lines):
    def answer(self, params, masks, x):
        return super().answer(params, masks, x) + masks.sum(1, keepdims=True) * jnp.array([[1.0, 0.0]])


class Untrainable(Lines):
    def active_loss(self, params_k, batch, key=None):
        w = params_k["w"]
        return super().active_loss({"w": w.at[0].set(jax.lax.stop_gradient(w[0]))}, batch, key)


class LossWithoutFiniteGradient(Lines):
    def losses(self, answers, y):
        zero = answers.sum(1) * 0
        return super().losses(answers, y) + jnp.where(zero == 0, 0.0, jnp.sqrt(zero))


class MetricOfRows(Lines):
    def metrics(self, params_k, batch):
        return {"accuracy": (jnp.ones(len(batch.y)), jnp.ones(len(batch.y)))}


class MetricOfNothing(Lines):
    def metrics(self, params_k, batch):
        return {"accuracy": (jnp.float32(0), jnp.float32(0))}


class Opaque:
    """Equal to itself alone."""


def pytree(kind):
    return flax.struct.dataclass(kind)


class NoPytree(Pool):
    size = SIZE
    init, example_losses, metrics = Lines.init, Lines.example_losses, Lines.metrics


class NoSubclass:
    size = SIZE


BROKEN_POOLS = {
    "the pool is NoSubclass": NoSubclass(),
    "the pool has 3 components": Lines(size=3),
    "is data of the pool, expected arrays": Lines(data=2.0),
    "settings can't be compared": Lines(setting=np.ones(2)),
    "the settings of two equal pools do not compare equal": Lines(setting=Opaque()),
    "the pool is not a pytree": NoPytree(),
    r"params\['bias'\] has shape \(2,\)": pytree(SharedBias)(),
    r"params\['w'\] is int32": pytree(WholeNumbers)(),
    "init of two keys gives the same params": pytree(OneSeed)(),
    "two components have the same init": pytree(Twins)(),
    "active_loss\n": pytree(SummedLoss)(),
    "mask_loss under a relaxed mask": pytree(SearchesByOtherMask)(),
    "the gradient of mask_loss": pytree(NoGradientOfMasks)(),
    "loss of row 1 under routing": pytree(FirstRowsMask)(),
    "with other inactive components": pytree(SpoiltByOthers)(),
    "components whose params are zero": pytree(ConstantAnswer)(),
    "answer and have no gradient": pytree(Untrainable)(),
    "is not finite": pytree(LossWithoutFiniteGradient)(),
    "metric 'accuracy' has shapes": pytree(MetricOfRows)(),
    "metric 'accuracy' is 0.0 of 0.0": pytree(MetricOfNothing)(),
}


@pytest.mark.slow
@pytest.mark.parametrize("says", BROKEN_POOLS)
def test_a_pool_that_breaks_a_rule(says):
    with pytest.raises(AssertionError, match=says):
        check_pool(BROKEN_POOLS[says], POINTS)


def test_a_component_that_nothing_hears_is_told():
    with pytest.raises(AssertionError, match=r"components \[0\] change no loss"):
        check_pool(pytree(DeafComponent)(), POINTS)


def test_two_kinds_of_pools_with_equal_settings_share_no_program():
    """JAX compares the trees of dataclasses by their fields alone."""
    kinds = [pytree(type("Same", (Lines,), {"answer": lambda self, *_, i=i: i})) for i in range(30)]
    answer = jax.jit(lambda pool: pool.answer())
    assert [int(answer(kind(data=jnp.zeros(())))) for kind in kinds] == list(range(30))
    assert kinds[0]() == kinds[0]() and jax.tree.structure(kinds[0]()) != jax.tree.structure(kinds[1]())


# --- methods ------------------------------------------------------------------------------------------------------


def unsorted(pool, params, extra, given):
    return Selection(jnp.array([1, 0], jnp.int32))


def outside(pool, params, extra, given):
    return Selection(jnp.array([0, pool.size], jnp.int32))


def wide(pool, params, extra, given):
    return Selection(jnp.array([0.0, 1.0]).astype(jnp.uint8))


def by_variant(pool, params, extra, given):
    return first(pool, params, extra, given)._replace(variant=jnp.int32(1))


def beside(pool, params, extra, given):
    return first(pool, params, extra, given)._replace(frozen=jnp.array([1, 2], jnp.int32))


def nothing(updates, trainable, extra, stage):
    return jax.tree.map(jnp.zeros_like, updates)


def scalar(pool, params, key):
    return params, {"seen": jnp.zeros(3)}


def count(pool, params, key):
    return params, {"seen": jnp.zeros(pool.size, jnp.int32)}


def average(pool, params, extra, data, selection, key):
    return params, {"seen": extra["seen"] / 2}


def decay(pool, params, extra, data, selection, key):
    return jax.tree.map(lambda leaf: 0.9 * leaf, params), extra


def turn(pool, params, extra, data, selection, key):
    return jax.tree.map(jnp.negative, params), extra


def still(params, extra, stage):
    return jax.tree.map(lambda leaf: leaf.at[0].set(jax.lax.stop_gradient(leaf[0])), params)


def raised(pool, params, extra, *_):
    return jax.tree.map(lambda leaf: leaf.at[0].add(1.0), params), extra


def broken_variant(params, extra, stage):
    return jax.tree.map(lambda leaf: jnp.where(stage.variant == 1, jnp.nan, leaf), params)


def growing(tasks, index, axis):
    """More arrays for every block."""
    return Several(tuple(tasks[: index + 1]))


@flax.struct.dataclass
class Several:
    tasks: tuple

    def batch(self, key, size):
        return self.tasks[-1].batch(key, size)


BROKEN_METHODS = {
    r"\['extra'\]\['seen'\] of all seeds has shape \(2, 3\)": Method(first, init=scalar),
    r"the state after task 0: .*extra\['seen'\] is float32": Method(first, init=count, finish=average),
    "are not sorted and distinct": Method(unsorted),
    "are not all of the pool's 8 components": Method(outside),
    "active indices are uint8": Method(wide),
    "a selection's variant is float32": Method(lambda *told: Selection(first(*told).active, jnp.float32(0))),
    "programs are compiled for the tasks after the first": Method(first, rehearse=growing),
    "share components": dataclasses.replace(BLOCKS, select=first),
    "accuracy of task 1 at the end, beside its first": dataclasses.replace(BLOCKS, finish=turn),
    r"changes components \[2, 3, 4, 5, 6, 7\], which no mask": Method(first, finish=decay),
    r"does not train components \[0\] of its mask": Method(first, realise=still),
    "block 0 changes components, and the method does not train": Method(first, finish=raised, trains=False),
    r"is given components \[0, 1\], which an earlier task has": dataclasses.replace(RESERVE, install=first),
    "block 0 has 2 components, expected the 4 of reserves": dataclasses.replace(RESERVE, reserves=4),
    "is told the task and reserves": dataclasses.replace(RESERVE, oracle=True),
    "are both active and frozen": Method(beside),
    "block 0 trains no component": Method(first, updates=nothing),
    "loss of recovered masks after task 0 is": Method(by_variant, install=first, realise=broken_variant),
}


@pytest.mark.slow
@pytest.mark.parametrize("says", BROKEN_METHODS)
def test_a_method_that_breaks_a_rule(says):
    with pytest.raises(AssertionError, match=says):
        check_method(BROKEN_METHODS[says], Lines(), stream_of())


# --- streams ------------------------------------------------------------------------------------------------------


class OneMore(Sides):
    def batch(self, key, size):
        return super().batch(key, size + 1)


class NotFinite(Sides):
    def support(self, key, size):
        return jax.tree.map(lambda leaf: leaf / 0 if leaf.dtype == jnp.float32 else leaf, super().support(key, size))


class OtherKind(Sides):
    def support(self, key, size):
        return tuple(super().support(key, size))


class AlwaysTheSame(Sides):
    def support(self, key, size):
        return super().support(jax.random.key(5), size)


class FreshTest(Sides):
    def test(self):
        return self.draw(jax.random.key(np.random.default_rng().integers(2**31)), 16)


class SameForBoth(Sides):
    def support(self, key, size):
        return self.batch(key, size)


class TrainsItsTest(Sides):
    def test(self):
        first_seed = jax.random.split(jax.random.key(0), 1)[0]
        return self.batch(first_seed, 8)


@flax.struct.dataclass
class Named(Sides):
    name: str = flax.struct.field(pytree_node=False, default="")


class Plain:
    def __init__(self, normal):
        self.normal = normal


def fed(task, first, steps, size, *, generator=None, key=9, lead=1):
    generator = generator or np.random.default_rng((key, task, first))
    x = generator.standard_normal((lead, steps, size, 2)).astype(np.float32)
    return PointBatch(x, (x[..., 0] > 0).astype(np.int32))


def fed_with_tests(task, first, steps, size):
    rows = stream_of().tasks[task].test()
    return jax.tree.map(lambda leaf: leaf.reshape(1, steps, size, *leaf.shape[1:]), rows)


BROKEN_STREAMS = {
    "is named": stream_of(names=("a", "b", "b")),
    "the stream has 3 tasks": stream_of(names=("a", "b")),
    "the metric is 'beauty'": stream_of(metric="beauty"),
    "facts\\['known'\\] has 2 entries for 1 seeds": stream_of(facts={"known": [1.0, 2.0]}),
    "task_facts\\['known'\\] has 1 entries for 3 tasks": stream_of(task_facts={"known": [1.0]}),
    "examples have tests, expected training and recovery": stream_of(examples=[{"tests": 3}] * 3),
    "returns to": stream_of(names=("a", "b", "a#2"), returns=("a", "b", "b")),
    "a task is Plain": stream_of(Plain),
    "different structures or settings": stream_of(
        tasks=[pytree(Named)(jnp.ones(2), name=name) for name in ("x", "y", "z")]
    ),
    r"normal is float, expected an array": stream_of(tasks=[Sides(1.0)] * 3),
    r"normal has shape \(2,\), expected \[1, ...\]": stream_of(axis=0),
    "batch of task 0 has .9. rows": stream_of(pytree(OneMore)),
    "support of task 0 has values that are not finite": stream_of(pytree(NotFinite)),
    "support of task 0 is .*expected .* as the first batch": stream_of(pytree(OtherKind)),
    "support of task 0 is the same for two keys": stream_of(pytree(AlwaysTheSame)),
    "the test set of task 0, read twice": stream_of(pytree(FreshTest)),
    "examples are both trained with and recovered from": stream_of(pytree(SameForBoth)),
    "8 examples are both trained with and tested with": stream_of(pytree(TrainsItsTest)),
    "what is fed for steps 4 and 5": stream_of(feed=functools.partial(fed, generator=np.random.default_rng(0))),
    r"fed leaves have shape \(2, 2, 8, 2\)": stream_of(feed=functools.partial(fed, lead=2)),
    "16 examples are both trained with and tested with": stream_of(feed=fed_with_tests),
}


@pytest.mark.parametrize("says", BROKEN_STREAMS)
def test_a_stream_that_breaks_a_rule(says):
    with pytest.raises(AssertionError, match=says):
        check_stream(BROKEN_STREAMS[says])


# --- families -----------------------------------------------------------------------------------------------------


def raw_of(family):
    return json.loads((FIXTURES / FIXTURE_OF[family] / "config.json").read_text())


BROKEN_FAMILIES = {
    "names no tensor for h.k_norm.scale, h.q_norm.scale": {"norms": FAMILIES["llama"].norms},
    "names tensors for h.mlp_post_norm.scale, which the decoder does not have": {
        "norms": FAMILIES["qwen3"].norms | {"mlp_post_norm": "other_norm"}
    },
    "names norm.weight for several parameters": {"embed": "norm"},
    "expected {} for the layer's number": {"blocks": "layers.0"},
    "a block's full name is 'model.blocks.{}'": {"named": "model.blocks.{}"},
    "names layers.{}.mlp.up_proj.weight for several": {"linears": FAMILIES["qwen3"].linears | {"gate": "mlp.up_proj"}},
}


@pytest.fixture
def own_family():
    yield lambda **fields: register_family("own", FAMILIES["qwen3"]._replace(**fields))
    FAMILIES.pop("own", None)


@pytest.mark.slow
@pytest.mark.parametrize("says", BROKEN_FAMILIES)
def test_a_family_that_breaks_a_rule(says, own_family):
    own_family(**BROKEN_FAMILIES[says])
    with pytest.raises(AssertionError, match=says):
        check_family(raw_of("qwen3") | {"model_type": "own"})


@pytest.mark.slow
def test_a_family_s_cache_and_adapters_are_checked(own_family, monkeypatch):
    own_family()
    raw = raw_of("qwen3") | {"model_type": "own"}
    check_family(raw)
    jax.clear_caches()  # programs that were compiled for the same shapes
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "merged", lambda params, deltas, config: params)
        with pytest.raises(AssertionError, match="logits with adapters, and with their products added"):
            check_family(raw)
    apart = decoder.with_blocks_apart
    jax.clear_caches()
    with monkeypatch.context() as patch:
        swapped = lambda params, config: (blocks := apart(params, config)) | {"h_0": blocks["h_1"]}  # noqa: E731
        patch.setattr(decoder, "with_blocks_apart", swapped)
        with pytest.raises(AssertionError, match="logits token by token"):
            check_family(raw)
    jax.clear_caches()


def test_a_checkpoint_is_held_to_its_logits():
    folder = FIXTURES / FIXTURE_OF["qwen3"]
    expected = np.load(folder / "expected.npz")
    check_base(folder, expected["tokens"], expected["logits"], expected["valid"])
    wrong = expected["logits"] + 1e-3 * expected["valid"][..., None]
    with pytest.raises(AssertionError, match="logits of"):
        check_base(folder, expected["tokens"], wrong, expected["valid"])


def test_a_family_is_registered_once(own_family):
    own_family()
    own_family()  # as a cell of a notebook that is run again
    with pytest.raises(InputError, match="family 'own' is registered already"):
        own_family(embed="other")
    with pytest.raises(InputError, match="linears has role 'query'"):
        register_family("another", FAMILIES["llama"]._replace(linears={"query": "q_proj"}))
