"""A user's own methods, pools and streams: how a command imports them, and which files register them."""

import importlib
import importlib.util
import inspect
import os
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from absl import flags

from ftn_jax.core.errors import InputError
from ftn_jax.core.registry import Kind
from ftn_jax.core.rules import Config
from ftn_jax.methods import METHODS
from ftn_jax.pools import POOLS
from ftn_jax.streams import STREAMS

_HERE = pathlib.Path(__file__).parents[1]


def import_part(name: str) -> None:
    """Imports a module, or runs a Python file as a module, so that it registers its parts.

    Raises:
      InputError: there is no such module or file, or it fails.
    """
    file = pathlib.Path(name)
    try:
        if file.suffix != ".py":
            importlib.import_module(name)
            return
        place = os.path.realpath(file)
        if any(os.path.realpath(getattr(m, "__file__", None) or "") == place for m in list(sys.modules.values())):
            return
        known_as = file.stem if file.stem not in sys.modules else f"{file.stem} of {place}"
        spec = importlib.util.spec_from_file_location(known_as, file)
        assert spec is not None and spec.loader is not None
        module = sys.modules[known_as] = importlib.util.module_from_spec(spec)  # where dataclasses look it up
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[known_as]
            raise
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # any error of the user's own code
        raise InputError(f"--import={name}: {type(error).__name__}: {error}") from error


def define_import(own: flags.FlagValues) -> None:
    """Defines the flag --import, which `import_parts` reads."""
    flags.DEFINE_multi_string(
        "import",
        [],
        "Module or Python file that registers your own methods, pools or streams; may be given several times.",
        flag_values=own,
    )


def import_parts(own: flags.FlagValues) -> None:
    """Imports every module and file that --import names; see `import_part`.

    Raises:
      InputError: one of them can't be imported.
    """
    for name in own["import"].value or ():
        import_part(name)


def own_parts(config: Config) -> dict[str, str]:
    """The parts of a checked config that are not from this package: "method ftn_apart" -> the file that builds it."""
    found = {}
    for what, name, registry in _parts(config.to_dict()):
        try:
            build = registry[name].build
            file = inspect.getsourcefile(inspect.unwrap(getattr(build, "func", build)))  # a partial's function
        except TypeError:  # a callable object
            file = None
        if not file or _HERE not in pathlib.Path(file).resolve().parents:
            found[f"{what} {name}"] = os.path.abspath(file) if file else "?"
    return found


def check_registered(results: Mapping[str, Any], where: os.PathLike) -> None:
    """Refuses a run that uses parts which are not registered in this process.

    Raises:
      InputError: names the part and the file that registers it.
    """
    held = results.get("parts", {})
    for what, name, registry in _parts(results["config"]):
        if name not in registry:
            file = held.get(f"{what} {name}", "?")
            known = f"{file} registered it" if file != "?" else "the module that registers it is not known"
            raise InputError(
                f"workdir {where} uses {what} {name!r}, which is not part of this package; {known}: import that module "
                f"first, on the command line with --import={file if file != '?' else 'MODULE'}"
            )


def _parts(config: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Kind]]]:
    """(what, name, registry) of each part that a config names."""
    methods = [config["variants"].get(name, {}).get("method", name) for name in config["methods"]]
    return [
        ("pool", config["pool"]["name"], POOLS),
        ("stream", config["stream"]["name"], STREAMS),
        *(("method", name, METHODS) for name in dict.fromkeys(methods)),
    ]
