"""Writes a run's base with a task's components, or those that fit a few examples, merged into its weights.

    ftn merge --workdir=runs/mine --task=spoken --output=spoken-model
    ftn merge --workdir=runs/mine --support=examples.jsonl --output=model --dtype=bfloat16

The folder is in Hugging Face format, with the base's tokenizer and a model card. transformers and servers load it, and
ftn_jax loads it as a base. In bfloat16 and float16 the sum of base and update is rounded, which may lose small updates.
"""

from collections.abc import Sequence

from absl import flags

from ftn_jax.cli.command import parse
from ftn_jax.cli.export import begin, define_output
from ftn_jax.cli.mask_flags import command_line, define_mask, define_model


def main(argv: Sequence[str]) -> None:
    """Runs the command line ``argv`` (its first entry is the program).

    Raises:
      InputError: see `ftn_jax.cli.mask_flags` and `ftn_jax.LanguageModel.merge`; or invalid flags.
      SystemExit: after --help.
    """
    own = parse(argv, __doc__ or "", _define)
    model, chosen = begin(own, merged=True)
    command = command_line(argv, "merge")
    model.merge(chosen.mask, own.output, dtype=own.dtype, overwrite=own.overwrite, command=command)
    print(f"merged into {own.output}: base {model.base.name} with {chosen.named}, in {own.dtype}")


def _define(own: flags.FlagValues) -> None:
    define_model(own)
    define_mask(own)
    define_output(own)
