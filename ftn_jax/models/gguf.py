"""Reads GGUF files (llama.cpp's format) as Hugging Face checkpoints.

A file's metadata is translated into the model's ``config.json``, and its tensors get back the names, layout and row
order that they had before llama.cpp converted them. Unknown metadata of a model is refused, since it may change what
the model computes.
"""

import math
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from ftn_jax.core.errors import InputError
from ftn_jax.models.families import FAMILIES, Family
from ftn_jax.models.gguf_file import File, read_file
from ftn_jax.models.gguf_tokenizer import tokenizer_of
from ftn_jax.models.pretrained import Checkpoint

# general.architecture -> model_type. Files of Mistral are "llama" too.
_ARCHITECTURES = {
    "gpt2": "gpt2",
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3": "gemma3_text",
}
# Role of a linear module, or name of a norm, as in `Family` -> name in a GGUF file.
_MODULES = {
    "qkv": "attn_qkv",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
    "attn_norm": "attn_norm",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "attn_post_norm": "post_attention_norm",
    "mlp_norm": "ffn_norm",
    "mlp_post_norm": "post_ffw_norm",
}
_EMBEDDINGS, _OUTPUT, _ROPE = "token_embd.weight", "output.weight", "rope_freqs.weight"


class _Place(NamedTuple):
    """A tensor's name in the model, whether it belongs to a norm, and its role in `_MODULES` ("" outside blocks)."""

    name: str
    role: str
    norm: bool


