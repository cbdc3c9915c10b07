"""Finds the components of a trained pool that fit a few examples; generates text with them, or exports them.

    python -m ftn_jax.recover --workdir=runs/jsonl --support=examples.jsonl --prompt="Dear Sir" --export=adapter

It is not told the task: it has only the examples, 4 to 64 lines of JSONL as in training. For a pool of small networks,
the examples are a .npz or .csv file as in training.
"""

import pathlib
import secrets
from collections.abc import Sequence

from absl import flags

from ftn_jax.cli.command import UsageError, keep_compiled_programs, parse
from ftn_jax.cli.export import define_rank, export
from ftn_jax.cli.mask_flags import (
    FEWEST,
    check_texts,
    define_compose,
    define_model,
    define_sampling,
    describe,
    load_language,
    load_support,
    sampling_of,
)
from ftn_jax.core.errors import InputError
from ftn_jax.models.chat import Chat
from ftn_jax.pools.export import check_target
from ftn_jax.pools.neurons import NeuronPool
from ftn_jax.runs.load import load
from ftn_jax.runs.own_parts import import_parts
from ftn_jax.streams.examples import SUFFIXES, read_examples
from ftn_jax.streams.text.jsonl import load_prompts


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
    pairs = load_support(own.support)
    prompts: list[str | Chat] = list(own.prompt)
    if own.prompts:
        prompts += load_prompts(own.prompts)
    check_texts("prompt", own.prompt)
    sampling = sampling_of(own)
    if own.export:
        check_target(own.export, overwrite=own.overwrite)
    elif own.rank or own.overwrite:
        raise UsageError("--rank and --overwrite have no effect without --export, which is missing; see --help")
    model = load_language(own)
    found = model.recover(pairs, compose=own.compose)
    print("\n".join(describe(found, model.pool.size, len(pairs))))
    if prompts:
        seed = secrets.randbelow(2**31) if own.sampling_seed is None else own.sampling_seed
        if own.temperature:
            print(f"\nsampled with --sampling_seed={seed}")
        written = model.generate(prompts, found, **sampling, seed=seed)
        for prompt, text in zip(prompts, written, strict=True):
            print(f"\n{prompt.last}\n{text}" if isinstance(prompt, Chat) else f"\n{prompt}{text}")
    if own.export:
        print()
        export(model, found, own.export, argv, rank=own.rank, overwrite=own.overwrite)


def _recover_networks(own: flags.FlagValues) -> None:
    """Recovers a mask of small networks from examples of numbers, and prints it."""
    for name in ("base", "prompt", "prompts", "export"):
        if own[name].value:
            raise UsageError(f"--{name} is for language models, whose --support is a JSONL file, not {own.support}")
    examples = read_examples(own.support)
    if len(examples.y) < FEWEST:
        raise InputError(f"{own.support} has {len(examples.y)} examples, expected at least {FEWEST}")
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
    define_model(own)
    what = "File of labelled examples of one task: JSONL, or .npz or .csv for small networks."
    flags.DEFINE_string("support", None, what, required=True, flag_values=own)
    define_compose(own)
    flags.DEFINE_multi_string("prompt", [], "Text to continue; may be given several times.", flag_values=own)
    flags.DEFINE_string("prompts", None, "JSONL file with prompts, as in the tasks' files.", flag_values=own)
    define_sampling(own)
    what = "Folder to write the components to, as a PEFT LoRA; ftn export has more settings."
    flags.DEFINE_string("export", None, what, flag_values=own)
    define_rank(own)
    flags.DEFINE_bool("overwrite", False, "Replace the folder of --export if it exists.", flag_values=own)
