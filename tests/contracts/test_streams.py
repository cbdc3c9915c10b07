"""What every registered stream keeps (`ftn_jax.testing`), at toy size."""

import operator

import jax
import numpy as np
import pytest
import toys

from ftn_jax.models import pretrained
from ftn_jax.streams import STREAMS, Context
from ftn_jax.testing.expect import expect_equal
from ftn_jax.testing.streams import STREAM_CHECKS, StreamCase

POINTS = {"block": 2, "scale": 1.2, "frequency": 2.0, "test": 64}
# Of each stream: the experiment, three tasks, and its settings.
STREAMS_TRIED = {
    "styles": (("lower", "reverse_words", "lower#2"), {"max_length": 64}),
    "jsonl": (tuple(toys.WRITE), {"max_length": 64, "recovery": 0.3, "test": 0.3}),
    "synthetic": (("first", "second", "first#2"), POINTS | {"target": "classification"}),
    "synthetic, regression": (("first", "second"), POINTS | {"target": "regression"}),
    "arrays": ((), {"recovery": 0.2, "test": 0.2}),
}


@pytest.fixture(scope="module")
def build(request, base, tmp_path_factory):
    """The builder of a stream: (how many of its tasks) -> it."""
    tasks, settings = STREAMS_TRIED[request.param]
    kind = STREAMS[request.param.partition(",")[0]]
    if request.param == "jsonl":
        tasks = toys.write_tasks(tmp_path_factory.mktemp("files"))
    if request.param == "arrays":
        tasks = toys.write_arrays(tmp_path_factory.mktemp("arrays"))
    reads_text = request.param in ("styles", "jsonl")
    context = Context(toys.SEEDS, pretrained.load(base) if reads_text else None)
    return lambda count=None: kind.build(context, tasks[:count], **settings)


@pytest.fixture(scope="module")
def case(build):
    return StreamCase(build(), len(toys.SEEDS), size=8)


every_stream = pytest.mark.parametrize("build", STREAMS_TRIED, indirect=True)


def test_every_stream_is_tried():
    assert {name.partition(",")[0] for name in STREAMS_TRIED} == STREAMS.keys()


@every_stream
@pytest.mark.parametrize("check", STREAM_CHECKS, ids=operator.attrgetter("__name__"))
def test_contract(check, case):
    check(case)


@every_stream
def test_a_stream_is_a_function_of_its_settings(build, case):
    expect_equal(drawn(build()), drawn(case.stream), "a stream that is built again")


GROWING = [name for name in STREAMS_TRIED if STREAMS[name.partition(",")[0]].grows]


@pytest.mark.parametrize("build", GROWING, indirect=True)
def test_tasks_that_are_appended_leave_the_others_as_they_are(build, case):
    expect_equal(drawn(build(2)), drawn(case.stream)[:2], "the first two tasks, without and with a third")


def drawn(stream):
    """Of each task a batch of each kind."""
    case, found = StreamCase(stream, len(toys.SEEDS), 8), []
    for i in range(len(stream.tasks)):
        fed = stream.feed(i, 0, 1, 8) if stream.feed else ()
        found.append(
            jax.tree.map(np.asarray, (case.draw(i, "batch", 0), case.draw(i, "support", 0), case.test(i), fed))
        )
    return found
