"""What a user hands to a trained pool, and how it is taken: each form by hand, and anything else in one line."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftn_jax.core.errors import InputError
from ftn_jax.runs.trained import Recovery
from ftn_jax.runs.user_masks import active_of, routing_of
from ftn_jax.streams.text.pairs import prompts_of, texts_of

SIZE = 9
STORED = {"spoken": np.array([1, 4, 7], np.int32), "headline": np.array([0, 2, 3], np.int32)}
ACTIVE = [1, 4, 7]
BINARY = [0, 1, 0, 0, 1, 0, 0, 1, 0]
FOUND = Recovery(np.array(ACTIVE, np.int32), 1.0, 2.0, {})
# One mask in every form.
FORMS = {
    "recovery": FOUND,
    "name": "spoken",
    "list": ACTIVE,
    "unsorted": [7, 1, 4],
    "tuple": tuple(ACTIVE),
    "int64": np.array(ACTIVE),
    "jax": jnp.array(ACTIVE),
    "bools": [bool(on) for on in BINARY],
    "bool array": np.array(BINARY, bool),
    "floats": np.array(BINARY, np.float32),
    "zeros and ones": np.array(BINARY),
    "jax floats": jnp.array(BINARY, jnp.float32),
}


@pytest.mark.parametrize("form", FORMS)
def test_one_mask_in_every_form(form):
    active = active_of(FORMS[form], STORED, SIZE)
    assert active.tolist() == ACTIVE and active.dtype == np.int32
    assert routing_of(FORMS[form], STORED, SIZE, rows=5).tolist() == ACTIVE


@pytest.mark.parametrize(
    "masks",
    [list(FORMS.values()), [[1, 4, 7]] * 12, np.array([ACTIVE] * 12), jnp.array([BINARY] * 12), ["spoken"] * 12],
    ids=["mixed", "lists", "array", "binary array", "names"],
)
def test_a_mask_for_each_row(masks):
    assert routing_of(masks, STORED, SIZE, rows=12).tolist() == [ACTIVE] * 12


def test_masks_of_different_sizes_are_padded():
    assert routing_of([[0], "spoken"], STORED, SIZE, rows=2).tolist() == [[0, 9, 9], ACTIVE]


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        ("sung", "no task is named 'sung', known: spoken, headline"),
        ([0, 99999], "has component 99999, expected 0 to 8"),
        ([-1, 2], "has component -1, expected 0 to 8"),
        ([4, 4, 7], "has a component twice"),
        ([], "has no components"),
        (np.zeros(9), "has no components"),
        (np.full(9, 0.5), "entries that are neither 0 nor 1"),
        (np.ones(8, bool), "has 8 entries, expected 9"),
        ([0.5, 1.5], "has 2 entries, expected 9"),
        (7, "is int 7, expected indices or a mask of 9 components"),
        ({"active": ACTIVE}, "expected indices or a mask of 9"),
        (object, "expected indices or a mask of 9"),
        (b"spoken", "expected indices or a mask of 9"),
        ([ACTIVE, "sung"], "no task is named 'sung'"),
        ([ACTIVE, None], "expected indices or a mask of 9"),
        ([ACTIVE] * 3, "3 masks are given for 2 rows"),
        (np.zeros((2, 2, 2)), "expected indices or a mask of 9"),
    ],
)
def test_masks_that_are_refused(mask, said):
    with pytest.raises(InputError, match=said) as caught:
        routing_of(mask, STORED, SIZE, rows=2)
    assert "\n" not in str(caught.value)


PAIR = ("Why?\n", "Because.")
RECORD = {"prompt": "Why?\n", "completion": "Because."}


@pytest.mark.parametrize(
    ("examples", "expected"),
    [
        ([PAIR, PAIR], [PAIR, PAIR]),
        ([list(PAIR)], [PAIR]),
        ((RECORD, PAIR), [PAIR, PAIR]),
        (RECORD, [PAIR]),
        (PAIR, [PAIR]),
        ([{"text": "All."}], [("", "All.")]),
        ([{"text": "All.", "prompt": None, "id": 7}], [("", "All.")]),
        (iter([RECORD]), [PAIR]),
    ],
)
def test_examples_are_taken_for_what_they_are(examples, expected):
    assert texts_of(examples) == expected


@pytest.mark.parametrize(
    ("examples", "said"),
    [
        ([], "no examples are given"),
        ("prompt", "examples are str, expected a list"),
        (7, "examples are int, expected a list"),
        (["prompt", "completion"], "item 0 is str 'prompt', expected"),
        ([PAIR, "text"], "item 1 is str 'text'"),
        ([PAIR, ("a", "b", "c")], "item 1 is tuple"),
        ([("a", 7)], "has int 7 in place of a text"),
        ([("a", None)], "has NoneType None in place of a text"),
        ([{"prompt": "a"}], "item 0 has no completion"),
        ([{"prompt": "a", "completion": ""}], "completion is empty"),
        ([{"text": "a", "completion": "b"}], "has text and completion"),
        ([("a", "\ud800")], "has half a surrogate pair"),
    ],
)
def test_examples_that_are_refused(examples, said):
    with pytest.raises(InputError, match=said) as caught:
        texts_of(examples)
    assert "\n" not in str(caught.value)


def test_prompts_are_taken_for_what_they_are():
    assert prompts_of("Why?") == prompts_of(["Why?"]) == prompts_of([{"prompt": "Why?"}]) == ["Why?"]
    assert prompts_of(({"prompt": "a", "completion": "b"}, "c")) == ["a", "c"]
    for wrong, said in (
        ([], "no prompts"),
        (b"Why?", "prompts are bytes"),
        ([b"Why?"], "item 0 has bytes"),
        ([{"text": "a"}], "has no prompt, expected a prompt"),
    ):
        with pytest.raises(InputError, match=said):
            prompts_of(wrong)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.sampled_from(["prompt", "completion", "text", "other"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(ANYTHING)
def test_anything_else_ends_in_one_line(given):
    for read in (
        texts_of,
        prompts_of,
        lambda given: active_of(given, STORED, SIZE),
        lambda given: routing_of(given, STORED, SIZE, rows=2),
    ):
        try:
            read(given)
        except InputError as error:
            assert "\n" not in str(error)
