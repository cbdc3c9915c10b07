"""A merged folder, an adapter and the pool's own components are one model: against transformers and PEFT."""

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys
from gguf_files import (
    BYTE_LEVEL,
    GEMMA3,
    GPT2,
    GPT2_OUTSIDE,
    LLAMA,
    OUTSIDE,
    QWEN3,
    SENTENCEPIECE,
    WIDTH,
    model,
    paired,
    random,
    shape_of,
    write,
)
from test_peft_parity import TOKENIZER

from ftn_jax.models import decoder, pretrained
from ftn_jax.pools.base import gather
from ftn_jax.pools.export import write_merged, write_peft
from ftn_jax.pools.lora import LoraPool, match_modules

# PEFT, transformers and PyTorch warn of their own plans.
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]

ACTIVE = [1, 4, 7]


def components(folder):
    base = pretrained.load(str(folder))
    pool = LoraPool(base=base.params, model=base.config, size=9, rank=2,
                    modules=match_modules(["all-linear"], base.config), b_std=0.15)  # fmt: skip
    return base, pool, gather(pool.init(jax.random.key(0)), jnp.array(ACTIVE))


@functools.partial(jax.jit, static_argnames="config")
def our_logits(config, params, tokens, adapters=None):
    hidden, _ = decoder.Decoder(config).apply({"params": params}, tokens, adapters)
    return decoder.logits(params, hidden)


def their_logits(model, tokens):
    import torch

    with torch.no_grad():
        return model.eval()(torch.tensor(tokens.astype(np.int64))).logits.numpy()


def their_model(folder, name="AutoModelForCausalLM"):
    """The folder's model, of which transformers knows every tensor and misses none."""
    import transformers

    loaded, told = getattr(transformers, name).from_pretrained(str(folder), output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    return loaded


def tokens_of(base):
    return np.random.default_rng(0).integers(0, base.config.vocabulary, (3, 15)).astype(np.int32)


def near(ours, theirs):
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


def check_merged(base, pool, rows, merged):
    """Transformers' logits of the merged folder are ours of the components, and ours of the folder as a base."""
    import transformers

    tokens = tokens_of(base)
    ours = our_logits(base.config, base.params, tokens, pool.adapters(rows))
    loaded = their_model(merged)
    theirs = their_logits(loaded, tokens)
    near(ours, theirs)
    assert np.abs(theirs - our_logits(base.config, base.params, tokens)).max() > 0.1
    assert type(loaded).__name__ == loaded.config.architectures[0]
    again = pretrained.load(str(merged))
    assert again.config == base.config and again.tokens.ends == base.tokens.ends
    near(our_logits(again.config, again.params, tokens), theirs)
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(merged))
    for text in ("hello hell 2024", " two  spaces\n\tand a tab ", "abc"):
        assert tokenizer(text)["input_ids"] == base.tokens.tokenizer(text)["input_ids"]
    return tokens, theirs


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", toys.BASES)
def test_a_merged_folder_is_the_adapter_on_its_base(tmp_path, family, tied):
    import peft
    import torch
    import transformers

    if family == "gpt2" and not tied:
        pytest.skip("its head is always tied")
    raw = toys.BASES[family] | {"vocab_size": 301, "tie_word_embeddings": tied}
    torch.manual_seed(0)
    own = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(family, **raw))
    with torch.no_grad():
        for name, parameter in own.named_parameters():
            scale = name.endswith("weight") and ("norm" in name or "ln_" in name)
            parameter.normal_(float(scale and family != "gemma3_text"), 0.15)
    own.generation_config.temperature, own.generation_config.do_sample = 0.5, True
    own.save_pretrained(tmp_path / "base")
    for file in TOKENIZER.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "base")
    base, pool, rows = components(tmp_path / "base")
    write_merged(tmp_path / "merged", pool, rows, base, {})
    tokens, theirs = check_merged(base, pool, rows, tmp_path / "merged")
    assert their_model(tmp_path / "merged").generation_config.temperature == 0.5
    write_peft(tmp_path / "adapter", pool, rows, base, {})
    adapted = peft.AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter"))  # by the name of its base
    near(their_logits(adapted, tokens), theirs)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_types_of_numbers(tmp_path, dtype):
    import torch

    toys.save_toy_base(tmp_path / "base")
    base, pool, rows = components(tmp_path / "base")
    write_merged(tmp_path / "merged", pool, rows, base, {}, dtype=dtype)
    loaded = their_model(tmp_path / "merged")
    assert loaded.dtype == getattr(torch, dtype)
    exact = their_logits(loaded.float(), tokens_of(base))
    ours = our_logits(base.config, base.params, tokens_of(base), pool.adapters(rows))
    assert 0 < np.abs(exact - ours).mean() < 0.01 * np.abs(ours).max()


