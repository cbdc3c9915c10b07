"""The prompt format, padding, draws and splits of the style stream, checked on examples worked out by hand."""

import jax
import numpy as np
import pytest
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

from ftn_jax.core.errors import InputError
from ftn_jax.models.pretrained import Base
from ftn_jax.models.tokens import Example, Tokens, encode, measure
from ftn_jax.streams import Context
from ftn_jax.streams.text.sentences import SENTENCES, SPLITS
from ftn_jax.streams.text.styles import styles
from ftn_jax.streams.text.task import make_task, pad_examples
from ftn_jax.streams.text.transforms import TRANSFORMS


class CodePoints:
    """A tokenizer whose ids are code points."""

    def __call__(self, texts, add_special_tokens, return_attention_mask, verbose):
        assert not (add_special_tokens or return_attention_mask or verbose)
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}

    def convert_ids_to_tokens(self, token):
        return chr(token)


LETTERS = Tokens(CodePoints(), (7,), (7,), 2**21, "letters")


ENGLISH = toys.toy_tokens()


def test_encode_by_hand():
    expected = [Example.of([7, ord("a"), ord("b")], [ord("C"), 7]), Example.of([7], [7])]
    assert encode([("ab", "C"), ("", "")], LETTERS) == expected


def test_what_does_not_fit_is_cut_by_hand():
    """Read are prompt and target without its last token, after the leading end-of-text."""
    a, b, c = map(ord, "abc")
    pair = [("abc", "ab")]
    assert encode(pair, LETTERS, 6) == [Example.of([7, a, b, c], [a, b, 7])]
    assert encode(pair, LETTERS, 5) == [Example.of([7, b, c], [a, b, 7], cut=True)]
    assert encode(pair, LETTERS, 3) == [Example.of([7], [a, b, 7], cut=True)]
    assert encode(pair, LETTERS, 2) == [Example.of([7], [a, b], cut=True)]


def test_where_nothing_stands_before_a_text():
    """A prompt is read as it is; without one the first token is read and not scored."""
    a, b, c = map(ord, "abc")
    bare = Tokens(CodePoints(), (), (7, 9), 2**21, "bare")
    assert encode([("ab", "c"), ("", "ab")], bare) == [Example.of([a, b], [c, 7]), Example.of([a], [b, 7])]
    assert encode([("abc", "ab"), ("", "abc")], bare, 4) == [
        Example.of([b, c], [a, b, 7], cut=True),
        Example.of([a], [b, c, 7]),
    ]
    assert encode([("", "abc")], bare, 3) == [Example.of([a], [b, c], cut=True)]
    assert bare.prompt("ab") == [a, b]
    with pytest.raises(InputError, match="the prompt is empty, and base 'bare' puts no token before a text"):
        bare.prompt("")


TEXT_PAIRS = st.lists(st.tuples(st.text(max_size=9), st.text(min_size=1, max_size=9)), min_size=1, max_size=3)


@given(st.integers(0, 3), TEXT_PAIRS, st.integers(4, 12))
@settings(max_examples=200, deadline=None)
def test_an_example_fits_and_is_as_long_as_measured(start, pairs, most):
    tokens = Tokens(CodePoints(), (3,) * start, (7,), 2**21, "any")
    for (prompt, completion), example in zip(pairs, encode(pairs, tokens, most), strict=True):
        read, scored, cut = measure(len(prompt), len(completion) + 1, most, start)
        assert (len(example.prompt) + len(example.target) - 1, len(example.target), example.cut) == (read, scored, cut)
        assert 0 < read <= most and scored > 0 and example.prompt
        whole = [3] * start + [ord(letter) for letter in prompt + completion] + [7]
        if not cut:
            assert example.prompt + example.target == whole


def test_a_token_that_the_embeddings_lack_is_named():
    few = Tokens(CodePoints(), (7,), (7,), 200, "small")
    assert few.ids(["a\xc7"]) == [[97, 199]]
    for use in (few.ids, few.prompt, lambda text: encode([("", text[0])], few)):
        with pytest.raises(InputError, match="token 'È' has id 200, and base 'small' has embeddings of 200 tokens"):
            use(["\xc8"] if use == few.ids else "\xc8")
    with pytest.raises(InputError, match="has id 300"):
        encode([("a", "b")], Tokens(CodePoints(), (7,), (300,), 200, "small"))


