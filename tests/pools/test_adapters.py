"""Components as adapters and back; with PEFT itself: parity/test_peft_parity.py."""

import json
import os
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import toys
from hypothesis import example, given, settings
from hypothesis import strategies as st
from peft_settings import SETTINGS

from ftn_jax.core.errors import InputError
from ftn_jax.models.pretrained import Base
from ftn_jax.pools.adapter import place
from ftn_jax.pools.base import gather
from ftn_jax.pools.export import truncated, write_peft
from ftn_jax.pools.peft import read_peft

MODULES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def family_base(family, name="org/toy", **fields):
    config = toys.toy_family(family, **fields)
    return Base(name, "1a", config, toys.toy_base_params(config), toys.toy_tokens(), family)


BASE = family_base("gpt2")
every_family = pytest.mark.parametrize("family", toys.BASES)


@pytest.fixture(scope="module")
def pool():
    return toys.toy_pool(modules=MODULES)


@pytest.fixture(scope="module")
def params(pool):
    return toys.toy_params(pool)


def written(folder, pool, params, active=(2, 3, 7), base=BASE, **changed):
    """An adapter of some components; ``changed`` replace settings of its config."""
    write_peft(folder, pool, gather(params, jnp.array(active)), base, {"active": list(active)})
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    return folder


def change(folder, rename=lambda name: name, **tensors):
    """Renames an adapter's tensors, then replaces some, adds others, or takes out those that are None."""
    path = folder / TENSORS
    held = {rename(name): value for name, value in safetensors.numpy.load_file(path).items()}
    safetensors.numpy.save_file({k: v for k, v in (held | tensors).items() if v is not None}, path)
    return folder


def raises(said):
    """An InputError of one line."""
    return pytest.raises(InputError, match=rf"(?s)\A(?=[^\n]*\Z).*{said}")


def assert_equal(adapter, other, rtol=0.0):
    assert adapter.rank == other.rank
    assert adapter.modules.keys() == other.modules.keys()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=0), adapter.modules, other.modules)


