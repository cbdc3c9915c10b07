"""Loads base models from checkpoints in Hugging Face format or from GGUF files.

Weights are read from safetensors and GGUF files only, and no remote code is run.
"""

import hashlib
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors

from ftn_jax.core.errors import InputError
from ftn_jax.core.rules import FILE, SWITCH, TEXT, Rule, one_of
from ftn_jax.models.chat import read_template
from ftn_jax.models.config_json import decoder_config
from ftn_jax.models.decoder import DecoderConfig, abstract_params
from ftn_jax.models.families import Family, family_of
from ftn_jax.models.hub import first_line, has_tokenizer, read_json, resolve, weight_files
from ftn_jax.models.tokens import Tokens

BASE_SETTINGS: dict[str, Rule] = {
    "base": TEXT,
    "model.dtype": one_of("float32", "bfloat16"),
    "model.remat": SWITCH,
    "model.chat_template_path": FILE,
}
"""The settings of streams that read text and pools that adapt a base, by full name."""

_ALIGNMENT = 64  # bytes: on the CPU, aligned memory becomes a JAX array without a copy
# Buffers that older versions of transformers saved along with the weights.
_BUFFERS = re.compile(r".*\.(attn\.(masked_)?bias|rotary_emb\.inv_freq)")
HEAD = "lm_head.weight"


class Base(NamedTuple):
    """A frozen base model. ``hash`` is that of its weight files; ``params`` have the computation's dtype."""

    name: str
    hash: str
    config: DecoderConfig
    params: Any
    tokens: Tokens
    family: str  # its ``model_type``
    chat_template: str = ""  # the hash of a template that is not the tokenizer's own

    @property
    def entry(self) -> dict[str, str]:
        """What identifies the base in `results.json` and in exports."""
        template = {"chat_template": self.chat_template} if self.chat_template else {}
        return {"name": self.name, "hash": self.hash, **template}


class Checkpoint(NamedTuple):
    """An opened checkpoint. Tensors are named as in `ftn_jax.models.families`, without the prefix."""

    config: Any  # the content of config.json
    names: frozenset[str]  # of the tensors
    read: Callable[[str], np.ndarray]  # reads one tensor; raises InputError
    tokenizer: Any
    ends: tuple[int, ...]  # ids that end a text, in addition to the tokenizer's
    files: list[pathlib.Path]  # the files with the weights


def load(name: str, *, dtype: str = "float32", remat: bool = False, chat_template_path: str = "auto") -> Base:
    """Loads a base: ``packaged``, ``auto``, ``smollm2``, a folder, a GGUF file, or a name on the hub.

    Args:
      name: see `ftn_jax.models.hub.resolve`.
      dtype: of parameters and computation, "float32" or "bfloat16".
      remat: gradient checkpointing.
      chat_template_path: a file with the Jinja template that writes messages; "auto" for the tokenizer's own.

    Raises:
      InputError: the base can't be found, has an unknown architecture, damaged weights or no tokenizer, or the template
        can't be read.
    """
    template = None if chat_template_path == "auto" else read_template(chat_template_path)
    name, place = resolve(name)
    checkpoint = open_gguf(place) if place.is_file() else open_folder(place)
    config = decoder_config(checkpoint.config, place, dtype=dtype, remat=remat)
    family = family_of(checkpoint.config, place)
    if template is not None:
        checkpoint.tokenizer.chat_template = template
    params = read_params(checkpoint, family, config, place)
    tokens = tokens_of(checkpoint.tokenizer, checkpoint.ends, family, config, name)
    written_by = "" if template is None else hashlib.sha256(template.encode()).hexdigest()[:16]
    return Base(name, hash_of(checkpoint.files), config, params, tokens, checkpoint.config["model_type"], written_by)


