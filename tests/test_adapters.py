"""Components as adapters and back; with PEFT itself: parity/test_peft_parity.py."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import toys

from ftn_jax.errors import InputError
from ftn_jax.models.pretrained import Base
from ftn_jax.pools.base import gather
from ftn_jax.pools.peft import free_block, place, read_peft, write_peft

MODULES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
BASE = Base("org/toy", "1a", toys.toy_config(), toys.toy_base_params(), toys.toy_tokens())


@pytest.fixture(scope="module")
def pool():
    return toys.toy_pool(modules=MODULES)


@pytest.fixture(scope="module")
def params(pool):
    return toys.toy_params(pool)


def written(folder, pool, params, active=(2, 3, 7), **settings):
    """An adapter of some components; ``settings`` replace those of its config."""
    write_peft(folder, pool, gather(params, jnp.array(active)), BASE, {"active": list(active)})
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


def test_the_files_by_hand(pool, params, tmp_path):
    written(tmp_path / "out", pool, params)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["fan_in_fan_out"], config["peft_type"]) == (6, 6, True, "LORA")
    assert config["target_modules"] == list(MODULES)
    assert json.loads((tmp_path / "out" / "ftn_mask.json").read_text()) == {"active": [2, 3, 7]}
    tensors = safetensors.numpy.load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * 4
    a = tensors["base_model.model.transformer.h.1.mlp.c_fc.lora_A.weight"]
    b = tensors["base_model.model.transformer.h.1.mlp.c_fc.lora_B.weight"]
    assert (a.shape, b.shape) == ((6, 24), (40, 6))
    pair = params["mlp.c_fc"]
    delta = sum(np.asarray(pair["a"])[h, 1].T @ np.asarray(pair["b"])[h, 1] for h in (2, 3, 7))
    np.testing.assert_allclose((b @ a).T, delta, rtol=1e-5, atol=1e-6)


def test_there_and_back(pool, params, tmp_path):
    adapter = read_peft(written(tmp_path / "out", pool, params), BASE)
    assert (adapter.name, adapter.rank) == ("out", 6)
    active = jnp.array([1, 8, 9, 15])
    placed = place(pool, params, adapter, active)
    others = np.setdiff1d(np.arange(16), active)
    jax.tree.map(np.testing.assert_array_equal, gather(placed, others), gather(params, others))
    batch = toys.toy_batch()
    # Four components hold three, and a rank above 6 whose B is zero.
    mine = pool.example_losses(placed, active, batch)[0]
    np.testing.assert_allclose(mine, pool.example_losses(params, jnp.array([2, 3, 7]), batch)[0], rtol=1e-5)
    last = placed["attn.c_attn"]
    assert not last["b"][15].any() and (last["a"][15] == params["attn.c_attn"]["a"][15]).all()


def test_scaling_as_peft_computes_it(pool, params, tmp_path):
    plain = read_peft(written(tmp_path / "plain", pool, params), BASE).modules
    factors = {
        "alpha": ({"lora_alpha": 3}, dict.fromkeys(MODULES, 0.5)),
        "rslora": ({"use_rslora": True}, dict.fromkeys(MODULES, 6**0.5)),
        "pattern": ({"alpha_pattern": {"mlp.c_proj": 12}}, dict.fromkeys(MODULES, 1.0) | {"mlp.c_proj": 2.0}),
    }
    for name, (settings, expected) in factors.items():
        found = read_peft(written(tmp_path / name, pool, params, **settings), BASE).modules
        for module, factor in expected.items():
            np.testing.assert_allclose(found[module]["b"], factor * plain[module]["b"], rtol=1e-6)
            np.testing.assert_array_equal(found[module]["a"], plain[module]["a"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_dora": True}, "use_dora is True, expected a plain LoRA"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
        ({"base_model_name_or_path": "gpt2"}, "is an adapter of base 'gpt2', expected one of 'org/toy'"),
    ],
)
def test_adapters_that_are_refused(settings, said, pool, params, tmp_path):
    with pytest.raises(InputError, match=said):
        read_peft(written(tmp_path / "out", pool, params, **settings), BASE)


def change(folder, **tensors):
    path = folder / "adapter_model.safetensors"
    held = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file({k: v for k, v in (held | tensors).items() if v is not None}, path)


def test_tensors_that_do_not_fit(pool, params, tmp_path):
    name = "base_model.model.transformer.h.{}.{}.lora_A.weight"
    for i, (tensors, said) in enumerate([
        ({name.format(2, "mlp.c_fc"): np.zeros((6, 24), np.float32)}, r"h\.2\.mlp\.c_fc.*does not have"),
        ({name.format(0, "attn.q"): np.zeros((6, 24), np.float32)}, r"attn\.q.*does not have"),
        ({name.format(0, "mlp.c_fc"): None}, r"mlp\.c_fc of layer 0 has lora \{'B'"),
        ({name.format(0, "mlp.c_fc"): np.zeros((6, 25), np.float32)}, r"expected A \[r, 24\] and B \[40, r\]"),
    ]):  # fmt: skip
        folder = written(tmp_path / str(i), pool, params)
        change(folder, **tensors)
        with pytest.raises(InputError, match=said):
            read_peft(folder, BASE)
    (tmp_path / "0" / "adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="can't be read as a PEFT adapter"):
        read_peft(tmp_path / "0", BASE)
    with pytest.raises(InputError, match="can't be read as a PEFT adapter"):
        read_peft(tmp_path / "nowhere", BASE)


def test_what_a_pool_cannot_hold(pool, params, tmp_path):
    adapter = read_peft(written(tmp_path / "out", pool, params), BASE)
    with pytest.raises(InputError, match=r"has rank 6, expected at most 4: config\.configurer\.k = 2"):
        place(pool, params, adapter, jnp.array([0, 1]))
    small = toys.toy_pool()
    with pytest.raises(InputError, match=r"adapts \S+, config\.pool\.modules has attn\.c_attn alone"):
        place(small, toys.toy_params(small), adapter, jnp.array([0, 1, 2]))


def test_a_folder_is_overwritten_only_when_told_to(pool, params, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    rows = gather(params, jnp.array([0]))
    with pytest.raises(InputError, match="exists already"):
        write_peft(folder, pool, rows, BASE, {})
    assert (folder / "thesis.txt").read_text() == "mine"
    write_peft(folder, pool, rows, BASE, {}, overwrite=True)
    assert read_peft(folder, BASE).rank == 2
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't be written"):
        write_peft(tmp_path / "file" / "out", pool, rows, BASE, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine"]


def test_free_blocks_are_free_and_close_together():
    taken = np.zeros(64, bool)
    sizes = []
    for _ in range(7):
        block = free_block(64, 9, taken)
        assert len(set(block.tolist())) == 9 and not taken[block].any() and (np.diff(block) > 0).all()
        sizes.append(toys.blob_sizes(block, 8)[0])
        taken[block] = True
    assert sizes[:4] == [9] * 4  # of one piece, as long as there is room for it
    with pytest.raises(InputError, match="1 of the pool's 64 components are free, expected at least"):
        free_block(64, 9, taken)
    assert free_block(10, 3, np.arange(10) < 4).tolist() == [4, 5, 6]
