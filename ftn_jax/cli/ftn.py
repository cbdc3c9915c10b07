"""Continual learning in sparse, recoverable parts of one model: ``ftn COMMAND --help`` tells what a command takes."""

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from ftn_jax.cli import command


class Command(NamedTuple):
    """One of the commands, each a module of this package with ``main(argv)``."""

    module: str  # as in ``python -m ftn_jax.main``
    does: str
    resumes: bool = False  # whether the same command line goes on with what was saved


COMMANDS = {
    "train": Command("main", "train the methods of a config on its stream of tasks, and report them", resumes=True),
    "recover": Command("recover", "find the components that fit a few examples; write with them, or export them"),
    "forget": Command("forget", "take a task out of a run"),
    "report": Command("report", "make a run's report again"),
    "plan": Command("plan", "what a run would take on other machines"),
    "pretrain": Command("pretrain", "pretrain a small GPT-2 on a text file", resumes=True),
}


def run(name: str, argv: Sequence[str] | None = None, *, begun: Sequence[str] = ()) -> None:
    """One of the commands, from its beginning to its exit code: see `ftn_jax.cli.command.run`.

    Args:
      name: in `COMMANDS`.
      argv: its command line, the program first; the process's own unless given.
      begun: how it was started, for the advice on how to go on; as ``python -m`` unless given.
    """
    chosen = COMMANDS[name]
    module = importlib.import_module(f"ftn_jax.cli.{name}")
    begun = begun or ("python", "-m", f"ftn_jax.{chosen.module}")
    command.run(module.main, argv, resume=begun if chosen.resumes else ())


def main() -> None:
    """The program ``ftn``, from its beginning to its exit code.

    Raises:
      SystemExit: see `ftn_jax.cli.command.run`; 2 where there is no such command.
    """
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in COMMANDS:
        run(name, [f"ftn {name}", *sys.argv[2:]], begun=("ftn", name))
        return
    command.run(_other, sys.argv)


def _other(argv: Sequence[str]) -> None:
    if argv[1:] and argv[1] not in ("--help", "-h", "-help"):
        raise command.UsageError(f"there is no command {argv[1]!r}, known: {', '.join(COMMANDS)}")
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  ftn {name:{width}}  {entry.does}" for name, entry in COMMANDS.items())
    print(f"{__doc__}\n\n{lines}")
