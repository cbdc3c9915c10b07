"""Writes language models in Hugging Face format: config.json, model.safetensors, tokenizer."""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from ftn_jax.core.errors import InputError
from ftn_jax.models.decoder import DecoderConfig
from ftn_jax.models.families import FAMILIES, Family
from ftn_jax.models.hub import FILES, read_json, resolve
from ftn_jax.models.pretrained import HEAD, Base, leaf_of, load_tokenizer, open_gguf

WEIGHTS = "model.safetensors"
DTYPES = ("float32", "bfloat16", "float16")
_PROBE = "Hello hello  it's 2024\n\n\tDéjà vu, 漢字 🤽"  # words, numbers, spaces, and what few tokens have
_BESIDE = [pattern for pattern in FILES if pattern != "config.json" and "safetensors" not in pattern]


def cast(values: np.ndarray, dtype: str, where: Any) -> np.ndarray:
    """An array in one of `DTYPES`.

    Raises:
      InputError: values that are not finite, or not in this type; the message begins with ``where``.
    """
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(values, jnp.dtype(dtype))
    if not np.isfinite(found).all():
        raise InputError(f"{where} has values that are not finite in {dtype}, expected finite ones")
    return found


def tensors_of(family: Family, config: DecoderConfig, params: Any, dtype: str = "float32") -> dict[str, np.ndarray]:
    """The tensors of a language model, by their names in a checkpoint.

    Args:
      family: of the model.
      config: of the model.
      params: of `ftn_jax.models.decoder.Decoder`.
      dtype: one of `DTYPES`.

    Raises:
      InputError: values that are not finite in this type.
    """
    found = {}
    for path, (name, transposed) in family.tensors(config).items():
        value = np.asarray(leaf_of(params, path))
        layers = [(name.format(i), layer) for i, layer in enumerate(value)] if path[0] == "h" else [(name, value)]
        for full, layer in layers:
            found[f"{family.prefix}{full}"] = cast(layer.T if transposed else layer, dtype, f"tensor {full!r}")
    if not config.tied:
        found[HEAD] = cast(np.asarray(params["head"]), dtype, f"tensor {HEAD!r}")
    return found


def save(
    folder: pathlib.Path,
    family: Family,
    config: DecoderConfig,
    params: Any,
    raw: Mapping[str, Any],
    add_tokenizer: Callable[[pathlib.Path], Any],
    *,
    dtype: str = "float32",
) -> None:
    """Writes a language model into a folder that exists.

    Args:
      folder: the folder.
      family: of the model.
      config: of the model.
      params: of `ftn_jax.models.decoder.Decoder`.
      raw: the content of its config.json.
      add_tokenizer: writes the tokenizer's files into the folder.
      dtype: of the weights, one of `DTYPES`.

    Raises:
      InputError: values that are not finite in this type.
    """
    tensors = tensors_of(family, config, params, dtype)
    safetensors.numpy.save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    add_tokenizer(folder)


def save_like(folder: pathlib.Path, base: Base, params: Any, *, dtype: str = "float32") -> None:
    """Writes a base with other parameters: its own config.json, generation_config.json and tokenizer, and new weights.

    Args:
      folder: a folder that exists.
      base: the base; a GGUF file gets the config.json that it implies.
      params: of its shapes.
      dtype: of the weights, one of `DTYPES`.

    Raises:
      InputError: the base is no longer where it was, values are not finite in this type, or transformers does not read
        a GGUF file's tokenizer as it is.
    """
    family, (_, place) = FAMILIES[base.family], resolve(base.name)
    if place.is_file():
        raw = dict(open_gguf(place).config)
        add_tokenizer = base.tokens.tokenizer.save_pretrained
    else:
        raw = read_json(place / "config.json")

        def add_tokenizer(folder: pathlib.Path) -> None:
            for file in sorted({file for pattern in _BESIDE for file in place.glob(pattern)}):
                shutil.copyfile(file, folder / file.name)

    raw = {key: value for key, value in raw.items() if key not in ("dtype", "torch_dtype")}
    if family.architecture:
        raw["architectures"] = [family.architecture]
    # The older of two names, which every version of transformers reads.
    save(folder, family, base.config, params, raw | {"torch_dtype": dtype}, add_tokenizer, dtype=dtype)
    # For some kinds of model, transformers sets its own rule for words in place of the tokenizer's.
    if place.is_file() and load_tokenizer(folder)(_PROBE)["input_ids"] != base.tokens.tokenizer(_PROBE)["input_ids"]:
        raise InputError(
            f"base {place}: transformers would split text into other tokens than this file's tokenizer does, expected "
            "the same: export an adapter instead (ftn export)"
        )


def save_gpt2(folder: str | pathlib.Path, config: DecoderConfig, params: Any, tokenizer: Any, end: str) -> None:
    """Writes a GPT-2 of our own: weights (float32), configuration and tokenizer.

    Args:
      folder: the folder to write to.
      config: of a GPT-2.
      params: of `ftn_jax.models.decoder.Decoder`.
      tokenizer: the model's `tokenizers.Tokenizer`.
      end: the token that ends a text.
    """
    from transformers import PreTrainedTokenizerFast

    family, folder = FAMILIES["gpt2"], pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shape = dataclasses.asdict(config)
    end_id = tokenizer.token_to_id(end)
    raw = {key: shape[field] for field, (key, _) in family.keys.items()} | {
        "architectures": [family.architecture],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "bos_token_id": end_id,
        "eos_token_id": end_id,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "tie_word_embeddings": True,
    }
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end, model_max_length=config.positions
    )
    save(folder, family, config, params, raw, lambda folder: fast.save_pretrained(str(folder)))
