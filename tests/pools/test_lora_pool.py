"""The LoRA pool against Delta W = sum_h m_h B_h A_h, formed in NumPy and added to the base's W."""

import dataclasses
import functools
import itertools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import BASES, EOS, kernel, toy_batch, toy_config, toy_family, toy_params, toy_pool

from ftn_jax.core.errors import InputError
from ftn_jax.models import decoder
from ftn_jax.pools.base import drawn, gather
from ftn_jax.pools.lora import LoraPool, TokenBatch, match_modules

MODEL = toy_config(n_layer=3)
ALL = tuple(MODEL.modules)
ACTIVE = np.array([1, 2, 7, 11], np.int32)
RELAXED = np.random.default_rng(5).uniform(0, 1, 16).astype(np.float32)

# One batch on each side of the rule by which the pool merges Delta W into W or passes tokens through A and B.
BATCHES = {"low-rank": toy_batch(2, length=3, targets=2, seed=1), "merged": toy_batch(6, length=22, seed=2)}

C_ATTN = toy_pool()
EVERY = toy_pool(modules=ALL)
PARAMS = toy_params(EVERY)
PARAMS_C_ATTN = toy_params(C_ATTN)

# At module level, so that tests share compiled programs.
example_losses = jax.jit(LoraPool.example_losses)
active_loss = jax.jit(LoraPool.active_loss)
metrics = jax.jit(LoraPool.metrics)


@jax.jit
def mask_loss(pool, params, mask, batch):
    return pool.mask_loss(params, batch)(mask)


@functools.partial(jax.jit, static_argnums=0)
def base_logits(config, params, tokens):
    hidden, _ = decoder.Decoder(config).apply({"params": params}, tokens)
    return decoder.logits(params, hidden)


def updated_base(pool, params, mask):
    """The base with every W of an adapted module replaced by W + sum_h m_h (B_h A_h)^T, one layer at a time."""
    base = jax.tree.map(lambda leaf: np.array(leaf, np.float64), pool.base)
    for module, pair in jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params).items():
        for layer in range(pool.model.layers):
            for h in range(pool.size):
                update = pair["b"][h, layer].T @ pair["a"][h, layer]  # B A: [d_out, d_in]
                kernel(base, pool.model, module)[layer] += mask[h] * update.T
    return jax.tree.map(lambda leaf: leaf.astype(np.float32), base)


def literal_losses(pool, params, masks, batch):
    """Cross-entropy summed over each row's targets [B]: each row alone under its own mask [B, H]."""
    sums = []
    for row, mask in enumerate(masks):
        logits = base_logits(pool.model, updated_base(pool, params, mask), batch.tokens[row : row + 1])[0]
        logits = np.asarray(logits, np.float64)
        total = 0.0
        for column, label, weight in zip(batch.columns[row], batch.labels[row], batch.weights[row], strict=True):
            total += weight * (np.log(np.exp(logits[column]).sum()) - logits[column, label])
        sums.append(total)
    return np.array(sums)


def ones_at(active):
    mask = np.zeros(16, np.float32)
    mask[active] = 1
    return mask


def same_for_all(mask, batch):
    return np.tile(mask, (len(batch.tokens), 1))


@pytest.fixture(params=list(BATCHES))
def batch(request):
    return BATCHES[request.param]


def agrees(actual, wanted):
    np.testing.assert_allclose(actual, wanted, rtol=2e-5)


@pytest.mark.parametrize("pool", [C_ATTN, EVERY], ids=["c_attn", "all modules"])
def test_the_batches_lie_on_both_sides_of_the_rule(pool):
    for module, rank in itertools.product(pool.modules, (len(ACTIVE) * pool.rank, pool.size * pool.rank)):
        assert not pool.merges(module, rank, BATCHES["low-rank"]) and pool.merges(module, rank, BATCHES["merged"])


def test_a_relaxed_mask_is_the_explicit_update(batch):
    masks = same_for_all(RELAXED, batch)
    wanted = literal_losses(EVERY, PARAMS, masks, batch)
    sums, counts = example_losses(EVERY, PARAMS, RELAXED, batch)
    agrees(sums, wanted)
    np.testing.assert_array_equal(counts, batch.weights.sum(1))
    agrees(mask_loss(EVERY, PARAMS, RELAXED, batch), wanted.sum() / counts.sum())


def test_active_indices_are_the_explicit_update(batch):
    mask, rows = ones_at(ACTIVE), gather(PARAMS, ACTIVE)
    wanted = literal_losses(EVERY, PARAMS, same_for_all(mask, batch), batch)
    mean = wanted.sum() / batch.weights.sum()
    agrees(example_losses(EVERY, PARAMS, ACTIVE, batch)[0], wanted)
    agrees(example_losses(EVERY, PARAMS, mask, batch)[0], wanted)
    agrees(mask_loss(EVERY, PARAMS, mask, batch), mean)
    agrees(active_loss(EVERY, rows, batch), mean)


