"""The decoder of each family against what PyTorch computed (fixtures/make_*_fixture.py), and configs that are read."""

import dataclasses
import functools
import json
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftn_jax.core.errors import InputError
from ftn_jax.models import decoder, pretrained
from ftn_jax.models.config_json import decoder_config
from ftn_jax.models.decoder import DecoderConfig, Rope
from ftn_jax.models.families import FAMILIES
from ftn_jax.models.generate import generate
from ftn_jax.models.published import PUBLISHED, published_config

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
GPT2 = ["gpt2_tiny/bare", "gpt2_tiny/prefixed", "gpt2_tiny/sharded"]
OTHERS = [
    f"families/{name}"
    for name in (
        "gemma3", "llama", "llama3", "llama_linear", "mistral", "qwen2", "qwen2_window", "qwen3", "qwen3_yarn"
    )
]  # fmt: skip
ONE_OF_EACH = {
    "gpt2": "gpt2_tiny/bare",
    "llama": "families/llama_linear",
    "mistral": "families/mistral",
    "qwen2": "families/qwen2_window",
    "qwen3": "families/qwen3",
    "gemma3_text": "families/gemma3",
}
every_case = pytest.mark.parametrize("case", GPT2 + OTHERS)
every_family = pytest.mark.parametrize("case", ONE_OF_EACH.values(), ids=ONE_OF_EACH)
# The plainest, and the one with most that others lack, for what takes long to trace.
two_families = pytest.mark.parametrize("case", [ONE_OF_EACH["gpt2"], ONE_OF_EACH["gemma3_text"]])


@functools.cache
def load(case):
    """(base, what PyTorch computed)."""
    return pretrained.load(str(FIXTURES / case)), np.load(FIXTURES / case / "expected.npz")


def raw_of(case):
    return json.loads((FIXTURES / case / "config.json").read_text())


@functools.partial(jax.jit, static_argnames="config")
def logits_of(config, params, tokens, adapters=None, valid=None):
    hidden, _ = decoder.Decoder(config).apply({"params": params}, tokens, adapters, valid=valid)
    return decoder.logits(params, hidden)


@functools.partial(jax.jit, static_argnames="config")
def logits_by_token(config, params, tokens, valid):
    """The same one column after the other, with a cache."""
    model, layers = decoder.Decoder(config), decoder.with_blocks_apart(params, config)

    def step(cache, column):
        token, real = column
        hidden, cache = model.apply({"params": layers}, token[:, None], None, cache, real[:, None])
        return cache, decoder.logits(params, hidden[:, 0])

    cache, logits = jax.lax.scan(step, decoder.init_cache(config, *tokens.shape), (tokens.T, valid.T))
    return logits.swapaxes(0, 1), cache.length


def assert_near(got, expected, real):
    np.testing.assert_allclose(np.asarray(got)[real], expected[real], atol=1e-4, rtol=0)


def test_every_family_is_tried():
    assert ONE_OF_EACH.keys() == FAMILIES.keys()
    assert {kind: raw_of(case)["model_type"] for kind, case in ONE_OF_EACH.items()} == {kind: kind for kind in FAMILIES}


@every_case
def test_logits_equal_pytorchs_with_padding_on_the_right(case):
    base, expected = load(case)
    assert_near(logits_of(base.config, base.params, expected["tokens"]), expected["logits"], expected["valid"])


@every_case
def test_logits_equal_pytorchs_with_padding_on_the_left(case):
    base, expected = load(case)
    real = expected["left_valid"]
    logits = logits_of(base.config, base.params, expected["left_tokens"], valid=real)
    assert_near(logits, expected["left_logits"], real)
    assert np.isfinite(logits).all()


@every_case
def test_logits_equal_pytorchs_token_by_token(case):
    base, expected = load(case)
    real = expected["left_valid"]
    logits, length = logits_by_token(base.config, base.params, expected["left_tokens"], real)
    assert_near(logits, expected["left_logits"], real)
    assert int(length) == real.shape[1]