def test_the_prompt_is_tokenized_alike_whatever_follows():
    sentence = SENTENCES[0]
    prompts = {tuple(encode([(sentence, completion)], ENGLISH)[0].prompt) for completion in ("", "\n", sentence)}
    assert len(prompts) == 1


def test_encoded_text_can_be_read_back():
    example = encode([("Hello, World 42\n", "42 World Hello,")], ENGLISH)[0]
    assert ENGLISH.tokenizer.decode(example.prompt) == "<|endoftext|>Hello, World 42\n"
    assert ENGLISH.tokenizer.decode(example.target) == "42 World Hello,<|endoftext|>"


def test_pad_examples_by_hand():
    examples = [Example.of([9, 1, 2], [3, 4]), Example.of([9], [5, 6, 9]), Example.of([9, 8, 7, 6, 5], [9])]
    batch = pad_examples(examples, length=5, targets=3, pad=0)
    np.testing.assert_array_equal(batch.tokens, [[9, 1, 2, 3, 0], [9, 5, 6, 0, 0], [9, 8, 7, 6, 5]])
    np.testing.assert_array_equal(batch.columns, [[2, 3, 0], [0, 1, 2], [4, 0, 0]])
    np.testing.assert_array_equal(batch.labels, [[3, 4, 0], [5, 6, 9], [9, 0, 0]])
    np.testing.assert_array_equal(batch.weights, [[1, 1, 0], [1, 1, 1], [1, 0, 0]])
    assert [leaf.dtype for leaf in batch] == [np.int32, np.int32, np.int32, np.float32]


@given(st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12)), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_each_label_is_the_token_after_its_column(pairs):
    examples = encode(pairs, LETTERS)
    batch = pad_examples(examples, length=26, targets=13, pad=LETTERS.ends[0])
    for row, example in enumerate(examples):
        text, target = example.ids, example.target
        scored = batch.weights[row] == 1
        assert batch.labels[row][scored].tolist() == target
        assert [text[column + 1] for column in batch.columns[row][scored]] == target
        assert batch.tokens[row].tolist() == text[:-1] + [7] * (26 - len(text) + 1)


def pairs(count: int, offset: int) -> list[tuple[str, str]]:
    """Pairs that tell where they come from: the first letter of example i of a split is chr(offset + i)."""
    return [(chr(offset + i), "x" * (1 + i % 3)) for i in range(count)]


def test_task_is_padded_to_little_more_than_its_longest_example():
    # 1 + 15 + 1 tokens of prompt and 3 of target, of which the last is never read: 19 columns.
    task = make_task("toy", {s: [("a" * 15, "bc")] for s in ("train", "recovery", "test")}, LETTERS, 96)
    assert 19 <= task.train.tokens.shape[1] <= 32
    assert 3 <= task.train.labels.shape[1] <= 16
    assert task.train.weights.sum() == 3


def test_one_padded_length_for_the_whole_task():
    splits = {"train": [("a", "b")], "recovery": [("a" * 20, "b")], "test": [("a", "b")]}
    task = make_task("toy", splits, LETTERS, 96)
    shapes = {split.tokens.shape for split in (task.train, task.recovery, task.held_out)}
    assert len(shapes) == 1
    assert 23 <= shapes.pop()[1] <= 32


def test_longest_example_may_have_max_length_and_no_more():
    splits = {s: [("a" * 16, "bc")] for s in ("train", "recovery", "test")}
    assert make_task("toy", splits, LETTERS, 19).train.tokens.shape == (1, 19)
    with pytest.raises(InputError, match=r"'toy'.* 19 tokens.*max_length is 18"):
        make_task("toy", splits, LETTERS, 18)


@pytest.fixture(scope="module")
def task():
    return make_task("toy", {"train": pairs(9, 100), "recovery": pairs(6, 200), "test": pairs(5, 300)}, LETTERS, 96)


def first_letters(batch) -> list[int]:
    return np.asarray(batch.tokens)[:, 1].tolist()