def test_the_files_by_hand(pool, params, tmp_path):
    written(tmp_path / "out", pool, params)
    config = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["fan_in_fan_out"], config["peft_type"]) == (6, 6, True, "LORA")
    assert config["target_modules"] == list(MODULES)
    assert config["base_model_name_or_path"] == "org/toy"
    assert json.loads((tmp_path / "out" / "ftn_mask.json").read_text()) == {"active": [2, 3, 7]}
    tensors = safetensors.numpy.load_file(tmp_path / "out" / TENSORS)
    assert len(tensors) == 2 * 2 * 4
    a = tensors["base_model.model.transformer.h.1.mlp.c_fc.lora_A.weight"]
    b = tensors["base_model.model.transformer.h.1.mlp.c_fc.lora_B.weight"]
    assert (a.shape, b.shape) == ((6, 24), (40, 6))
    pair = params["mlp.c_fc"]
    delta = sum(np.asarray(pair["a"])[h, 1].T @ np.asarray(pair["b"])[h, 1] for h in (2, 3, 7))
    np.testing.assert_allclose((b @ a).T, delta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_the_files_of_split_modules_by_hand(family, tmp_path):
    pool = toys.family_pool(family)
    params = toys.toy_params(pool)
    written(tmp_path / "out", pool, params, base=family_base(family))
    config = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert not config["fan_in_fan_out"]
    names = [f"self_attn.{m}_proj" for m in "qkvo"] + [f"mlp.{m}_proj" for m in ("gate", "up", "down")]
    assert config["target_modules"] == names
    tensors = safetensors.numpy.load_file(tmp_path / "out" / TENSORS)
    assert tensors.keys() == {
        f"base_model.model.model.layers.{layer}.{name}.lora_{side}.weight"
        for layer in (0, 1)
        for name in names
        for side in "AB"
    }
    for name, d_in, d_out in (("self_attn.k_proj", 24, 20), ("self_attn.o_proj", 40, 24), ("mlp.down_proj", 40, 24)):
        a, b = (tensors[f"base_model.model.model.layers.1.{name}.lora_{side}.weight"] for side in "AB")
        assert (a.shape, b.shape) == ((6, d_in), (d_out, 6))
        pair = params[name]
        delta = sum(np.asarray(pair["a"])[h, 1].T @ np.asarray(pair["b"])[h, 1] for h in (2, 3, 7))
        np.testing.assert_allclose((b @ a).T, delta, rtol=1e-5, atol=1e-6)


@jax.jit
def losses_of(pool, params, active, batch):
    return pool.example_losses(params, active, batch)[0]


@every_family
def test_there_and_back(family, tmp_path):
    pool, base = toys.family_pool(family), family_base(family)
    params, batch = toys.toy_params(pool), toys.toy_batch()
    adapter = read_peft(written(tmp_path / "out", pool, params, base=base), base)
    active = jnp.array([1, 8, 15])
    placed = place(pool, params, adapter, active)
    before, own = losses_of(pool, params, active, batch), losses_of(pool, params, jnp.array([2, 3, 7]), batch)
    np.testing.assert_allclose(losses_of(pool, placed, active, batch), own, rtol=1e-5)
    assert np.abs(before - own).min() > 0.01
    others = np.setdiff1d(np.arange(16), active)
    jax.tree.map(np.testing.assert_array_equal, gather(placed, others), gather(params, others))


def test_rows_that_an_adapter_leaves_have_no_effect(pool, params, tmp_path):
    adapter = read_peft(written(tmp_path / "out", pool, params), BASE)
    assert (adapter.name, adapter.rank) == ("out", 6)
    active, batch = jnp.array([1, 8, 9, 15]), toys.toy_batch()
    placed = place(pool, params, adapter, active)
    mine = losses_of(pool, placed, active, batch)
    np.testing.assert_allclose(mine, losses_of(pool, params, jnp.array([2, 3, 7]), batch), rtol=1e-5)
    last = placed["attn.c_attn"]
    assert not last["b"][15].any() and (last["a"][15] == params["attn.c_attn"]["a"][15]).all()


def test_scaling_as_peft_computes_it(pool, params, tmp_path):
    plain = read_peft(written(tmp_path / "plain", pool, params), BASE).modules
    ones = dict.fromkeys(MODULES, (1.0, 1.0))
    factors = {
        "alpha": ({"lora_alpha": 3}, dict.fromkeys(MODULES, (0.5, 0.5))),
        "rslora": ({"use_rslora": True}, dict.fromkeys(MODULES, (6**0.5, 6**0.5))),
        # From a name's dot on, and to its end; the first that fits.
        "pattern": (
            {"alpha_pattern": {"_proj": 1, "mlp.c_pro": 1, "mlp": 1, "mlp.c_proj": 12, "c_proj": 6}},
            ones | {"mlp.c_proj": (2.0, 2.0)},
        ),
        "two": (
            {"alpha_pattern": {r"^transformer\.h\.0\.mlp\.c_.*": 3, r"^h\.1.*": 60, "c_proj": 12}, "use_rslora": True},
            {
                "attn.c_attn": (6**0.5, 6**0.5),
                "attn.c_proj": (2 * 6**0.5, 2 * 6**0.5),
                "mlp.c_fc": (6**0.5 / 2, 6**0.5),
                "mlp.c_proj": (6**0.5 / 2, 2 * 6**0.5),
            },
        ),
        "other ranks": ({"r": 4, "rank_pattern": {".*": 6}, "lora_alpha": 3}, dict.fromkeys(MODULES, (0.5, 0.5))),
    }
    for name, (changed, expected) in factors.items():
        found = read_peft(written(tmp_path / name, pool, params, **changed), BASE).modules
        for module, factor in expected.items():
            scaled = np.array(factor)[:, None, None] * plain[module]["b"]
            np.testing.assert_allclose(found[module]["b"], scaled, rtol=1e-6)
            np.testing.assert_array_equal(found[module]["a"], plain[module]["a"])


def test_ranks_that_differ_are_padded(pool, params, tmp_path):
    name = "base_model.model.transformer.h.{}.mlp.c_fc.lora_{}.weight"
    folder = written(tmp_path / "out", pool, params, rank_pattern={r"h\.1\.mlp\.c_fc": 2})
    a, b = np.ones((2, 24), np.float32), np.full((40, 2), 3, np.float32)
    missing = {name.format(0, side): None for side in "AB"}
    change(folder, **{name.format(1, "A"): a, name.format(1, "B"): b}, **missing)
    adapter = read_peft(folder, BASE)
    assert adapter.rank == 6
    assert adapter.modules["attn.c_attn"]["a"].shape == (2, 6, 24)
    pair = adapter.modules["mlp.c_fc"]
    assert not pair["a"][0].any() and not pair["b"][0].any()
    assert not pair["a"][1, 2:].any() and not pair["b"][1, 2:].any()
    np.testing.assert_array_equal(pair["a"][1, :2], a)
    np.testing.assert_array_equal(pair["b"][1, :2], 3 * b.T)  # 6 / 2, its own rank
    path = folder / CONFIG
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"use_rslora": True}))
    scaled = read_peft(folder, BASE).modules
    np.testing.assert_allclose(scaled["mlp.c_fc"]["b"][1, :2], 6 / 2**0.5 * b.T, rtol=1e-6)
    np.testing.assert_allclose(scaled["attn.c_attn"]["b"], 6**0.5 * adapter.modules["attn.c_attn"]["b"], rtol=1e-6)
    for changed in ({"rank_pattern": {}}, {"r": 5}, {"r": 6, "rank_pattern": {r"h\.1\.mlp\.c_fc": 3}}):
        path.write_text(json.dumps(config | changed))
        with raises("has lora .*, expected"):
            read_peft(folder, BASE)


