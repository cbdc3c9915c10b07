"""Logits, text and names of every family but GPT-2 against PyTorch transformers (requirements-parity.txt)."""

import functools
import importlib
import pathlib
import shutil

import jax
import numpy as np
import pytest

from ftn_jax.models import decoder, pretrained
from ftn_jax.models.config_json import decoder_config
from ftn_jax.models.families import FAMILIES
from ftn_jax.models.generate import generate
from ftn_jax.models.published import PUBLISHED

# transformers and PyTorch warn of their own plans.
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]

TOKENIZER = pathlib.Path(__file__).parents[1] / "fixtures" / "families" / "llama"
KINDS = [kind for kind in FAMILIES if kind != "gpt2"]
ROPES = {
    "default": {},
    "linear": {"factor": 2.5},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "yarn with all settings": {
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 4.0,
        "beta_slow": 0.5,
        "mscale": 0.8,
        "mscale_all_dim": 0.4,
        "truncate": False,
    },
    "yarn with its factor": {"factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.3},
}
STEPS = 12


def rope(name, theta):
    return {"rope_type": name.split()[0], "rope_theta": theta} | ROPES[name]


def ropes_by_kind(full, near):
    """Of Gemma's layers. There transformers 5.24 does not see what is said of truncation."""
    full = {name: value for name, value in full.items() if name != "truncate"}
    return {"full_attention": full, "sliding_attention": near}


@functools.partial(jax.jit, static_argnames="config")
def our_logits(config, params, tokens, valid=None):
    hidden, _ = decoder.Decoder(config).apply({"params": params}, tokens, valid=valid)
    return decoder.logits(params, hidden)


def our_logits_in_parts(base, tokens, valid):
    """The same with a cache: five columns, and then two at a time."""
    model, layers = decoder.Decoder(base.config), decoder.with_blocks_apart(base.params, base.config)
    apply = jax.jit(lambda tokens, cache, valid: model.apply({"params": layers}, tokens, None, cache, valid))
    rows, columns = tokens.shape
    cache, parts, starts = decoder.init_cache(base.config, rows, columns + 3), [], [0, *range(5, columns, 2)]
    for start, end in zip(starts, [*starts[1:], columns], strict=True):
        hidden, cache = apply(tokens[:, start:end], cache, valid[:, start:end])
        parts.append(hidden)
    return decoder.logits(base.params, np.concatenate(parts, axis=1))


def random_shape(kind, seed):
    """What a config.json of that family may say, of odd sizes."""
    rng = np.random.default_rng([KINDS.index(kind), seed])
    kv_heads, groups, layers = (int(n) for n in rng.integers(1, 4, 3))
    heads = kv_heads * groups
    width = heads * int(rng.integers(2, 6)) if kind in ("llama", "gemma3_text") else int(rng.integers(9, 30))
    shape = {
        "vocab_size": int(rng.integers(110, 301)),
        "hidden_size": width,
        "intermediate_size": int(rng.integers(11, 50)),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 2 * int(rng.integers(1, 7)),
        "max_position_embeddings": 128,
        "rms_norm_eps": 10.0 ** -int(rng.integers(2, 7)),
        "tie_word_embeddings": bool(rng.integers(2)),
        "rope_parameters": rope(list(ROPES)[rng.integers(len(ROPES))], float(rng.integers(50, 5000))),
    }
    # With a window of 1 the cache of transformers 5.24 keeps all.
    window, kinds = int(rng.integers(2, 9)), ["sliding_attention", "full_attention"]
    layer_types = [kinds[i] for i in rng.integers(2, size=layers)]
    if kind == "llama":
        shape |= {"attention_bias": bool(rng.integers(2)), "mlp_bias": bool(rng.integers(2))}
    if kind == "mistral":
        shape["sliding_window"] = window if rng.integers(2) else None
    if kind in ("qwen2", "qwen3"):
        shape |= {"use_sliding_window": True, "sliding_window": window, "max_window_layers": int(rng.integers(layers))}
    if kind in ("qwen3", "gemma3_text"):
        shape["attention_bias"] = bool(rng.integers(2))
    if kind == "gemma3_text":
        shape["rope_parameters"] = ropes_by_kind(shape["rope_parameters"], rope("default", 70.0))
        shape |= {
            "sliding_window": window,
            "layer_types": layer_types,
            "query_pre_attn_scalar": int(rng.integers(2, 40)),
        }
    return shape


def make_pair(folder, kind, shape, seed=0, dtype="float32"):
    """(PyTorch's model, ours of what it saved): random weights, biases and norms too."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(kind, pad_token_id=0, eos_token_id=None, bos_token_id=None, **shape)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms around where they start, and biases
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.normal_(0.0, 0.3 if "embed" in name else 1.3 * parameter.shape[1] ** -0.5)
    model.save_pretrained(folder)
    for file in TOKENIZER.glob("tokenizer*"):
        shutil.copy(file, folder)
    return model, pretrained.load(str(folder), dtype=dtype)


def their_logits(model, tokens, **inputs):
    import torch

    with torch.no_grad():
        given = {name: torch.tensor(value) for name, value in inputs.items()}
        return model(torch.tensor(tokens.astype(np.int64)), **given).logits.float().numpy()


def random_tokens(base, lengths, seed=0):
    """(tokens, which are real), padded on the right with tokens that would show."""
    valid = np.arange(max(lengths))[None] < np.array(lengths)[:, None]
    return np.random.default_rng(seed).integers(0, base.config.vocabulary, valid.shape).astype(np.int32), valid


def moved_left(tokens, right):
    left = right[:, ::-1].copy()
    moved = np.zeros_like(tokens)
    moved[left] = tokens[right]
    return moved, left


def near(ours, theirs, where):
    np.testing.assert_allclose(np.asarray(ours)[where], theirs[where], atol=1e-4, rtol=0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_random_shapes(tmp_path, kind, seed):
    import torch

    model, base = make_pair(tmp_path, kind, random_shape(kind, seed), seed)
    assert base.family == kind
    tokens, right = random_tokens(base, (9, 1, 24, 13), seed)
    theirs = their_logits(model, tokens)
    near(our_logits(base.config, base.params, tokens), theirs, right)
    assert theirs[right].std() > 0.3

    moved, left = moved_left(tokens, right)
    positions = np.maximum(left.cumsum(1) - 1, 0)
    theirs = their_logits(model, moved, attention_mask=left.astype(np.int64), position_ids=positions)
    near(our_logits(base.config, base.params, moved, left), theirs, left)
    near(our_logits_in_parts(base, moved, left), theirs, left)

    prompts, real = moved_left(*random_tokens(base, (3, 1, 7), seed))
    ours = generate(base.params, None, prompts, real, config=base.config, steps=STEPS, ends=(-1,))
    written = model.generate(
        torch.tensor(prompts.astype(np.int64)),
        attention_mask=torch.tensor(real.astype(np.int64)),
        max_new_tokens=STEPS,
        do_sample=False,
    )
    np.testing.assert_array_equal(ours, written[:, prompts.shape[1] :].numpy())
    assert len(np.unique(ours)) > 3


@pytest.mark.parametrize("name", ROPES)
@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_scaled_positions_of_long_texts(tmp_path, kind, name):
    scaled = rope(name, 1000.0)
    shape = {
        "vocab_size": 110,
        "hidden_size": 24,
        "intermediate_size": 30,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 1024,
        "rope_parameters": scaled,
    }
    if kind == "gemma3_text":
        shape["rope_parameters"] = ropes_by_kind(scaled, rope("default", 100.0))
        shape |= {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 50}
    model, base = make_pair(tmp_path, kind, shape)
    tokens, real = random_tokens(base, (700,))
    near(our_logits(base.config, base.params, tokens), their_logits(model, tokens), real)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_as_near_as_transformers(tmp_path, kind):
    import torch

    model, base = make_pair(tmp_path, kind, random_shape(kind, 0), dtype="bfloat16")
    tokens, right = random_tokens(base, (9, 24, 13))
    exact = their_logits(model, tokens)
    ours, theirs = our_logits(base.config, base.params, tokens), their_logits(model.to(torch.bfloat16), tokens)
    errors = [np.abs(np.asarray(logits) - exact)[right].mean() for logits in (ours, theirs)]
    assert 0 < errors[0] < 1.5 * errors[1]


def their_ropes(raw):
    """Kind of layer ("" where all are of one) -> (frequencies, factor) as transformers has them."""
    import transformers

    kind = raw["model_type"]
    family = kind.removesuffix("_text")
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    config = transformers.AutoConfig.for_model(
        kind, **{name: value for name, value in raw.items() if name != "model_type"}
    )
    rotary = getattr(module, f"{family.title()}RotaryEmbedding")(config)
    if kind != "gemma3_text":
        return {"": (rotary.inv_freq.numpy(), rotary.attention_scaling)}
    return {
        name: (getattr(rotary, f"{name}_inv_freq").numpy(), getattr(rotary, f"{name}_attention_scaling"))
        for name in ("full_attention", "sliding_attention")
    }


ROTARY = {name: raw for name, raw in PUBLISHED.items() if raw["model_type"] != "gpt2"}
ROTARY |= {
    "qwen3 with yarn": PUBLISHED["Qwen/Qwen3-8B"]
    | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
    "gemma3 with linear": PUBLISHED["google/gemma-3-1b-it"] | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
}


@pytest.mark.parametrize("name", ROTARY)
def test_rope_of_published_models(name):
    config, theirs = decoder_config(ROTARY[name], name), their_ropes(dict(ROTARY[name]))
    for kind, (frequencies, scale) in theirs.items():
        ours = config.local_rope if kind == "sliding_attention" else config.rope
        np.testing.assert_allclose(ours.frequencies, frequencies, rtol=1e-6)
        np.testing.assert_allclose(ours.scale, scale, rtol=1e-6)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_the_tensors_that_are_read(name):
    import torch
    import transformers

    raw = dict(PUBLISHED[name])
    config, family = decoder_config(raw, name), FAMILIES[raw["model_type"]]
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**raw))
    theirs = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
    params, ours = decoder.abstract_params(config), {}
    for path, (tensor, transposed) in family.tensors(config).items():
        leaf = functools.reduce(lambda node, key: node[key], path, params)
        shape = leaf.shape[1:] if path[0] == "h" else leaf.shape
        for i in range(config.layers if path[0] == "h" else 1):
            ours[family.prefix + tensor.format(i)] = shape[::-1] if transposed else shape
    if not config.tied:
        ours["lm_head.weight"] = (config.vocabulary, config.width)
    assert ours == theirs
