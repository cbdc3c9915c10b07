"""Writes a run's report again, without training.

    python -m ftn_jax.report --workdir=runs/lora

It prints the tables, and writes report.md and the figures anew.
"""

from collections.abc import Sequence

from absl import flags

from ftn_jax.cli.command import Console, parse
from ftn_jax.report import write_report


def main(argv: Sequence[str]) -> None:
    """Writes the report and prints its tables.

    Raises:
      InputError: a workdir without results, or invalid flags.
    """
    own = parse(argv, __doc__ or "", _define)
    write_report(own.workdir, Console())


def _define(own: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "Folder of a run, with results.json.", required=True, flag_values=own)