def test_each_row_may_have_its_own_components():
    batch = BATCHES["merged"]
    rng = np.random.default_rng(0)
    active = np.stack([np.sort(rng.permutation(16)[:4]) for _ in batch.tokens]).astype(np.int32)
    masks = np.stack([ones_at(row) for row in active])
    relaxed = rng.uniform(0, 1, masks.shape).astype(np.float32)
    wanted = literal_losses(EVERY, PARAMS, masks, batch)
    agrees(example_losses(EVERY, PARAMS, active, batch)[0], wanted)
    agrees(example_losses(EVERY, PARAMS, masks, batch)[0], wanted)
    wanted = literal_losses(EVERY, PARAMS, relaxed, batch)
    agrees(example_losses(EVERY, PARAMS, relaxed, batch)[0], wanted)


def test_adapters_give_the_logits_of_the_explicit_update():
    @jax.jit
    def adapted(pool, rows, tokens):
        hidden, _ = decoder.Decoder(pool.model).apply({"params": pool.base}, tokens, pool.adapters(rows))
        return decoder.logits(pool.base, hidden)

    tokens = BATCHES["merged"].tokens
    wanted = base_logits(EVERY.model, updated_base(EVERY, PARAMS, ones_at(ACTIVE)), tokens)
    np.testing.assert_allclose(adapted(EVERY, gather(PARAMS, ACTIVE), tokens), wanted, atol=2e-4)
    plain = base_logits(EVERY.model, EVERY.base, tokens)
    assert np.abs(wanted - plain).max() > 1  # the update is no small thing


@pytest.mark.parametrize("filling", [EOS, 17])
def test_padding_changes_nothing(filling):
    batch = BATCHES["merged"]

    def pad(leaf, width, value=0):
        return np.pad(leaf, ((0, 0), (0, width)), constant_values=value)

    longer = TokenBatch(pad(batch.tokens, 7, filling), *(pad(leaf, 3) for leaf in batch[1:]))
    short, long = (example_losses(EVERY, PARAMS, ACTIVE, b) for b in (batch, longer))
    np.testing.assert_allclose(short[0], long[0], rtol=1e-5)
    np.testing.assert_array_equal(short[1], long[1])


def test_metrics_are_cross_entropy_and_rows_whose_every_target_is_the_arg_max():
    """Labels are set to the model's own arg-max: all rows match; one label changed: that row does not."""
    batch, rows, mask = BATCHES["merged"], gather(PARAMS, ACTIVE), ones_at(ACTIVE)
    measured = metrics(EVERY, rows, batch)
    agrees(measured["cross_entropy"][0], literal_losses(EVERY, PARAMS, same_for_all(mask, batch), batch).sum())
    assert measured["cross_entropy"][1] == batch.weights.sum()
    logits = np.asarray(base_logits(EVERY.model, updated_base(EVERY, PARAMS, mask), batch.tokens))
    labels = np.take_along_axis(logits.argmax(-1), batch.columns, axis=1).astype(np.int32)
    assert metrics(EVERY, rows, batch._replace(labels=labels))["exact_match"] == (6, 6)
    wrong = labels.copy()
    wrong[2, 0] += 1
    assert metrics(EVERY, rows, batch._replace(labels=wrong))["exact_match"] == (5, 6)
    padding = np.where(batch.weights == 0, labels + 1, labels)  # what has no weight does not count
    assert metrics(EVERY, rows, batch._replace(labels=padding))["exact_match"] == (6, 6)
    more = TokenBatch(*(np.pad(leaf, [(0, 2), (0, 0)]) for leaf in batch._replace(labels=wrong)))  # nor does a row
    for name, sums in metrics(EVERY, rows, batch._replace(labels=wrong)).items():
        np.testing.assert_allclose(metrics(EVERY, rows, more)[name], sums, rtol=1e-6)


def test_what_is_drawn_together_is_what_is_drawn_alone():
    keys, shapes = jax.random.split(jax.random.key(0), 4), [(2, 3), (5,), (2, 3), (5,)]
    together = jax.jit(lambda keys: drawn(jax.random.normal, keys, shapes))(keys)
    alone = jax.jit(lambda keys: [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)])(keys)
    assert all(map(np.array_equal, together, alone)) and not np.array_equal(alone[0], alone[2])