def test_batch_and_support_draw_without_replacement_from_their_split(task):
    assert sorted(first_letters(task.batch(jax.random.key(0), 9))) == list(range(100, 109))
    assert sorted(first_letters(task.support(jax.random.key(0), 6))) == list(range(200, 206))
    assert first_letters(task.test()) == list(range(300, 305))
    for seed in range(5):
        drawn = first_letters(task.batch(jax.random.key(seed), 4))
        assert len(set(drawn)) == 4
        assert set(drawn) <= set(range(100, 109))


def test_draws_depend_on_the_key_and_only_on_it(task):
    draws = [tuple(first_letters(task.batch(jax.random.key(seed), 4))) for seed in (0, 1, 2, 3, 0)]
    assert draws[0] == draws[4]
    assert len(set(draws)) == 4


def test_draws_keep_rows_together(task):
    batch = task.batch(jax.random.key(3), 5)
    for row, letter in enumerate(first_letters(batch)):
        source = letter - 100
        for drawn, leaf in zip(batch, task.train, strict=True):
            np.testing.assert_array_equal(drawn[row], leaf[source])


def test_draw_of_more_than_there_is_is_refused(task):
    with pytest.raises(ValueError):
        task.support(jax.random.key(0), 7)


def english_styles(names, max_length=96, n_positions=128, **settings):
    base = Base("toy", "00", toys.toy_config(n_positions=n_positions), {}, ENGLISH, "gpt2")
    return styles(Context((0,), base), names, max_length=max_length, **settings)


@pytest.fixture(scope="module")
def stream():
    return english_styles(tuple(TRANSFORMS)[:6])


@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize("split", ("train", "recovery", "test"))
def test_a_style_task_holds_its_split_transformed(stream, split, index):
    name = tuple(TRANSFORMS)[index]
    data = jax.tree.map(np.asarray, getattr(stream.tasks[index], "held_out" if split == "test" else split))
    for row, sentence in enumerate(SPLITS[split]):
        target = data.labels[row][data.weights[row] == 1]
        first = data.columns[row, 0]
        assert ENGLISH.tokenizer.decode(data.tokens[row, : first + 1]) == f"<|endoftext|>{sentence}\n"
        assert ENGLISH.tokenizer.decode(target) == f"{TRANSFORMS[name](sentence)}<|endoftext|>"
    assert len(data.tokens) == len(SPLITS[split])


def test_stream_names_and_sample_pairs():
    stream = english_styles(("pirate", "upper"))
    assert stream.names == ("pirate", "upper")
    assert (stream.metric, stream.axis) == ("cross_entropy", None)
    assert stream.examples == [{"training": 80, "recovery": 20}] * 2
    assert stream.pairs[1] == [(f"{sentence}\n", sentence.upper()) for sentence in SPLITS["test"]]


def test_validation_takes_every_fifth_training_sentence_and_leaves_the_test_alone(stream):
    chosen = english_styles(("upper",), held_out="validation")
    held = [prompt.strip() for prompt, _ in chosen.pairs[0]]
    assert held == list(SPLITS["train"][::5]) and not set(held) & set(SPLITS["test"] + SPLITS["recovery"])
    assert chosen.examples[0] == {"training": 64, "recovery": 20}
    read = {tuple(row) for row in chosen.tasks[0].train.tokens.tolist()}
    whole = {tuple(row) for row in stream.tasks[0].train.tokens.tolist()}
    scored = {tuple(row) for row in chosen.tasks[0].held_out.tokens.tolist()}
    assert len(read) == 64 and len(scored) == 16 and read | scored == whole


def test_unknown_style_is_named():
    with pytest.raises(InputError, match=r"config\.stream\.tasks.*'yoda'.*upper, lower"):
        english_styles(("upper", "yoda"))


def test_sentence_that_is_too_long_names_the_task():
    with pytest.raises(InputError, match=r"'double_words'.*config\.stream\.max_length is 59"):
        english_styles(("upper", "double_words"), max_length=59)


def test_a_base_with_fewer_positions_is_named():
    assert english_styles(("upper",), max_length=96, n_positions=96).names == ("upper",)
    with pytest.raises(InputError, match=r"config\.stream\.max_length is 96, .* the 95 positions of base 'toy'"):
        english_styles(("upper",), max_length=96, n_positions=95)
