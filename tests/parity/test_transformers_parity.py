"""GPT-2's logits and loading against PyTorch transformers (requirements-parity.txt)."""

import functools
import pathlib
import shutil

import jax
import numpy as np
import pytest

from ftn_jax.models import decoder, pretrained
from ftn_jax.models.generate import generate, pad_prompts

# transformers and PyTorch warn of their own plans.
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]

TOKENIZER = pathlib.Path(__file__).parents[1] / "fixtures" / "gpt2_tiny" / "prefixed"
DISTILGPT2 = {"n_layer": 6}  # the other defaults of transformers' GPT2Config are distilgpt2's too
SMALL = {"n_layer": 3, "n_embd": 48, "n_head": 4, "n_positions": 64, "vocab_size": 301}


@functools.partial(jax.jit, static_argnames="config")
def our_logits(config, params, tokens, valid=None):
    hidden, _ = decoder.Decoder(config).apply({"params": params}, tokens, valid=valid)
    return decoder.logits(params, hidden)


def make_pair(folder, std=None, saving=None, model_class="GPT2LMHeadModel", seed=0, **shape):
    """(PyTorch's model, ours of what it saved). With ``std`` all parameters are random, biases and norms too."""
    import torch
    import transformers

    torch.manual_seed(seed)
    model = getattr(transformers, model_class)(transformers.GPT2Config(**shape)).eval()
    if std is not None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.normal_(1.0 if "ln_" in name and name.endswith("weight") else 0.0, std)
    model.save_pretrained(folder, **(saving or {}))
    for file in TOKENIZER.glob("tokenizer*"):
        shutil.copy(file, folder)
    return model, pretrained.load(str(folder))


def their_logits(model, tokens, **inputs):
    import torch

    with torch.no_grad():
        out = model(torch.tensor(tokens), **{name: torch.tensor(value) for name, value in inputs.items()})
        return (out.logits if "logits" in out else out.last_hidden_state @ model.wte.weight.T).numpy()


def assert_same_logits(model, base, lengths, columns, seed=0):
    """On a batch padded on the right without a mask, and on the left with one."""
    rng = np.random.default_rng(seed)
    right = np.arange(columns)[None] < np.array(lengths)[:, None]
    tokens = rng.integers(0, base.config.vocabulary, right.shape).astype(np.int32)
    ours = np.asarray(our_logits(base.config, base.params, tokens))
    theirs = their_logits(model, tokens.astype(np.int64))
    np.testing.assert_allclose(ours[right], theirs[right], atol=1e-4, rtol=0)

    left = right[:, ::-1].copy()
    moved = rng.integers(0, base.config.vocabulary, right.shape).astype(np.int32)
    moved[left] = tokens[right]
    ours_left = np.asarray(our_logits(base.config, base.params, moved, left))
    theirs_left = their_logits(
        model,
        moved.astype(np.int64),
        attention_mask=left.astype(np.int64),
        position_ids=np.maximum(left.cumsum(1) - 1, 0),
    )
    np.testing.assert_allclose(ours_left[left], theirs_left[left], atol=1e-4, rtol=0)
    np.testing.assert_allclose(ours_left[left], ours[right], atol=1e-4, rtol=0)
    return theirs[right]


def test_distilgpt2_sized_checkpoint(tmp_path):
    model, base = make_pair(tmp_path, **DISTILGPT2)
    config = base.config
    assert (config.layers, config.width, config.heads, config.inner, config.vocabulary) == (6, 768, 12, 3072, 50257)
    logits = assert_same_logits(model, base, lengths=(33, 17, 64), columns=64)
    assert logits.std() > 0.1


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"n_inner": 40},
        {"layer_norm_epsilon": 1e-2},
        {"n_head": 1},
        {"activation_function": "gelu_pytorch_tanh"},
        {"n_layer": 1},
    ],
    ids=str,
)
def test_small_shapes_with_large_weights(tmp_path, shape):
    model, base = make_pair(tmp_path, std=0.15, **(SMALL | shape))
    logits = assert_same_logits(model, base, lengths=(9, 1, 20, 13), columns=20)
    assert logits.std() > 0.1


@pytest.mark.parametrize(
    "kind", [{"model_class": "GPT2Model"}, {"saving": {"max_shard_size": "60KB"}}], ids=["no prefix", "sharded"]
)
def test_other_ways_to_save(tmp_path, kind):
    model, base = make_pair(tmp_path, std=0.15, **kind, **SMALL)
    sharded = "saving" in kind
    assert (tmp_path / "model.safetensors").exists() != sharded
    assert_same_logits(model, base, lengths=(9, 1, 20, 13), columns=20)


def test_remat_and_bfloat16(tmp_path):
    model, _ = make_pair(tmp_path, std=0.15, **SMALL)
    assert_same_logits(model, pretrained.load(str(tmp_path), remat=True), lengths=(5, 12), columns=12)
    base = pretrained.load(str(tmp_path), dtype="bfloat16")
    tokens = np.random.default_rng(0).integers(0, base.config.vocabulary, (2, 12))
    ours, theirs = np.asarray(our_logits(base.config, base.params, tokens)), their_logits(model, tokens)
    assert np.abs(ours - theirs).mean() < 0.03 * theirs.std()


def test_what_we_save_transformers_loads(tmp_path):
    import transformers
    from toys import save_toy_base

    save_toy_base(tmp_path, n_layer=3, layer_norm_epsilon=1e-3)
    base = pretrained.load(str(tmp_path))
    model, report = transformers.GPT2LMHeadModel.from_pretrained(str(tmp_path), output_loading_info=True)
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    assert set(report["missing_keys"]) <= {"lm_head.weight"}
    assert_same_logits(model.eval(), base, lengths=(9, 1, 20), columns=20)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    text = "The Sphinx of black quartz, it's 42!\n"
    assert theirs(text)["input_ids"] == base.tokens.tokenizer(text)["input_ids"]


def test_greedy_writes_what_transformers_generates(tmp_path):
    import torch

    model, base = make_pair(tmp_path, std=0.15, eos_token_id=0, bos_token_id=0, **SMALL)
    prompts = [[5, 9, 2], [7], [11, 3, 3, 40, 8]]
    tokens, valid = pad_prompts(prompts, pad=0, columns=16)
    ours = generate(base.params, None, tokens, valid, config=base.config, steps=12, ends=base.tokens.ends)
    theirs = model.generate(
        torch.tensor(tokens.astype(np.int64)),
        attention_mask=torch.tensor(valid.astype(np.int64)),
        max_new_tokens=12,
        min_new_tokens=12,
        do_sample=False,
        pad_token_id=0,
    )
    written = theirs[:, tokens.shape[1] :].numpy()
    assert 0 not in written
    np.testing.assert_array_equal(ours, written)
