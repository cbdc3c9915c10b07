"""Trains the methods of a config on its stream of tasks and reports them.

    python -m ftn_jax.main --config=configs/lora.py:quick --config.stream.steps=50 --workdir=runs/lora

Every setting of the config can be replaced: --config.pool.size=144 --config.methods="('lora_ftn','lora_fixed')"
"""

import difflib
import importlib.util
import logging
import os
import pathlib
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import rich.console
from absl import flags
from ml_collections import ConfigDict, config_flags

from ftn_jax.command import UsageError, leave_pipe, line_of, prepare_output
from ftn_jax.errors import InputError, Interrupted
from ftn_jax.experiment import train_and_evaluate
from ftn_jax.problem import check, seeds_of
from ftn_jax.processes import end, is_first, is_of_another_process, join
from ftn_jax.settings import flatten
from ftn_jax.sharding import use_cores
from ftn_jax.signals import asked_to_stop

_PIPED_WIDTH = 120  # columns of the tables where the output is not a terminal
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "tuple": "a tuple"}


class Arguments(NamedTuple):
    """What the command line asks for."""

    config: ConfigDict
    workdir: str
    fresh: bool
    cluster: dict[str, Any] | None  # of `ftn_jax.processes.join`


def main(argv: Sequence[str], stop: Callable[[], bool] = lambda: False) -> None:
    """Runs the command line ``argv`` (its first entry is the program), until ``stop`` says so.

    Raises:
      InputError: see `parse` and `ftn_jax.experiment.train_and_evaluate`.
    """
    arguments = parse(argv)
    logging.basicConfig(format="%(message)s", force=True)  # libraries may have set up their own
    logging.getLogger("ftn_jax").setLevel(logging.INFO)
    # Of a checkpoint that can't be read it tells every file; the first is in the line that names the checkpoint.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    keep_compiled_programs()
    check(arguments.config)
    if arguments.cluster is not None:
        join(**arguments.cluster)
        if not is_first():
            logging.getLogger("ftn_jax").setLevel(logging.WARNING)
    use_cores(len(seeds_of(arguments.config)))
    wide = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = rich.console.Console(width=None if wide else _PIPED_WIDTH)
    train_and_evaluate(arguments.config, arguments.workdir, fresh=arguments.fresh, console=console, stop=stop)


def parse(argv: Sequence[str]) -> Arguments:
    """The command line ``argv``, with the config's file read and its settings replaced.

    Raises:
      UsageError: an unknown flag or setting, a value of the wrong type, a config file that can't be used.
      SystemExit: after --help.
    """
    own, overrides = flags.FlagValues(), flags.FlagValues()
    flags.DEFINE_string("config", None, "A file of configs/, with ':argument' if it takes one.", flag_values=own)
    flags.DEFINE_string("workdir", None, "Where to write; default runs/<config file>-<argument>.", flag_values=own)
    flags.DEFINE_bool("fresh", False, "Set aside what the workdir holds and start anew.", flag_values=own)
    flags.DEFINE_bool("distributed", False, "One of several processes, which a scheduler started.", flag_values=own)
    flags.DEFINE_string("coordinator", None, "HOST:PORT of the first process, if none did.", flag_values=own)
    flags.DEFINE_integer("processes", None, "How many there are.", 1, flag_values=own)
    flags.DEFINE_integer("process", None, "Which of them this is, from 0.", 0, flag_values=own)
    flags.DEFINE_bool("help", False, "Show this.", flag_values=own)
    own.set_gnu_getopt(True)
    try:
        rest = own(argv, known_only=True)
        if own.help:
            print(f"{__doc__}\n{own.get_help(include_special_flags=False)}")
            sys.exit()
        if not own.config:
            raise UsageError("--config is missing, expected a config's file, as --config=configs/lora.py:quick")
        config = load_config(own.config)
        _check_names(rest, config, own.config)
        config_flags.DEFINE_config_dict("config", config, flag_values=overrides, sys_argv=rest)
        rest = overrides(rest)
    except flags.IllegalFlagValueError as error:
        message = str(error).removeprefix("flag --")
        name = message.partition("=")[0]
        kind = _KINDS.get((overrides if name in overrides else own)[name].flag_type())
        raise UsageError(f"{message}; expected {kind}" if kind else message) from error
    except flags.UnrecognizedFlagError as error:
        close = difflib.get_close_matches(error.flagname, list(own), 1)
        known = [f"--{name}" for name in close or ("config", "workdir", "fresh", "distributed", "help")]
        raise UsageError(f"unknown flag --{error.flagname}, known: {', '.join(known)}") from error
    except flags.Error as error:
        raise UsageError(f"{error}; see --help") from error
    if len(rest) > 1:
        raise UsageError(f"unexpected argument {rest[1]!r}, expected only flags; see --help")
    cluster = {name: own[name].value for name in ("coordinator", "processes", "process")}
    given = any(value is not None for value in cluster.values())
    return Arguments(
        config,
        own.workdir or default_workdir(own.config),
        own.fresh,
        cluster if own.distributed or given else None,
    )


