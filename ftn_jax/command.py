"""How every command begins and ends: its flags, and what it says where it can't do what it was asked for."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags

from ftn_jax.errors import InputError

INTERRUPTED = 130  # exit code after Ctrl-C, as in a shell
CLOSED = 141  # and after the reader of a pipe has gone


class UsageError(InputError):
    """A fault of the command line; the exit code is 2, not 1."""


def parse(argv: Sequence[str], doc: str, define: Callable[[flags.FlagValues], Any], *, rest: bool = False) -> Any:
    """The flags of a command line ``argv`` (its first entry is the program).

    Args:
      argv: the command line.
      doc: what --help says first.
      define: defines the flags.
      rest: whether what is no flag of these is given back, too.

    Returns:
      The flags, and with ``rest`` the other arguments, the program first.

    Raises:
      UsageError: a flag that is unknown, missing or has a value that it can't have, or an argument that is no flag.
      SystemExit: after --help.
    """
    own = flags.FlagValues()
    define(own)
    flags.DEFINE_bool("help", False, "Show this.", flag_values=own)
    own.set_gnu_getopt(True)
    if any(argument in ("--help", "-help", "-h") for argument in argv[1:]):
        print(f"{doc}\n{own.get_help(include_special_flags=False)}")
        sys.exit()
    try:
        others = own(list(argv), known_only=rest)
    except flags.Error as error:
        missing = re.match(r"flag --(\w+)=None: ", str(error))
        raise UsageError(f"{f'--{missing[1]} is missing' if missing else error}; see --help") from error
    if rest:
        return own, others
    if len(others) > 1:
        raise UsageError(f"unexpected argument {others[1]!r}, expected only flags; see --help")
    return own


def prepare_output() -> None:
    """Lets text through that the terminal or pipe can't encode: what it lacks is written as \\x.., \\u.. ."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # what replaces a stream may have none
        if reconfigure:
            reconfigure(errors="backslashreplace")


def run(main: Callable[[Sequence[str]], Any], argv: Sequence[str] | None = None) -> None:
    """Entry point of a command: what the user got wrong ends with one line, whatever happens with an exit code.

    Args:
      main: of the command line.
      argv: the process's own unless given.

    Raises:
      SystemExit: 1 or 2 after an error of the user's, `INTERRUPTED`, `CLOSED`, or what ``main`` asks for.
    """
    prepare_output()
    try:
        main(sys.argv if argv is None else argv)
        sys.stdout.flush()
    except BrokenPipeError:
        leave_pipe()
    except KeyboardInterrupt:
        print("ftn_jax: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (InputError, FloatingPointError, OSError) as error:  # a checkpoint that can't be read is an OSError
        print(line_of(error), file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)


def leave_pipe() -> None:
    """Ends a process whose reader has gone, and leaves nothing to be written at its exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(CLOSED)


def line_of(error: object) -> str:
    """What is told of an error, in one line."""
    return f"ftn_jax: {' '.join(str(error).split())}"
