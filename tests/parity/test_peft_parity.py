"""The LoRA pool against PEFT: k active components of rank r are one PEFT adapter of rank k * r."""

import dataclasses
import functools
import json
import pathlib
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import toys
from peft_settings import SETTINGS

from ftn_jax.core.errors import InputError
from ftn_jax.models import decoder, pretrained
from ftn_jax.models.tokens import Example
from ftn_jax.pools.adapter import place
from ftn_jax.pools.base import gather
from ftn_jax.pools.export import write_peft
from ftn_jax.pools.lora import LoraPool, match_modules
from ftn_jax.pools.peft import read_peft
from ftn_jax.streams.text.task import pad_examples

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

    model = transformers.AutoModelForCausalLM.from_pretrained(str(folder))
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
    examples = [Example.of(row[: 3 + i].tolist(), row[3 + i : 9 + i].tolist()) for i, row in enumerate(tokens)]
    batch = pad_examples(examples, length=16, targets=8, pad=0)
    losses = []
    for example in examples:
        ids = torch.tensor([example.ids])
        labels = torch.tensor([[-100] * len(example.prompt) + example.target])
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
    batch = pad_examples(
        [Example.of(row[:5].tolist(), row[5:].tolist()) for row in tokens], length=12, targets=8, pad=0
    )
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


# Small bases of every family, with tied heads and not.
FAMILIES = {
    family: raw | {"vocab_size": SHAPE["vocab_size"]} | ({"tie_word_embeddings": True} if family == "qwen2" else {})
    for family, raw in toys.BASES.items()
}
every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Family -> the folder of its base."""
    import torch
    import transformers

    found = {}
    for family, raw in FAMILIES.items():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(family, **raw))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                scale = name.endswith("weight") and ("norm" in name or "ln_" in name)
                parameter.normal_(float(scale and family != "gemma3_text"), 0.15)
        found[family] = tmp_path_factory.mktemp(family)
        model.save_pretrained(found[family])
        for file in TOKENIZER.glob("tokenizer*"):
            shutil.copy(file, found[family])
    return found


def their_base(folder, kind="AutoModelForCausalLM"):
    import transformers

    return getattr(transformers, kind).from_pretrained(str(folder)).eval()


def their_logits(model, tokens):
    import torch

    with torch.no_grad():
        return model(torch.tensor(tokens.astype(np.int64))).logits.numpy()


def family_rows(folder, word="all-linear"):
    """(base, pool, active components) with the modules that a word stands for."""
    base = pretrained.load(str(folder))
    modules = match_modules([word], base.config)
    pool = LoraPool(base=base.params, model=base.config, size=9, rank=RANK, modules=modules, b_std=0.15)
    return base, pool, gather(pool.init(jax.random.key(0)), jnp.array(ACTIVE))


@functools.partial(jax.jit, static_argnames="config")
def logits_with(config, params, tokens, adapters=None):
    hidden, _ = decoder.Decoder(config).apply({"params": params}, tokens, adapters)
    return decoder.logits(params, hidden)


def our_logits(pool, rows, tokens):
    return np.asarray(logits_with(pool.model, pool.base, tokens, pool.adapters(rows)))


def read_logits(base_folder, adapter, tokens, **kwargs):
    """Ours of an adapter that PEFT wrote, from the components that it was placed in."""
    base, pool, _ = family_rows(base_folder)
    active = jnp.array(ACTIVE)
    placed = place(pool, pool.init(jax.random.key(1)), read_peft(adapter, base, **kwargs), active)
    return our_logits(pool, gather(placed, active), tokens)


def assert_same(ours, theirs, without):
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)
    assert np.abs(theirs - without).max() > 0.1


def draw_tokens(seed=0):
    return np.random.default_rng(seed).integers(0, SHAPE["vocab_size"], (4, 15)).astype(np.int32)


def randomize(model, seed=0):
    """Fills an adapter of PEFT's as if it had been trained long."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def loaded(folder, adapter):
    """PEFT's model with an adapter, of which it knows every key and misses none."""
    import peft

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = peft.PeftModel.from_pretrained(their_base(folder), str(adapter)).eval()
        report = model.load_adapter(str(adapter), "again")
    assert not [str(warning.message) for warning in caught if "adapter" in str(warning.message).lower()]
    assert not report.missing_keys
    assert not report.unexpected_keys
    return model