# What is said where a value is well-formed, but not that of this adapter.
OTHER_WORDS = {
    "base_model_name_or_path": "is an adapter of base",
    "exclude_modules": "which target_modules and related settings exclude",
    "layers_to_transform": "which target_modules and related settings exclude",
    "r": r"expected \{'A'",
}


@pytest.fixture(scope="module")
def exported(pool, params, tmp_path_factory):
    """(folder of an adapter, what is read of it)."""
    folder = written(tmp_path_factory.mktemp("exported") / "out", pool, params)
    return folder, read_peft(folder, BASE)


def configured(exported, **changed):
    """A folder with that adapter, and changes to its settings."""
    folder, _ = exported
    new = folder.parent / "changed"
    new.mkdir(exist_ok=True)
    if not (new / TENSORS).exists():
        os.link(folder / TENSORS, new / TENSORS)
    (new / CONFIG).write_text(json.dumps(json.loads((folder / CONFIG).read_text()) | changed))
    return new


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings(setting, exported):
    harmless, harmful = SETTINGS[setting]
    assert harmless
    for value in harmless:
        assert_equal(read_peft(configured(exported, **{setting: value}), BASE), exported[1])
    for value in harmful:
        with raises(f"{setting}|{OTHER_WORDS.get(setting, setting)}"):
            read_peft(configured(exported, **{setting: value}), BASE)


def test_settings_that_nobody_knows(exported):
    folder = configured(exported, use_wonder=None, enable_lora=None)
    assert_equal(read_peft(folder, BASE), exported[1])
    for value in (False, 0, {}, "x", [1]):
        with raises("'use_\\\\nwonder' is .*, expected a plain LoRA"):
            read_peft(configured(exported, **{"use_\nwonder": value}), BASE)


def test_settings_that_are_not_there_are_pefts(exported):
    folder = configured(exported)
    (folder / CONFIG).write_text('{"peft_type": "LORA", "r": 6}')
    found = read_peft(folder, BASE)
    for module, pair in exported[1].modules.items():
        np.testing.assert_allclose(found.modules[module]["b"], 8 / 6 * pair["b"], rtol=1e-6)
    (folder / CONFIG).write_text('{"peft_type": "LORA"}')
    with raises(r"attn.c_attn of layer 0 .*, expected \{'A': \(8, 24\)"):
        read_peft(folder, BASE)
    (folder / CONFIG).write_text("{}")
    with raises("'peft_type' is None, expected a plain LoRA"):
        read_peft(folder, BASE)


@pytest.mark.parametrize("name", ["default", "my-adapter", "7"])
def test_keys_with_an_adapters_name(name, pool, params, tmp_path, exported):
    folder = written(tmp_path / "out", pool, params)
    change(folder, lambda key: key.replace(".weight", f".{name}.weight"))
    assert_equal(read_peft(folder, BASE), exported[1])
    # Of two adapters it is not known which is meant.
    change(folder, **{"base_model.model.transformer.h.0.mlp.c_fc.lora_A.weight": np.zeros((6, 24), np.float32)})
    with raises("tensors of 2 adapters"):
        read_peft(folder, BASE)


