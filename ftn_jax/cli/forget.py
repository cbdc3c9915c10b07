"""Removes a task from a run: its components are as before any training, and free again; all others stay as they are.

    python -m ftn_jax.forget --workdir=runs/mine --task=spoken --dry_run      # what would be removed
    python -m ftn_jax.forget --workdir=runs/mine --task=spoken --remove_older

The run then has one task less: the command that trained it continues without that task, and reports on the others.
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from ftn_jax.cli.command import parse
from ftn_jax.runs.forget import forget
from ftn_jax.runs.own_parts import define_import, import_parts


def main(argv: Sequence[str]) -> None:
    """Forgets the task that the command line ``argv`` names (its first entry is the program); prints what was removed.

    Raises:
      InputError: see `forget`; or invalid flags.
      SystemExit: after --help.
    """
    own = parse(argv, __doc__ or "", _define)
    import_parts(own)
    switches = {name: own[name].value for name in ("with_dependents", "dry_run", "remove_older")}
    said = forget(pathlib.Path(own.workdir), own.task, base=own.base, **switches)
    print("\n".join(said))


def _define(own: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "Folder of a run.", required=True, flag_values=own)
    define_import(own)
    flags.DEFINE_string("task", None, "Name of the task to forget.", required=True, flag_values=own)
    flags.DEFINE_string("base", None, "Where the run's base is now, if it has moved.", flag_values=own)
    flags.DEFINE_bool("with_dependents", False, "Also forget the tasks that reuse it.", flag_values=own)
    flags.DEFINE_bool("dry_run", False, "Say what would be removed, and change nothing.", flag_values=own)
    flags.DEFINE_bool("remove_older", False, "Also delete older checkpoints and reports.", flag_values=own)
