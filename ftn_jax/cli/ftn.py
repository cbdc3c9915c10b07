"""Continual learning in sparse, recoverable parts of one model. ``ftn COMMAND --help`` describes a command."""

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from ftn_jax.cli import command


class Command(NamedTuple):
    """One of the commands; each is a module of this package with a function ``main(argv)``."""

    module: str  # "main" for ``python -m ftn_jax.main``
    does: str
    saved: str = ""  # what is saved when it is stopped, so that the same command line continues; empty: nothing


_TRAINED = "what was trained"
COMMANDS = {
    "train": Command("main", "train the methods of a config on its stream of tasks, and report them", _TRAINED),
    "recover": Command("recover", "find the components that fit a few examples; generate with them, or export them"),
    "generate": Command("generate", "write after the prompts of a file, with a mask for each", "what was written"),
    "export": Command("export", "write components as an adapter that PEFT loads"),
    "merge": Command("merge", "write the base with components merged in, for transformers and servers"),
    "forget": Command("forget", "remove a task from a run"),
    "report": Command("report", "write a run's report again"),
    "plan": Command("plan", "estimate what a run would need on other machines"),
    "pretrain": Command("pretrain", "pretrain a small GPT-2 on a text file", _TRAINED),
}


def run(name: str, argv: Sequence[str] | None = None, *, begun: Sequence[str] = ()) -> None:
    """Runs one of the commands and ends with its exit code; see `ftn_jax.cli.command.run`.

    Args:
      name: a name in `COMMANDS`.
      argv: its command line, the program first; by default that of the process.
      begun: how it was started, for the advice on how to continue; by default ``python -m``.
    """
    chosen = COMMANDS[name]
    module = importlib.import_module(f"ftn_jax.cli.{name}")
    begun = begun or ("python", "-m", f"ftn_jax.{chosen.module}")
    command.run(module.main, argv, resume=begun if chosen.saved else (), saved=chosen.saved)


def main() -> None:
    """The program ``ftn``.

    Raises:
      SystemExit: see `ftn_jax.cli.command.run`; with code 2 if there is no such command.
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