@every_family
def test_keys_of_a_bare_decoder(family, tmp_path):
    pool, base = toys.family_pool(family), family_base(family)
    params = toys.toy_params(pool)
    whole = read_peft(written(tmp_path / "whole", pool, params, base=base), base)
    prefix = "transformer." if family == "gpt2" else "model."
    folder = change(
        written(tmp_path / "out", pool, params, base=base),
        lambda key: key.replace(f"_model.model.{prefix}", "_model.model."),
    )
    block = {"gpt2": "h"}.get(family, "layers")
    held = safetensors.numpy.load_file(folder / TENSORS)
    assert all(name.startswith(f"base_model.model.{block}.") for name in held)
    assert_equal(read_peft(folder, base), whole)


def embeddings_of(base):
    return np.asarray(base.params["embed"]), np.asarray(base.params.get("head", base.params["embed"]))


@pytest.mark.parametrize(
    ("family", "fields", "name"),
    [
        ("gpt2", {}, "transformer.wte"),
        ("llama", {"tie_word_embeddings": True}, "model.embed_tokens"),
        ("llama", {}, "model.embed_tokens"),
        ("gemma3_text", {}, "model.embed_tokens"),
        ("qwen2", {"dtype": "bfloat16"}, "model.embed_tokens"),
    ],
)
def test_embeddings_and_head_saved_along(family, fields, name, tmp_path):
    base, pool = family_base(family, **fields), toys.family_pool(family)
    embed, head = embeddings_of(base)
    if fields.get("dtype"):  # what was saved is more exact than what is computed with
        base = base._replace(params=jax.tree.map(lambda leaf: leaf.astype(fields["dtype"]), base.params))
        assert not np.array_equal(embed, base.params["embed"].astype(np.float32))
    assert ("head" in base.params) == (family in ("llama", "qwen2") and not fields.get("tie_word_embeddings"))
    folder = written(tmp_path / "out", pool, toys.toy_params(pool), base=base)
    plain = read_peft(folder, base)
    keys = [f"base_model.model.{module}.weight" for module in (name, "lm_head", name.split(".")[1])]
    change(folder, **dict(zip(keys, (embed, head, embed), strict=True)))
    assert_equal(read_peft(folder, base), plain)
    for key, own in zip(keys, (embed, head, embed), strict=True):
        moved = own.copy()
        moved[3, 5] += 0.1
        nan = own.copy()
        nan[0, 0] = np.nan
        for other in (moved, nan, own[:-1], own.T, own[:0]):
            with raises("which differs from that of base 'org/toy'"):
                read_peft(change(folder, **{key: np.ascontiguousarray(other)}), base)
        change(folder, **{key: own})


def test_modules_to_save_are_there_and_the_bases(pool, params, tmp_path, exported):
    folder = written(tmp_path / "out", pool, params, modules_to_save=["lm_head", "wte"])
    keys = ["base_model.model.lm_head.weight", "base_model.model.transformer.wte.weight"]
    embed = np.asarray(BASE.params["embed"])
    change(folder, **{keys[0]: embed})
    with raises(r"modules_to_save is \['lm_head', 'wte'\], but tensors of these are missing"):
        read_peft(folder, BASE)
    change(folder, **{keys[1]: embed})
    assert_equal(read_peft(folder, BASE), exported[1])
    change(folder, **{keys[1]: embed + 1})
    with raises("has its own transformer.wte"):
        read_peft(folder, BASE)


TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": jnp.bfloat16, "F8_E4M3": jnp.float8_e4m3fn,
         "F8_E5M2": jnp.float8_e5m2}  # fmt: skip


def save_raw(path, tensors):
    """Writes tensors {name: (type's name, shape, bytes)} as the format's description says, byte by byte."""
    header, data = {}, b""
    for name, (kind, shape, content) in tensors.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    head = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head + data)


@pytest.mark.parametrize("kind", TYPES)
def test_types_of_tensors(kind, pool, params, tmp_path, exported):
    folder = written(tmp_path / "out", pool, params)
    held = {name: v.astype(jnp.dtype(TYPES[kind])) for name, v in safetensors.numpy.load_file(folder / TENSORS).items()}
    save_raw(folder / TENSORS, {name: (kind, v.shape, v.tobytes()) for name, v in held.items()})
    found = read_peft(folder, BASE)
    for module, pair in found.modules.items():
        for layer in (0, 1):
            a, b = (held[f"base_model.model.transformer.h.{layer}.{module}.lora_{side}.weight"] for side in "AB")
            np.testing.assert_array_equal(pair["a"][layer], a.astype(np.float32))
            np.testing.assert_array_equal(pair["b"][layer], b.astype(np.float32).T)
    tolerance = {"F64": 0, "F32": 0, "F16": 1e-3, "BF16": 1e-2, "F8_E4M3": 0.07, "F8_E5M2": 0.13}[kind]
    near = [np.isclose(found.modules[m]["a"], exported[1].modules[m]["a"], rtol=tolerance, atol=2e-3) for m in MODULES]
    assert all(one.all() for one in near)


