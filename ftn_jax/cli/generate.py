"""Writes after every prompt of a JSONL file, with the components of a task or those that fit a few examples.

    ftn generate --workdir=runs/mine --prompts=in.jsonl --output=out.jsonl --task=spoken
    ftn generate --workdir=runs/mine --prompts=in.jsonl --output=out.jsonl --support=examples.jsonl

Without --task and --support each line names its task: {"prompt": "...", "task": "spoken"}. The output has the input's
records in their order, with the generated text as "completion"; a completion that a record already has is kept as
"reference". Prompts are batched by length, and memory does not grow with their number. If the command is stopped, the
same command continues from <output>.partial.
"""

import pathlib
from collections.abc import Callable, Sequence

import rich.progress
from absl import flags

from ftn_jax.cli.command import Console, keep_compiled_programs, parse
from ftn_jax.cli.mask_flags import (
    check_one_mask,
    define_mask,
    define_model,
    define_sampling,
    load_with_mask,
    sampling_of,
)
from ftn_jax.runs.generation import Settings, check_output, generate_file
from ftn_jax.runs.own_parts import import_parts


def main(argv: Sequence[str], stop: Callable[[], bool] = lambda: False) -> None:
    """Runs the command line ``argv`` (its first entry is the program), until ``stop`` returns True.

    Raises:
      InputError: see `ftn_jax.cli.mask_flags` and `ftn_jax.runs.generation.generate_file`; or invalid flags.
      Interrupted: ``stop`` returned True; what was written is saved.
      SystemExit: after --help.
    """
    own = parse(argv, __doc__ or "", _define)
    import_parts(own)
    check_one_mask(own, needed=False)
    sampling = sampling_of(own) | {"stop": tuple(own.stop), "seed": own.sampling_seed, "batch": own.batch}
    settings = Settings(**sampling)
    prompts, output = pathlib.Path(own.prompts), pathlib.Path(own.output)
    check_output(prompts, output, overwrite=own.overwrite)
    keep_compiled_programs()
    model, chosen = load_with_mask(own)
    if chosen and chosen.said:
        print("\n".join([*chosen.said, ""]))
    console = Console()
    columns = (
        rich.progress.TextColumn("generating"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(compact=True),
    )
    with rich.progress.Progress(*columns, console=console, disable=not console.is_terminal) as shown:
        bar = shown.add_task("")
        total = 0

        def progress(done: int, of: int) -> None:
            nonlocal total
            total = of
            shown.update(bar, completed=done, total=of)

        mask = chosen and chosen.mask
        seed = generate_file(
            model, prompts, output, mask, settings, overwrite=own.overwrite, stop=stop, progress=progress
        )
    sampled = "" if seed is None else f", sampled with --sampling_seed={seed}"
    print(f"wrote {total} completions to {output}{sampled}")


def _define(own: flags.FlagValues) -> None:
    define_model(own)
    define_mask(own)
    what = "JSONL file of records with a prompt, and the name of a task unless one mask is for all."
    flags.DEFINE_string("prompts", None, what, required=True, flag_values=own)
    flags.DEFINE_string("output", None, "JSONL file to write.", required=True, flag_values=own)
    flags.DEFINE_bool("overwrite", False, "Replace an output that is there already.", flag_values=own)
    flags.DEFINE_integer("batch", 32, "Most prompts in memory at once.", lower_bound=1, flag_values=own)
    define_sampling(own)
