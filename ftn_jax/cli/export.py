"""Writes a task's components, or those that fit a few examples, as one LoRA adapter that PEFT loads.

    ftn export --workdir=runs/mine --task=spoken --output=adapter
    ftn export --workdir=runs/mine --support=examples.jsonl --output=adapter --rank=16 --dtype=bfloat16

The folder has a model card. If the base is on this machine only, the adapter names its path; for others, name the base
by --base_model_name_or_path.
"""

import os
from collections.abc import Sequence
from typing import Any

from absl import flags

from ftn_jax.cli.command import keep_compiled_programs, parse
from ftn_jax.cli.mask_flags import Chosen, check_one_mask, command_line, define_mask, define_model, load_with_mask
from ftn_jax.models.hub import loadable
from ftn_jax.models.writing import DTYPES
from ftn_jax.pools.export import check_target
from ftn_jax.runs.own_parts import import_parts
from ftn_jax.runs.trained import Mask
from ftn_jax.runs.trained_language import LanguageModel


def main(argv: Sequence[str]) -> None:
    """Runs the command line ``argv`` (its first entry is the program).

    Raises:
      InputError: see `ftn_jax.cli.mask_flags` and `ftn_jax.LanguageModel.export_peft`; or invalid flags.
      SystemExit: after --help.
    """
    own = parse(argv, __doc__ or "", _define)
    model, chosen = begin(own)
    given = {"rank": own.rank, "dtype": own.dtype, "base_name": own.base_model_name_or_path}
    export(model, chosen.mask, own.output, argv, name="export", overwrite=own.overwrite, **given)


def begin(own: flags.FlagValues, *, merged: bool = False) -> tuple[LanguageModel, Chosen]:
    """The model and the mask of a command that writes a folder, which is checked before anything is loaded.

    Raises:
      InputError: see `ftn_jax.cli.mask_flags` and `ftn_jax.pools.export.check_target`.
    """
    import_parts(own)
    check_one_mask(own)
    check_target(own.output, overwrite=own.overwrite, merged=merged)
    keep_compiled_programs()
    model, chosen = load_with_mask(own)
    assert chosen is not None
    if chosen.said:
        print("\n".join([*chosen.said, ""]))
    return model, chosen


def export(
    model: LanguageModel, mask: Mask, folder: str, argv: Sequence[str], *, name: str = "recover", **settings: Any
) -> None:
    """Writes an adapter by the command ``argv`` of ``ftn <name>``, and prints what there is to say.

    Args:
      model: the trained model.
      mask: the mask whose components are written.
      folder: the folder.
      argv: the command line.
      name: the name of the command.
      settings: of `LanguageModel.export_peft`.

    Raises:
      InputError: see `LanguageModel.export_peft`.
    """
    lost = model.export_peft(mask, folder, command=command_line(argv, name), **settings)
    active = mask if isinstance(mask, str) else mask.active  # pyright: ignore
    count = len(model.stored[active] if isinstance(active, str) else active)
    rank = settings.get("rank") or count * model.pool.rank
    print(f"exported to {folder}, a PEFT LoRA of rank {rank}")
    if lost:
        print(f"a share of {lost:.2g} of the update's squared norm is lost at this rank")
    base = loadable(model.base.name)
    if settings.get("base_name") is None and os.path.exists(base):
        gguf = ", a GGUF file, which PEFT does not load by its name" if os.path.isfile(base) else ", on this machine"
        print(f"it names its base {base}{gguf}: for another name, use ftn export --base_model_name_or_path=NAME")


def define_rank(own: flags.FlagValues) -> None:
    what = "Rank of the exported LoRA; default the full rank."
    flags.DEFINE_integer("rank", None, what, lower_bound=1, flag_values=own)


def define_output(own: flags.FlagValues) -> None:
    """Defines the flags of the folder that is written."""
    flags.DEFINE_string("output", None, "Folder to write.", required=True, flag_values=own)
    flags.DEFINE_enum("dtype", "float32", DTYPES, "Type of the numbers in the folder.", flag_values=own)
    flags.DEFINE_bool("overwrite", False, "Replace the folder, if an earlier call wrote it.", flag_values=own)


def _define(own: flags.FlagValues) -> None:
    define_model(own)
    define_mask(own)
    define_output(own)
    define_rank(own)
    what = "What PEFT shall load as the base: a name on the hub, or a path; default the run's base."
    flags.DEFINE_string("base_model_name_or_path", None, what, flag_values=own)
