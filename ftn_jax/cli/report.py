"""Writes a run's report again, without training.

    python -m ftn_jax.report --workdir=runs/lora

It prints the tables, and writes report.md and the figures anew.
"""

import pathlib
import webbrowser
from collections.abc import Sequence

from absl import flags

from ftn_jax.cli.command import Console, parse
from ftn_jax.core.errors import InputError
from ftn_jax.report import write_report


def main(argv: Sequence[str]) -> None:
    """Writes the report and prints its tables; with --open, also shows its page.

    Raises:
      InputError: a workdir without results, invalid flags, or no browser to open.
    """
    own = parse(argv, __doc__ or "", _define)
    write_report(own.workdir, Console())
    if own.open:
        page = pathlib.Path(own.workdir, "report.html").absolute()
        if not webbrowser.open(page.as_uri()):
            raise InputError(f"no web browser can be started here: open {page} in one")


def _define(own: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "Folder of a run, with results.json.", required=True, flag_values=own)
    flags.DEFINE_bool("open", False, "Show report.html in a web browser.", flag_values=own)
