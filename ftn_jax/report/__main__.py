"""Makes a run's report again, without training: `python -m ftn_jax.report --workdir=runs/lora`."""

import sys
from collections.abc import Sequence

from absl import app, flags
from rich.console import Console

from ftn_jax.errors import InputError
from ftn_jax.report import write_report

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run, with results.json.", required=True)


def main(argv: Sequence[str]) -> None:
    """Writes the report and prints its tables; a faulty workdir ends with one line and exit code 1."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}: expected --workdir only")
    try:
        write_report(_WORKDIR.value, Console())
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main)
