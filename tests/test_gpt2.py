"""GPT-2 against logits that PyTorch computed (stored by fixtures/make_gpt2_fixture.py), and against itself."""

import dataclasses
import functools
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

from ftn_jax.models import decoder, pretrained

FIXTURES = pathlib.Path(__file__).parent / "fixtures" / "gpt2_tiny"


@functools.partial(jax.jit, static_argnames="config")
def logits_of(config, params, tokens, adapters=None, valid=None):
    hidden, _ = decoder.Decoder(config).apply({"params": params}, tokens, adapters, valid=valid)
    return decoder.logits(params, hidden)


@pytest.fixture(scope="module", params=["prefixed", "bare", "sharded"])
def stored(request):
    """(base, what PyTorch computed)."""
    return pretrained.load(str(FIXTURES / request.param)), np.load(FIXTURES / request.param / "expected.npz")


def test_logits_equal_pytorchs_with_padding_on_the_right(stored):
    base, expected = stored
    logits = logits_of(base.config, base.params, expected["tokens"])
    real = expected["valid"]
    np.testing.assert_allclose(logits[real], expected["logits"][real], atol=1e-4, rtol=0)


def test_logits_equal_pytorchs_with_padding_on_the_left(stored):
    base, expected = stored
    logits = logits_of(base.config, base.params, expected["left_tokens"], valid=expected["left_valid"])
    real = expected["left_valid"]
    np.testing.assert_allclose(logits[real], expected["left_logits"][real], atol=1e-4, rtol=0)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("field, value", [("norm_epsilon", 1e-5), ("query_scale", 0.4)])
def test_parity_notices_a_wrong_setting(field, value):
    base, expected = pretrained.load(str(FIXTURES / "bare")), np.load(FIXTURES / "bare" / "expected.npz")
    config = dataclasses.replace(base.config, **{field: value})
    logits = logits_of(config, base.params, expected["tokens"])
    real = expected["valid"]
    assert np.abs(logits - expected["logits"])[real].max() > 1e-3


def params_of(config):
    return jax.tree.map(jnp.asarray, toys.toy_base_params(config))


def tokens_of(rows=3, columns=10, seed=0):
    return np.random.default_rng(seed).integers(0, toys.toy_config().vocabulary, (rows, columns)).astype(np.int32)


def test_what_follows_a_token_does_not_change_its_logits():
    config, tokens = toys.toy_config(), tokens_of()
    changed = tokens.copy()
    changed[:, 6:] = tokens_of(seed=1)[:, 6:]
    params = params_of(config)
    before, after = (logits_of(config, params, t) for t in (tokens, changed))
    chex.assert_trees_all_close(before[:, :6], after[:, :6], atol=1e-6)
    assert np.abs(before[:, 6:] - after[:, 6:]).max() > 0.1


def test_padding_anywhere_changes_nothing_where_valid_says_so():
    config, tokens = toys.toy_config(), tokens_of()
    params = params_of(config)
    valid = np.zeros((3, 16), bool)
    for row, columns in enumerate((range(10), range(6, 16), (0, 1, 4, 5, 6, 9, 11, 12, 13, 15))):
        valid[row, list(columns)] = True
    spread = tokens_of(3, 16, seed=2)
    spread[valid] = tokens.ravel()
    expected = logits_of(config, params, tokens)
    got = logits_of(config, params, spread, valid=valid)[valid].reshape(expected.shape)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_cache_gives_the_same_logits_as_the_whole_sequence():
    config, tokens = toys.toy_config(), tokens_of()
    model, params = decoder.Decoder(config), params_of(config)
    layers = decoder.with_blocks_apart(params, config)
    apply = jax.jit(lambda tokens, cache, valid=None: model.apply({"params": layers}, tokens, None, cache, valid))
    valid = np.ones((3, 4), bool)
    valid[1, :2] = False
    hidden, cache = apply(tokens[:, :4], decoder.init_cache(config, 3, 12), valid)
    parts = [hidden]
    for column in range(4, 10):
        hidden, cache = apply(tokens[:, column : column + 1], cache)
        parts.append(hidden)
    everything = np.concatenate([valid, np.ones((3, 6), bool)], axis=1)
    whole, _ = model.apply({"params": params}, tokens, valid=everything)
    assert int(cache.length) == 10
    np.testing.assert_allclose(np.concatenate(parts, 1)[everything], whole[everything], atol=1e-5)


