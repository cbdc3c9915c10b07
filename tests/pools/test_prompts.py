"""Examples in the prompt: the tokens of a list made in plain Python, and the base's losses on single sequences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from toys import toy_batch, toy_config, toy_family, toy_params, toy_pool

from ftn_jax.core.errors import InputError
from ftn_jax.models import decoder
from ftn_jax.models.tokens import Tokens, encode
from ftn_jax.pools.lora import LoraPool, TokenBatch
from ftn_jax.pools.prompts import check_room, prefix_of
from ftn_jax.streams.text.task import pad_examples

PAIRS = [("a red fox\n", "A RED FOX"), ("it\n", "IT"), ("the old cat saw it\n", "!"), ("one\n", "two three four five")]
metrics_in_context = jax.jit(LoraPool.metrics_in_context)


def spelled(batch, row):
    """The tokens of an example, its last target included, read from the batch in plain Python."""
    scored = [p for p in range(batch.labels.shape[1]) if batch.weights[row, p] > 0]
    read = batch.tokens[row, : batch.columns[row, scored[-1]] + 1].tolist()
    return [*read, int(batch.labels[row, scored[-1]])]


@pytest.mark.parametrize("starts", [True, False])
def test_the_prefix_is_what_the_docstring_says_token_by_token(starts):
    """Prompt, completion, end of text, of one example after another; with the tokenizer alone."""
    known = toys.toy_tokens()
    tokens = Tokens(known.tokenizer, known.start if starts else (), known.ends, known.size)
    expected = []
    for prompt, completion in PAIRS:
        if starts:  # GPT-2 reads the end of a text before each text
            expected.append(toys.EOS)
        for text in (prompt, completion):
            expected += known.tokenizer(text, add_special_tokens=False)["input_ids"]
        expected.append(toys.EOS)
    batch = pad_examples(encode(PAIRS, tokens), length=40, targets=24, pad=7)
    compiled = jax.jit(prefix_of, static_argnums=1)
    found, valid = compiled(batch, 1000)
    assert len(found) == 4 * 41 and len(expected) > 30
    np.testing.assert_array_equal(valid, np.arange(164) >= 164 - len(expected))  # padded on the left alone
    assert np.asarray(found)[np.asarray(valid)].tolist() == expected
    found, valid = compiled(batch, len(expected) + 1)  # a base of few positions needs no longer one
    assert len(found) == len(expected) + 1 and np.asarray(found)[1:].tolist() == expected and not valid[0]


def literal_metrics(pool, params_k, batch, examples):
    """Sums of losses and of rows that are right throughout: each row is one sequence, built by hand."""
    before = [token for row in range(len(examples.tokens)) for token in spelled(examples, row)]
    whole = [[*before, *spelled(batch, row)] for row in range(len(batch.tokens))]
    padded = np.array([row + [1] * (max(map(len, whole)) - len(row)) for row in whole], np.int32)
    logits = np.asarray(_logits(pool, params_k, padded), np.float64)
    loss, right = 0.0, 0
    for row, sequence in enumerate(whole):
        count = int(batch.weights[row].sum())
        hits = []
        for at in range(len(sequence) - count, len(sequence)):
            scores = logits[row, at - 1]
            loss += np.log(np.exp(scores).sum()) - scores[sequence[at]]
            hits.append(scores.argmax() == sequence[at])
        right += all(hits)
    return loss, right


@jax.jit
def _logits(pool, params_k, tokens):
    adapters = pool.adapters(params_k)
    hidden, _ = decoder.Decoder(pool.model).apply({"params": pool.base}, tokens, adapters)
    return decoder.logits(pool.base, hidden)


@pytest.mark.parametrize(
    "family",
    ["gpt2", pytest.param("mistral", marks=pytest.mark.slow), pytest.param("gemma3_text", marks=pytest.mark.slow)],
)
def test_losses_are_those_of_the_base_on_one_sequence_of_all_examples(family):
    """With positions that are learned, a window of four tokens, and layers of both kinds; 35 rows are two parts."""
    length = {"n_positions": 64} if family == "gpt2" else {"max_position_embeddings": 64}
    pool = toy_pool(model=toy_family(family, **length), modules=tuple(toy_family(family).modules), size=2)
    batch, examples = toy_batch(35 if family == "gpt2" else 5), toy_batch(3, seed=4)
    for params_k in (toy_params(pool), jax.tree.map(jnp.zeros_like, toy_params(pool))):  # and the base alone
        greedy = np.asarray(_logits(pool, params_k, _first_row(batch, examples)))[0, -1].argmax()
        labels = np.array(batch.labels)
        labels[0] = greedy
        batch = batch._replace(labels=labels)
        found = metrics_in_context(pool, params_k, batch, examples)
        loss, right = literal_metrics(pool, params_k, batch, examples)
        np.testing.assert_allclose(found["cross_entropy"], (loss, batch.weights.sum()), rtol=1e-5)
        assert right >= 1 and [float(value) for value in found["exact_match"]] == [right, len(batch.tokens)]


def _first_row(batch, examples):
    """What is read before the first row's only target, int32[1, Q]."""
    before = [token for row in range(len(examples.tokens)) for token in spelled(examples, row)]
    return np.array([[*before, *spelled(batch, 0)[:-1]]], np.int32)


def test_the_order_of_the_examples_matters_and_their_padding_does_not():
    pool = toy_pool(model=toy_config(n_positions=64))
    params_k, batch, examples = toy_params(pool), toy_batch(), toy_batch(3, seed=4)
    loss = float(metrics_in_context(pool, params_k, batch, examples)["cross_entropy"][0])
    turned = jax.tree.map(lambda leaf: leaf[::-1], examples)
    assert abs(float(metrics_in_context(pool, params_k, batch, turned)["cross_entropy"][0]) - loss) > 1e-3
    wider = TokenBatch(np.pad(examples.tokens, ((0, 0), (0, 6)), constant_values=9), *examples[1:])
    np.testing.assert_allclose(metrics_in_context(pool, params_k, batch, wider)["cross_entropy"][0], loss, rtol=1e-5)


def test_examples_that_do_not_fit_are_refused_in_one_line():
    examples, batch = toy_batch(3, seed=4), toy_batch()
    sizes = [len(spelled(examples, row)) for row in range(3)]
    longest = max(len(spelled(batch, row)) for row in range(5))
    exactly = sum(sizes) + longest
    check_room(exactly, examples, batch)
    said = (
        f"3 examples of {sum(sizes)} tokens together and one of {longest} after them exceed the {exactly - 1} "
        "positions of the base: lower config.configurer.support or config.stream.max_length"
    )
    with pytest.raises(InputError) as caught:
        check_room(exactly - 1, examples, batch)
    assert str(caught.value) == said
    # Of which two are drawn, the longest two have to fit; every seed's, where each has its own.
    largest = sum(sorted(sizes)[1:]) + longest
    check_room(largest, examples, batch, drawn=2)
    with pytest.raises(InputError, match=f"^2 examples of {largest - longest} tokens together"):
        check_room(largest - 1, examples, batch, drawn=2)
    seeds = jax.tree.map(lambda *leaves: np.stack(leaves), toy_batch(3, seed=5), examples)
    most = max(sum(len(spelled(toy_batch(3, seed=seed), row)) for row in range(3)) for seed in (4, 5))
    with pytest.raises(InputError, match=f"^3 examples of {most} tokens"):
        check_room(most + longest - 1, seeds, batch)
    check_room(most + longest, seeds, batch)
