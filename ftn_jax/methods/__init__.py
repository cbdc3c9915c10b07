"""The registry of methods: name -> the function that builds the `Method` from its settings."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ftn_jax.core.errors import InputError
from ftn_jax.core.registry import Kind, register
from ftn_jax.core.rules import NOT_NEGATIVE, ODD, PART, POSITIVE, SIZE, SWITCH, Rule, number, one_of, whole
from ftn_jax.methods import masked, rehearsal
from ftn_jax.methods.base import Configurer, Given, Method, Selection, Stage
from ftn_jax.methods.compose import compose
from ftn_jax.methods.ewc import ewc
from ftn_jax.methods.hat import hat
from ftn_jax.methods.icl import icl
from ftn_jax.methods.o_lora import o_lora
from ftn_jax.methods.packnet import packnet
from ftn_jax.methods.supsup import supsup, supsup_weights

__all__ = ["METHODS", "Configurer", "Given", "Method", "Selection", "Stage", "build_method", "register_method"]

_RULES: dict[str, Rule] = {
    "b_std": NOT_NEGATIVE,
    "every": one_of("task", "batch"),
    "examples": SIZE,
    "keep": PART,
    "kernel": ODD,
    "lateral_steps": whole(0, 10**4),
    "prune_at": PART,
    "recovery_lateral_steps": whole(0, 10**4),
    "share": (lambda value: number(value) and 0 < value <= 1, "a number above 0, at most 1"),
    "sharpness": POSITIVE,
    "signed": SWITCH,
    "strength": NOT_NEGATIVE,
    "widen": whole(1, 64),
}


def _defaults(build: Callable[..., Method], settings: Mapping[str, Rule]) -> dict[str, Any]:
    """The defaults of ``settings`` in the builder's own signature."""
    parameters = inspect.signature(build).parameters
    defaults = {name: parameters[name].default for name in settings if name in parameters}
    return {name: value for name, value in defaults.items() if value is not inspect.Parameter.empty}


def _kind(build: Callable[..., Method]) -> Kind:
    """The entry of a built-in method. A setting of one name has the same rule in all of them."""
    settings = {name: _RULES[name] for name in inspect.signature(build).parameters if name in _RULES}
    return Kind(build, settings, defaults=_defaults(build, settings))


METHODS: dict[str, Kind] = {
    name: _kind(build)
    for name, build in {
        "ewc": ewc,
        "fixedmask": masked.fixed,
        "ftn_compose": compose,
        "ftn_fast": functools.partial(masked.ftn, kernel=17, lateral_steps=2, every="batch"),
        "ftn_reserve": masked.reserve,
        "ftn_slow": functools.partial(masked.ftn, every="batch"),
        "hat": hat,
        "icl": icl,
        "joint": rehearsal.joint,
        "kwta": functools.partial(masked.ftn, kernel=1, lateral_steps=0, every="batch"),
        "lora_bank": masked.bank,
        "lora_fixed": masked.fixed,
        "lora_ftn": masked.ftn,
        "lora_ftn_compose": compose,
        "lora_ftn_reserve": masked.reserve,
        "lora_naive": masked.unmasked,
        "nomask": masked.unmasked,
        "o_lora": o_lora,
        "packnet": packnet,
        "replay": rehearsal.replay,
        "supsup": supsup,
        "supsup_weights": supsup_weights,
        "supsup_weights_wide": functools.partial(supsup_weights, signed=True, widen=2),
        "supsup_wide": functools.partial(supsup, signed=True, widen=2),
    }.items()
}


def register_method(name: str, build: Callable[..., Method], settings: Mapping[str, Rule] = {}) -> None:
    """Adds a method that ``config.methods`` can name.

    Args:
      name: a new name.
      build: (configurer, **variant) -> Method, with the settings of ``config.variants.<name>``.
      settings: the rules of these settings: "kernel" -> `Rule`. A setting without a rule may have any value. If a
        config leaves a setting out, the builder's own default applies.

    Raises:
      InputError: the name is taken, or is not valid as the name of a folder and a setting.
    """
    if not name.isidentifier():
        raise InputError(f"a method is named {name!r}, expected a name of letters, digits and underscores")
    register(METHODS, "method", name, Kind(build, settings, defaults=_defaults(build, settings)))


def build_method(method: str, configurer: Configurer, variant: dict, *, name: str | None = None) -> Method:
    """The registered method with the settings ``variant``; equal settings give the same object.

    So a process compiles its programs only once. ``name`` is the config's name for it, if that differs.

    Raises:
      InputError: the method is unknown, or ``config.variants`` has a setting that it does not have.
    """
    if method not in METHODS:
        raise InputError(f"config.methods: unknown method {method!r}, known: {', '.join(sorted(METHODS))}")
    build = METHODS[method].build
    try:
        inspect.signature(build).bind(configurer, **variant)
    except TypeError as error:
        raise InputError(f"config.variants.{name or method}: {error}") from error
    try:
        hash(tuple(variant.values()))
        build = functools.partial(_built, build)
    except TypeError:  # a user's own method may have a list or a tree among its settings
        pass
    try:
        return build(configurer, **variant)
    except InputError as error:
        raise InputError(f"config.methods: {name or method}: {error}") from error


@functools.lru_cache(maxsize=None, typed=True)
def _built(build, configurer, **variant):
    return build(configurer, **variant)