def adapters_of(config, inner, rows=None, seed=0):
    """A random adapter of inner dimension ``inner`` on every module, with a row axis where ``rows`` is given."""
    rng = np.random.default_rng(seed)
    lead = (config.layers, inner) if rows is None else (config.layers, rows, inner)
    return {
        module: tuple(0.3 * rng.standard_normal((*lead, width)).astype(np.float32) for width in config.modules[module])
        for module in config.modules
    }


def with_delta(config, params, adapters):
    """The same model with a^T b added to every adapted kernel, layer by layer."""
    params = jax.tree.map(np.array, params)
    for module, (a, b) in adapters.items():
        kernel = toys.kernel(params, config, module)
        for layer in range(len(kernel)):
            kernel[layer] += a[layer].T @ b[layer]
    return params


def test_adapter_equals_its_product_added_to_the_kernels():
    config, tokens = toys.toy_config(), tokens_of()
    params, adapters = params_of(config), adapters_of(config, inner=3)
    expected = logits_of(config, with_delta(config, params, adapters), tokens)
    np.testing.assert_allclose(logits_of(config, params, tokens, adapters), expected, atol=1e-4)
    assert np.abs(expected - logits_of(config, params, tokens)).max() > 0.1


def test_adapters_of_rows_equal_each_row_alone():
    config, tokens = toys.toy_config(), tokens_of()
    params, adapters = params_of(config), adapters_of(config, inner=3, rows=3)
    together = logits_of(config, params, tokens, adapters)
    for row in range(3):
        own = jax.tree.map(lambda leaf, row=row: leaf[:, row], adapters)
        alone = logits_of(config, with_delta(config, params, own), tokens[row : row + 1])
        np.testing.assert_allclose(together[row], alone[0], atol=1e-4)


def loss_of(config, params, tokens):
    return (logits_of(config, params, tokens) ** 2).mean()


def test_remat_changes_neither_logits_nor_gradients():
    plain, remat = toys.toy_config(), toys.toy_config(remat=True)
    params, tokens = params_of(plain), tokens_of()
    np.testing.assert_allclose(logits_of(plain, params, tokens), logits_of(remat, params, tokens), rtol=0, atol=1e-5)
    gradients = [jax.jit(jax.grad(functools.partial(loss_of, config)))(params, tokens) for config in (plain, remat)]
    chex.assert_trees_all_close(*gradients, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_equal_structs(*gradients)


def saved_elements(config):
    """Elements that the forward pass keeps for the backward one."""
    params, tokens = params_of(config), tokens_of()
    _, pullback = jax.eval_shape(lambda p: jax.vjp(lambda q: loss_of(config, q, tokens), p), params)
    return sum(leaf.size for leaf in jax.tree.leaves(pullback))


def test_remat_keeps_less_for_the_backward_pass():
    assert saved_elements(toys.toy_config(remat=True)) < saved_elements(toys.toy_config())


def test_bfloat16_is_near_float32():
    exact, rounded = toys.toy_config(), toys.toy_config(dtype="bfloat16")
    params, tokens = params_of(exact), tokens_of()
    expected = np.asarray(logits_of(exact, params, tokens))
    got = logits_of(rounded, params, tokens)
    chex.assert_type(got, jnp.float32)
    error = np.abs(got - expected)
    # bfloat16 has 8 bits: a relative rounding of 1/256, a few times over.
    assert 1e-4 < error.mean() / expected.std() < 0.03


@pytest.mark.parametrize("remat", [False, True])
def test_the_program_does_not_grow_with_depth(remat):
    def operations(n_layer):
        """Of the gradient's program, as it is handed to the compiler."""
        config = toys.toy_config(n_layer=n_layer, remat=remat)
        loss = lambda adapters, params: (logits_of(config, params, tokens_of(), adapters) ** 2).mean()  # noqa: E731
        program = jax.jit(jax.grad(loss)).lower(adapters_of(config, inner=2), params_of(config))
        return program.as_text().count(" = ")

    assert operations(2) == operations(12) > 100