@pytest.mark.slow
@pytest.mark.parametrize("case", OTHERS)
def test_greedy_text_is_that_of_transformers(case):
    base, expected = load(case)
    prompts, theirs = (expected["prompts"], expected["prompts_valid"]), expected["greedy"]
    ends, steps = base.tokens.ends, theirs.shape[1]
    ours = generate(base.params, None, *prompts, config=base.config, steps=steps, ends=ends)
    ended = 0
    for written, row in zip(np.asarray(ours), theirs, strict=True):
        last = next((i for i, token in enumerate(row) if token in ends), steps)
        np.testing.assert_array_equal(written[: last + 1], row[: last + 1])
        assert (written[last + 1 :] == ends[0]).all()
        ended += last < steps
    assert 0 < ended < len(theirs)


def rope(theta, config, scale=1.0):
    """Positions without scaling."""
    return Rope(tuple((theta ** -(np.arange(0, config.head_width, 2) / config.head_width)).tolist()), scale)


# Case -> what is changed -> the field's value, or a function of the config that gives fields.
WRONG = {
    "gpt2_tiny/bare": {
        "norm_epsilon": 1e-5,
        "heads, kv_heads": lambda c: {"heads": 2, "kv_heads": 2, "head_width": 8},
    },
    "families/llama": {
        "norm_epsilon": 1e-6,
        "query_scale": lambda c: {"query_scale": 1.1 * c.query_scale},
        "theta": lambda c: {"rope": rope(1e3, c)},
    },
    "families/llama3": {"rope": lambda c: {"rope": rope(500.0, c)}, "tied": True},
    "families/llama_linear": {
        "rope": lambda c: {"rope": rope(300.0, c)},
        "attention_bias": lambda c: {"biases": ("gate", "up", "down")},
        "mlp_bias": lambda c: {"biases": ("q", "k", "v", "o")},
    },
    "families/mistral": {
        "window + 1": lambda c: {"window": c.window + 1},
        "window - 1": lambda c: {"window": c.window - 1},
    },
    "families/qwen2": {"biases": ()},
    "families/qwen2_window": {"window": 6, "local": (True, True, True)},
    "families/qwen3": {"qk_norm": False},
    "families/qwen3_yarn": {
        "scale": lambda c: {"rope": dataclasses.replace(c.rope, scale=1.0)},
        "frequencies": lambda c: {"rope": rope(100.0, c, c.rope.scale)},
    },
    "families/gemma3": {
        "norm_offset": 0.0,
        "post_norms": False,
        "embedding_scale": 1.0,
        "query_scale": lambda c: {"query_scale": c.head_width**-0.5},
        "window": 6,
        "local": (True, True, False, True),
        "local_rope": None,
        "rope": lambda c: {"rope": c.local_rope},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("case, field", [(case, field) for case, changes in WRONG.items() for field in changes])
def test_parity_notices_a_wrong_setting(case, field):
    base, expected = load(case)
    change = WRONG[case][field]
    config = dataclasses.replace(base.config, **(change(base.config) if callable(change) else {field: change}))
    params = {name: leaf for name, leaf in base.params.items() if name != "head"} if config.tied else base.params
    logits = np.asarray(logits_of(config, params, expected["tokens"]))
    assert np.abs(logits - expected["logits"])[expected["valid"]].max() > 1e-3


@pytest.mark.parametrize(
    "case, start, ends",
    [
        ("gpt2_tiny/bare", (0,), (0,)),
        ("families/llama", (1,), (2, 3, 100)),
        ("families/gemma3", (1,), (2, 3)),
        ("families/qwen3", (), (2, 3, 24)),
    ],
)
def test_text_starts_as_the_tokenizer_says_and_ends_as_generation_config_does(case, start, ends):
    tokens = load(case)[0].tokens
    assert (tokens.start, tokens.ends) == (start, ends)
    assert tokens.prompt("the sea") == [*start, *tokens.ids(["the sea"])[0]]
    assert tokens.text(tokens.prompt("the sea")) == "the sea"


@every_family
def test_what_follows_a_token_does_not_change_its_logits(case):
    base, expected = load(case)
    tokens = expected["tokens"]
    changed = tokens.copy()
    changed[:, 6:] = (tokens[:, 6:] + 1) % base.config.vocabulary
    before, after = (np.asarray(logits_of(base.config, base.params, t)) for t in (tokens, changed))
    np.testing.assert_allclose(before[:, :6], after[:, :6], atol=1e-5)
    assert np.abs(before[:, 6:] - after[:, 6:]).max() > 0.1


@every_family
def test_padding_anywhere_changes_nothing_where_valid_says_so(case):
    base, expected = load(case)
    real, rng = expected["valid"], np.random.default_rng(0)
    spread = rng.permuted(real, axis=1)
    tokens = rng.integers(0, base.config.vocabulary, real.shape, np.int32)
    tokens[spread] = expected["tokens"][real]
    logits = logits_of(base.config, base.params, tokens, valid=spread)
    np.testing.assert_allclose(logits[spread], expected["logits"][real], atol=1e-4)
    assert not (np.sort(spread)[:, ::-1] == spread).all() and not (np.sort(spread) == spread).all()


def adapters_of(config, rows=None):
    """A random adapter of inner dimension 3 on every module, with a row axis where ``rows`` is given."""
    rng = np.random.default_rng(0)
    lead = (config.layers, 3) if rows is None else (config.layers, rows, 3)
    return {
        module: tuple(0.3 * rng.standard_normal((*lead, width)).astype(np.float32) for width in widths)
        for module, widths in config.modules.items()
    }


def with_products(base, adapters):
    """The base's params with a^T b added to every adapted kernel."""
    deltas = {module: np.einsum("lki,lko->lio", a, b) for module, (a, b) in adapters.items()}
    return decoder.merged(base.params, deltas, base.config)


@every_family
def test_an_adapter_equals_its_product_added_to_the_kernels(case):
    base, expected = load(case)
    tokens, adapters = expected["tokens"], adapters_of(base.config)
    assert len(adapters) == len(base.config.linears)
    merged = logits_of(base.config, with_products(base, adapters), tokens)
    np.testing.assert_allclose(logits_of(base.config, base.params, tokens, adapters), merged, atol=1e-4)
    for module in adapters:  # each has its own part in it
        others = {name: pair for name, pair in adapters.items() if name != module}
        without = logits_of(base.config, with_products(base, others), tokens)
        assert np.abs(merged - without).max() > 0.1


@two_families
def test_adapters_of_rows_equal_each_row_alone(case):
    base, expected = load(case)
    tokens = expected["tokens"]
    adapters = adapters_of(base.config, rows=len(tokens))
    together = logits_of(base.config, base.params, tokens, adapters)
    for row in range(len(tokens)):
        own = jax.tree.map(lambda leaf, row=row: leaf[:, row], adapters)
        alone = logits_of(base.config, with_products(base, own), tokens)
        np.testing.assert_allclose(together[row], alone[row], atol=1e-4)


@every_family
def test_bfloat16_is_near_float32(case):
    base, expected = load(case)
    real = expected["valid"]
    got = logits_of(dataclasses.replace(base.config, dtype="bfloat16"), base.params, expected["tokens"])
    chex.assert_type(got, jnp.float32)
    error = np.abs(got - expected["logits"])[real]
    # bfloat16 has 8 bits: a relative rounding of 1/256, a few times over.
    assert 1e-3 < error.mean() / expected["logits"][real].std() < 0.06


def loss_of(config, params, tokens):
    return (logits_of(config, params, tokens) ** 2).mean()


def without_and_with_remat(base):
    return base.config, dataclasses.replace(base.config, remat=True)


@two_families
def test_remat_changes_neither_loss_nor_gradients(case):
    base, expected = load(case)
    (loss, gradients), (remat_loss, remat_gradients) = (
        jax.jit(jax.value_and_grad(functools.partial(loss_of, config)))(base.params, expected["tokens"])
        for config in without_and_with_remat(base)
    )
    np.testing.assert_allclose(loss, remat_loss, rtol=1e-6)
    chex.assert_trees_all_close(gradients, remat_gradients, rtol=1e-4, atol=1e-5)
    assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(gradients))


@two_families
def test_remat_keeps_less_for_the_backward_pass(case):
    base, expected = load(case)

    def kept(config):
        """Elements that the forward pass keeps for the backward one."""
        loss = functools.partial(loss_of, config, tokens=expected["tokens"])
        _, pullback = jax.eval_shape(lambda params: jax.vjp(loss, params), base.params)
        return sum(leaf.size for leaf in jax.tree.leaves(pullback))

    plain, remat = map(kept, without_and_with_remat(base))
    assert remat < plain


@two_families
def test_the_program_does_not_grow_with_depth(case):
    base, expected = load(case)

    def operations(times):
        """Of the gradient's program, as it is handed to the compiler."""
        c = base.config
        config = dataclasses.replace(c, layers=times * c.layers, local=times * c.local)
        loss = lambda adapters, params: (logits_of(config, params, expected["tokens"], adapters) ** 2).mean()  # noqa: E731
        program = jax.jit(jax.grad(loss)).lower(adapters_of(config), decoder.abstract_params(config))
        return program.as_text().count(" = ")

    assert operations(1) == operations(5) > 100


# What stands in the config.json files on the hub.
_TOKENS = {"bos_token_id": 1, "eos_token_id": 2}
_LLAMA = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu",
    "initializer_range": 0.02, "model_type": "llama", "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None,
    "torch_dtype": "bfloat16", "transformers_version": "4.42.3", "use_cache": True,
}  # fmt: skip
_SMOLLM2 = _LLAMA | {
    "is_llama_config": True, "max_position_embeddings": 8192, "rope_interleaved": False, "rope_theta": 100000,
    "tie_word_embeddings": True, "vocab_size": 49152, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}},
}  # fmt: skip
_LLAMA3 = _LLAMA | {
    "bos_token_id": 128000, "eos_token_id": [128001, 128008, 128009], "max_position_embeddings": 131072,
    "mlp_bias": False, "num_key_value_heads": 8, "rope_theta": 500000.0, "vocab_size": 128256,
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
}  # fmt: skip
_MISTRAL = {
    "architectures": ["MistralForCausalLM"], "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral", "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "rms_norm_eps": 1e-05, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.34.0.dev0", "use_cache": True,
}  # fmt: skip
_QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
    "hidden_act": "silu", "initializer_range": 0.02, "model_type": "qwen2", "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0, "torch_dtype": "bfloat16", "transformers_version": "4.43.1", "use_cache": True,
    "use_sliding_window": False, "hidden_size": 896, "intermediate_size": 4864, "max_position_embeddings": 32768,
    "max_window_layers": 21, "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
    "sliding_window": 32768, "tie_word_embeddings": True, "vocab_size": 151936,
}  # fmt: skip
_QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "initializer_range": 0.02,
    "max_position_embeddings": 40960, "model_type": "qwen3", "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None, "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0", "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