def hash_of(files: Sequence[pathlib.Path]) -> str:
    """A hash of a base's weight files, which identifies the base."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()[:16]


def hash_at(name: str) -> str:
    """The hash of the base with this name, without loading it.

    Raises:
      InputError: the base can't be found.
    """
    _, place = resolve(name)
    return hash_of([place] if place.is_file() else weight_files(place))


def open_gguf(file: pathlib.Path) -> Checkpoint:
    """Opens a GGUF file as a checkpoint.

    Raises:
      InputError: it can't be read.
    """
    from ftn_jax.models.gguf import read_gguf  # imported here, since few runs need it

    return read_gguf(file)


def open_folder(folder: pathlib.Path) -> Checkpoint:
    """Opens a folder in Hugging Face format as a checkpoint.

    Raises:
      InputError: something is missing or can't be read.
    """
    config = read_json(folder / "config.json")
    decoder_config(config, folder)  # first, to refuse a config.json before anything else is read
    prefix = family_of(config, folder).prefix
    files, places = weight_files(folder), dict[str, Any]()
    for file in files:
        try:
            opened = safetensors.safe_open(file, "numpy")
            places |= {name.removeprefix(prefix): (opened, name) for name in opened.keys()}
        except (safetensors.SafetensorError, OSError) as error:
            raise InputError(
                f"base {folder}: {file.name} can't be read as safetensors ({first_line(error)})"
            ) from error

    def read(name: str) -> np.ndarray:
        opened, full = places[name]
        try:
            return opened.get_tensor(full)
        except (safetensors.SafetensorError, OSError, AttributeError) as error:  # AttributeError: a dtype NumPy lacks
            raise InputError(f"base {folder}: tensor {full!r} can't be read ({first_line(error)})") from error

    ends: list[int] = []
    for file in (folder / "generation_config.json", folder / "config.json"):
        if file.exists():
            ends += _end_ids(read_json(file), file)
    return Checkpoint(config, frozenset(places), read, load_tokenizer(folder), tuple(ends), files)


def _end_ids(content: Any, file: pathlib.Path) -> list[int]:
    """The end-of-text ids in a configuration."""
    found = content.get("eos_token_id") if isinstance(content, dict) else content
    ids = [] if found is None else found if isinstance(found, list) else [found]
    if not isinstance(content, dict) or not all(type(i) is int and i >= 0 for i in ids):
        raise InputError(
            f"base {file.parent}: eos_token_id of {file.name} is {found!r}, expected a token id or a list of them"
        )
    return ids


def tokens_of(tokenizer: Any, ends: tuple[int, ...], family: Family, config: DecoderConfig, name: str) -> Tokens:
    """The `Tokens` of a base: its tokenizer, and the ids that precede and end a text."""
    end = tokenizer.eos_token_id
    first = {"end": end, "bos": tokenizer.bos_token_id}.get(family.start)
    start = () if first is None else (first,)
    if first is None:
        plain, whole = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (False, True))
        start = tuple(whole[: next(i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)])
    others = tuple(dict.fromkeys(i for i in ends if i != end and i < config.vocabulary))
    return Tokens(tokenizer, start, (end, *others), config.vocabulary, name)


def read_params(checkpoint: Checkpoint, family: Family, config: DecoderConfig, place: Any) -> Any:
    """Reads our parameters from a checkpoint, in ``config.dtype``, one tensor at a time.

    Raises:
      InputError: a tensor is missing or unknown, has another shape than the configuration says or a type that can't be
        read, or the head differs from the embeddings although the configuration ties them.
    """
    expected, known = abstract_params(config), {HEAD}

    def fill(target: np.ndarray, name: str, transposed: bool) -> None:
        known.add(name)
        if name not in checkpoint.names:
            raise InputError(f"base {place}: tensor {name!r} is missing from the weights")
        tensor = checkpoint.read(name)
        shape = target.shape[::-1] if transposed else target.shape
        if tensor.shape != shape:
            raise InputError(f"base {place}: {name!r} has shape {tensor.shape}, config.json says {shape}")
        if not jnp.issubdtype(tensor.dtype, jnp.floating) or tensor.dtype.itemsize < 2:
            raise InputError(
                f"base {place}: {name!r} has type {tensor.dtype}, expected float32, float16 or bfloat16 (weights that "
                "are quantized are read from GGUF files only)"
            )
        target[...] = tensor.T if transposed else tensor
        if not np.isfinite(target).all():
            raise InputError(f"base {place}: {name!r} has values that are not finite in {config.dtype}")

    flat = {}
    named = family.tensors(config)
    if not config.tied:
        named["head",] = HEAD, False
    for path, (name, transposed) in named.items():
        leaf = _aligned(leaf_of(expected, path).shape, jnp.dtype(config.dtype))
        if path[0] == "h":
            for i in range(config.layers):
                fill(leaf[i], name.format(i), transposed)
        else:
            fill(leaf, name, transposed)
        flat[path] = jnp.asarray(leaf)
    others = sorted(name for name in checkpoint.names - known if not _BUFFERS.fullmatch(f".{name}"))
    if others:
        raise InputError(
            f"base {place}: the weights have {len(others)} tensors that config.json does not describe, such as "
            f"{others[0]!r}"
        )
    if config.tied and HEAD in checkpoint.names:
        embed = named["embed",][0]
        if not np.array_equal(checkpoint.read(HEAD), checkpoint.read(embed)):
            raise InputError(f"base {place}: {HEAD!r} differs from the embeddings, which config.json ties")
    return _nest(flat)


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    offset = -memory.ctypes.data % _ALIGNMENT
    return memory[offset : offset + size].view(dtype).reshape(shape)


def _nest(flat: Mapping[tuple[str, ...], Any]) -> dict:
    tree: dict = {}
    for path, leaf in flat.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def leaf_of(params: Any, path: tuple[str, ...]) -> Any:
    """The parameter at a path, such as ("h", "q", "kernel")."""
    for key in path:
        params = params[key]
    return params


def load_tokenizer(folder: pathlib.Path) -> Any:
    """The folder's tokenizer, loaded by transformers; one without an end-of-text token is refused."""
    if not has_tokenizer(folder):
        raise InputError(f"base {folder}: no tokenizer (tokenizer.json, or vocab.json and merges.txt)")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # a damaged file can raise anything in transformers
        raise InputError(
            f"base {folder}: the tokenizer can't be loaded ({type(error).__name__}: {first_line(error)})"
        ) from error
    if tokenizer.eos_token_id is None:
        raise InputError(f"base {folder}: the tokenizer has no end-of-text token (eos_token)")
    return tokenizer


def gpt2_config(**shape: Any) -> DecoderConfig:
    """The config of a GPT-2 with this shape, given by the keys of its config.json: n_embd, n_layer, ..."""
    numerics = {key: shape.pop(key) for key in ("dtype", "remat") if key in shape}
    return decoder_config({"model_type": "gpt2"} | shape, "gpt2", **numerics)
