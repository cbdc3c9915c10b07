"""A trained language model: adds text generation, PEFT adapters and merging to `ftn_jax.runs.trained`."""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ftn_jax.core.errors import InputError
from ftn_jax.models import pretrained
from ftn_jax.models.generate import generate, pad_prompts
from ftn_jax.models.tokens import Tokens, encode
from ftn_jax.pools.adapter import free_block, place
from ftn_jax.pools.base import Params, gather
from ftn_jax.pools.export import write_merged, write_peft
from ftn_jax.pools.lora import LoraPool, TokenBatch
from ftn_jax.pools.peft import read_peft
from ftn_jax.runs.build import describe
from ftn_jax.runs.card import model_card
from ftn_jax.runs.imported_adapters import save_adapters
from ftn_jax.runs.trained import Mask, Model, check_seed
from ftn_jax.runs.user_masks import active_of
from ftn_jax.streams.text.pairs import prompts_of, texts_of
from ftn_jax.streams.text.task import pad_examples, padded, padded_targets


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModel(Model):
    """A pool of LoRA components that a run has trained, with its base.

    Examples are pairs (prompt, completion), or records as in a task's file, conversations among them; an example that
    is too long for the base's positions is cut, with a warning. Losses are in nats per target token.
    """

    pool: LoraPool
    base: pretrained.Base
    imported: tuple[str, ...] = ()  # adapters that are not saved in the workdir yet

    def generate(
        self,
        prompts: Any,
        mask: Mask | Sequence[Mask] | None,
        *,
        tokens: int = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int = 0,
    ) -> list[str]:
        """What the model writes after each prompt, all prompts in one compiled program.

        Args:
          prompts: B texts, records with a prompt or messages, or lists of messages; or a single one of these.
          mask: one mask for all prompts, or a sequence with one for each; None is the base alone.
          tokens: the most tokens to write.
          temperature: temperature of sampling; 0 takes the likeliest token.
          top_k: sample from this number of likeliest tokens; 0 is all.
          top_p: sample from the likeliest tokens that together have this probability.
          stop: texts that end the output; it is cut before the first of them.
          seed: seed of sampling.

        Raises:
          InputError: no prompts, a wrong number of masks, prompts too long for the base's positions, or invalid
            settings of sampling.
        """
        settings = {"tokens": tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        check_sampling(**settings, stop=stop, seed=seed)
        prompts = prompts_of(prompts)
        positions = self.base.config.positions
        encoded = [self.base.tokens.prompt(prompt) for prompt in prompts]
        longest = max(map(len, encoded))
        check_room(longest, tokens, self.base)
        columns, key = padded(longest, positions - tokens), jax.random.key(seed) if temperature > 0 else None
        ids, valid = pad_prompts(encoded, self.base.tokens.ends[0], columns)

        def written(params, routing, prompts):
            adapters = None if mask is None else adapters_of(self.pool, params, routing)
            return continued(self.base, adapters, *prompts, **settings, key=key)

        if mask is None:
            rows = written(self.params, None, (ids, valid))
        else:
            rows = self._by_variant(written, mask, len(prompts), (ids, valid))
        return [decoded(row, self.base.tokens, stop) for row in rows]

    def export_peft(
        self,
        mask: Mask,
        folder: str | os.PathLike,
        *,
        rank: int | None = None,
        dtype: str = "float32",
        base_name: str | None = None,
        overwrite: bool = False,
        command: str = "",
    ) -> float:
        """Writes a mask's components as one PEFT LoRA, with a model card; see `ftn_jax.pools.export.write_peft`.

        Args:
          mask: the mask whose components are written.
          folder: the folder to write.
          rank: rank of the LoRA, at most k r; None is k r, at which nothing is lost.
          dtype: of the tensors: "float32", "bfloat16" or "float16".
          base_name: the name or path by which PEFT finds the base (base_model_name_or_path); None: the run's base. A
            base of ours that is on no hub is named by its path here.
          overwrite: replace an existing folder.
          command: the command that does this, for the card.

        Returns:
          The share of the update's squared norm that is lost to the rank.

        Raises:
          InputError: an invalid rank or type, or a folder that exists already or can't be written.
        """
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int | np.integer)):
            raise InputError(f"rank is {rank!r}, expected a whole number")
        rows, origin = self._exported(mask)
        whole = len(origin["active"]) * self.pool.rank
        about = {"dtype": dtype, "rank": rank or whole, "base_name": base_name, "command": command}
        card = model_card(self, mask, kind="adapter", **about)
        given = {"rank": rank and int(rank), "dtype": dtype, "base_name": base_name, "overwrite": overwrite}
        return write_peft(folder, self.pool, rows, self.base, origin, card=card, **given)

    def merge(
        self,
        mask: Mask,
        folder: str | os.PathLike,
        *,
        dtype: str = "float32",
        overwrite: bool = False,
        command: str = "",
    ) -> None:
        """Writes the base with a mask's components merged in, as one folder in Hugging Face format with a model card.

        See `ftn_jax.pools.export.write_merged`; `ftn_jax.load_base` reads the folder, and so does transformers.

        Args:
          mask: the mask whose components are merged.
          folder: the folder to write.
          dtype: of the weights: "float32", "bfloat16" or "float16"; only float32 has the components unrounded.
          overwrite: replace an earlier merged folder.
          command: the command that does this, for the card.

        Raises:
          InputError: an invalid type, or a folder that exists already or can't be written.
        """
        rows, origin = self._exported(mask)
        rank = len(origin["active"]) * self.pool.rank
        card = model_card(self, mask, kind="merged", dtype=dtype, rank=rank, command=command)
        write_merged(folder, self.pool, rows, self.base, origin, dtype=dtype, card=card, overwrite=overwrite)

    def _exported(self, mask: Mask) -> tuple[Params, dict[str, Any]]:
        """A mask's components, leaves [k, L, r, ...], and where they come from."""
        active = active_of(mask, self.stored, self.pool.size)
        origin = {"workdir": self.source, "method": self.method_name, "base": describe(self.base)}
        origin |= {"active": active.tolist(), "pool": self.pool.size, "rank": self.pool.rank}
        return gather(self.params_under(mask), jnp.asarray(active)), origin

    def with_adapter(self, folder: str | os.PathLike, *, same_base: bool = False) -> "LanguageModel":
        """This model with a PEFT LoRA of the same base in components that no mask uses.

        Its mask is stored under the name of the folder. Nothing changes on disk; see `save` for that.

        Args:
          folder: the folder of the adapter.
          same_base: accept the adapter as one of this base, whichever base it names.

        Raises:
          InputError: an adapter that is refused (see `ftn_jax.pools.peft`), a name that is taken, or too few free
            components.
        """
        adapter = read_peft(folder, self.base, same_base=same_base)
        if adapter.name in self.stored:
            raise InputError(f"{folder}: a task is named {adapter.name!r} already, rename the folder")
        taken = np.zeros(self.pool.size, bool)
        taken[np.concatenate([*self.stored.values(), []]).astype(int)] = True
        active = free_block(self.pool.size, self.k, taken)
        params = place(self.pool, self.params, adapter, jnp.asarray(active))
        claims = self.claims | {adapter.name: active} if self.method.reserves else {}
        stored, imported = self.stored | {adapter.name: active}, (*self.imported, adapter.name)
        return dataclasses.replace(self, params=params, stored=stored, claims=claims, imported=imported)

    def forget(self, task: str, *, with_dependents: bool = False) -> "LanguageModel":
        """As `Model.forget`; an adapter that was never saved leaves no trace."""
        model = super().forget(task, with_dependents=with_dependents)
        if task not in self.imported:
            return model
        rest = tuple(name for name in self.imported if name != task)
        return dataclasses.replace(model, imported=rest, forgotten=self.forgotten)

    def add(self, tasks: Mapping[str, Any], **arguments: Any) -> "LanguageModel":
        """Trains more tasks after those of the workdir, and returns the model that has them.

        Args:
          tasks: as in `ftn_jax.fit`.
          **arguments: "progress", "stop" and "on_event", as there.

        Raises:
          InputError: as there; or an adapter that is not saved, or a task that is forgotten in this model alone.
          Interrupted: as there.
        """
        from ftn_jax.runs.fit import fit
        from ftn_jax.runs.load import load

        self._check_forgotten()
        if self.imported:
            raise InputError(f"adapter {self.imported[0]!r} is in this model alone: call save() first")
        model = fit(tasks, workdir=self.source, **arguments)
        mine = self.method_name, self.seed
        return model if (model.method_name, model.seed) == mine else load(self.source, *mine)  # pyright: ignore

    def _check_forgotten(self) -> None:
        if self.forgotten:
            raise InputError(
                f"{self.forgotten[0]!r} is forgotten in this model alone: take it out of the workdir with python -m "
                f"ftn_jax.forget --workdir={self.source} --task={self.forgotten[0]}, then load the workdir again"
            )

    def save(self) -> "LanguageModel":
        """Saves the adapters that `with_adapter` has added in the workdir, for each of its seeds.

        `load` then returns them too. A run that continues in the workdir does not change their components.

        Returns:
          This model, without unsaved adapters.

        Raises:
          InputError: no adapter to save, a method that does not reserve components, a task that was forgotten in this
            model alone, a workdir that is in use or that has trained since it was loaded, or no room for another seed.
          CheckpointError: checkpoints that can't be read or written.
        """
        self._check_forgotten()
        rows = {name: gather(self.params, jnp.asarray(self.stored[name])) for name in self.imported}
        save_adapters(
            pathlib.Path(self.source),
            self.method_name,
            {name: (self.stored[name], rows[name]) for name in rows},
            seed=self.seed,
            base=self.base.name,
        )
        return dataclasses.replace(self, imported=())

    def _batch(self, examples: Any) -> TokenBatch:
        positions = self.base.config.positions
        encoded = encode(texts_of(examples), self.base.tokens, positions)
        cut = sum(example.cut for example in encoded)
        if cut:
            logging.getLogger("ftn_jax").warning(
                f"{cut} of {len(encoded)} examples do not fit the {positions} positions of base {self.base.name!r}: "
                "their prompts are cut from the left, then their completions at the end"
            )
        length = padded(max(len(e.ids) - 1 for e in encoded), positions)
        targets = padded_targets(max(len(e.scored) for e in encoded), length)
        return pad_examples(encoded, length=length, targets=targets, pad=self.base.tokens.ends[0])


