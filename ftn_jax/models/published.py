"""Shapes of published models by their names on the hub, so that a plan needs no network."""

from collections.abc import Mapping
from typing import Any

_GPT2 = {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024}
_LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-5}
_SMOLLM2 = _LLAMA | {
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_LLAMA3 = _LLAMA | {
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": _LLAMA3_ROPE | {"factor": 8.0},
    "num_key_value_heads": 8,
}
_LLAMA3_SMALL = _LLAMA3 | {
    "rope_scaling": _LLAMA3_ROPE | {"factor": 32.0},
    "head_dim": 64,
    "tie_word_embeddings": True,
}
_QWEN = {"vocab_size": 151936, "rope_theta": 1000000.0, "rms_norm_eps": 1e-6}
_QWEN25 = _QWEN | {"model_type": "qwen2", "max_position_embeddings": 32768, "num_key_value_heads": 2}
_QWEN3 = _QWEN | {
    "model_type": "qwen3",
    "max_position_embeddings": 40960,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "sliding_window": None,
}
_TIED = {"tie_word_embeddings": True}
_LONG = {"max_position_embeddings": 131072}
_GEMMA3 = {
    "model_type": "gemma3_text",
    "vocab_size": 262144,
    "max_position_embeddings": 32768,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
}


def _gpt2(width: int, layers: int, heads: int) -> dict[str, Any]:
    return _GPT2 | {"n_embd": width, "n_layer": layers, "n_head": heads}


def _shape(width: int, inner: int, layers: int, heads: int | None = None, **others: Any) -> dict[str, Any]:
    """The entries of a config.json for a shape; without ``heads`` if those are given elsewhere."""
    named = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    return named | ({} if heads is None else {"num_attention_heads": heads}) | others


_QWEN25_1_5B = _QWEN25 | _TIED | _shape(1536, 8960, 28, 12)
_QWEN25_7B = _QWEN25 | _shape(3584, 18944, 28, 28, num_key_value_heads=4, vocab_size=152064)
_GEMMA3_1B = _GEMMA3 | _shape(1152, 6912, 26)

PUBLISHED: Mapping[str, dict[str, Any]] = {
    "distilgpt2": _gpt2(768, 6, 12),
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 24, 16),
    "gpt2-large": _gpt2(1280, 36, 20),
    "gpt2-xl": _gpt2(1600, 48, 25),
    "HuggingFaceTB/SmolLM2-135M": _SMOLLM2 | _shape(576, 1536, 30, 9, num_key_value_heads=3),
    "HuggingFaceTB/SmolLM2-360M": _SMOLLM2 | _shape(960, 2560, 32, 15, num_key_value_heads=5),
    "HuggingFaceTB/SmolLM2-1.7B": _SMOLLM2 | _shape(2048, 8192, 24, 32, num_key_value_heads=32, rope_theta=130000),
    "meta-llama/Llama-3.2-1B": _LLAMA3_SMALL | _shape(2048, 8192, 16, 32),
    "meta-llama/Llama-3.2-3B": _LLAMA3_SMALL | _shape(3072, 8192, 28, 24, head_dim=128),
    "meta-llama/Llama-3.1-8B": _LLAMA3 | _shape(4096, 14336, 32, 32),
    "meta-llama/Llama-3.1-70B": _LLAMA3 | _shape(8192, 28672, 80, 64),
    "Qwen/Qwen2.5-0.5B": _QWEN25 | _TIED | _shape(896, 4864, 24, 14),
    "Qwen/Qwen2.5-1.5B": _QWEN25_1_5B | _LONG,
    "Qwen/Qwen2.5-1.5B-Instruct": _QWEN25_1_5B,
    "Qwen/Qwen2.5-3B": _QWEN25 | _TIED | _shape(2048, 11008, 36, 16),
    "Qwen/Qwen2.5-7B": _QWEN25_7B | _LONG,
    "Qwen/Qwen2.5-7B-Instruct": _QWEN25_7B,
    "Qwen/Qwen3-0.6B": _QWEN3 | _TIED | _shape(1024, 3072, 28, 16),
    "Qwen/Qwen3-1.7B": _QWEN3 | _TIED | _shape(2048, 6144, 28, 16),
    "Qwen/Qwen3-4B": _QWEN3 | _TIED | _shape(2560, 9728, 36, 32),
    "Qwen/Qwen3-8B": _QWEN3 | _shape(4096, 12288, 36, 32),
    "google/gemma-3-270m": _GEMMA3 | _shape(640, 2048, 18),
    "google/gemma-3-1b-pt": _GEMMA3_1B,
    "google/gemma-3-1b-it": _GEMMA3_1B,
}
"""Name -> the entries of its config.json that decide shape and arithmetic."""


def published_config(name: str) -> dict[str, Any] | None:
    """The entries of a published model's config.json that decide shape and arithmetic; None if the model is not listed.

    For an instruction-tuned model that is not listed, the entries of its base are returned.
    """
    found = PUBLISHED.get(name, PUBLISHED.get(name.removesuffix("-Instruct").removesuffix("-it")))
    return None if found is None else dict(found)
