"""Small GGUF files, written by the gguf package as llama.cpp's converter does."""

import gguf
import numpy as np
from tokenizers import pre_tokenizers

TYPE = gguf.GGMLQuantizationType
WIDTH, HEADS, KV_HEADS, HEAD, INNER, LAYERS = 16, 4, 2, 4, 24, 2
NORMAL, UNKNOWN, CONTROL, OWN, BYTE = 1, 2, 3, 4, 6

# A byte-level BPE: the bytes, four merges, two special tokens, and one of the user.
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = ["h e", "l l", "he ll", "Ġ hell", "2 0"]
TOKENS = [*BYTES, *(merge.replace(" ", "") for merge in MERGES), "<|end|>", "<|start|>", "<think>"]
END, START, OWN_TOKEN = len(TOKENS) - 3, len(TOKENS) - 2, len(TOKENS) - 1
BYTE_LEVEL = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.token_type": [NORMAL] * (len(TOKENS) - 3) + [CONTROL, CONTROL, OWN],
    "tokenizer.ggml.eos_token_id": END,
    "tokenizer.ggml.bos_token_id": START,
}
# SentencePiece's: merges are of the highest score first, whatever the order of tokens.
PIECES = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL} | {f"<0x{i:02X}>": BYTE for i in range(256)}
PIECES |= dict.fromkeys(["\u2581", *"abc", "ab", "bc", "\u2581ab"], NORMAL) | {"  ": OWN}
SCORES = {"bc": -1.0, "ab": -2.0, "\u2581ab": -3.0}
SENTENCEPIECE = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": list(PIECES),
    "tokenizer.ggml.scores": [SCORES.get(piece, -99.0) for piece in PIECES],
    "tokenizer.ggml.token_type": list(PIECES.values()),
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
}


def write(path, architecture, metadata, tensors):
    """A file of these pairs (None: left out) and tensors, as (array, type) where they are quantized."""
    writer = gguf.GGUFWriter(path, architecture)
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in metadata.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            adders[type(value)](key, value)
    for name, value in tensors.items():
        values, kind = value if isinstance(value, tuple) else (value, None)
        writer.add_tensor(name, values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def shape_of(architecture, **changes):
    """What a file says of a tiny model's shape. Names of ``changes`` have __ for a dot."""
    norm = "layer_norm_epsilon" if architecture == "gpt2" else "layer_norm_rms_epsilon"
    pairs = {
        "context_length": 64,
        "embedding_length": WIDTH,
        "block_count": LAYERS,
        "feed_forward_length": INNER,
        "attention.head_count": HEADS,
        f"attention.{norm}": 1e-5,
    }
    if architecture != "gpt2":
        pairs |= {"attention.head_count_kv": KV_HEADS, "attention.key_length": HEAD, "rope.freq_base": 5e5}
    pairs |= {key.replace("__", "."): value for key, value in changes.items()}
    return {f"{architecture}.{key}": value for key, value in pairs.items()}


def random(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32)


def embeddings(tokens=TOKENS):
    return {"token_embd.weight": random(len(tokens), WIDTH)}


def halves_to_pairs(rows, heads):
    """The converter's order, channel by channel: i of the first half of a head, then i of its second half."""
    out, width = np.empty_like(rows), len(rows) // heads
    for h in range(heads):
        for i in range(width // 2):
            out[h * width + 2 * i] = rows[h * width + i]
            out[h * width + 2 * i + 1] = rows[h * width + width // 2 + i]
    return out


QUERIES, KEYS = HEADS * HEAD, KV_HEADS * HEAD
# Hugging Face's modules of a block -> the converter's, and the shape of their weights.
LLAMA = {
    "self_attn.q_proj": ("attn_q", (QUERIES, WIDTH)),
    "self_attn.k_proj": ("attn_k", (KEYS, WIDTH)),
    "self_attn.v_proj": ("attn_v", (KEYS, WIDTH)),
    "self_attn.o_proj": ("attn_output", (WIDTH, QUERIES)),
    "mlp.gate_proj": ("ffn_gate", (INNER, WIDTH)),
    "mlp.up_proj": ("ffn_up", (INNER, WIDTH)),
    "mlp.down_proj": ("ffn_down", (WIDTH, INNER)),
    "input_layernorm": ("attn_norm", (WIDTH,)),
    "post_attention_layernorm": ("ffn_norm", (WIDTH,)),
}
QWEN3 = LLAMA | {"self_attn.q_norm": ("attn_q_norm", (HEAD,)), "self_attn.k_norm": ("attn_k_norm", (HEAD,))}
GEMMA3 = QWEN3 | {
    "post_attention_layernorm": ("post_attention_norm", (WIDTH,)),
    "pre_feedforward_layernorm": ("ffn_norm", (WIDTH,)),
    "post_feedforward_layernorm": ("post_ffw_norm", (WIDTH,)),
}
GPT2 = {
    "ln_1": ("attn_norm", (WIDTH,)),
    "attn.c_attn": ("attn_qkv", (WIDTH, 3 * WIDTH)),
    "attn.c_proj": ("attn_output", (WIDTH, WIDTH)),
    "ln_2": ("ffn_norm", (WIDTH,)),
    "mlp.c_fc": ("ffn_up", (WIDTH, INNER)),
    "mlp.c_proj": ("ffn_down", (INNER, WIDTH)),
}
OUTSIDE = {"embed_tokens": ("token_embd", (len(TOKENS), WIDTH)), "norm": ("output_norm", (WIDTH,))}
GPT2_OUTSIDE = {
    "wte": ("token_embd", (len(TOKENS), WIDTH)),
    "wpe": ("position_embd", (64, WIDTH)),
    "ln_f": ("output_norm", (WIDTH,)),
}


def model(block, outside=OUTSIDE, biased=()):
    """(tensors by Hugging Face's names; its names by the converter's). ``biased``: modules that have one."""
    modules = dict(outside)
    for i in range(LAYERS):
        prefix = "h" if block is GPT2 else "layers"
        modules |= {f"{prefix}.{i}.{name}": (f"blk.{i}.{theirs}", shape) for name, (theirs, shape) in block.items()}
    tensors, names = {}, {}
    for name, (theirs, shape) in modules.items():
        for leaf in ("weight", "bias"):
            if leaf == "weight" or name.endswith(tuple(biased)):
                size = (shape[-1] if block is GPT2 else shape[0],) if leaf == "bias" else shape
                tensors[f"{name}.{leaf}"] = random(*size, seed=len(tensors))
                names[f"{theirs}.{leaf}"] = f"{name}.{leaf}"
    return tensors, names


def paired(tensors, names):
    """The converter's tensors of a "llama"."""
    heads = {"attn_q": HEADS, "attn_k": KV_HEADS}
    found = {theirs: tensors[name] for theirs, name in names.items()}
    for theirs in found:
        module = theirs.split(".")[-2]
        if module in heads:
            found[theirs] = halves_to_pairs(found[theirs], heads[module])
            assert not np.array_equal(found[theirs], tensors[names[theirs]])
    return found