def check_sampling(
    *, tokens: Any = 1, temperature: Any = 0.0, top_k: Any = 0, top_p: Any = 1.0, stop: Any = (), seed: Any = 0
) -> None:
    """Checks settings of generation.

    Raises:
      InputError: a setting that is invalid or has no effect.
    """

    def whole(value: Any, least: int) -> bool:
        return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(least <= value < 2**63)

    def real(value: Any) -> bool:
        return (
            isinstance(value, int | float | np.integer | np.floating)
            and not isinstance(value, bool)
            and bool(np.isfinite(value))
        )

    # Smaller values may be taken for zero in float32, which can't be divided by.
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
    ):
        if not fits:
            raise InputError(f"{name} is {value!r}, expected {expected}")
    check_seed(seed)
    if temperature == 0 and (top_k or top_p < 1):
        raise InputError("top_k and top_p have no effect on the likeliest token: set a temperature above 0")


def check_room(prompt: int, tokens: int, base: pretrained.Base) -> None:
    """Raises InputError if a base has too few positions for a prompt of some tokens, and ``tokens`` to write."""
    if prompt + tokens > base.config.positions:
        raise InputError(
            f"a prompt of {prompt} tokens and {tokens} to write exceed the {base.config.positions} positions of base "
            f"{base.name!r}: shorten the prompt or write fewer tokens"
        )


