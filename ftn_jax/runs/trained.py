"""A trained run as something to use: find the components that fit some examples, write with them, take them away."""

import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ftn_jax.core.errors import InputError
from ftn_jax.core.rules import Config
from ftn_jax.lifelong.forgetting import check_forgettable
from ftn_jax.lifelong.novelty import Sample, at_home
from ftn_jax.methods import Method, Selection
from ftn_jax.models import pretrained
from ftn_jax.models.generate import generate, pad_prompts
from ftn_jax.models.tokens import Pair, encode
from ftn_jax.pools.adapter import free_block, place
from ftn_jax.pools.base import Params, gather
from ftn_jax.pools.lora import LoraPool, TokenBatch
from ftn_jax.pools.peft import read_peft, write_peft
from ftn_jax.runs.build import describe, seeds_of
from ftn_jax.runs.inputs import active_of, pairs_of, prompts_of, routing_of
from ftn_jax.runs.parts import check_registered
from ftn_jax.runs.restore import read_saved
from ftn_jax.runs.workdir import read_results
from ftn_jax.streams.text.task import pad_examples, padded
from ftn_jax.training.evaluation import remains
from ftn_jax.training.state import RECOVER, fold, renewed


class Recovery(NamedTuple):
    """A mask that was found from examples, and what is known of it; losses in nats per target token."""

    active: np.ndarray  # int32[k], sorted
    loss: float  # of the examples under the mask
    base_loss: float  # of the same under the base alone
    overlap: dict[str, float]  # task -> share of the mask that is in the task's stored one too; a diagnosis
    mine: bool | None = None  # whether they may be examples of a trained task; None: its masks' losses are not known

    @property
    def fits(self) -> bool:
        """Whether the mask beats the base alone; if not, nothing in the pool fits the examples."""
        return self.loss < self.base_loss


Mask = Recovery | str | np.ndarray | Sequence[int] | jax.Array
"""A recovery, a task's name, active indices, or a binary mask [H]; see `ftn_jax.runs.inputs.active_of`."""