def test_other_types_are_refused(pool, params, tmp_path):
    folder = written(tmp_path / "out", pool, params)
    name = "base_model.model.transformer.h.0.mlp.c_fc.lora_A.weight"
    for kind in (np.int32, np.uint8, bool):
        with raises("lora_A.weight' has type .*, expected one of F64, F32, F16, BF16, F8_E4M3"):
            read_peft(change(folder, **{name: np.ones((6, 24), kind)}), BASE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["A", "B"])
def test_values_that_are_not_finite(value, side, pool, params, tmp_path):
    folder = written(tmp_path / "out", pool, params)
    name = f"base_model.model.transformer.h.1.attn.c_proj.lora_{side}.weight"
    held = safetensors.numpy.load_file(folder / TENSORS)
    tensor = held[name].copy()
    tensor[3, 2] = value
    for kind in ("F32", "F16", "BF16", "F8_E5M2"):
        content = tensor.astype(jnp.dtype(TYPES[kind]))
        raw = {key: ("F32", v.shape, v.tobytes()) for key, v in held.items()}
        save_raw(folder / TENSORS, raw | {name: (kind, content.shape, content.tobytes())})
        with raises(f"lora_{side}.weight' has values that are not finite"):
            read_peft(folder, BASE)


def test_values_that_float32_does_not_have(pool, params, tmp_path):
    folder = written(tmp_path / "out", pool, params)
    name = "base_model.model.transformer.h.1.attn.c_proj.lora_B.weight"
    tensor = safetensors.numpy.load_file(folder / TENSORS)[name]
    with raises("has values that are not finite"):
        read_peft(change(folder, **{name: np.full(tensor.shape, 1e200)}), BASE)
    large = written(tmp_path / "large", pool, params, lora_alpha=6e20)
    with raises("has values that are not finite with its scaling of 1e.20"):
        read_peft(change(large, **{name: np.full(tensor.shape, 1e30, np.float32)}), BASE)


def test_components_that_are_not_finite_are_not_written(pool, params, tmp_path):
    rows = gather(params, jnp.array([2, 3]))
    rows["mlp.c_fc"]["b"] = rows["mlp.c_fc"]["b"].at[1, 0, 0, 0].set(jnp.nan)
    for rank in (None, 1):
        with raises("the components have values that are not finite"):
            write_peft(tmp_path / "out", pool, rows, BASE, {}, rank=rank)
    assert not list(tmp_path.iterdir())


def test_names_of_the_same_base(exported, tmp_path):
    real, other = tmp_path / "here" / "llama", tmp_path / "there" / "llama"
    cached = tmp_path / "models--org--toy" / "snapshots" / "0123abcd"
    for folder in (real, other, cached):
        folder.mkdir(parents=True)
    (tmp_path / "link").symlink_to(real)
    same = [
        ("org/toy", "org/toy"),
        ("org/toy/", "org/toy"),
        (str(cached), "org/toy"),
        (f"{cached}/", "org/toy"),
        ("org/toy", str(cached)),
        ("/gone/models--org--toy/snapshots/0123abcd", "org/toy"),
        ("/gone/models--toy/snapshots/0123abcd", "org/toy"),
        (str(real), str(real)),
        (f"{real}//", str(real)),
        (f"{tmp_path}/there/../here/llama", str(real)),
        (os.path.relpath(real), str(real)),
        (str(tmp_path / "link"), str(real)),
        (str(real), str(tmp_path / "link")),
        ("/gone/llama", str(real)),  # where it was trained
        ("org/llama", str(real)),
        ("", "org/toy"),
        (None, "org/toy"),
    ]
    for named, name in same:
        folder = configured(exported, base_model_name_or_path=named)
        assert_equal(read_peft(folder, BASE._replace(name=name)), exported[1])
    differ = [
        ("org/toy-instruct", "org/toy"),
        (str(other), str(real)),
        (str(cached), "org/other"),
        (str(cached), "0123abcd"),
        ("/", "org/toy"),
        ("/", "."),
        ("org/toy\0", "org/toy"),
        ("\ud800", "org/toy"),
        ("a\nb", "org/toy"),
        ("x" * 5000, "org/toy"),
    ]
    for named, name in differ:
        folder = configured(exported, base_model_name_or_path=named)
        with raises(r"pass same_base=True"):
            read_peft(folder, BASE._replace(name=name))
        assert_equal(read_peft(folder, BASE._replace(name=name), same_base=True), exported[1])


