"""The LoRA pool against PEFT: k active components of rank r are one PEFT adapter of rank k * r."""

import json
import pathlib
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from ftn_jax.models import decoder, pretrained
from ftn_jax.models.tokens import Example
from ftn_jax.pools.base import gather
from ftn_jax.pools.lora import LoraPool
from ftn_jax.pools.peft import place, read_peft, write_peft
from ftn_jax.streams.text import pad_examples

# PEFT, transformers and PyTorch warn of their own plans.
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]

TOKENIZER = pathlib.Path(__file__).parents[1] / "fixtures" / "gpt2_tiny" / "prefixed"
# Wide enough that W + Delta W is formed for the large batch below and not for the small one.
SHAPE = {"n_layer": 3, "n_embd": 96, "n_head": 4, "n_positions": 64, "vocab_size": 301}
ACTIVE = [1, 4, 7, 8]
RANK = 2
MODULES = {
    "c_attn": ("attn.c_attn",),
    "all": ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SHAPE))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "ln_" in name and name.endswith("weight") else 0.0, 0.15)
    model.save_pretrained(folder)
    for file in TOKENIZER.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def make_pool(folder, modules):
    base = pretrained.load(str(folder))
    pool = LoraPool(base=base.params, model=base.config, size=9, rank=RANK, modules=modules, b_std=0.15)
    return pool, gather(pool.init(jax.random.key(0)), jnp.array(ACTIVE))


def write_adapter(folder, pool, rows):
    """The active components in PEFT's own file format, by literal concatenation of their A and B."""
    rank = len(ACTIVE) * RANK
    tensors = {}
    for module in pool.modules:
        a, b = (np.asarray(rows[module][leaf]) for leaf in "ab")  # [k, L, r, d]
        for layer in range(pool.model.layers):
            name = f"base_model.model.transformer.h.{layer}.{module}"
            tensors[f"{name}.lora_A.weight"] = np.concatenate([a[i, layer] for i in range(len(ACTIVE))], axis=0)
            tensors[f"{name}.lora_B.weight"] = np.concatenate([b[i, layer].T for i in range(len(ACTIVE))], axis=1)
    folder.mkdir()
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": True,
        "target_modules": rf"transformer\.h\.\d+\.({'|'.join(m.replace('.', chr(92) + '.') for m in pool.modules)})",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return tensors


def load_with_peft(folder, adapter):
    import peft
    import transformers

    model = transformers.GPT2LMHeadModel.from_pretrained(str(folder))
    return peft.PeftModel.from_pretrained(model, str(adapter)).eval()


def loaded_adapter(model):
    """PEFT's tensors by the names of the file."""
    return {
        name.replace(".default", ""): value.detach().numpy()
        for name, value in model.named_parameters()
        if ".lora_" in name
    }


@pytest.mark.parametrize("kind", MODULES)
def test_logits_and_losses_equal_pefts(folder, tmp_path, kind):
    import torch

    pool, rows = make_pool(folder, MODULES[kind])
    written = write_adapter(tmp_path / "adapter", pool, rows)
    model = load_with_peft(folder, tmp_path / "adapter")
    loaded = loaded_adapter(model)
    assert loaded.keys() == written.keys()

    tokens = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], (4, 15)).astype(np.int32)
    hidden, _ = decoder.Decoder(pool.model).apply({"params": pool.base}, tokens, pool.adapters(rows))
    ours = np.asarray(decoder.logits(pool.base, hidden))
    with torch.no_grad():
        theirs = model(torch.tensor(tokens.astype(np.int64))).logits.numpy()
        with model.disable_adapter():
            without = model(torch.tensor(tokens.astype(np.int64))).logits.numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    assert np.abs(theirs - without).max() > 0.1

    # The loss on target tokens only, as PyTorch computes it with labels of -100 elsewhere.
    examples = [Example(row[: 3 + i].tolist(), row[3 + i : 9 + i].tolist()) for i, row in enumerate(tokens)]
    batch = pad_examples(examples, length=16, targets=8, pad=0)
    losses = []
    for prompt, target, _ in examples:
        ids = torch.tensor([[*prompt, *target]])
        labels = torch.tensor([[-100] * len(prompt) + target])
        with torch.no_grad():
            losses.append(model(ids, labels=labels).loss.item())
    sums, counts = pool.example_losses(rows, jnp.ones(len(ACTIVE)), batch)
    np.testing.assert_allclose(sums / counts, losses, atol=1e-4)
    np.testing.assert_allclose(pool.active_loss(rows, batch), np.mean(losses), atol=1e-4)
    # With more tokens it is cheaper to form W + Delta W, with the same result.
    large = jax.tree.map(lambda leaf: np.tile(leaf, (40, 1)), batch)
    np.testing.assert_allclose(pool.active_loss(rows, large), np.mean(losses), atol=1e-4)