def test_init_is_lora_s():
    params = jax.jit(LoraPool.init)(EVERY, jax.random.key(0))
    assert set(params) == set(ALL)
    for module, pair in params.items():
        d_in, d_out = EVERY.model.modules[module]
        assert pair["a"].shape == (16, 2, 2, d_in) and pair["b"].shape == (16, 2, 2, d_out)
        np.testing.assert_array_equal(pair["b"], 0)
        # Kaiming-uniform with a = sqrt 5: U(-1/sqrt(d_in), 1/sqrt(d_in)), whose variance is 1 / (3 d_in).
        assert np.abs(pair["a"]).max() <= d_in**-0.5
        np.testing.assert_allclose(np.std(pair["a"]), (3 * d_in) ** -0.5, rtol=0.1)
    # Modules of one shape do not share their draws.
    assert not np.array_equal(params["attn.c_attn"]["a"], params["attn.c_proj"]["a"])


def test_b_std_is_the_deviation_of_b():
    params = jax.jit(LoraPool.init)(toy_pool(b_std=0.02), jax.random.key(0))
    np.testing.assert_allclose(np.std(params["attn.c_attn"]["b"]), 0.02, rtol=0.05)


def test_untrained_components_change_nothing():
    batch, params = BATCHES["merged"], jax.jit(LoraPool.init)(EVERY, jax.random.key(0))
    plain = literal_losses(EVERY, params, np.zeros((6, 16)), batch)
    agrees(example_losses(EVERY, params, ACTIVE, batch)[0], plain)


def test_bfloat16_is_near_float32():
    batch = BATCHES["merged"]
    half = dataclasses.replace(
        C_ATTN,
        model=toy_config(dtype="bfloat16"),
        base=jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), C_ATTN.base),
    )
    rows = gather(PARAMS_C_ATTN, ACTIVE)
    loss, grads = jax.jit(jax.value_and_grad(lambda rows: half.active_loss(rows, batch)))(rows)
    np.testing.assert_allclose(loss, active_loss(C_ATTN, rows, batch), rtol=0.03)
    assert loss.dtype == jnp.float32 and all(g.dtype == jnp.float32 for g in jax.tree.leaves(grads))
    assert all(np.isfinite(g).all() and np.any(g) for g in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    "patterns, modules",
    [
        ((r"attn\.c_attn",), ("attn.c_attn",)),
        ((r"c_proj",), ("attn.c_proj", "mlp.c_proj")),
        ((r"^h\.\d+\.mlp\.c_fc$", r"attn"), ("attn.c_attn", "attn.c_proj", "mlp.c_fc")),
        ((r"mlp", r"attn", r"c_fc"), ALL),
        (("qkv",), ("attn.c_attn",)),
        (("all-linear", r"c_fc"), ALL),
    ],
)
def test_modules_are_matched_by_their_full_names(patterns, modules):
    assert match_modules(patterns, MODEL) == modules


@pytest.mark.parametrize(
    "pattern, message",
    [
        (r"c_atn", r"'c_atn' is none of qkv, all-linear and matches none of h\.0\.attn\.c_attn"),
        (r"h\.1\.attn\.c_attn", "matches attn.c_attn in 1 of 3 layers"),
        (r"(", "not a regular expression"),
    ],
)
def test_modules_that_cannot_be_matched_are_refused(pattern, message):
    with pytest.raises(InputError, match=message) as error:
        match_modules((r"mlp\.c_fc", pattern), MODEL)
    assert "config.pool.modules" in str(error.value)


@pytest.mark.parametrize(
    "patterns, roles",
    [
        (("qkv",), "q k v"),
        (("all-linear",), "q k v o gate up down"),
        ((r"self_attn\.o_proj", "qkv"), "q k v o"),
        ((r"^model\.layers\.\d+\.mlp\.down_proj$",), "down"),
    ],
)
@pytest.mark.parametrize("family", sorted(BASES.keys() - {"gpt2"}))
def test_words_and_full_names_of_other_families(family, patterns, roles):
    block = {"q": "self_attn", "k": "self_attn", "v": "self_attn", "o": "self_attn"}
    expected = tuple(f"{block.get(role, 'mlp')}.{role}_proj" for role in roles.split())
    assert match_modules(patterns, toy_family(family)) == expected


def test_the_assignment_is_logged(caplog):
    with caplog.at_level(logging.INFO, "ftn_jax"):
        match_modules((r"c_proj", r"attn"), MODEL)
    assert caplog.messages == [
        "adapted: h.0-2.attn.c_proj (by 'c_proj')",
        "adapted: h.0-2.mlp.c_proj (by 'c_proj')",
        "adapted: h.0-2.attn.c_attn (by 'attn')",
    ]