def test_an_adapter_of_another_shape_is_refused_whatever_is_said(exported):
    folder = configured(exported)
    for base in (family_base("gpt2", n_inner=48), family_base("gpt2", n_layer=1), family_base("llama")):
        with raises("expected|does not have"):
            read_peft(folder, base, same_base=True)


def test_tensors_that_do_not_fit(pool, params, tmp_path):
    name = "base_model.model.transformer.h.{}.{}.lora_A.weight"
    full, zeros = name.format(0, "mlp.c_fc"), np.zeros((6, 24), np.float32)
    for i, (tensors, said) in enumerate([
        ({name.format(2, "mlp.c_fc"): zeros}, r"h\.2\.mlp\.c_fc.*does not have"),
        ({name.format("00", "mlp.c_fc"): zeros}, r"h\.00\.mlp\.c_fc.*does not have"),
        ({name.format("9" * 5000, "mlp.c_fc"): zeros}, "does not have"),
        ({name.format(0, "attn.q"): zeros}, r"attn\.q.*does not have"),
        ({name.format(0, "attn.c_attn\n"): zeros}, "does not have"),
        ({full: None}, r"mlp\.c_fc of layer 0 has lora \{'B'"),
        ({full: np.zeros((6, 25), np.float32)}, r"c_fc of layer 0 .*, expected \{'A': \(6, 24\), 'B': \(40, 6\)\}"),
        ({full: np.zeros((7, 24), np.float32)}, "expected"),
        ({full: np.zeros((6,), np.float32)}, "expected"),
        ({full: np.zeros((), np.float32)}, "expected"),
        ({full: np.zeros((0, 24), np.float32)}, "expected"),
        ({full.replace("lora_A", "lora_B"): np.zeros((40, 6, 1), np.float32)}, "expected"),
        ({full.replace("weight", "bias"): zeros}, "does not have"),
        ({full.replace("lora_A", "lora_magnitude_vector"): zeros[:, 0]}, "does not have"),
        ({full.replace("base_model.model.", ""): zeros}, "does not have"),
        ({"base_model.model.transformer.wte.lora_embedding_A": zeros}, "does not have"),
        ({"base_model.model.lm_head.lora_A.weight": zeros}, "does not have"),
        ({"base_model.model.transformer.ln_f.weight": zeros[0]}, "does not have"),
        ({"lm_head.weight": zeros}, "does not have"),
    ]):  # fmt: skip
        folder = written(tmp_path / str(i), pool, params)
        change(folder, **tensors)
        with raises(said):
            read_peft(folder, BASE)
    change(tmp_path / "0", **dict.fromkeys(safetensors.numpy.load_file(tmp_path / "0" / TENSORS)))
    with raises("has tensors of 0 adapters, expected lora_A and lora_B of one"):
        read_peft(tmp_path / "0", BASE)
    (tmp_path / "0" / TENSORS).write_bytes(b"no")
    with raises("can't be read as a PEFT adapter"):
        read_peft(tmp_path / "0", BASE)
    with raises("can't be read as a PEFT adapter"):
        read_peft(tmp_path / "nowhere", BASE)
    with raises("can't be read as a PEFT adapter"):
        read_peft(tmp_path / "0" / CONFIG, BASE)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(("active", "rank"), [((2, 3, 7), 1), ((2, 3, 7), 5), (tuple(range(16)), 8), (range(16), 22)])
