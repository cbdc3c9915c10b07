"""The command line: ``python -m ftn_jax.main --config=configs/lora.py --workdir=runs/lora``."""

import logging
import pathlib
import sys

import rich.console
from absl import app, flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", help_string="A file of configs/, with ':argument' if it has any.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where to write; default runs/<config file>-<argument>.")
FRESH = flags.DEFINE_bool("fresh", False, "Set aside what the workdir holds and start anew.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    from ftn_jax import experiment

    logging.getLogger("ftn_jax").setLevel(logging.INFO)
    experiment.train_and_evaluate(
        CONFIG.value, WORKDIR.value or default_workdir(), fresh=FRESH.value, console=rich.console.Console()
    )


def default_workdir() -> str:
    """``runs/lora-quick`` for ``--config=configs/lora.py:quick``."""
    file, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return str(pathlib.Path("runs") / "-".join(part for part in (pathlib.Path(file).stem, argument) if part))


def run() -> None:
    """Entry point: what the user got wrong ends with one line and exit code 1 or 2."""
    from ftn_jax.errors import InputError

    try:
        flags.mark_flags_as_required(["config"])
        app.run(main, flags_parser=_parse)
    except (InputError, FloatingPointError, OSError) as error:
        sys.exit(f"ftn_jax: {error}")


def _parse(argv):
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError, TypeError, ValueError, OSError, flags.Error) as error:
        lines = str(error).strip().splitlines()
        print(f"ftn_jax: {lines[0] if lines else type(error).__name__}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run()
