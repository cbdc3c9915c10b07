"""Hugging Face checkpoints of the GPT-2 family: find, load and write them.

Weights are read from safetensors only, and no remote code is run.
"""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import threading
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.flax
import safetensors.numpy

from ftn_jax.errors import InputError
from ftn_jax.models import gpt2
from ftn_jax.settings import SWITCH, TEXT, Rule, one_of

# Else transformers announces at import that PyTorch is missing; nothing here needs it.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

PACKAGED = pathlib.Path(__file__).parent.parent / "assets" / "base"
AUTO = "distilgpt2"
_FILES = [
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "vocab.json",
    "merges.txt",
]
_FILES += ["special_tokens_map.json", "added_tokens.json"]
_PROBE_SECONDS = 4.0

# Hugging Face's names inside a block -> ours. Its Conv1D keeps [d_in, d_out], as our kernels do.
_BLOCK = {
    f"{module}.{theirs}": (*module.split("."), ours)
    for module, leaves in {
        **{f"ln_{i}": {"weight": "scale", "bias": "bias"} for i in (1, 2)},
        **{name: {"weight": "kernel", "bias": "bias"} for name in gpt2.MODULES},
    }.items()
    for theirs, ours in leaves.items()
}
_TOP = {
    "wte.weight": ("wte",),
    "wpe.weight": ("wpe",),
    "ln_f.weight": ("ln_f", "scale"),
    "ln_f.bias": ("ln_f", "bias"),
}


BASE_SETTINGS: dict[str, Rule] = {
    "base": TEXT,
    "model.dtype": one_of("float32", "bfloat16"),
    "model.remat": SWITCH,
}
"""The settings of what reads or adapts a base, by full name."""


class Base(NamedTuple):
    """A frozen base model. ``hash`` is of the weight files, ``params`` in the computation's dtype."""

    name: str
    hash: str
    config: gpt2.GPT2Config
    params: Any
    tokenizer: Any


def resolve(name: str) -> tuple[str, pathlib.Path]:
    """(resolved name, local folder) of ``auto``, ``packaged``, a folder, or a name on the hub.

    ``auto`` is `AUTO` where it is cached or the hub answers within seconds, else the packaged base; the choice
    is logged. Any other name is found or refused, never replaced.

    Raises:
      InputError: the name can't be had; says what was tried.
    """
    if name == "packaged":
        return name, PACKAGED
    if name == "auto":
        reason = _unreachable(AUTO)
        logging.getLogger("ftn_jax").warning(
            f"base: {AUTO}, from its cache or the hub"
            if reason is None
            else f"base: the packaged one, since {AUTO} is not cached and the hub can't be reached ({reason})"
        )
        return resolve(AUTO if reason is None else "packaged")
    if os.path.isdir(name):  # false for what no path can be, where pathlib raises
        return name, pathlib.Path(name)
    import huggingface_hub

    cached = _cached(name)
    if cached is not None:
        return name, cached
    try:
        return name, pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=_FILES))
    except Exception as error:  # the hub's client raises from several libraries; all mean the same here
        raise InputError(
            f"base {name!r} is neither a folder nor cached, and could not be downloaded ({_line(error)}): "
            "check the name and the network, or set --config.base=packaged"
        ) from error


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _cached(name: str) -> pathlib.Path | None:
    """The cached snapshot, where nothing is missing from it that `load` reads."""
    import huggingface_hub

    try:
        folder = pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=_FILES, local_files_only=True))
    except (OSError, ValueError):  # not cached, or not a name of the hub
        return None
    try:
        _weight_files(folder)
    except InputError:  # an interrupted download
        return None
    return folder if (folder / "config.json").exists() and _has_tokenizer(folder) else None


def _unreachable(name: str) -> str | None:
    """Why ``name`` can't be had within a few seconds, or None."""
    if _cached(name) is not None:
        return None
    import huggingface_hub

    outcome: list[str | None] = [f"no answer within {_PROBE_SECONDS:.0f} s"]

    def probe():
        try:
            huggingface_hub.HfApi().model_info(name, timeout=_PROBE_SECONDS - 1)
            outcome[0] = None
        except Exception as error:  # whatever it was, it is named in the line that the user sees
            outcome[0] = _line(error)

    # In a thread, because a name server that stays silent blocks longer than any HTTP timeout.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return outcome[0]


def load(name: str, *, dtype: str = "float32", remat: bool = False) -> Base:
    """Loads a GPT-2 checkpoint: ``packaged``, ``auto``, a folder, or a name on the hub.

    Args:
      name: see `resolve`.
      dtype: of parameters and computation, "float32" or "bfloat16".
      remat: gradient checkpointing.

    Raises:
      InputError: not to be had, another architecture, damaged weights, or no tokenizer.
    """
    name, folder = resolve(name)
    config = dataclass_of(read_config(folder), folder, dtype=dtype, remat=remat)
    tokenizer = load_tokenizer(folder)
    # The end-of-text that targets end with; config.json may name another, or none.
    config = dataclasses.replace(config, eos_token_id=tokenizer.eos_token_id)
    files = _weight_files(folder)
    digest = hashlib.sha256()
    tensors: dict[str, Any] = {}
    for file in files:
        try:
            tensors |= safetensors.flax.load_file(file)
        except (safetensors.SafetensorError, OSError) as error:
            raise InputError(f"base {name!r}: {file} can't be read as safetensors ({_line(error)})") from error
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    params = from_hugging_face(tensors, config, folder)
    return Base(name, digest.hexdigest()[:16], config, params, tokenizer)


