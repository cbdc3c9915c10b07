"""The members of a sweep: those that a command line asks for, and which of them are finished."""

import ast
import hashlib
import itertools
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import flags

from ftn_jax.cli import command, train
from ftn_jax.cli.command import UsageError
from ftn_jax.core.errors import InputError
from ftn_jax.core.rules import Config, flatten
from ftn_jax.runs.build import check, experiment_of, seeds_of
from ftn_jax.runs.workdir import open_results, read_results

_FLAGS = "--config, --out, --executor, --at_once, --grid.SETTING, --config.SETTING, --slurm.OPTION, --help"
_LONGEST_NAME = 150  # letters of the name of a member's folder
_UNFIT = re.compile(r"[^-\w.]+")  # letters that are not used in it
MERGED = ("methods", "seeds")  # settings whose members share rows of the table


class Member(NamedTuple):
    """One run of the grid."""

    values: dict[str, str]  # setting of the grid -> value
    config: Config
    workdir: pathlib.Path
    command: list[str]


class Sweep(NamedTuple):
    """What the command line asks for."""

    config: str
    grid: dict[str, list[str]]
    members: list[Member]
    out: pathlib.Path
    executor: str
    at_once: int
    slurm: dict[str, Any]


def parse(argv: Sequence[str], usage: str | None = None) -> Sweep:
    """The command line ``argv``, with a config for each member; ``usage`` begins the text of --help.

    Raises:
      UsageError: an unknown flag or setting, a value of the wrong type, or two equal members.
      SystemExit: after --help.
    """
    own, rest = command.parse(argv, usage or "", _define, rest=True)
    grid, slurm, shared = {}, {}, {}
    for argument in rest[1:]:
        match = re.fullmatch(r"--?(grid|slurm|(?:no)?config)\.([\w.]+)(?:=(.*))?", argument, re.DOTALL)
        if not match or (match[1] in ("grid", "slurm") and match[3] is None):
            raise UsageError(f"unexpected argument {argument!r}, expected {_FLAGS}, each with =VALUE")
        place = grid if match[1] == "grid" else slurm if match[1] == "slurm" else shared
        if match[2] in place:
            raise UsageError(f"{argument.partition('=')[0]} is given twice, expected once")
        if match[1] == "grid":
            grid[match[2]] = split_values(match[3])
        elif match[1] == "slurm":
            slurm[match[2]] = _literal(match[3])
        else:
            shared[match[2]] = argument
    if not grid:
        raise UsageError("--grid is missing, expected values of a setting, as --grid.configurer.k=64,128")
    for name in grid.keys() & shared.keys():  # absl would join two tuples
        raise UsageError(f"{name} is in --grid.{name} and in {shared[name]}, expected one of them")
    if not isinstance(slurm.get("time", 1), int):
        raise UsageError(f"--slurm.time={slurm['time']}, expected a whole number of minutes")
    if slurm and own.executor != "slurm":
        raise UsageError(f"--slurm.{next(iter(slurm))} needs --executor=slurm, found --executor={own.executor}")
    out = pathlib.Path(own.out or f"{train.default_workdir(own.config)}-sweep")
    members = []
    for choice in itertools.product(*grid.values()):
        values = dict(zip(grid, choice, strict=True))
        workdir = out / member_name(values)
        overrides = [*shared.values(), *(f"--config.{name}={value}" for name, value in values.items())]
        arguments = [f"--config={own.config}", *overrides, f"--workdir={workdir}"]
        config = train.parse(["sweep", *arguments]).config
        members.append(Member(values, config, workdir, [sys.executable, "-m", "ftn_jax.main", *arguments]))
    _check_different(members)
    at_once = own.at_once or (1 if own.executor == "local" else len(members))
    return Sweep(own.config, grid, members, out, own.executor, at_once, slurm)


def _define(own: flags.FlagValues) -> None:
    command.define_config(own)
    flags.DEFINE_string("out", None, "Output folder; default runs/<config file>-<argument>-sweep.", flag_values=own)
    flags.DEFINE_enum("executor", "local", ["local", "slurm"], "Where the members run.", flag_values=own)
    flags.DEFINE_integer(
        "at_once", None, "Members that run at once; default 1 locally, all of them on SLURM.", 1, flag_values=own
    )


def split_values(text: str) -> list[str]:
    """``"1,(2,3)"`` as ``["1", "(2,3)"]``: splits at commas outside brackets."""
    values, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            values.append("")
        else:
            values[-1] += letter
    return [value.strip() for value in values]


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def member_name(values: dict[str, str]) -> str:
    """``configurer.k=64,methods=ftn_slow+kwta``: the name of a member's folder."""
    name = ",".join(f"{name}={_UNFIT.sub('+', value).strip('+')}" for name, value in values.items())
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[:_LONGEST_NAME]}-{hashlib.sha256(repr(values).encode()).hexdigest()[:8]}"


def place_of(member: Member) -> tuple[str, ...]:
    """The member's values of the settings that have columns in the table: all but its methods and seeds."""
    return tuple(value for name, value in member.values.items() if name not in MERGED)


def _check_different(members: Sequence[Member]) -> None:
    """Raises UsageError if members share a folder, or train the same seed of the same method."""
    names, trained, experiments = {}, {}, set()
    for member in members:
        other = names.setdefault(member.workdir.name, member)
        if other is not member:
            raise UsageError(f"--grid: two members have the folder {member.workdir}: {other.values}, {member.values}")
        try:
            check(member.config)
        except InputError:
            continue  # it will not be started
        experiments.add(experiment_of(member.config))
        if len(experiments) > 1:
            both = " and ".join(sorted(experiments))
            raise UsageError(f"--grid: {both} can't be compared, expected one of them: start two sweeps")
        for method, seed in itertools.product(member.config.methods, seeds_of(member.config)):
            settings = flatten(member.config)  # 1e-3 and 0.001 are one value
            place = tuple(settings[f"config.{name}"] for name in member.values if name not in MERGED)
            other = trained.setdefault((place, method, seed), member)
            if other is not member:
                both = f"{other.workdir.name} and {member.workdir.name}"
                raise UsageError(f"--grid: {both} train {method} with seed {seed} alike, expected different members")


def finished(member: Member) -> dict[str, Any] | None:
    """The member's `results.json` if it holds every method of the member's config.

    Raises:
      InputError: the folder belongs to another config, or its results can't be read.
    """
    if not (member.workdir / "results.json").exists():
        return None
    try:
        read_results(member.workdir)
    except InputError:
        return None  # nothing is saved yet, or the run itself will report what is wrong
    held = open_results(member.config, member.workdir)
    return held if all(name in held["methods"] for name in member.config.methods) else None
