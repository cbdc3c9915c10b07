"""Bases are written as they were read; against transformers: parity/test_merged_parity.py."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import safetensors
from gguf_files import BYTE_LEVEL, GEMMA3, LLAMA, SENTENCEPIECE, WIDTH, model, paired, random, shape_of, write
from kills import ROOT

from ftn_jax.core.errors import InputError
from ftn_jax.models import pretrained
from ftn_jax.models.writing import save_like

FIXTURES = ROOT / "tests" / "fixtures"
PLACES = ["gpt2_tiny/bare", "gpt2_tiny/sharded", "families/llama3", "families/qwen2", "families/gemma3"]


def written(place, folder, **settings):
    base = pretrained.load(str(place))
    folder.mkdir()
    save_like(folder, base, base.params, **settings)
    return base, pretrained.load(str(folder))


def assert_same(base, again):
    assert again.config == base.config and again.family == base.family
    assert dataclasses.replace(again.tokens, tokenizer=0, base="") == dataclasses.replace(
        base.tokens, tokenizer=0, base=""
    )
    jax.tree.map(np.testing.assert_array_equal, again.params, base.params)
    text = "hello hell 2024, a  b\n"
    assert again.tokens.ids([text]) == base.tokens.ids([text])


@pytest.mark.parametrize("place", PLACES)
def test_a_folder_there_and_back(place, tmp_path):
    """Of bare names, of several files, with a tokenizer in two files."""
    base, again = written(FIXTURES / place, tmp_path / "out")
    assert_same(base, again)
    own = {file.name for file in (FIXTURES / place).iterdir()}
    others = {"expected.npz"} | {name for name in own if "safetensors" in name}
    assert {file.name for file in (tmp_path / "out").iterdir()} == (own - others) | {"model.safetensors"}
    with safetensors.safe_open(tmp_path / "out" / "model.safetensors", "numpy") as file:
        first = "transformer." if place.startswith("gpt2") else "model."
        assert all(name.startswith((first, "lm_head.")) for name in file.keys())


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_a_gguf_file_becomes_a_folder(architecture, tmp_path):
    tokenizer = BYTE_LEVEL if architecture == "llama" else SENTENCEPIECE | {"tokenizer.ggml.add_space_prefix": False}
    size = len(tokenizer["tokenizer.ggml.tokens"])
    outside = {"embed_tokens": ("token_embd", (size, WIDTH)), "norm": ("output_norm", (WIDTH,))}
    tensors, names = model(LLAMA if architecture == "llama" else GEMMA3, outside)
    theirs = paired(tensors, names) | {"output.weight": random(size, WIDTH, seed=9)}
    if architecture == "gemma3":
        theirs = {name: tensors[ours] for name, ours in names.items()}
    shape = {} if architecture == "llama" else {"attention__sliding_window": 8}
    write(tmp_path / "base.gguf", architecture, shape_of(architecture, **shape) | tokenizer, theirs)
    base, again = written(tmp_path / "base.gguf", tmp_path / "out")
    assert_same(base, again)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM" if architecture == "llama" else "Gemma3ForCausalLM"]


def test_a_tokenizer_that_transformers_would_not_read_as_it_is(tmp_path):
    """For a Qwen it takes Qwen's rule for words, whatever the file says."""
    tensors, names = model(LLAMA, biased=("q_proj", "k_proj", "v_proj"))
    theirs = {name: tensors[ours] for name, ours in names.items()}
    write(tmp_path / "base.gguf", "qwen2", shape_of("qwen2") | BYTE_LEVEL, theirs)
    with pytest.raises(InputError, match="would split text into other tokens than this file's tokenizer"):
        written(tmp_path / "base.gguf", tmp_path / "out")