def read_config(folder: pathlib.Path) -> dict:
    try:
        return json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"base {folder}: config.json can't be read ({_line(error)})") from error


def dataclass_of(raw: dict, folder: pathlib.Path, *, dtype: str, remat: bool) -> gpt2.GPT2Config:
    """The `GPT2Config` of a Hugging Face ``config.json``; what our GPT-2 does not compute is refused."""
    if raw.get("model_type") != "gpt2":
        raise InputError(f"base {folder}: model_type is {raw.get('model_type')!r}, expected 'gpt2'")
    supported = {
        "activation_function": ("gelu_new", ("gelu_new", "gelu_pytorch_tanh")),
        "scale_attn_weights": (True, (True,)),
        "scale_attn_by_inverse_layer_idx": (False, (False,)),
        "tie_word_embeddings": (True, (True,)),
        "add_cross_attention": (False, (False,)),
    }
    for key, (default, allowed) in supported.items():
        if raw.get(key, default) not in allowed:
            raise InputError(f"base {folder}: {key} is {raw[key]!r}, supported: {allowed}")
    try:
        return gpt2.GPT2Config(
            vocab_size=raw["vocab_size"],
            n_positions=raw["n_positions"],
            n_embd=raw["n_embd"],
            n_layer=raw["n_layer"],
            n_head=raw["n_head"],
            n_inner=raw.get("n_inner") or 4 * raw["n_embd"],
            layer_norm_epsilon=raw.get("layer_norm_epsilon", 1e-5),
            dtype=dtype,
            remat=remat,
        )
    except KeyError as error:
        raise InputError(f"base {folder}: config.json has no {error}") from error


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if not index.exists():
        raise InputError(f"base {folder}: no model.safetensors (pickled weights are not read)")
    try:
        files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"base {folder}: {index.name} is damaged ({_line(error)})") from error
    for file in files:
        if not file.exists():
            raise InputError(f"base {folder}: {index.name} names {file.name}, which is not there")
    return files


def from_hugging_face(tensors: dict[str, Any], config: gpt2.GPT2Config, folder: pathlib.Path) -> Any:
    """Our parameters from Hugging Face's tensors (with or without ``transformer.``), in ``config.dtype``.

    Raises:
      InputError: a tensor is missing, has a shape that the configuration contradicts, or the head is not tied.
    """
    tensors = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    model = gpt2.GPT2(config)
    expected = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])

    def take(name, shape):
        if name not in tensors:
            raise InputError(f"base {folder}: tensor {name!r} is missing from the weights")
        if tensors[name].shape != shape:
            raise InputError(f"base {folder}: {name!r} has shape {tensors[name].shape}, config.json says {shape}")
        return jnp.asarray(tensors[name], config.dtype)

    flat = {path: take(name, _leaf(expected, path).shape) for name, path in _TOP.items()}
    for name, path in _BLOCK.items():
        shape = _leaf(expected, ("h", *path)).shape[1:]
        flat["h", *path] = jnp.stack([take(f"h.{i}.{name}", shape) for i in range(config.n_layer)])
    head = tensors.get("lm_head.weight")
    if head is not None and not np.array_equal(head, tensors["wte.weight"]):
        raise InputError(f"base {folder}: 'lm_head.weight' differs from the embeddings, supported: a tied head")
    return _nest(flat)


def _nest(flat: dict[tuple[str, ...], Any]) -> dict:
    tree: dict = {}
    for path, leaf in flat.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def _has_tokenizer(folder: pathlib.Path) -> bool:
    return any((folder / name).exists() for name in ("tokenizer.json", "vocab.json"))


def load_tokenizer(folder: pathlib.Path) -> Any:
    """The folder's tokenizer, by transformers; one without an end-of-text token is refused."""
    if not _has_tokenizer(folder):
        raise InputError(f"base {folder}: no tokenizer (tokenizer.json, or vocab.json and merges.txt)")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # transformers raises whatever the damaged file led to
        raise InputError(f"base {folder}: the tokenizer can't be loaded ({_line(error)})") from error
    if tokenizer.eos_token_id is None:
        raise InputError(f"base {folder}: the tokenizer has no end-of-text token (eos_token)")
    return tokenizer


def save(folder: str | pathlib.Path, config: gpt2.GPT2Config, params: Any, tokenizer: Any) -> None:
    """Writes weights (float32), configuration and a `tokenizers.Tokenizer` in Hugging Face format."""
    from transformers import PreTrainedTokenizerFast

    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"transformer.{name}": np.asarray(_leaf(params, path)) for name, path in _TOP.items()}
    for name, path in _BLOCK.items():
        for i, value in enumerate(np.asarray(_leaf(params, ("h", *path)))):
            tensors[f"transformer.h.{i}.{name}"] = np.ascontiguousarray(value)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    names = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "layer_norm_epsilon")
    raw = {name: getattr(config, name) for name in names} | {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "bos_token_id": config.eos_token_id,
        "eos_token_id": config.eos_token_id,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
    eos = tokenizer.id_to_token(config.eos_token_id)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=eos,
        eos_token=eos,
        unk_token=eos,
        model_max_length=config.n_positions,
    ).save_pretrained(str(folder))


def _leaf(params: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        params = params[key]
    return params
