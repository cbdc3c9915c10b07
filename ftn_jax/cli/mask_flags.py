"""The flags that several commands share: of a trained model, a mask of it, and sampling."""

import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from ftn_jax.cli.command import UsageError
from ftn_jax.core.errors import InputError
from ftn_jax.models.tokens import Text
from ftn_jax.runs.load import load
from ftn_jax.runs.own_parts import define_import
from ftn_jax.runs.trained import Mask, Recovery
from ftn_jax.runs.trained_language import LanguageModel, check_sampling
from ftn_jax.streams.examples import SUFFIXES
from ftn_jax.streams.text.jsonl import load_texts

FEWEST, MOST = 4, 64
"""How many examples a support file may have."""


class Chosen(NamedTuple):
    """The mask that a command line asks for."""

    mask: Mask
    named: str  # in words
    said: list[str]  # what there is to say of its recovery


def define_model(own: flags.FlagValues) -> None:
    """Defines the flags of a trained model."""
    flags.DEFINE_string("workdir", None, "Folder of a run.", required=True, flag_values=own)
    define_import(own)
    flags.DEFINE_string("method", None, "Method of the run; default its first.", flag_values=own)
    flags.DEFINE_integer("seed", None, "Seed of the run; default its first.", flag_values=own)
    flags.DEFINE_string("base", None, "Where the run's base is now, if it has moved.", flag_values=own)


def define_mask(own: flags.FlagValues) -> None:
    """Defines the flags of a mask: a task's own, or one that fits examples."""
    flags.DEFINE_string("task", None, "Name of a task, whose training-time mask is used.", flag_values=own)
    what = "JSONL file of 4 to 64 labelled examples, for which a mask is found, without a task's name."
    flags.DEFINE_string("support", None, what, flag_values=own)
    define_compose(own)


def define_compose(own: flags.FlagValues) -> None:
    what = "Also try masks of several tasks together, for a task that is made of these."
    flags.DEFINE_bool("compose", False, what, flag_values=own)


def define_sampling(own: flags.FlagValues) -> None:
    """Defines the flags of sampling."""
    flags.DEFINE_integer("tokens", 64, "Most tokens to write after each prompt.", lower_bound=1, flag_values=own)
    flags.DEFINE_float(
        "temperature", 0.0, "Sampling temperature; 0 takes the likeliest token.", lower_bound=0.0, flag_values=own
    )
    flags.DEFINE_integer("sampling_seed", None, "Seed of sampling; default a new one.", lower_bound=0, flag_values=own)
    flags.DEFINE_integer(
        "top_k", 0, "Sample from this number of likeliest tokens; 0 is all.", lower_bound=0, flag_values=own
    )
    flags.DEFINE_float(
        "top_p", 1.0, "Sample from the likeliest tokens that together have this probability.", flag_values=own
    )
    flags.DEFINE_multi_string("stop", [], "Text at which the output ends; may be given several times.", flag_values=own)


def sampling_of(own: flags.FlagValues) -> dict[str, Any]:
    """The settings of sampling but its seed.

    Raises:
      UsageError: a text to stop at that is not UTF-8.
      InputError: a setting that is invalid or has no effect.
    """
    check_texts("stop", own.stop)
    sampling = {name: own[name].value for name in ("tokens", "temperature", "top_k", "top_p", "stop")}
    check_sampling(**sampling)
    return sampling


def check_texts(name: str, texts: Sequence[str]) -> None:
    """Raises UsageError if a text in the flag with this name is not UTF-8."""
    for text in texts:
        if any("\ud800" <= letter <= "\udfff" for letter in text):  # from a byte that is not UTF-8
            raise UsageError(f"--{name}={text!r} is not UTF-8, expected UTF-8 text")


def check_one_mask(own: flags.FlagValues, *, needed: bool = True) -> None:
    """Raises UsageError unless the flags give one mask, or none if it is not ``needed``."""
    if own.task is not None and own.support is not None:
        raise UsageError("--task and --support each give a mask, expected one of them")
    if needed and own.task is None and own.support is None:
        raise UsageError("--task and --support are missing, expected one of them, which gives the mask; see --help")
    if own.compose and own.support is None:
        raise UsageError("--compose has no effect without --support, which is missing; see --help")


def load_support(path: str) -> list[Text]:
    """The examples of a support file.

    Raises:
      InputError: it can't be read, or has too few or too many examples.
    """
    pairs = load_texts(path)
    if not FEWEST <= len(pairs) <= MOST:
        raise InputError(f"{path} has {len(pairs)} examples, expected {FEWEST} to {MOST}")
    return pairs


def load_language(own: flags.FlagValues) -> LanguageModel:
    """The trained language model that the flags of `define_model` name.

    Raises:
      InputError: see `ftn_jax.runs.load.load`; or the run holds no language model.
    """
    model = load(own.workdir, own.method, own.seed, base=own.base)
    if not isinstance(model, LanguageModel):
        raise InputError(
            f"workdir {own.workdir} holds no language model: expected --support with numbers for small networks "
            f"({' or '.join(SUFFIXES)}) in ftn recover; any pool can be used from Python, with ftn_jax.load"
        )
    return model


def load_with_mask(own: flags.FlagValues) -> tuple[LanguageModel, Chosen | None]:
    """The model and the mask that the flags of `define_model` and `define_mask` ask for; None if they give none.

    Raises:
      InputError: see `load_support`, `load_language` and `LanguageModel.recover`; or no such task.
    """
    pairs = load_support(own.support) if own.support is not None else []
    model = load_language(own)
    if own.task is not None:
        if own.task not in model.stored:
            raise InputError(f"--task={own.task} is no task of the run, known: {', '.join(model.stored) or '-'}")
        return model, Chosen(own.task, f"the mask of task {own.task}", [])
    if not pairs:
        return model, None
    found = model.recover(pairs, compose=own.compose)
    return model, Chosen(found, f"the mask found from {own.support}", describe(found, model.pool.size, len(pairs)))


def command_line(argv: Sequence[str], name: str) -> str:
    """The command line ``argv`` of ``ftn <name>``, for a shell."""
    return shlex.join(["ftn", name, *argv[1:]])


def describe(
    found: Recovery,
    size: int,
    examples: int,
    *,
    loss: str = "nats per target token",
    without: str = "the base alone",
) -> list[str]:
    """The result in words: losses, the mask on the torus, its overlap with the stored masks."""
    lines = [
        f"loss of the {examples} examples, {loss}: {found.base_loss:.3f} under {without}, "
        f"{found.loss:.3f} under the recovered mask"
    ]
    if found.parts:
        lines.append(f"made of the masks of: {', '.join(found.parts)}")
    if not found.fits:
        lines.append(f"the mask does not beat {without}: nothing in this pool fits these examples")
    if found.mine is not None:
        lines.append(
            f"these examples {'may be of a trained task' if found.mine else 'match none of the trained tasks'}"
        )
    side = round(size**0.5)
    if side * side == size:
        grid = np.full(size, "·")
        grid[found.active] = "█"
        lines += ["".join(row) for row in grid.reshape(side, side)]
    else:
        lines.append(f"components {', '.join(map(str, found.active))} of {size}")
    lines.append("share of the mask that is also in each task's training-time mask (for information only):")
    lines += [f"  {task}: {share:.2f}" for task, share in found.overlap.items()]
    return lines