Examples = Sequence[Pair | Mapping[str, str]]
"""(prompt, completion) of each, or records as in a task's file."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A pool that a run has trained, of one method and seed, on its base. Made by `load`."""

    base: pretrained.Base
    pool: LoraPool
    method: Method
    method_name: str
    params: Params  # leaves [H, ...]
    extra: Any  # what the method keeps besides
    stored: dict[str, np.ndarray]  # task -> int32[k], the mask that its block was trained with
    source: str  # the workdir
    k: int  # components of a mask
    seed: int = 0  # of the run
    own: dict[str, list[Sample]] = dataclasses.field(default_factory=dict)  # task -> what its stored mask leaves

    def recover(self, pairs: Examples, seed: int = 0) -> Recovery:
        """A cold start on examples of one task, which is not named (Algorithm 1).

        Args:
          pairs: 4 to 64 examples; what does not fit the base's positions is cut, and the log says so.
          seed: of the noise that breaks ties.

        Raises:
          InputError: no pairs, or a method that has to be told the task.
        """
        if self.method.oracle:
            raise InputError(f"{self.method_name} has to be told the task and recovers none: name another method")
        check_sampling(seed=seed)
        batch, key = self._batch(pairs), fold(jax.random.key(seed), RECOVER)
        active, losses = _recover(self.pool, self.params, self.extra, batch, key, select=self.method.select)
        active, (base_loss, loss) = np.asarray(active), np.asarray(losses).tolist()
        overlap = {task: np.isin(active, mask).mean().item() for task, mask in self.stored.items()}
        return Recovery(active, loss, base_loss, overlap, self._is_mine(batch))

    def _is_mine(self, batch: TokenBatch) -> bool | None:
        """Whether some stored mask leaves no more of the examples than it may of its own task's."""
        if not self.own or self.own.keys() != self.stored.keys():
            return None
        masks = np.stack(list(self.stored.values()))
        left = _remains(self.pool, self.method, self.params, self.extra, masks, batch)
        return at_home(left, [self.own[task] for task in self.stored]) is not None

    def example_losses(self, pairs: Examples, mask: Mask | Sequence[Mask] | None) -> np.ndarray:
        """The loss f32[B] of each pair in nats per target token, under one mask or each under its own.

        None is the base alone. What does not fit the base's positions is cut, and the log says so.

        Raises:
          InputError: no pairs, or another number of masks.
        """
        examples = pairs_of(pairs)
        routing = np.zeros(0, np.int32) if mask is None else self._routing(mask, len(examples))
        sums, counts = _example_losses(self.pool, self.params, routing, self._batch(examples))
        return np.asarray(sums / counts)

    def generate(
        self,
        prompts: str | Sequence[str | Mapping[str, str]],
        mask: Mask | Sequence[Mask] | None,
        *,
        tokens: int = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int = 0,
    ) -> list[str]:
        """What the model writes after each prompt; all of them in one compiled program.

        Args:
          prompts: B texts or records with a prompt; or one.
          mask: of all prompts, or a sequence with one for each; None is the base alone.
          tokens: to write at most.
          temperature: of sampling; 0 takes the likeliest token.
          top_k: sample from so many of the likeliest tokens; 0 is all.
          top_p: sample from the likeliest tokens that together have this probability.
          stop: texts before which what is written ends.
          seed: of sampling.

        Raises:
          InputError: no prompts, another number of masks, prompts too long for the base's positions, or settings of
            sampling that can't be.
        """
        settings = {"tokens": tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        check_sampling(**settings, stop=stop, seed=seed)
        prompts = prompts_of(prompts)
        routing = None if mask is None else self._routing(mask, len(prompts))
        text, positions = self.base.tokens, self.base.config.positions
        encoded = [text.prompt(prompt) for prompt in prompts]
        longest = max(map(len, encoded))
        if longest + tokens > positions:
            raise InputError(
                f"a prompt of {longest} tokens and {tokens} to write exceed the {positions} positions of base "
                f"{self.base.name!r}: shorten the prompt or write fewer tokens"
            )
        ids, valid = pad_prompts(encoded, text.ends[0], padded(longest, positions - tokens))
        texts, sampled = [], temperature > 0
        written = generate(
            self.base.params,
            None if routing is None else _adapters(self.pool, self.params, routing),
            ids,
            valid,
            config=self.base.config,
            steps=tokens,
            ends=text.ends,
            key=jax.random.key(seed) if sampled else None,
            temperature=temperature,
            top_k=min(top_k, self.base.config.vocabulary),
            top_p=top_p,
        )
        for row in np.asarray(written).tolist():
            whole = text.text(row)
            texts.append(whole[: min((whole.find(end) for end in stop if end in whole), default=len(whole))])
        return texts

    def export_peft(
        self, mask: Mask, folder: str | os.PathLike, *, rank: int | None = None, overwrite: bool = False
    ) -> float:
        """Writes a mask's components as one PEFT LoRA; see `ftn_jax.pools.peft.write_peft`.

        Args:
          mask: of the components.
          folder: to write.
          rank: of the LoRA, at most k r, with which nothing is lost.
          overwrite: replace a folder that is there.

        Returns:
          The share of the update's squared norm that is lost.

        Raises:
          InputError: a rank that can't be, a folder that is there already, or one that can't be written.
        """
        active = active_of(mask, self.stored, self.pool.size)
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int | np.integer)):
            raise InputError(f"rank is {rank!r}, expected a whole number")
        origin = {"workdir": self.source, "method": self.method_name, "base": describe(self.base)}
        origin |= {"active": active.tolist(), "pool": self.pool.size, "rank": self.pool.rank}
        rows = gather(self.params, jnp.asarray(active))
        return write_peft(folder, self.pool, rows, self.base, origin, rank=rank and int(rank), overwrite=overwrite)

    def with_adapter(self, folder: str | os.PathLike, *, same_base: bool = False) -> "Model":
        """This model with a PEFT LoRA of the same base in components that no mask has; its mask is stored by name.

        Args:
          folder: of the adapter.
          same_base: whether it is of this base, whatever base it names.

        Raises:
          InputError: an adapter that is refused (see `ftn_jax.pools.peft`), a name that is taken, or no room.
        """
        adapter = read_peft(folder, self.base, same_base=same_base)
        if adapter.name in self.stored:
            raise InputError(f"{folder}: a task is named {adapter.name!r} already, rename the folder")
        taken = np.zeros(self.pool.size, bool)
        taken[np.concatenate([*self.stored.values(), []]).astype(int)] = True
        active = free_block(self.pool.size, self.k, taken)
        params = place(self.pool, self.params, adapter, jnp.asarray(active))
        extra = self.extra
        if self.method.claimed:
            params, extra = self.method.finish(self.pool, params, extra, None, Selection(jnp.asarray(active)), None)
        return dataclasses.replace(self, params=params, extra=extra, stored=self.stored | {adapter.name: active})

    def forget(self, task: str) -> "Model":
        """This model with a task's components as they were before any training, and free again.

        Every other component keeps its bits. On disk nothing changes: see `ftn_jax.forget`.

        Raises:
          InputError: no such task, or one that shares components with others.
        """
        check_forgettable(self.method_name, self.method, self.stored, task)
        rest, own = ({name: v for name, v in items.items() if name != task} for items in (self.stored, self.own))
        active, key = jnp.asarray(self.stored[task]), jax.random.key(self.seed)
        params, extra = renewed(self.pool, self.method, self.params, self.extra, active, key)
        return dataclasses.replace(self, params=params, extra=extra, stored=rest, own=own)

    def _routing(self, mask: Mask | Sequence[Mask], rows: int) -> np.ndarray:
        return routing_of(mask, self.stored, self.pool.size, rows)

    def _batch(self, pairs: Examples) -> TokenBatch:
        positions = self.base.config.positions
        examples = encode(pairs_of(pairs), self.base.tokens, positions)
        cut = sum(example.cut for example in examples)
        if cut:
            logging.getLogger("ftn_jax").warning(
                f"{cut} of {len(examples)} examples do not fit the {positions} positions of base {self.base.name!r}: "
                "their prompts are cut from the left, then their completions at the end"
            )
        length = padded(max(len(e.prompt) + len(e.target) - 1 for e in examples), positions)
        targets = padded(max(len(e.target) for e in examples), length)
        return pad_examples(examples, length=length, targets=targets, pad=self.base.tokens.ends[0])


