"""Generation with the cache against a literal loop without one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from ftn_jax.models import decoder
from ftn_jax.models.generate import generate, likely, pad_prompts
from ftn_jax.models.tokens import Example
from ftn_jax.pools.base import gather
from ftn_jax.streams.text.task import pad_examples

NEVER = -1  # an end-of-text that no model writes
CONFIG = toys.toy_config()
STEPS = 5
PROMPTS = [[5, 9, 2, 2], [7, 7, 30], [11, 3, 3, 40, 8], [1, 2, 9]]


@pytest.fixture(scope="module")
def pool():
    base = jax.tree.map(jnp.asarray, toys.toy_base_params(CONFIG))
    # Positions that weigh more than tokens: with its tied head a random model would only repeat itself.
    return toys.toy_pool(model=CONFIG, base=dict(base, positions=20 * base["positions"]))


@pytest.fixture(scope="module")
def params(pool):
    return jax.tree.map(jnp.asarray, toys.toy_params(pool))


@functools.partial(jax.jit, static_argnames="config")
def next_token(config, params, adapters, tokens, last):
    hidden, _ = decoder.Decoder(config).apply({"params": params}, tokens, adapters)
    return jnp.argmax(decoder.logits(params, hidden[0, last]))


def literal(params, adapters, prompt, steps=STEPS, eos=NEVER):
    """One row, no cache: the whole sequence through the model again for every token; what follows it isn't seen."""
    written = []
    for _ in range(steps):
        if written and written[-1] == eos:
            written.append(eos)
            continue
        read = [*prompt, *written]
        tokens = np.array([read + [0] * (16 - len(read))], np.int32)
        written.append(int(next_token(CONFIG, params, adapters, tokens, len(read) - 1)))
    return written