def continued(
    base: pretrained.Base,
    adapters: Any,
    ids: np.ndarray,
    valid: np.ndarray,
    *,
    tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    key: jax.Array | None,
) -> np.ndarray:
    """What a base writes after padded prompts: int32[B, tokens]; see `ftn_jax.models.generate.generate`."""
    written = generate(
        base.params,
        adapters,
        ids,
        valid,
        config=base.config,
        steps=tokens,
        ends=base.tokens.ends,
        key=key,
        temperature=temperature,
        top_k=min(top_k, base.config.vocabulary),
        top_p=top_p,
    )
    return np.asarray(written)


def decoded(row: np.ndarray, tokens: Tokens, stop: Sequence[str]) -> str:
    """The text of tokens int32[n] that a base wrote, cut before the first of the texts in ``stop``."""
    whole = tokens.text(row.tolist())
    return whole[: min((whole.find(end) for end in stop if end in whole), default=len(whole))]


@jax.jit
def adapters_of(pool, params, routing):
    """The adapters of each layer, as `generate` takes them.

    They are gathered layer by layer: slicing them after one gather would copy them once more.
    """

    def layer(i):
        rows = jax.tree.map(lambda leaf: leaf.at[routing, i, None].get(mode="fill", fill_value=0), params)
        return jax.tree.map(lambda leaf: leaf[0], pool.adapters(rows))

    return [layer(i) for i in range(pool.model.layers)]