def read_gguf(path: pathlib.Path) -> Checkpoint:
    """Opens a GGUF file. Weights stay in the file until they are read.

    Raises:
      InputError: not a GGUF file, a damaged file, or an unknown kind of model. `Checkpoint.read` also raises it, for a
        tensor that is missing or has values that are not finite.
    """
    file = read_file(path)
    metadata = file.metadata
    architecture = metadata.text("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise metadata.refuse("general.architecture", architecture, " or ".join(_ARCHITECTURES))
    metadata.neutral("general.type", "model")
    metadata.neutral("split.count", 1, 0)
    family, permuted = FAMILIES[_ARCHITECTURES[architecture]], architecture == "llama"
    config = _config(file, architecture, family)
    places: dict[str, tuple[str, _Place]] = {}
    for name in file.tensors:
        place = _place(name, family, metadata.count(f"{architecture}.block_count"))
        if place is None and not (permuted and name == _ROPE):
            raise InputError(f"base {path}: tensor {name!r} is not known for architecture {architecture!r}")
        if place is not None and not (family.positions and name == _OUTPUT):  # a copy, as `_config` has checked
            places[place.name] = name, place
    heads = {"q": config["num_attention_heads"], "k": config["num_key_value_heads"]} if permuted else {}

    def read(name: str) -> np.ndarray:
        if name not in places:
            raise InputError(f"base {path}: tensor {name!r} is missing from the weights")
        theirs, place = places[name]
        values = file.values(theirs)
        if place.norm:
            values = values - np.float32(family.fixed.get("norm_offset", 0))
        elif place.role in heads:
            if len(values) % (2 * heads[place.role]):
                raise InputError(f"base {path}: {theirs!r} has {len(values)} rows for {heads[place.role]} heads")
            values = _halves(values, heads[place.role])
        elif place.role and not family.transposed:
            values = values.T
        return np.array(values, np.float32, order="C")  # always a copy, never the file's memory

    tokenizer = tokenizer_of(metadata, architecture, config["vocab_size"])
    return Checkpoint(config, frozenset(places), read, tokenizer, (), [path])


def _halves(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys in Hugging Face's order: for each head the first channels of its pairs, then the second.

    RoPE rotates pairs of channels; for "llama", the converter puts the two channels of a pair side by side.
    """
    pairs = values.reshape(heads, len(values) // heads // 2, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


def _place(name: str, family: Family, layers: int) -> _Place | None:
    """The place of a file's tensor in a model of this family and number of layers; None if it has no place there."""
    match = re.fullmatch(r"(?:blk\.(0|[1-9]\d*)\.)?(\w+)\.(weight|bias)", name)
    if match is None:
        return None
    number, module, leaf = match.groups()
    normal = family.fixed["norm"] == "layer"  # LayerNorm has biases, RMSNorm none
    if number is None:
        outside = {"token_embd": family.embed, "output_norm": family.norm, "output": "lm_head"}
        outside |= {"position_embd": family.positions} if family.positions else {}
        norm = module == "output_norm"
        known = module in outside and (leaf == "weight" or (norm and normal))
        return _Place(f"{outside[module]}.{leaf}", "", norm) if known else None
    biased = {*family.biases, *(role for roles in family.bias_keys.values() for role in roles)}
    if int(number) >= layers:
        return None
    for role, theirs in (dict(family.linears) | dict(family.norms)).items():
        norm = role in family.norms
        if _MODULES[role] == module and (leaf == "weight" or (normal if norm else role in biased)):
            return _Place(f"{family.blocks.format(number)}.{theirs}.{leaf}", role, norm)
    return None


def _config(file: File, architecture: str, family: Family) -> dict[str, Any]:
    """The ``config.json`` of a file's model."""
    metadata, of = file.metadata, f"{architecture}.".__add__
    if _EMBEDDINGS not in file.tensors:
        raise InputError(f"base {metadata.where}: tensor {_EMBEDDINGS!r} is missing from the weights")
    width, layers = metadata.count(of("embedding_length")), metadata.count(of("block_count"))
    heads, inner = metadata.count(of("attention.head_count")), metadata.count(of("feed_forward_length"))
    positions = metadata.count(of("context_length"))
    head = metadata.count(of("attention.key_length"), width // heads)
    metadata.neutral(of("attention.value_length"), head)
    metadata.neutral(of("attention.causal"), True)
    metadata.neutral(of("tensor_data_layout"), "reference", "Meta AI original pth")  # two old names of one layout
    config: dict[str, Any] = {
        "model_type": _ARCHITECTURES[architecture],
        "vocab_size": metadata.count(of("vocab_size"), file.tensors[_EMBEDDINGS].shape[0]),
        "tie_word_embeddings": _OUTPUT not in file.tensors or bool(family.positions),
    }
    for token in ("bos", "eos"):
        config[f"{token}_token_id"] = metadata.count(f"tokenizer.ggml.{token}_token_id", None, least=0)
    if family.positions:
        metadata.neutral(of("attention.head_count_kv"), heads)
        metadata.neutral(of("attention.key_length"), width // heads)
        names = {"n_embd": width, "n_layer": layers, "n_head": heads, "n_inner": inner, "n_positions": positions}
        config |= names | {"layer_norm_epsilon": metadata.number(of("attention.layer_norm_epsilon"))}
        _refuse_other_head(file)
    else:
        config |= {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": metadata.count(of("attention.head_count_kv"), heads),
            "head_dim": head,
            "intermediate_size": inner,
            "rms_norm_eps": metadata.number(of("attention.layer_norm_rms_epsilon")),
            "max_position_embeddings": positions,
        }
        for key, roles in family.bias_keys.items():
            if any(name.endswith(tuple(f".{_MODULES[role]}.bias" for role in roles)) for name in file.tensors):
                config[key] = True
        config |= _rope(file, architecture, head)
        window = 0
        if architecture in ("llama", "gemma3"):
            window = metadata.count(of("attention.sliding_window"), 0, least=0)
        if architecture == "gemma3":
            # llama.cpp hard-codes what the files leave out; the model with 62 layers is the one of 27 billion weights.
            config |= {
                "sliding_window": window or None,
                "sliding_window_pattern": metadata.count(of("attention.sliding_window_pattern"), 6) if window else 1,
                "rope_local_base_freq": metadata.number(of("rope.freq_base_swa"), 1e4),
                "query_pre_attn_scalar": width // heads if layers == 62 else head,
            }
        elif window:
            config |= {"model_type": "mistral", "sliding_window": window}
    metadata.refuse_others(of(""))
    return config


def _refuse_other_head(file: File) -> None:
    """Refuses a GPT-2 whose head differs from its embeddings. Old converters wrote the same weights twice."""
    if _OUTPUT in file.tensors:
        same = file.tensors[_OUTPUT][:2] == file.tensors[_EMBEDDINGS][:2]
        if not same or not np.array_equal(file.raw(_OUTPUT), file.raw(_EMBEDDINGS)):
            where = file.metadata.where
            raise InputError(f"base {where}: {_OUTPUT!r} differs from {_EMBEDDINGS!r}, supported: a tied head")


def _rope(file: File, architecture: str, head: int) -> dict[str, Any]:
    """``rope_theta`` and ``rope_scaling``, from the metadata or from the tensor that Llama 3's files have."""
    metadata, of = file.metadata, f"{architecture}.rope.".__add__
    metadata.neutral(of("dimension_count"), head)
    theta = metadata.number(of("freq_base"), 1e4)  # llama.cpp's own default
    kind = metadata.text(of("scaling.type"), "none")
    if kind not in ("none", "linear", "yarn"):
        raise metadata.refuse(of("scaling.type"), kind, "none, linear or yarn")
    metadata.flag(of("scaling.finetuned"), False)  # only says how the model was trained
    original = metadata.count(of("scaling.original_context_length"), None, least=0)
    scaling: dict[str, Any] | None = None
    if kind == "none":
        metadata.neutral(of("scaling.factor"), 1, 0)
    else:
        scaling = {"rope_type": kind, "factor": metadata.number(of("scaling.factor"))}
    if kind == "yarn" and scaling:
        scaling["beta_fast"] = metadata.number(of("scaling.yarn_beta_fast"), 32.0)
        scaling["beta_slow"] = metadata.number(of("scaling.yarn_beta_slow"), 1.0)
        scaling |= {"original_max_position_embeddings": original} if original else {}
        for key in ("attn_factor", "yarn_attn_factor", "yarn_ext_factor"):
            metadata.neutral(of(f"scaling.{key}"), 1)
    if architecture == "llama" and _ROPE in file.tensors:
        if scaling:
            raise metadata.refuse(of("scaling.type"), kind, f"none beside {_ROPE}")
        scaling = _llama3(file.values(_ROPE), theta, head, metadata.where)
    return {"rope_theta": theta, "rope_scaling": scaling}


def _llama3(divisors: np.ndarray, theta: float, head: int, where: Any) -> dict[str, Any] | None:
    """``rope_scaling`` of Llama 3, from the divisors of each pair's frequency."""
    low, high, original, factor = 1.0, 4.0, 8192, float(divisors.max())
    fits = divisors.shape == (head // 2,) and factor >= 1
    if fits:
        turns = original * theta ** -(np.arange(0, 2 * len(divisors), 2) / head) / (2 * math.pi)
        kept = np.clip((turns - low) / (high - low), 0, 1)
        fits = np.allclose(divisors * (kept + (1 - kept) / factor), 1, rtol=0, atol=1e-4)
    if not fits:
        raise InputError(
            f"base {where}: {_ROPE!r} differs from Llama 3's divisors of frequencies (low_freq_factor {low}, "
            f"high_freq_factor {high}, {original} positions, and the largest divisor {factor} as the factor)"
        )
    if factor == 1:
        return None
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