def load(
    workdir: str | os.PathLike, method: str | None = None, seed: int | None = None, *, base: str | None = None
) -> Model:
    """The model that a run has trained; while it runs, that of its last checkpoint.

    Args:
      workdir: of a run with a LoRA pool.
      method: the config's first unless named.
      seed: the config's first unless named.
      base: where the run's base is now, if it has moved; it is held to the hash of its weights.

    Raises:
      InputError: no such workdir, method or seed, another kind of pool, or a base that is not the run's.
      CheckpointError: nothing was saved, or it can't be read.
    """
    workdir = pathlib.Path(workdir)
    results = read_results(workdir)
    check_registered(results, workdir)
    config: Config = ConfigDict(results["config"])
    seeds = seeds_of(config)
    seed = seeds[0] if seed is None else seed
    if seed not in seeds:
        raise InputError(f"workdir {workdir} has no seed {seed}, known: {', '.join(map(str, seeds))}")
    if config.pool.name != "lora":
        raise InputError(f"workdir {workdir} has a pool of {config.pool.name}, expected one of lora")
    name = str(config.methods[0]) if method is None else method
    saved = read_saved(workdir, results, name, base)
    assert saved.base is not None
    at, state = seeds.index(seed), saved.progress.state
    params, extra = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[at]), (state.params, state.extra))
    names = results["task_names"]
    stored = {task: np.asarray(s.active[at]) for task, s in zip(names, saved.progress.selections, strict=False)}
    own = {}
    for memory in saved.progress.memories[at : at + 1]:
        places = {
            task: memory.masks.index(mask.tolist()) for task, mask in stored.items() if mask.tolist() in memory.masks
        }
        own = {task: memory.settled(place) for task, place in places.items()}
    pool: Any = saved.pool
    k = len(next(iter(stored.values()))) if stored else config.configurer.k
    return Model(saved.base, pool, saved.method, name, params, extra, stored, str(workdir), k, seed, own)


def check_sampling(
    *, tokens: Any = 1, temperature: Any = 0.0, top_k: Any = 0, top_p: Any = 1.0, stop: Any = (), seed: Any = 0
) -> None:
    """Holds settings of generation to what they may be.

    Raises:
      InputError: one that can't be, or that has no effect.
    """

    def whole(value: Any, least: int) -> bool:
        return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(least <= value < 2**63)

    def real(value: Any) -> bool:
        return (
            isinstance(value, int | float | np.integer | np.floating)
            and not isinstance(value, bool)
            and bool(np.isfinite(value))
        )

    # In float32 what is smaller is zero where it divides.
    least = 1e-6
    texts = isinstance(stop, Sequence) and not isinstance(stop, str)
    for name, value, fits, expected in (
        ("tokens", tokens, whole(tokens, 1), "a whole number above 0"),
        (
            "temperature",
            temperature,
            real(temperature) and (temperature == 0 or temperature >= least),
            "0, or 1e-6 or more",
        ),
        ("top_k", top_k, whole(top_k, 0), "a whole number, 0 for all tokens"),
        ("top_p", top_p, real(top_p) and least <= top_p <= 1, "1e-6 to 1"),
        ("stop", stop, texts and all(isinstance(s, str) and s for s in stop), "a list of texts"),
        ("seed", seed, whole(seed, 0) and seed < 2**32, "a whole number from 0 to 2**32 - 1"),
    ):
        if not fits:
            raise InputError(f"{name} is {value!r}, expected {expected}")
    if temperature == 0 and (top_k or top_p < 1):
        raise InputError("top_k and top_p have no effect on the likeliest token: set a temperature above 0")


@functools.partial(jax.jit, static_argnames=("select",))
def _recover(pool, params, extra, support, key, *, select):
    """What ``select`` finds, int32[k], and the support's loss f32[2] without and with it."""
    active = select(pool, params, extra, support, None, key).active
    rows = gather(params, active)
    return active, jnp.stack([pool.loss(rows, jnp.full(len(active), gain), support) for gain in (0.0, 1.0)])


@jax.jit
def _example_losses(pool, params, routing, batch):
    return pool.example_losses(params, routing, batch)


_remains = jax.jit(remains, static_argnames=("method",))


@jax.jit
def _adapters(pool, params, routing):
    """Of each layer, as `generate` takes them. Gathered layer by layer: what is sliced later is copied once more."""

    def layer(i):
        rows = jax.tree.map(lambda leaf: leaf[routing, i, None], params)
        return jax.tree.map(lambda leaf: leaf[0], pool.adapters(rows))

    return [layer(i) for i in range(pool.model.layers)]