_GEMMA3 = {
    "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": None, "bos_token_id": 2, "final_logit_softcapping": None, "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh", "initializer_range": 0.02, "max_position_embeddings": 32768,
    "model_type": "gemma3_text", "num_attention_heads": 4, "num_key_value_heads": 1, "pad_token_id": 0,
    "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000, "rope_scaling": None,
    "rope_theta": 1000000, "sliding_window": 512, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 262144,
}  # fmt: skip
_GPT2 = {
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 50256,
    "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
    "resid_pdrop": 0.1, "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
    "summary_type": "cls_index", "summary_use_proj": True, "vocab_size": 50257,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
}  # fmt: skip


def _shape(width, inner, layers, heads, **others):
    named = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    return named | {"num_attention_heads": heads} | others


HUB = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": _SMOLLM2
    | _shape(576, 1536, 30, 9, num_key_value_heads=3, initializer_range=0.041666666666666664),
    "HuggingFaceTB/SmolLM2-360M-Instruct": _SMOLLM2 | _shape(960, 2560, 32, 15, num_key_value_heads=5),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": _SMOLLM2
    | _shape(2048, 8192, 24, 32, num_key_value_heads=32, rope_theta=130000),
    "meta-llama/Llama-3.2-1B": _LLAMA3
    | _shape(2048, 8192, 16, 32, head_dim=64, tie_word_embeddings=True)
    | {"rope_scaling": _LLAMA3["rope_scaling"] | {"factor": 32.0}, "eos_token_id": 128001},
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA3 | _shape(4096, 14336, 32, 32, tie_word_embeddings=False),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": _LLAMA
    | _TOKENS
    | _shape(2048, 5632, 22, 32, num_key_value_heads=4, max_position_embeddings=2048, rope_theta=10000.0)
    | {"tie_word_embeddings": False, "vocab_size": 32000},
    "meta-llama/Llama-2-7b-hf": {
        name: value for name, value in _LLAMA.items() if name not in ("attention_bias", "attention_dropout")
    }
    | _TOKENS
    | _shape(4096, 11008, 32, 32, num_key_value_heads=32, max_position_embeddings=4096)
    | {"_name_or_path": "meta-llama/Llama-2-7b-hf", "tie_word_embeddings": False, "vocab_size": 32000},
    "mistralai/Mistral-7B-v0.1": _MISTRAL
    | _TOKENS
    | {"rope_theta": 10000.0, "sliding_window": 4096, "vocab_size": 32000},
    "mistralai/Mistral-7B-v0.3": _MISTRAL
    | _TOKENS
    | {"attention_dropout": 0.0, "rope_theta": 1000000.0, "sliding_window": None, "vocab_size": 32768},
    "Qwen/Qwen2-0.5B": _QWEN2
    | {"max_position_embeddings": 131072, "max_window_layers": 24, "sliding_window": 131072, "eos_token_id": 151643},
    "Qwen/Qwen2.5-0.5B": _QWEN2 | {"max_window_layers": 24, "use_mrope": False, "eos_token_id": 151643},
    "Qwen/Qwen2.5-0.5B-Instruct": _QWEN2,
    "Qwen/Qwen2.5-7B-Instruct": _QWEN2
    | _shape(3584, 18944, 28, 28, num_key_value_heads=4, tie_word_embeddings=False, vocab_size=152064)
    | {"max_window_layers": 28, "sliding_window": 131072},
    "Qwen/Qwen3-0.6B": _QWEN3 | _shape(1024, 3072, 28, 16, max_window_layers=28, tie_word_embeddings=True),
    "Qwen/Qwen3-8B": _QWEN3 | _shape(4096, 12288, 36, 32, max_window_layers=36, tie_word_embeddings=False),
    "google/gemma-3-270m": _GEMMA3
    | {"hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18, "eos_token_id": 1}
    | {"_sliding_window_pattern": 6, "use_bidirectional_attention": False}
    | {"layer_types": 3 * [*5 * ["sliding_attention"], "full_attention"]},
    "google/gemma-3-1b-it": _GEMMA3
    | {"hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26, "eos_token_id": [1, 106]}
    | {"cache_implementation": "hybrid", "sliding_window_pattern": 6},
    "distilgpt2": _GPT2 | {"n_layer": 6, "_num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}},
    "gpt2": _GPT2,
    "gpt2-medium": _GPT2
    | {"n_embd": 1024, "n_head": 16, "n_layer": 24, "n_special": 0, "predict_special_tokens": True},
    "gpt2-xl": _GPT2 | {"n_embd": 1600, "n_head": 25, "n_layer": 48, "output_past": True},
}
PARAMETERS = {
    "HuggingFaceTB/SmolLM2-135M": 134515008,
    "HuggingFaceTB/SmolLM2-360M": 361821120,
    "HuggingFaceTB/SmolLM2-1.7B": 1711376384,
    "meta-llama/Llama-3.2-1B": 1235814400,
    "meta-llama/Llama-3.2-3B": 3212749824,
    "meta-llama/Llama-3.1-8B": 8030261248,
    "meta-llama/Llama-3.1-70B": 70553706496,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1100048384,
    "meta-llama/Llama-2-7b-hf": 6738415616,
    "mistralai/Mistral-7B-v0.1": 7241732096,
    "mistralai/Mistral-7B-v0.3": 7248023552,
    "Qwen/Qwen2-0.5B": 494032768,
    "Qwen/Qwen2.5-0.5B": 494032768,
    "Qwen/Qwen2.5-1.5B": 1543714304,
    "Qwen/Qwen2.5-3B": 3085938688,
    "Qwen/Qwen2.5-7B": 7615616512,
    "Qwen/Qwen3-0.6B": 596049920,
    "Qwen/Qwen3-1.7B": 1720574976,
    "Qwen/Qwen3-4B": 4022468096,
    "Qwen/Qwen3-8B": 8190735360,
    "google/gemma-3-270m": 268098176,
    "google/gemma-3-1b-pt": 999885952,
    "distilgpt2": 81912576,
    "gpt2": 124439808,
    "gpt2-medium": 354823168,
    "gpt2-large": 774030080,
    "gpt2-xl": 1557611200,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_published_models_have_as_many_parameters_as_they_say(name):
    config = decoder_config(published_config(name) or HUB[name], name)
    assert decoder.parameter_count(config) == PARAMETERS[name]


@pytest.mark.parametrize("name", HUB)
def test_configs_of_the_hub_are_read(name):
    config, known = decoder_config(HUB[name], name), published_config(name)
    assert (config.vocabulary, config.positions) == tuple(
        HUB[name].get(key, HUB[name].get(other))
        for key, other in (("vocab_size", None), ("max_position_embeddings", "n_positions"))
    )
    assert known is None or config == decoder_config(known, name)


def test_a_tuned_model_has_the_config_of_its_base():
    for name in ("meta-llama/Llama-3.1-8B", "Qwen/Qwen2.5-3B", "HuggingFaceTB/SmolLM2-360M"):
        assert published_config(f"{name}-Instruct") == published_config(name) == PUBLISHED[name]
    assert published_config("google/gemma-3-270m-it") == PUBLISHED["google/gemma-3-270m"]
    positions = [published_config(f"Qwen/Qwen2.5-7B{end}")["max_position_embeddings"] for end in ("", "-Instruct")]
    assert positions == [131072, 32768]
    assert published_config("no/model-Instruct") is None


@pytest.mark.parametrize(
    "old, new",
    [
        ({"rope_theta": 500.0}, {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
        (
            {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}},
        ),
        ({"rope_scaling": None}, {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
    ],
    ids=["theta", "scaling", "default"],
)
def test_old_and_new_names_of_rope_mean_the_same(old, new):
    raw = {name: value for name, value in raw_of("families/llama").items() if name != "rope_parameters"}
    assert decoder_config(raw | old, "x") == decoder_config(raw | new, "x")


def test_old_and_new_names_of_gemmas_layers_mean_the_same():
    new = raw_of("families/gemma3") | {"layer_types": 2 * ["sliding_attention", "full_attention"]}
    old = {name: value for name, value in new.items() if name not in ("layer_types", "rope_parameters")} | {
        "sliding_window_pattern": 2,
        "rope_theta": 2000.0,
        "rope_local_base_freq": 50.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    }
    assert decoder_config(old, "x") == decoder_config(new, "x")
    assert decoder_config(old, "x").local == (True, False, True, False)


def refused(raw):
    """The line with which a config is refused."""
    with pytest.raises(InputError) as caught:
        decoder_config(raw, "some_base")
    message = str(caught.value)
    assert "\n" not in message
    assert "some_base" in message
    return message


REFUSED = {
    "gpt2": [
        {"activation_function": "relu"},
        {"activation_function": "gelu"},
        {"tie_word_embeddings": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False},
        {"add_cross_attention": True},
        {"n_positions": None},
    ],
    "llama": [
        {"hidden_act": "relu"},
        {"rope_interleaved": True},
        {"residual_multiplier": 0.5},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"partial_rotary_factor": 0.5},
        {"pruned_heads": {"0": [1]}},
        {"is_encoder_decoder": True},
        {"attention_bias": "yes"},
        {"hidden_size": None},
        {"hidden_size": 24.0},
        {"rms_norm_eps": 0},
        {"head_dim": 7},
        {"rope_parameters": [1]},
        {"rope_theta": -1},
        {"rope_theta": 10**400},
        {"num_hidden_layers": 2**30},
    ],
    "mistral": [{"sliding_window": "5"}, {"model_type": "mixtral"}],
    "qwen2": [{"use_mrope": True}, {"max_window_layers": -1}, {"layer_types": ["full_attention"]}],
    "qwen3": [{"num_experts": 8}, {"layer_types": 2 * ["linear_attention"]}],
    "gemma3_text": [
        {"attn_logit_softcapping": 50.0},
        {"final_logit_softcapping": 30.0},
        {"use_bidirectional_attention": True},
        {"hidden_activation": "gelu"},
        {"query_pre_attn_scalar": 0},
        {"sliding_window_pattern": 0},
        {"sliding_window": None},
        {"rope_local_base_freq": "fast"},
    ],
}


@pytest.mark.parametrize(
    "family, change",
    [(family, change) for family, changes in REFUSED.items() for change in changes],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_what_is_not_computed_here_is_refused_by_its_name(family, change):
    (name,) = change
    assert name in refused(raw_of(ONE_OF_EACH[family]) | change)


@pytest.mark.parametrize(
    "scaling, named",
    [
        ({"rope_type": "longrope", "factor": 2.0}, "longrope"),
        ({"type": "dynamic", "factor": 2.0}, "dynamic"),
        ({"rope_type": "default", "mrope_section": [1, 1]}, "mrope_section"),
        ({"rope_type": "default", "two\nlines": 1}, "lines"),
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0}, "high_freq_factor"),
        ({"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 2.0, "high_freq_factor": 2.0}, "high_freq_factor"),
        ({"rope_type": "yarn", "factor": 2.0, "truncate": "no"}, "truncate"),
        ({"rope_type": "yarn", "factor": 2.0, "rope_theta": 1.0}, "rope_theta"),
    ],
    ids=str,
)
def test_rope_that_is_not_computed_here_is_refused_by_its_name(scaling, named):
    assert named in refused(raw_of("families/llama") | {"rope_parameters": scaling})


def test_heads_that_do_not_divide_are_refused():
    raw = raw_of("families/mistral")
    assert "6 heads" in refused(raw | {"num_key_value_heads": 4})
    assert "7 heads" in refused(raw | {"num_attention_heads": 7, "num_key_value_heads": 7, "head_dim": None})


@pytest.mark.parametrize("kind", ["bert", None, 3, ["llama"], "LLAMA"])
def test_another_kind_of_model_is_refused_with_those_that_are_known(kind):
    message = refused(raw_of("families/llama") | {"model_type": kind})
    assert repr(kind) in message
    assert all(family in message for family in FAMILIES)


@pytest.mark.parametrize("content", [[], "llama", 3, None])
def test_a_config_that_is_no_object_is_refused(content):
    assert "object" in refused(content)


def test_a_null_setting_that_is_not_known_is_read_over():
    raw = raw_of("families/llama")
    assert decoder_config(raw | {"residual_multiplier": None}, "x") == decoder_config(raw, "x")


def places(content, above=()):
    """The paths of everything in a JSON object."""
    for key, value in content.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from places(value, (*above, key))


def replaced(content, path, value):
    key, *rest = path
    return content | {key: replaced(content[key], rest, value) if rest else value}


NUMBERS = [0, 1, -1, 3, 2**31, 10**400, 0.5, 1e-320, 1e308, 1e-300, float("inf"), float("nan"), True]
WORDS = ["", "default", "linear", "llama3", "yarn", "sliding_attention", "full_attention", "gelu_new", "two\nlines"]
SIMPLE = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(NUMBERS) | st.sampled_from(WORDS)
KEYS = ["rope_type", "factor", "rope_theta", "full_attention", "sliding_attention", "quant_method", "beta_fast"]
JSON = st.recursive(
    SIMPLE | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | st.text(), inner, max_size=3),
    max_leaves=5,
)
RAW = [raw_of(case) for case in OTHERS + GPT2] + list(HUB.values())


@pytest.mark.parametrize("kind", FAMILIES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_config_is_read_or_refused(kind, data):
    raw = data.draw(st.sampled_from([raw for raw in RAW if raw["model_type"] == kind]))
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(sorted(places(raw))) | st.text(max_size=8).map(lambda key: (key,)))
        raw = replaced(raw, path, data.draw(SIMPLE | JSON))
    try:
        config = decoder_config(raw, "some_base")
    except InputError as error:
        assert "\n" not in str(error) and "some_base" in str(error)
        return
    assert isinstance(config, DecoderConfig)
    assert isinstance(hash(config), int)
    numbers = [config.query_scale, config.embedding_scale, config.norm_epsilon]
    for positions in filter(None, (config.rope, config.local_rope)):
        numbers += [*positions.frequencies, positions.scale]
    assert np.isfinite(np.array(numbers, np.float64)).all()