def load_config(argument: str) -> ConfigDict:
    """What ``get_config`` gives for ``file.py`` or ``file.py:argument``.

    Raises:
      UsageError: a file that is not there or fails, an argument that it refuses.
    """
    file, *parts = argument.split(":", 1)
    spec = importlib.util.spec_from_file_location("config", file)
    if spec is None or spec.loader is None:
        raise UsageError(f"--config={argument}: {file!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(*parts)
    except OSError as error:
        raise UsageError(f"--config={argument}: {error}") from error
    except ValueError as error:
        raise UsageError(f"--config={argument}: {error}") from error
    except Exception as error:  # whatever the file's own code does wrong
        lines = [f"line {f.lineno}: " for f in traceback.extract_tb(error.__traceback__) if f.filename == spec.origin]
        where = "".join(lines[-1:])
        raise UsageError(f"--config={argument}: {where}{type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise UsageError(f"--config={argument}: get_config gave {type(config).__name__}, expected ConfigDict")
    return config


def keep_compiled_programs() -> None:
    """Compiled programs are kept between runs, unless the user has named a place for them already."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(caches, "ftn_jax", "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def default_workdir(config: str) -> str:
    """``runs/lora-quick`` for ``--config=configs/lora.py:quick``."""
    file, _, argument = config.partition(":")
    return str(
        pathlib.Path("runs") / "-".join(part for part in (pathlib.Path(file).stem, *argument.split(",")) if part)
    )


def run(argv: Sequence[str] | None = None) -> None:
    """Entry point: what the user got wrong ends with one line and exit code 1 or 2, a signal with 128 + its number."""
    argv = sys.argv if argv is None else argv

    def farewell(number: int) -> str:
        command = shlex.join(["python", "-m", "ftn_jax.main", *argv[1:]])
        return f"ftn_jax: stopped by {signal.Signals(number).name}; what is saved is kept, to go on: {command}"

    interrupted = False
    prepare_output()
    with asked_to_stop(farewell) as asked:
        try:
            main(argv, stop=lambda: asked() is not None)
        except Interrupted:
            interrupted = True
        except BrokenPipeError:
            leave_pipe()
        except Exception as error:
            message = _explain(error)
            if message is None:
                raise
            print(line_of(message), file=sys.stderr)
            end(2 if isinstance(error, UsageError) else 1)
    number = asked()
    if interrupted and not number and jax.distributed.is_initialized():
        number = signal.SIGTERM  # that another process has got
    if number:
        print(farewell(number), file=sys.stderr)
        sys.exit(128 + number)


def _explain(error: Exception) -> str | None:
    """What to tell the user; None of a fault that is not theirs."""
    if is_of_another_process(error):
        return f"another process has ended or can't be reached, to go on start all of them again ({error})"
    if isinstance(error, InputError | FloatingPointError | OSError):
        return str(error)
    if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
        sizes = "config.pool, config.stream.batch, config.configurer.support or config.seeds"
        return f"not enough memory: lower the sizes of {sizes} ({error})"
    return None


def _check_names(argv: Sequence[str], config: ConfigDict, file: str) -> None:
    leaves = list(flatten(config))
    for argument in argv[1:]:
        match = re.match(r"--?(?:no)?config\.([^=]*)", argument)
        if not match or any(f"{leaf}.".startswith(f"config.{match[1]}.") for leaf in leaves):
            continue
        close = difflib.get_close_matches(f"config.{match[1]}", leaves, 1) or leaves
        raise UsageError(f"config.{match[1]} is not a setting of {file}, known: {', '.join(close)}")


if __name__ == "__main__":
    run()