def test_an_adapter_in_bfloat16(tmp_path):
    import peft

    toys.save_toy_base(tmp_path / "base")
    base, pool, rows = components(tmp_path / "base")
    write_peft(tmp_path / "adapter", pool, rows, base, {}, dtype="bfloat16")
    adapted = peft.PeftModel.from_pretrained(their_model(tmp_path / "base"), str(tmp_path / "adapter"))
    ours = our_logits(base.config, base.params, tokens_of(base), pool.adapters(rows))
    assert 0 < np.abs(their_logits(adapted, tokens_of(base)) - ours).mean() < 0.01 * np.abs(ours).max()


LLAMA3, QWEN = (BYTE_LEVEL | {"tokenizer.ggml.pre": rule} for rule in ("llama-bpe", "qwen2"))
LINEAR = {"rope__scaling__type": "linear", "rope__scaling__factor": 2.0}
WINDOWS = {"attention__sliding_window": 8, "attention__sliding_window_pattern": 2}
KINDS = {
    "gpt2": ("gpt2", GPT2, ("ln_1", "ln_2", "ln_f", "c_attn", "c_proj", "c_fc"), {}, BYTE_LEVEL),
    "llama": ("llama", LLAMA, ("q_proj", "k_proj", "v_proj", "o_proj"), LINEAR, LLAMA3),
    "llama 2": ("llama", LLAMA, (), {}, SENTENCEPIECE),
    "mistral": ("llama", LLAMA, (), {"attention__sliding_window": 8}, SENTENCEPIECE),
    "smollm": ("llama", LLAMA, (), {}, BYTE_LEVEL | {"tokenizer.ggml.pre": "smollm"}),
    "qwen2": ("qwen2", LLAMA, ("q_proj", "k_proj", "v_proj"), {}, QWEN),
    "qwen3": ("qwen3", QWEN3, (), {}, QWEN),
    "gemma3": ("gemma3", GEMMA3, (), WINDOWS, SENTENCEPIECE | {"tokenizer.ggml.add_space_prefix": False}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_gguf_file_becomes_a_folder_of_transformers(tmp_path, kind):
    """The config.json is made from the file's metadata, where transformers has defaults of its own."""
    architecture, block, biased, shape, tokenizer = KINDS[kind]
    outside = dict(GPT2_OUTSIDE if architecture == "gpt2" else OUTSIDE)
    vocabulary = (len(tokenizer["tokenizer.ggml.tokens"]), WIDTH)
    outside = {name: (to, vocabulary if to == "token_embd" else size) for name, (to, size) in outside.items()}
    tensors, names = model(block, outside, biased=biased)
    tensors = {name: 0.4 * tensor for name, tensor in tensors.items()}
    theirs = {name: tensors[ours] for name, ours in names.items()}
    if architecture == "llama":
        theirs = paired(tensors, names)
    if architecture == "gpt2":
        kernels = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
        theirs |= {name: tensors[ours].T.copy() for name, ours in names.items() if ours.endswith(kernels)}
    if architecture == "qwen3":  # without a head of its own the model is tied
        theirs["output.weight"] = 0.4 * random(*vocabulary, seed=99)
    write(tmp_path / "base.gguf", architecture, shape_of(architecture, **shape) | tokenizer, theirs)
    base, pool, rows = components(tmp_path / "base.gguf")
    write_merged(tmp_path / "merged", pool, rows, base, {})
    check_merged(base, pool, rows, tmp_path / "merged")
