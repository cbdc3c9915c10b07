"""Finds the components of a trained pool that fit a few examples; generates text with them, or exports them.

    python -m ftn_jax.recover --workdir=runs/jsonl --support=examples.jsonl --prompt="Dear Sir" --export=adapter

It is not told the task: it has only the examples, 4 to 64 lines of JSONL as in training. For a pool of small networks,
the examples are a .npz or .csv file as in training.
"""

import pathlib
import secrets
from collections.abc import Sequence

import numpy as np
from absl import flags

from ftn_jax.cli.command import UsageError, keep_compiled_programs, parse
from ftn_jax.core.errors import InputError
from ftn_jax.pools.neurons import NeuronPool
from ftn_jax.pools.peft import check_target
from ftn_jax.runs.load import load
from ftn_jax.runs.own_parts import define_import, import_parts
from ftn_jax.runs.trained import Recovery
from ftn_jax.runs.trained_language import LanguageModel, check_sampling
from ftn_jax.streams.examples import SUFFIXES, read_examples
from ftn_jax.streams.text.jsonl import load_pairs, load_prompts

_FEWEST, _MOST = 4, 64


def main(argv: Sequence[str]) -> None:
    """Runs the command line ``argv`` (its first entry is the program).

    Raises:
      InputError: see `ftn_jax.runs.trained`; or invalid flags.
    """
    own = parse(argv, __doc__ or "", _define)
    import_parts(own)
    keep_compiled_programs()
    if pathlib.Path(own.support).suffix.lower() in SUFFIXES:
        _recover_networks(own)
        return
    pairs = load_pairs(own.support)
    if not _FEWEST <= len(pairs) <= _MOST:
        raise InputError(f"{own.support} has {len(pairs)} examples, expected {_FEWEST} to {_MOST}")
    prompts = list(own.prompt)
    if own.prompts:
        prompts += load_prompts(own.prompts)
    for name, texts in (("prompt", own.prompt), ("stop", own.stop)):
        for text in texts:
            if any("\ud800" <= letter <= "\udfff" for letter in text):  # from a byte that is not UTF-8
                raise UsageError(f"--{name}={text!r} is not UTF-8, expected UTF-8 text")
    sampling = {name: getattr(own, name) for name in ("tokens", "temperature", "top_k", "top_p", "stop")}
    check_sampling(**sampling)
    if own.export:
        check_target(own.export, overwrite=own.overwrite)
    elif own.rank or own.overwrite:
        raise UsageError("--rank and --overwrite have no effect without --export, which is missing; see --help")
    model = load(own.workdir, own.method, own.seed, base=own.base)
    if not isinstance(model, LanguageModel):
        raise InputError(
            f"workdir {own.workdir} holds no language model: expected --support with numbers for small networks "
            f"({' or '.join(SUFFIXES)}); any pool can be used from Python, with ftn_jax.load"
        )
    found = model.recover(pairs, compose=own.compose)
    print("\n".join(describe(found, model.pool.size, len(pairs))))
    if prompts:
        seed = secrets.randbelow(2**31) if own.sampling_seed is None else own.sampling_seed
        if own.temperature:
            print(f"\nsampled with --sampling_seed={seed}")
        written = model.generate(prompts, found, **sampling, seed=seed)
        for prompt, text in zip(prompts, written, strict=True):
            print(f"\n{prompt}{text}")
    if own.export:
        lost = model.export_peft(found, own.export, rank=own.rank, overwrite=own.overwrite)
        rank = own.rank or len(found.active) * model.pool.rank
        print(f"\nexported to {own.export}, a PEFT LoRA of rank {rank}")
        if lost:
            print(f"a share of {lost:.2g} of the update's squared norm is lost at this rank")


def _recover_networks(own: flags.FlagValues) -> None:
    """Recovers a mask of small networks from examples of numbers, and prints it."""
    for name in ("base", "prompt", "prompts", "export"):
        if own[name].value:
            raise UsageError(f"--{name} is for language models, whose --support is a JSONL file, not {own.support}")
    examples = read_examples(own.support)
    if len(examples.y) < _FEWEST:
        raise InputError(f"{own.support} has {len(examples.y)} examples, expected at least {_FEWEST}")
    model = load(own.workdir, own.method, own.seed)
    if not isinstance(model.pool, NeuronPool):
        raise InputError(f"{own.support} has numbers, and workdir {own.workdir} holds no small networks")
    try:
        found = model.recover((examples.x, examples.y), compose=own.compose)
    except InputError as error:
        raise InputError(f"{own.support}: {error}") from error
    loss = "cross-entropy in nats" if model.pool.classes else "squared error"
    print("\n".join(describe(found, model.pool.size, len(examples.y), loss=loss, without="no component")))


def _define(own: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "Folder of a run.", required=True, flag_values=own)
    what = "File of labelled examples of one task: JSONL, or .npz or .csv for small networks."
    flags.DEFINE_string("support", None, what, required=True, flag_values=own)
    define_import(own)
    flags.DEFINE_string("method", None, "Method of the run; default its first.", flag_values=own)
    flags.DEFINE_integer("seed", None, "Seed of the run; default its first.", flag_values=own)
    flags.DEFINE_string("base", None, "Where the run's base is now, if it has moved.", flag_values=own)
    what = "Also try masks of several tasks together, for a task that is made of these."
    flags.DEFINE_bool("compose", False, what, flag_values=own)
    flags.DEFINE_multi_string("prompt", [], "Text to continue; may be given several times.", flag_values=own)
    flags.DEFINE_string("prompts", None, "JSONL file with prompts, as in the tasks' files.", flag_values=own)
    flags.DEFINE_integer("tokens", 64, "Most tokens to write after each prompt.", lower_bound=1, flag_values=own)
    flags.DEFINE_float(
        "temperature", 0.0, "Sampling temperature; 0 takes the likeliest token.", lower_bound=0.0, flag_values=own
    )
    flags.DEFINE_integer("sampling_seed", None, "Seed of sampling; default a new one.", lower_bound=0, flag_values=own)
    flags.DEFINE_integer(
        "top_k", 0, "Sample from this number of likeliest tokens; 0 is all.", lower_bound=0, flag_values=own
    )
    flags.DEFINE_float(
        "top_p", 1.0, "Sample from the likeliest tokens that together have this probability.", flag_values=own
    )
    flags.DEFINE_multi_string("stop", [], "Text at which the output ends; may be given several times.", flag_values=own)
    flags.DEFINE_string("export", None, "Folder to write the components to, as a PEFT LoRA.", flag_values=own)
    flags.DEFINE_integer(
        "rank", None, "Rank of the exported LoRA; default the full rank.", lower_bound=1, flag_values=own
    )
    flags.DEFINE_bool("overwrite", False, "Replace the folder of --export if it exists.", flag_values=own)


def describe(
    found: Recovery,
    size: int,
    examples: int,
    *,
    loss: str = "nats per target token",
    without: str = "the base alone",
) -> list[str]:
    """The result in words: losses, the mask on the torus, its overlap with the stored masks."""
    lines = [
        f"loss of the {examples} examples, {loss}: {found.base_loss:.3f} under {without}, "
        f"{found.loss:.3f} under the recovered mask"
    ]
    if found.parts:
        lines.append(f"made of the masks of: {', '.join(found.parts)}")
    if not found.fits:
        lines.append(f"the mask does not beat {without}: nothing in this pool fits these examples")
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
    lines.append("share of the mask that is also in each task's training-time mask (for information only):")
    lines += [f"  {task}: {share:.2f}" for task, share in found.overlap.items()]
    return lines
