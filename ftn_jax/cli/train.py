"""Trains the methods of a config on its stream of tasks and reports them.

    python -m ftn_jax.main --config=configs/lora.py:quick --config.stream.steps=50 --workdir=runs/lora

Every setting of the config can be replaced: --config.pool.size=144 --config.methods="('lora_ftn','lora_fixed')"
"""

import contextlib
import json
import logging
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict

from ftn_jax.cli import command
from ftn_jax.core.errors import writing
from ftn_jax.core.mesh import use_cores
from ftn_jax.runs.build import check, fill_in, seeds_of, settings
from ftn_jax.runs.driver import train_and_evaluate
from ftn_jax.runs.own_parts import define_import, import_parts
from ftn_jax.training.processes import is_first, join

_STDOUT = "json"


class Arguments(NamedTuple):
    """What the command line asks for."""

    config: ConfigDict
    workdir: str
    fresh: bool
    log: str | None  # where events are written; see `_define`
    cluster: dict[str, Any] | None  # arguments of `ftn_jax.training.processes.join`


def main(argv: Sequence[str], stop: Callable[[], bool] = lambda: False) -> None:
    """Runs the command line ``argv`` (its first entry is the program), until ``stop`` returns True.

    Raises:
      InputError: see `parse` and `ftn_jax.runs.driver.train_and_evaluate`.
      Interrupted: ``stop`` returned True; what was trained is saved.
    """
    arguments = parse(argv)
    logging.getLogger("ftn_jax").setLevel(logging.INFO)
    command.keep_compiled_programs()
    check(arguments.config)
    if arguments.cluster is not None:
        join(**arguments.cluster)
        if not is_first():
            logging.getLogger("ftn_jax").setLevel(logging.WARNING)
    use_cores(len(seeds_of(arguments.config)))
    with _events(arguments.log) as on_event:
        console = None if arguments.log == _STDOUT else command.Console()
        settings = {"fresh": arguments.fresh, "console": console, "stop": stop, "on_event": on_event}
        train_and_evaluate(arguments.config, arguments.workdir, **settings)


@contextlib.contextmanager
def _events(log: str | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that writes an event as a line of JSON."""
    if log is None:
        yield lambda event: None
    elif log == _STDOUT:
        yield lambda event: print(json.dumps(event), flush=True)
    else:
        with writing(log):
            file = pathlib.Path(log).open("a", encoding="utf-8")

        def write(event):
            with writing(log):
                print(json.dumps(event), file=file, flush=True)

        with file:
            yield write


def parse(argv: Sequence[str]) -> Arguments:
    """The command line ``argv``, with the config's file read and its settings replaced.

    Raises:
      UsageError: an unknown flag or setting, a value of the wrong type, a config file that can't be used.
      InputError: a module or file that --import names fails.
      SystemExit: after --help.
    """
    own, rest = command.parse(argv, __doc__ or "", _define, rest=True, settings=settings)
    import_parts(own)
    config = command.configure(own, rest, fill_in)
    if own.workdir == "":  # an unset variable of a shell; --fresh would set aside another run
        raise command.UsageError("--workdir= is empty, expected a folder: name one, or omit the flag")
    cluster = {name: own[name].value for name in ("coordinator", "processes", "process")}
    given = any(value is not None for value in cluster.values())
    if own.log == "":
        raise command.UsageError("--log= is empty, expected json or the name of a file")
    return Arguments(
        config,
        own.workdir or default_workdir(own.config),
        own.fresh,
        own.log,
        cluster if own.distributed or given else None,
    )


def _define(own: flags.FlagValues) -> None:
    command.define_config(own)
    define_import(own)
    flags.DEFINE_string("workdir", None, "Output folder; default runs/<config file>-<argument>.", flag_values=own)
    flags.DEFINE_bool("fresh", False, "Set aside what the workdir holds and start anew.", flag_values=own)
    said = "json: a line of JSON for each event on standard output, instead of progress and tables; or a file for them."
    flags.DEFINE_string("log", None, said, flag_values=own)
    flags.DEFINE_bool("distributed", False, "One of several processes that a scheduler started.", flag_values=own)
    where = "HOST:PORT of the first process; needed unless the cluster is detected."
    flags.DEFINE_string("coordinator", None, where, flag_values=own)
    flags.DEFINE_integer("processes", None, "Number of processes.", 1, flag_values=own)
    flags.DEFINE_integer("process", None, "Index of this process, from 0.", 0, flag_values=own)


def default_workdir(config: str) -> str:
    """``runs/lora-quick`` for ``--config=configs/lora.py:quick``."""
    file, _, argument = config.partition(":")
    return str(
        pathlib.Path("runs") / "-".join(part for part in (pathlib.Path(file).stem, *argument.split(",")) if part)
    )


def run(argv: Sequence[str] | None = None) -> None:
    """Runs the command and ends with its exit code; see `ftn_jax.cli.command.run`."""
    command.run(main, argv, resume=("python", "-m", "ftn_jax.main"))
