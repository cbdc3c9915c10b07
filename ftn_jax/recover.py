"""Finds the components of a trained pool that fit a few examples; writes with them, or exports them.

    python -m ftn_jax.recover --workdir=runs/jsonl --support=examples.jsonl --prompt="Dear Sir" --export=adapter

No task is named: the examples, 4 to 64 lines of JSONL as in training, are all there is to go by.
"""

import secrets
import sys
from collections.abc import Sequence

import numpy as np
from absl import app, flags, logging

from ftn_jax.errors import InputError
from ftn_jax.main import keep_compiled_programs
from ftn_jax.model import Recovery, load
from ftn_jax.streams.jsonl import load_pairs, load_prompts

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run with a LoRA pool.", required=True)
_SUPPORT = flags.DEFINE_string("support", None, "JSONL file of labelled examples of one task.", required=True)
_METHOD = flags.DEFINE_string("method", None, "Of the run; its first unless named.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the run.")
_BASE = flags.DEFINE_string("base", None, "Where the run's base is now, if it has moved.")
_PROMPT = flags.DEFINE_multi_string("prompt", [], "Text to go on from; may be given several times.")
_PROMPTS = flags.DEFINE_string("prompts", None, "JSONL file with prompts, as in the tasks' files.")
_TOKENS = flags.DEFINE_integer("tokens", 64, "To write after each prompt at most.", lower_bound=1)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "Of sampling; 0 takes the likeliest token.", lower_bound=0.0)
_SAMPLING_SEED = flags.DEFINE_integer("sampling_seed", None, "Of sampling; a new one unless given.", lower_bound=0)
_TOP_K = flags.DEFINE_integer("top_k", 0, "Sample from so many of the likeliest tokens; 0 is all.", lower_bound=0)
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Sample from the likeliest tokens that have this probability together.")
_STOP = flags.DEFINE_multi_string("stop", [], "Text before which writing ends; may be given several times.")
_EXPORT = flags.DEFINE_string("export", None, "Folder to write the components to, as a PEFT LoRA.")
_RANK = flags.DEFINE_integer("rank", None, "Of what is exported; all that the mask has unless given.", lower_bound=1)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace the folder of --export if it is there.")

_FEWEST, _MOST = 4, 64


def main(argv: Sequence[str]) -> None:
    """Recovers, prints, and does what else was asked for; what the user got wrong ends with one line, exit code 1."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    logging.set_verbosity(logging.WARNING)  # orbax tells every file
    try:
        _run()
    except (InputError, OSError) as error:  # a checkpoint that can't be read is an OSError
        sys.exit(f"ftn_jax: {' '.join(str(error).split())}")


def _run():
    keep_compiled_programs()
    pairs = load_pairs(_SUPPORT.value)
    if not _FEWEST <= len(pairs) <= _MOST:
        raise InputError(f"{_SUPPORT.value} has {len(pairs)} examples, expected {_FEWEST} to {_MOST}")
    prompts = list(_PROMPT.value)
    if _PROMPTS.value:
        prompts += load_prompts(_PROMPTS.value)
    model = load(_WORKDIR.value, _METHOD.value, _SEED.value, base=_BASE.value)
    found = model.recover(pairs)
    print("\n".join(describe(found, model.pool.size, len(pairs))))
    if prompts:
        seed = secrets.randbelow(2**31) if _SAMPLING_SEED.value is None else _SAMPLING_SEED.value
        if _TEMPERATURE.value:
            print(f"\nsampled with --sampling_seed={seed}")
        written = model.generate(
            prompts,
            found,
            tokens=_TOKENS.value,
            temperature=_TEMPERATURE.value,
            top_k=_TOP_K.value,
            top_p=_TOP_P.value,
            stop=_STOP.value,
            seed=seed,
        )
        for prompt, text in zip(prompts, written, strict=True):
            print(f"\n{prompt}{text}")
    if _EXPORT.value:
        lost = model.export_peft(found, _EXPORT.value, rank=_RANK.value, overwrite=_OVERWRITE.value)
        rank = _RANK.value or len(found.active) * model.pool.rank
        print(f"\nexported to {_EXPORT.value}, a PEFT LoRA of rank {rank}")
        if lost:
            print(f"a share of {lost:.2g} of the update's squared norm is lost at this rank")


def describe(found: Recovery, size: int, examples: int) -> list[str]:
    """Lines that tell what was found: losses, the mask on the torus, its overlap with the stored masks."""
    lines = [
        f"loss of the {examples} examples, nats per target token: {found.base_loss:.3f} under the base alone, "
        f"{found.loss:.3f} under the recovered mask"
    ]
    if not found.fits:
        lines.append("the mask does not beat the base: nothing in this pool fits these examples")
    if found.mine is not None:
        lines.append(
            f"these examples {'may be of a trained task' if found.mine else 'match none of the trained tasks'}"
        )
    side = round(size**0.5)
    if side * side == size:
        grid = np.full(size, "·")
        grid[found.active] = "█"
        lines += ["".join(row) for row in grid.reshape(side, side)]
    else:
        lines.append(f"components {', '.join(map(str, found.active))} of {size}")
    lines.append("share of the mask that each task's training-time mask has too (a diagnosis only):")
    lines += [f"  {task}: {share:.2f}" for task, share in found.overlap.items()]
    return lines


if __name__ == "__main__":
    app.run(main)