def test_gradients_equal_pefts(folder, tmp_path):
    import torch

    pool, rows = make_pool(folder, MODULES["c_attn"])
    write_adapter(tmp_path / "adapter", pool, rows)
    model = load_with_peft(folder, tmp_path / "adapter")
    tokens = np.random.default_rng(1).integers(0, SHAPE["vocab_size"], (3, 12)).astype(np.int32)
    batch = pad_examples([Example(row[:5].tolist(), row[5:].tolist()) for row in tokens], length=12, targets=8, pad=0)
    ours = jax.grad(lambda rows: pool.active_loss(rows, batch))(rows)["attn.c_attn"]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    labels = torch.tensor(tokens.astype(np.int64))
    labels[:, :5] = -100
    model(torch.tensor(tokens.astype(np.int64)), labels=labels).loss.backward()
    gradients = {name: p.grad.numpy() for name, p in model.named_parameters() if ".lora_" in name}
    for layer in range(SHAPE["n_layer"]):
        name = f"base_model.model.transformer.h.{layer}.attn.c_attn"
        grad_a = np.concatenate(np.asarray(ours["a"])[:, layer], axis=0)
        grad_b = np.concatenate(np.asarray(ours["b"])[:, layer], axis=0).T
        np.testing.assert_allclose(grad_a, gradients[f"{name}.lora_A.default.weight"], atol=1e-5)
        np.testing.assert_allclose(grad_b, gradients[f"{name}.lora_B.default.weight"], atol=1e-5)


def logits_of(pool, rows, tokens):
    hidden, _ = decoder.Decoder(pool.model).apply({"params": pool.base}, tokens, pool.adapters(rows))
    return np.asarray(decoder.logits(pool.base, hidden))


@pytest.mark.parametrize("kind", MODULES)
def test_an_exported_mask_is_an_adapter_of_pefts(folder, tmp_path, kind):
    import torch

    pool, rows = make_pool(folder, MODULES[kind])
    write_peft(tmp_path / "adapter", pool, rows, str(folder), {})
    with warnings.catch_warnings(record=True) as caught:  # PEFT warns of keys that it does not know
        warnings.simplefilter("always")
        model = load_with_peft(folder, tmp_path / "adapter")
    assert not [str(warning.message) for warning in caught if "adapter" in str(warning.message).lower()]
    tokens = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], (4, 15)).astype(np.int32)
    ours = logits_of(pool, rows, tokens)
    with torch.no_grad():
        theirs = model(torch.tensor(tokens.astype(np.int64))).logits.numpy()
        merged = model.merge_and_unload()(torch.tensor(tokens.astype(np.int64))).logits.numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    np.testing.assert_allclose(ours, merged, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 8, "lora_alpha": 16, "target_modules": ["c_attn"]},
        {"r": 5, "lora_alpha": 3, "target_modules": ["attn.c_proj", "c_fc", "c_attn"], "use_rslora": True},
        {
            "r": 4,
            "target_modules": ["c_attn", "mlp.c_proj"],
            "rank_pattern": {"mlp.c_proj": 2},
            "alpha_pattern": {"h.1.attn.c_attn": 5},
        },
    ],
    ids=["plain", "rslora", "patterns"],
)
def test_an_adapter_that_peft_trained_is_imported(folder, tmp_path, settings):
    import peft
    import torch
    import transformers

    model = transformers.GPT2LMHeadModel.from_pretrained(str(folder))
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", fan_in_fan_out=True, **settings))
    tokens = torch.randint(0, SHAPE["vocab_size"], (4, 15), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        theirs = model.eval()(tokens).logits.numpy()
        with model.disable_adapter():
            without = model(tokens).logits.numpy()

    base = pretrained.load(str(folder))
    pool = LoraPool(base=base.params, model=base.config, size=9, rank=RANK, modules=MODULES["all"], b_std=0.15)
    adapter = read_peft(tmp_path / "adapter", base)
    rows = gather(place(pool, pool.init(jax.random.key(0)), adapter, jnp.array(ACTIVE)), jnp.array(ACTIVE))
    ours = logits_of(pool, rows, tokens.numpy().astype(np.int32))
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    assert np.abs(theirs - without).max() > 0.1