def written_by(pool, adapters, prompts, ends=(NEVER,), steps=STEPS, multiple=1):
    tokens, valid = pad_prompts(prompts, 0, -(-max(map(len, prompts)) // multiple) * multiple)
    layers = decoder.apart(adapters, CONFIG)
    return np.asarray(generate(pool.base, layers, tokens, valid, config=CONFIG, steps=steps, ends=ends)).tolist()


def test_pad_prompts_by_hand():
    tokens, valid = pad_prompts([[1, 2, 3], [4]], pad=9, columns=4)
    np.testing.assert_array_equal(tokens, [[9, 1, 2, 3], [9, 9, 9, 4]])
    np.testing.assert_array_equal(valid, [[0, 1, 1, 1], [0, 0, 0, 1]])
    assert pad_prompts([[1] * 4], pad=9, columns=4)[1].all()


@pytest.mark.parametrize("multiple", [1, 8])
def test_without_adapters(pool, multiple):
    nothing = pool.adapters(gather(pool.init(jax.random.key(0)), jnp.array([1, 4, 9])))  # B is zero
    expected = [literal(pool.base, nothing, prompt) for prompt in PROMPTS]
    assert written_by(pool, {}, PROMPTS, multiple=multiple) == expected
    assert len({tuple(row) for row in expected}) > 1


@pytest.fixture(scope="module")
def shared(pool, params):
    """(the adapters of one mask, what the literal loop writes under them)."""
    adapters = pool.adapters(gather(params, jnp.array([1, 4, 9])))
    return adapters, [literal(pool.base, adapters, prompt) for prompt in PROMPTS]


def test_with_shared_adapters(pool, shared):
    adapters, expected = shared
    assert written_by(pool, adapters, PROMPTS) == expected
    assert expected != written_by(pool, {}, PROMPTS)


def test_with_adapters_of_its_own_for_each_row(pool, params):
    active = jnp.array([[1, 4, 9], [0, 2, 15], [3, 4, 5], [7, 8, 10]])
    expected = [
        literal(pool.base, pool.adapters(gather(params, rows)), prompt)
        for rows, prompt in zip(active, PROMPTS, strict=True)
    ]
    assert written_by(pool, pool.adapters(gather(params, active)), PROMPTS) == expected


def test_end_of_text_fills_what_follows_it(pool, shared):
    adapters, free = shared
    eos = free[0][2]
    expected = [literal(pool.base, adapters, prompt, eos=eos) for prompt in PROMPTS]
    assert written_by(pool, adapters, PROMPTS, ends=(eos,)) == expected
    end = free[0].index(eos)
    assert expected[0] == free[0][: end + 1] + [eos] * (STEPS - end - 1) != free[0]


def test_the_last_position_may_be_written_and_no_more(pool):
    longest = [[3] * (CONFIG.positions - 2)]
    assert np.shape(written_by(pool, {}, longest, steps=2)) == (1, 2)
    with pytest.raises(ValueError, match=r"22 \+ 3 tokens exceed the model's 24 positions"):
        written_by(pool, {}, longest, steps=3)


def test_exact_match_is_greedy_output_equal_to_the_target(pool, params, shared):
    adapters, written = shared
    rows = gather(params, jnp.array([1, 4, 9]))
    metrics = jax.jit(lambda pool, rows, batch: pool.metrics(rows, batch)["exact_match"])
    examples = []
    for prompt, target in zip(PROMPTS, written, strict=True):
        examples += [Example.of(prompt, target), Example.of(prompt, target[:2])]
        for wrong in (0, 2, STEPS - 1):
            other = list(target)
            other[wrong] = (other[wrong] + 1) % CONFIG.vocabulary
            examples.append(Example.of(prompt, other))
    outputs = written_by(pool, adapters, [example.prompt for example in examples])
    expected = [out[: len(e.target)] == e.target for out, e in zip(outputs, examples, strict=True)]
    assert sum(expected) == 2 * len(PROMPTS)  # the target and its beginning, for every prompt
    batches = [pad_examples([example], length=12, targets=STEPS, pad=0) for example in examples]
    assert [bool(metrics(pool, rows, batch)[0]) for batch in batches] == expected
    total, count = metrics(pool, rows, pad_examples(examples, length=12, targets=STEPS, pad=0))
    assert (float(total), float(count)) == (sum(expected), len(examples))


def test_sampling_draws_from_the_softmax(pool):
    """Of the first token: shares over many rows of one prompt against the model's own probabilities."""
    rows, temperature = 4000, 2.0
    tokens, valid = pad_prompts([PROMPTS[0]] * rows, 0, len(PROMPTS[0]))
    drawn = generate(
        pool.base,
        None,
        tokens,
        valid,
        config=CONFIG,
        steps=1,
        ends=(NEVER,),
        key=jax.random.key(0),
        temperature=temperature,
    )
    hidden, _ = decoder.Decoder(CONFIG).apply({"params": pool.base}, tokens[:1])
    expected = jax.nn.softmax(decoder.logits(pool.base, hidden[0, -1]) / temperature)
    shares = np.bincount(np.asarray(drawn)[:, 0], minlength=CONFIG.vocabulary) / rows
    np.testing.assert_allclose(shares, expected, atol=4 * (0.25 / rows) ** 0.5)


def test_a_low_temperature_writes_the_arg_max(pool, shared):
    adapters, written = shared
    tokens, valid = pad_prompts(PROMPTS, 0, max(map(len, PROMPTS)))
    drawn = generate(
        pool.base,
        decoder.apart(adapters, CONFIG),
        tokens,
        valid,
        config=CONFIG,
        steps=STEPS,
        ends=(NEVER,),
        key=jax.random.key(0),
        temperature=1e-4,
    )
    assert np.asarray(drawn).tolist() == written


def literal_likely(scores, top_k, top_p):
    """Whether each token of a row is kept, in NumPy: by rank first, then by the probability of the likelier ones."""
    kept = np.zeros(len(scores), bool)
    order = np.argsort(-scores, kind="stable")
    order = order[: top_k or len(order)]
    shares = np.exp(scores[order] - scores[order[0]]) / np.exp(scores[order] - scores[order[0]]).sum()
    before = 0.0
    for token, share in zip(order, shares, strict=True):
        if before < top_p:
            kept[token] = True
        before += share
    return kept


@pytest.mark.parametrize("top_k", [0, 1, 3, 53])
@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.9, 1.0])
def test_what_is_sampled_from(top_k, top_p):
    scores = np.random.default_rng(0).normal(0, 2, (20, 53)).astype(np.float32)
    kept = np.isfinite(jax.jit(likely)(scores, top_k, top_p))
    expected = np.stack([literal_likely(row.astype(np.float64), top_k, top_p) for row in scores])
    np.testing.assert_array_equal(kept, expected)
    np.testing.assert_array_equal(np.where(kept, likely(scores, top_k, top_p), 0), np.where(kept, scores, 0))


def test_top_k_of_one_is_the_arg_max(pool, shared):
    adapters, written = shared
    tokens, valid = pad_prompts(PROMPTS, 0, max(map(len, PROMPTS)))
    sampled = {"key": jax.random.key(0), "temperature": 5.0, "top_k": 1}
    layers = decoder.apart(adapters, CONFIG)
    drawn = generate(pool.base, layers, tokens, valid, config=CONFIG, steps=STEPS, ends=(NEVER,), **sampled)
    assert np.asarray(drawn).tolist() == written


def test_any_of_the_ends_ends_a_row_and_the_first_fills(pool, shared):
    adapters, free = shared
    first, second = free[0][2], free[1][1]
    expected = []
    for row in free:
        end = next((i for i, token in enumerate(row) if token in (first, second)), STEPS)
        expected.append((row[: end + 1] + [second] * STEPS)[:STEPS])
    assert written_by(pool, adapters, PROMPTS, ends=(second, first)) == expected != free
