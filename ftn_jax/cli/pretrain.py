"""Pretrains a small GPT-2 on a text file and writes it in Hugging Face format.

    python -m ftn_jax.pretrain --config=configs/pretrain.py --config.corpus=books.txt --workdir=runs/base

Every setting of the config can be replaced, as in ftn train.
"""

import logging
from collections.abc import Callable, Sequence

from absl import flags

from ftn_jax.cli import command
from ftn_jax.runs.pretraining import pretrain


def main(argv: Sequence[str], stop: Callable[[], bool] = lambda: False) -> None:
    """Runs the command line ``argv`` (its first entry is the program), until ``stop`` returns True.

    Raises:
      InputError: see `pretrain`; or invalid flags.
      Interrupted: ``stop`` returned True; what was trained is saved.
    """
    own, rest = command.parse(argv, __doc__ or "", _define, rest=True)
    config = command.configure(own, rest)
    if not own.workdir:
        raise command.UsageError("--workdir= is empty, expected a folder: name one, or omit the flag")
    logging.getLogger("ftn_jax").setLevel(logging.INFO)
    command.keep_compiled_programs()
    logging.getLogger("ftn_jax").info("written to %s", pretrain(config, own.workdir, stop))


def _define(own: flags.FlagValues) -> None:
    command.define_config(own)
    flags.DEFINE_string("workdir", "runs/pretrain", "Folder for checkpoints and the prepared text.", flag_values=own)