def test_a_lower_rank_is_the_nearest(family, active, rank, tmp_path):
    """Eckart-Young: what is left out of each module's update are its smallest singular values, exactly."""
    pool, base = toys.family_pool(family), family_base(family)
    rows = gather(toys.toy_params(pool), jnp.array(list(active)))
    lost = write_peft(tmp_path / "out", pool, rows, base, {}, rank=rank)
    assert json.loads((tmp_path / "out" / CONFIG).read_text())["r"] == rank
    adapter = read_peft(tmp_path / "out", base)
    assert adapter.rank == rank
    dropped, total = [], []
    for module, pair in rows.items():
        for layer in range(2):
            a, b = (np.asarray(pair[side], np.float64)[:, layer] for side in "ab")
            delta = sum(a[h].T @ b[h] for h in range(len(active)))
            u, s, vt = np.linalg.svd(delta)
            nearest = (u[:, :rank] * s[:rank]) @ vt[:rank] if rank <= len(s) else delta
            read = {side: leaf[layer].astype(np.float64) for side, leaf in adapter.modules[module].items()}
            found = read["a"].T @ read["b"]
            np.testing.assert_allclose(found, nearest, atol=1e-5)
            error = np.sqrt((s[rank:] ** 2).sum())
            np.testing.assert_allclose(np.linalg.norm(delta - found), error, atol=1e-5)
            dropped.append((s[rank:] ** 2).sum())
            total.append((delta**2).sum())
    np.testing.assert_allclose(lost, sum(dropped) / sum(total), rtol=1e-9, atol=1e-15)
    assert lost > 0.001 or rank == 22


def test_the_whole_rank_loses_nothing(pool, params, tmp_path):
    rows = gather(params, jnp.array([2, 3, 7]))
    assert write_peft(tmp_path / "whole", pool, rows, BASE, {}) == 0
    assert write_peft(tmp_path / "same", pool, rows, BASE, {}, rank=6) == 0
    assert_equal(read_peft(tmp_path / "same", BASE), read_peft(tmp_path / "whole", BASE))
    untrained = jax.tree.map(jnp.zeros_like, rows)
    assert write_peft(tmp_path / "zero", pool, untrained, BASE, {}, rank=2) == 0
    assert not any(leaf.any() for leaf in jax.tree.leaves(read_peft(tmp_path / "zero", BASE).modules))
    pairs = {"m": (np.ones((2, 6, 24), np.float32), np.ones((2, 6, 40), np.float32))}  # of rank 1
    assert 0 <= truncated(pairs, 1)[1] < 1e-12
    for rank in (7, 0, -1):
        with raises(f"rank is {rank}, expected 1 to 6, the rank of the components together"):
            write_peft(tmp_path / "out", pool, rows, BASE, {}, rank=rank)
    assert not (tmp_path / "out").exists()


def check_reading(folder):
    """A valid adapter or one line."""
    try:
        adapter = read_peft(folder, BASE)
    except InputError as error:
        assert "\n" not in str(error)
        return None
    for module, pair in adapter.modules.items():
        d_in, d_out = BASE.config.modules[module]
        assert (pair["a"].shape, pair["b"].shape) == ((2, adapter.rank, d_in), (2, adapter.rank, d_out))
        assert all(leaf.dtype == np.float32 and np.isfinite(leaf).all() for leaf in pair.values())
    return adapter


@pytest.fixture(scope="module")
def damaged(exported, tmp_path_factory):
    """(a folder, its files as they were)."""
    folder = tmp_path_factory.mktemp("damaged")
    contents = {name: (exported[0] / name).read_bytes() for name in (CONFIG, TENSORS)}

    def restore():
        for name, content in contents.items():
            (folder / name).write_bytes(content)

    return folder, contents, restore


few = settings(max_examples=60, deadline=None, derandomize=True)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@few
@given(name=st.sampled_from([CONFIG, TENSORS]), share=st.floats(0, 1, exclude_max=True))
@example(name=CONFIG, share=0.0)
@example(name=TENSORS, share=0.0)
def test_files_that_are_cut_short(damaged, name, share):
    folder, contents, restore = damaged
    restore()
    cut = contents[name][: int(share * len(contents[name]))]
    (folder / name).write_bytes(cut)
    # Without its last line's end the config is whole.
    assert check_reading(folder) is None or (name == CONFIG and cut == contents[name].rstrip())