@every_family
@pytest.mark.parametrize("word", ["qkv", "all-linear"])
def test_an_exported_mask_is_an_adapter_of_pefts(folders, tmp_path, family, word):
    base, pool, rows = family_rows(folders[family], word)
    assert write_peft(tmp_path / "adapter", pool, rows, base, {}) == 0
    tokens = draw_tokens()
    model = loaded(folders[family], tmp_path / "adapter")
    theirs = their_logits(model, tokens)
    with model.disable_adapter():
        without = their_logits(model, tokens)
    assert_same(our_logits(pool, rows, tokens), theirs, without)
    # The same as a base of its own, merged by PEFT.
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    for file in TOKENIZER.glob("tokenizer*"):
        shutil.copy(file, tmp_path / "merged")
    merged = pretrained.load(str(tmp_path / "merged"))
    assert merged.config == base.config
    np.testing.assert_allclose(logits_with(merged.config, merged.params, tokens), theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("rank", [1, 5])
def test_an_export_at_a_lower_rank(folders, tmp_path, family, rank):
    base, pool, rows = family_rows(folders[family])
    lost = write_peft(tmp_path / "adapter", pool, rows, base, {}, rank=rank)
    assert 0 < lost < 1
    tokens = draw_tokens()
    theirs = their_logits(loaded(folders[family], tmp_path / "adapter"), tokens)
    np.testing.assert_allclose(read_logits(folders[family], tmp_path / "adapter", tokens), theirs, atol=1e-4, rtol=0)


# (A module, another, what stands before a block's number.)
NAMES = {"gpt2": ("c_attn", "mlp.c_proj", "transformer.h")}
LLAMA_NAMES = ("q_proj", "mlp.down_proj", "model.layers")


def adapter_settings(family):
    first, last, blocks = NAMES.get(family, LLAMA_NAMES)
    regex = blocks.replace(".", r"\.")
    return {
        "plain": {"r": 8, "lora_alpha": 16, "target_modules": [first]},
        "all-linear": {"r": 5, "lora_alpha": 3, "target_modules": "all-linear", "use_rslora": True},
        "regex": {"r": 3, "target_modules": rf"{regex}\.\d+\..*{first}"},
        "patterns": {
            "r": 4,
            "lora_alpha": 6,
            "target_modules": [first, last],
            "rank_pattern": {last: 2, rf"^{regex}\.0\..*{first}": 7},
            "alpha_pattern": {rf"{regex}\.1\..*{first}": 5, rf"^{regex}\.0": 1000},
        },
        "patterns and rslora": {
            "r": 4,
            "target_modules": [first, last],
            "rank_pattern": {last: 6},
            "alpha_pattern": {last: 3},
            "use_rslora": True,
        },
        "one layer": {"target_modules": [first, last], "layers_to_transform": 1},
        "layers": {
            "target_modules": [first],
            "layers_to_transform": [0],
            "layers_pattern": blocks.split(".")[1],
            "exclude_modules": [last],
        },
        "mica": {"r": 4, "target_modules": "all-linear", "init_lora_weights": "mica"},
        "orthogonal": {"r": 4, "target_modules": "all-linear", "exclude_modules": [last], "lora_dropout": 0.3}
        | {"init_lora_weights": "orthogonal", "use_rslora": True},
    }


@every_family
@pytest.mark.parametrize("kind", adapter_settings("gpt2"))
def test_an_adapter_of_pefts_is_imported(folders, tmp_path, family, kind):
    import peft

    settings = adapter_settings(family)[kind] | {"fan_in_fan_out": family == "gpt2"}
    model = peft.get_peft_model(their_base(folders[family]), peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    randomize(model).save_pretrained(tmp_path / "adapter")
    tokens = draw_tokens()
    theirs = their_logits(model, tokens)
    with model.disable_adapter():
        without = their_logits(model, tokens)
    assert_same(read_logits(folders[family], tmp_path / "adapter", tokens), theirs, without)


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text"])
def test_an_adapter_that_peft_trained_is_imported(folders, tmp_path, family):
    import peft
    import torch

    config = peft.LoraConfig(target_modules="all-linear", lora_alpha=32, fan_in_fan_out=family == "gpt2")
    model = peft.get_peft_model(their_base(folders[family]), config)  # without a task: PEFT writes an auto_mapping
    tokens = torch.tensor(draw_tokens().astype(np.int64))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    model.eval().save_pretrained(tmp_path / "adapter")
    theirs = their_logits(model, draw_tokens())
    with model.disable_adapter():
        without = their_logits(model, draw_tokens())
    assert_same(read_logits(folders[family], tmp_path / "adapter", draw_tokens()), theirs, without)


@every_family
def test_an_adapter_of_a_bare_decoder_is_imported(folders, tmp_path, family):
    import peft
    import torch

    first, last, blocks = NAMES.get(family, LLAMA_NAMES)
    bare = blocks.split(".")[1]
    config = peft.LoraConfig(
        task_type="FEATURE_EXTRACTION",
        target_modules=[first, last],
        rank_pattern={rf"^{bare}\.0\..*{first}": 3},
        alpha_pattern={rf"^{bare}\.1\..*{first}": 20, rf"{blocks}\.1\..*{last}": 1000},  # the last does not match
        fan_in_fan_out=family == "gpt2",
    )
    model = randomize(peft.get_peft_model(their_base(folders[family], "AutoModel"), config))
    model.save_pretrained(tmp_path / "adapter")
    head = their_base(folders[family]).get_output_embeddings().weight
    tokens = draw_tokens()
    with torch.no_grad():
        theirs = (model(torch.tensor(tokens.astype(np.int64))).last_hidden_state @ head.T).numpy()
    without = their_logits(their_base(folders[family]), tokens)
    assert_same(read_logits(folders[family], tmp_path / "adapter", tokens), theirs, without)


def saved(folder, adapter, cast=None, **kwargs):
    """(PEFT's model, the adapter's folder)."""
    import peft

    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    model = randomize(peft.get_peft_model(their_base(folder), config, adapter_name=kwargs.pop("name", "default")))
    if cast is not None:
        kwargs["state_dict"] = {name: value.to(cast) for name, value in model.state_dict().items()}
    model.save_pretrained(adapter, **kwargs)
    return model


@every_family
def test_embeddings_and_head_saved_along(folders, tmp_path, family):
    model = saved(folders[family], tmp_path / "adapter", save_embedding_layers=True)
    kept = safetensors.numpy.load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert sum(".lora_" not in name for name in kept) == 2
    tokens = draw_tokens()
    ours = read_logits(folders[family], tmp_path / "adapter", tokens)
    np.testing.assert_allclose(ours, their_logits(model, tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_a_head_of_its_own_that_equals_the_bases(folders, tmp_path, family):
    import peft

    config = peft.LoraConfig(
        task_type="CAUSAL_LM", target_modules=[NAMES.get(family, LLAMA_NAMES)[0]], modules_to_save=["lm_head"]
    )
    model = randomize(peft.get_peft_model(their_base(folders[family]), config))
    model.save_pretrained(tmp_path / "adapter")
    tokens = draw_tokens()
    ours = read_logits(folders[family], tmp_path / "adapter", tokens)
    np.testing.assert_allclose(ours, their_logits(model, tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz"])
def test_tensors_of_other_types(folders, tmp_path, dtype):
    import torch

    saved(folders["qwen3"], tmp_path / "adapter", cast=getattr(torch, dtype))
    tokens = draw_tokens()
    theirs = their_logits(loaded(folders["qwen3"], tmp_path / "adapter"), tokens)
    without = their_logits(their_base(folders["qwen3"]), tokens)
    assert_same(read_logits(folders["qwen3"], tmp_path / "adapter", tokens), theirs, without)


def test_names_of_adapters(folders, tmp_path):
    model = saved(folders["llama"], tmp_path, name="my-adapter")  # PEFT makes a folder of that name
    tokens = draw_tokens()
    theirs = their_logits(model, tokens)
    np.testing.assert_allclose(
        read_logits(folders["llama"], tmp_path / "my-adapter", tokens), theirs, atol=1e-4, rtol=0
    )
    # With the adapter's name in the keys, which PEFT reads for an adapter of that name.
    path = tmp_path / "my-adapter" / "adapter_model.safetensors"
    named = {
        name.replace(".weight", ".default.weight"): value for name, value in safetensors.numpy.load_file(path).items()
    }
    safetensors.numpy.save_file(named, path, metadata={"format": "pt"})
    model = load_with_peft(folders["llama"], path.parent)
    np.testing.assert_allclose(their_logits(model, tokens), theirs, atol=1e-6, rtol=0)
    np.testing.assert_allclose(read_logits(folders["llama"], path.parent, tokens), theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": r".*\.layers\.0\..*"},
        {"target_modules": r"layers\.\d+\..*"},  # matches the whole of a name or not at all
        {"exclude_modules": ["mlp.down_proj"]},
        {"exclude_modules": r".*\.1\.mlp\..*"},
        {"layers_to_transform": [0]},
        {"layers_to_transform": 1},
        {"exclude_modules": ["down"]},
        {"layers_to_transform": []},
        {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "mlp.down_proj"]},
    ],
    ids=str,
)
def test_tensors_that_peft_would_leave_out_are_refused(folders, tmp_path, settings):
    saved(folders["llama"], tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    base = pretrained.load(str(folders["llama"]))
    tensors = safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")
    try:
        adapted = loaded_adapter(load_with_peft(folders["llama"], tmp_path)).keys()
    except ValueError:  # nothing is adapted
        adapted = set()
    assert adapted <= tensors.keys()
    if adapted == tensors.keys():
        assert read_peft(tmp_path, base).rank == 8
    else:
        with pytest.raises(InputError, match="which target_modules and related settings exclude"):
            read_peft(tmp_path, base)


def test_every_setting_of_pefts_is_tried():
    import peft

    assert {field.name for field in dataclasses.fields(peft.LoraConfig)} == SETTINGS.keys()
    own = ("base_model_name_or_path", "lora_alpha", "r")  # of an adapter, with no default that all have
    for setting, value in peft.LoraConfig().to_dict().items():
        assert setting in own or value in SETTINGS[setting][0]