@few
@given(content=st.sampled_from(["[]", "null", "3", '"text"', "NaN", "{}", "[{}]", "[" * 100_000, "\ufeff{}"]))
def test_a_config_that_is_other_json(damaged, content):
    folder, _, restore = damaged
    restore()
    (folder / CONFIG).write_text(content)
    assert check_reading(folder) is None


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of Python, for some regular expressions
@settings(few, max_examples=200)
@given(setting=st.sampled_from(sorted(SETTINGS)) | st.text(max_size=5), value=values)
def test_a_setting_of_any_type(damaged, setting, value):
    folder, contents, restore = damaged
    restore()
    config = json.loads(contents[CONFIG]) | {setting: value}
    (folder / CONFIG).write_text(json.dumps(config))
    check_reading(folder)


@few
@given(where=st.integers(0), value=st.integers(0, 255))
def test_a_byte_that_is_wrong(damaged, where, value):
    folder, contents, restore = damaged
    restore()
    content = bytearray(contents[TENSORS])
    header = 8 + struct.unpack("<Q", content[:8])[0]
    content[where % header] = value
    (folder / TENSORS).write_bytes(content)
    check_reading(folder)


@few
@given(
    name=st.sampled_from(["h.0.mlp.c_fc.lora_A.weight", "h.1.mlp.c_fc.lora_B.x.weight", "wte.weight"]) | st.text(),
    kind=st.sampled_from([*TYPES, "I32", "BOOL", "F8_E8M0", "?"]),
    shape=st.lists(st.integers(0, 7), max_size=3),
    first=st.integers(0, 255),
)
def test_a_tensor_of_any_kind(damaged, name, kind, shape, first):
    folder, _, restore = damaged
    restore()
    held = safetensors.numpy.load_file(folder / TENSORS)
    size = int(np.prod(shape)) * (jnp.dtype(TYPES[kind]).itemsize if kind in TYPES else 4 if kind == "I32" else 1)
    raw = {key: ("F32", v.shape, v.tobytes()) for key, v in held.items()}
    content = bytes([first] * size)
    save_raw(folder / TENSORS, raw | {f"base_model.model.transformer.{name}": (kind, shape, content)})
    assert check_reading(folder) is None


def test_what_a_pool_cannot_hold(pool, params, tmp_path):
    adapter = read_peft(written(tmp_path / "out", pool, params), BASE)
    with pytest.raises(InputError, match=r"has rank 6, expected at most 4: config\.configurer\.k = 2"):
        place(pool, params, adapter, jnp.array([0, 1]))
    small = toys.toy_pool()
    with pytest.raises(InputError, match=r"adapts \S+, config\.pool\.modules has only attn\.c_attn"):
        place(small, toys.toy_params(small), adapter, jnp.array([0, 1, 2]))


def test_a_folder_is_overwritten_only_when_told_to(pool, params, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    rows = gather(params, jnp.array([0]))
    with pytest.raises(InputError, match=r"^[^ ]+ exists already: name another folder"):
        write_peft(folder, pool, rows, BASE, {})
    assert (folder / "thesis.txt").read_text() == "mine"
    (folder / "thesis.txt").rename(folder / "README.md")
    write_peft(folder, pool, rows, BASE, {}, overwrite=True)
    assert read_peft(folder, BASE).rank == 2
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be written"):
        write_peft(tmp_path / "file" / "out", pool, rows, BASE, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine"]


def test_only_an_adapter_is_replaced(pool, params, tmp_path):
    rows = gather(params, jnp.array([0]))
    for where in (tmp_path / "thesis", tmp_path):
        where.mkdir(exist_ok=True)
        (where / "thesis.txt").write_text("mine")
        with pytest.raises(
            InputError, match=r"has '(thesis|thesis\.txt)' beside an adapter's files and is not replaced"
        ):
            write_peft(where, pool, rows, BASE, {}, overwrite=True)
        assert (where / "thesis.txt").read_text() == "mine"


def test_the_hash_of_the_weights_decides_whose_adapter_it_is(pool, params, tmp_path):
    """Where an adapter has one; whatever the base is called."""
    folder = tmp_path / "out"
    write_peft(folder, pool, gather(params, jnp.array([0])), BASE, {"base": {"name": BASE.name, "hash": BASE.hash}})
    assert read_peft(folder, BASE._replace(name="/elsewhere/renamed")).rank == 2
    other = BASE._replace(hash="2b")
    with pytest.raises(InputError, match="is an adapter of a base with the hash 1a, base 'org/toy' has 2b"):
        read_peft(folder, other)
    assert read_peft(folder, other, same_base=True).rank == 2
