"""The progress of a method through the stream, saved with orbax so that a run can continue from it."""

import contextlib
import copy
import dataclasses
import functools
import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec

from ftn_jax.core.errors import CheckpointError, InputError, Interrupted
from ftn_jax.core.mesh import concrete_mesh
from ftn_jax.core.metrics import PROTOCOLS
from ftn_jax.lifelong.novelty import Memory
from ftn_jax.lifelong.progress import Progress, place
from ftn_jax.lifelong.touched import Touched
from ftn_jax.methods import Method, Selection
from ftn_jax.pools.base import Pool, resized
from ftn_jax.training.evaluation import Row
from ftn_jax.training.state import State, Training, init_state, of_a_block, sharding_of
from ftn_jax.training.step import abstract_moments, enter

T = TypeVar("T")

_KEPT = 2  # the newest checkpoints of a method; they include the last one of a finished method

_FIELDS = ("task", "step", "seconds")


class _Mask(NamedTuple):
    """A selection without frozen components, as it is saved; orbax would expect an entry for an empty field."""

    active: Any
    variant: Any

    @classmethod
    def of(cls, mask: Selection) -> "_Mask | Selection":
        return cls(mask.active, mask.variant) if mask.frozen is None else mask


@contextlib.contextmanager
def saving(folder: pathlib.Path) -> Iterator[None]:
    """Turns what orbax raises when it can't write into a `CheckpointError`."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"checkpoints in {folder} can't be written ({' '.join(str(error).split())[:300]}): free some space or "
            "name another --workdir; earlier checkpoints are kept"
        ) from error


def newest(
    manager: ocp.CheckpointManager,
    folder: pathlib.Path,
    read: Callable[[int], T],
    *,
    otherwise: str,
    read_only: bool = False,
) -> tuple[int, T] | None:
    """The newest of ``manager``'s steps that ``read`` can read, and its value; None if nothing was saved.

    Logs a warning for each damaged step and, unless ``read_only``, deletes it once an older one was read.

    Raises:
      CheckpointError: no step can be read; the message ends with ``otherwise``.
    """
    damaged: dict[int, str] = {}
    for at in sorted(manager.all_steps(), reverse=True):
        try:
            value = read(at)
        except InputError:
            raise
        except Exception as error:  # orbax passes on any error of its readers
            damaged[at] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            continue
        for bad, reason in damaged.items():
            logging.getLogger("ftn_jax").warning(
                f"checkpoint {folder / str(bad)} can't be read ({reason}): the one of step {at} is used"
            )
            if not read_only:
                manager.delete(bad)
        return at, value
    if damaged:
        at, reason = next(iter(damaged.items()))
        raise CheckpointError(
            f"no checkpoint in {folder} can be read (step {at}: {reason}); nothing was deleted: restore the folder "
            f"from a copy, {otherwise}"
        )
    return None


class Checkpoints:
    """The checkpoints of one method, in their own folder; a context manager whose exit waits for the last write.

    Saving runs in the background. A checkpoint appears under its name only when it is complete.
    """

    def __init__(self, folder: pathlib.Path, *, read_only: bool = False):
        self._folder, self._read_only = folder, read_only
        # Orbax's own read_only option logs warnings about the options that it overrides.
        self._options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else _KEPT, cleanup_tmp_directories=not read_only, create=not read_only
        )
        self._manager: ocp.CheckpointManager

    def __enter__(self):
        with saving(self._folder):
            self._manager = ocp.CheckpointManager(self._folder.absolute(), options=self._options)
        return self

    def __exit__(self, kind, *exception):
        try:
            with saving(self._folder):
                self._manager.wait_until_finished()
                self._manager.close()
        except CheckpointError:
            # After another error, this one would repeat it or hide it.
            if kind is None or issubclass(kind, Interrupted):
                raise

    def save(self, progress: Progress, at: int) -> None:
        """Saves a copy of ``progress`` as the checkpoint after ``at`` steps of the stream.

        If there are later checkpoints, it gets the number after the last of them.

        Raises:
          CheckpointError: this checkpoint, or the one before it, can't be written.
        """
        told = {field: getattr(progress, field) for field in _FIELDS} | {
            "rows": [
                {
                    protocol: {metric: v.tolist() for metric, v in getattr(row, protocol).items()}
                    for protocol in PROTOCOLS
                }
                for row in progress.rows
            ],
            "k": progress.masks[0].active.shape[-1],
            "frozen": [None if mask.frozen is None else mask.frozen.shape[-1] for mask in progress.masks],
            "used": [numbers.tolist() for numbers in progress.used],
            "size": progress.size,
            "tasks": progress.touched.counts.shape[1],
            "shapes": _shapes(progress.state),
            "moments": progress.state.opt_state is not None,
            "path": progress.touched.path,
            "shown": progress.touched.steps,
            "imported": {name: np.asarray(mask.active).tolist() for name, mask in progress.imported.items()},
            "memories": [dataclasses.asdict(memory) for memory in progress.memories],
            "pace": progress.pace,
            "validated": progress.validated,
        }
        arrays = {
            "state": progress.state,
            "selections": [_Mask.of(mask) for mask in progress.masks],
            "active": progress.touched.counts,
        }
        # Written in the background, while training reuses the buffers and appends to the lists.
        arrays, told = jax.tree.map(lambda leaf: leaf.copy(), arrays), copy.deepcopy(told)
        args = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), progress=ocp.args.JsonSave(told))
        latest = self._manager.latest_step()
        at = at if latest is None else max(at, latest + 1)
        with saving(self._folder):
            self._manager.save(at, args=args)

    def wait(self) -> None:
        """Waits until everything that was saved is on the disk.

        Raises:
          CheckpointError: a checkpoint can't be written.
        """
        with saving(self._folder):
            self._manager.wait_until_finished()

    def paths(self) -> list[pathlib.Path]:
        """The folders of the checkpoints, oldest first."""
        return [self._folder / str(at) for at in sorted(self._manager.all_steps())]

    def drop_older(self) -> None:
        """Deletes all checkpoints but the newest."""
        for at in sorted(self._manager.all_steps())[:-1]:
            self._manager.delete(at)

    def restore(
        self, pool: Pool, method: Method, training: Training, tasks: int, seeds: tuple[int, ...]
    ) -> Progress | None:
        """The newest progress that can be read, or None if nothing was saved; ``tasks`` is the stream's N.

        Raises:
          CheckpointError: none of the checkpoints can be read.
        """
        found = newest(
            self._manager,
            self._folder,
            lambda at: self._read(at, pool, method, training, tasks, seeds),
            otherwise="delete it to train this method anew, name another --workdir, or add --fresh",
            read_only=self._read_only,
        )
        return None if found is None else found[1]

    def _read(self, at, pool, method, training, tasks, seeds):
        told = self._manager.restore(at, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))["progress"]
        pool = resized(pool, told["size"])
        older = "used" not in told  # older versions saved a mask per block, and claims and masks separately
        frozen = [None] * (told["task"] + (told["step"] > 0)) if older else told["frozen"]
        state = jax.eval_shape(
            functools.partial(init_state, method=method, training=training), pool, np.asarray(seeds, np.int32)
        )
        if told.get("moments"):
            state = state._replace(opt_state=abstract_moments(state, told["k"], method=method, training=training))
        elif "moments" not in told:  # older versions always saved those of all components
            state = state._replace(opt_state=jax.eval_shape(jax.vmap(training.optimizer.init), state.params))
        if told.get("shapes", _shapes(state)) != _shapes(state) and told["tasks"] != tasks:
            raise InputError(
                f"{self._folder.name} keeps state for each of the {told['tasks']} tasks that the stream had when the "
                f"run began, and now there are {tasks}: name another --workdir, or start anew with --fresh"
            )
        if older and method.reserves:
            state = state._replace(
                extra=state.extra | {"claim": jax.ShapeDtypeStruct((len(seeds), pool.size), jnp.int32)}
            )

        def indices(count):
            return None if count is None else jax.ShapeDtypeStruct((len(seeds), count), jnp.int32)

        number = jax.ShapeDtypeStruct((len(seeds),), jnp.int32)
        masks = [_Mask.of(Selection(indices(told["k"]), number, indices(count))) for count in frozen]  # pyright: ignore
        touched = Touched(len(seeds), tasks, pool.size)
        arrays = {"state": state, "selections": masks}
        mesh = concrete_mesh(len(seeds))
        by_seed = NamedSharding(mesh, PartitionSpec("seed"))
        shardings = {
            "state": sharding_of(state, training.optimizer, mesh),
            "selections": jax.tree.map(lambda _: by_seed, arrays["selections"]),
        }
        wanted = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), arrays, shardings
        )
        wanted["active"] = touched.counts[:, : told["tasks"]]
        read = self._manager.restore(at, args=ocp.args.Composite(arrays=ocp.args.StandardRestore(wanted)))["arrays"]
        # The stream may have grown since the checkpoint was saved.
        touched.counts[:, : told["tasks"]] = read["active"]
        touched.path[: told["tasks"]], touched.steps = told["path"], told["shown"]
        missing = ((0, 0), (0, tasks - told["tasks"]))
        rows = [
            Row(
                **{
                    protocol: {
                        metric: np.pad(v, missing, constant_values=np.nan) for metric, v in row[protocol].items()
                    }
                    for protocol in PROTOCOLS
                },
                recovered=[],
            )
            for row in told["rows"]
        ]
        fields = {field: told[field] for field in _FIELDS}
        fields |= {field: told[field] for field in ("pace", "validated") if field in told}  # not in older versions
        memories = [Memory.of({k: v for k, v in plain.items() if k != "masks"}) for plain in told["memories"]]
        state, masks = read["state"], [Selection(*mask) for mask in read["selections"]]
        used = np.array(told["used"]) if not older else np.repeat(np.arange(len(masks))[:, None], len(seeds), 1)
        if older and method.reserves:
            del state.extra["claim"]
            if any(memory.events for memory in memories):
                masks, used = _from_memories([plain["masks"] for plain in told["memories"]], masks, pool.size)
        imported = {
            name: place(Selection(np.array(active, np.int32), np.zeros(len(seeds), np.int32)))  # pyright: ignore
            for name, active in told.get("imported", {}).items()
        }
        progress = Progress(
            state, touched, masks=masks, used=list(used), rows=rows, memories=memories, imported=imported, **fields
        )
        if "moments" not in told and training.reset:
            moments = state.opt_state
            if not progress.step and not any(memory.events for memory in memories):
                moments = None  # a block is over whose end was announced
            elif of_a_block(method, training):
                active = progress.selections[-1].active
                kept = dataclasses.replace(training, reset=False)  # so that rows are gathered
                _, moments, _ = enter(state.params, moments, state.extra, active, training=kept)
            progress.state = state._replace(opt_state=moments)
        return progress


def _shapes(state: State) -> list[list[int]]:
    return [list(leaf.shape) for leaf in jax.tree.leaves((state.params, state.extra))]


def _from_memories(known: list[list[list[int]]], blocks: list[Selection], size: int) -> tuple[list[Selection], Any]:
    """The masks, and the numbers [blocks, E] of the masks that blocks use, from the masks of each seed and block."""
    used = [
        [masks.index(active.tolist()) for masks, active in zip(known, np.asarray(block.active), strict=True)]
        for block in blocks
    ]
    k = blocks[0].active.shape[-1]
    every = np.full((len(known), max(map(len, known)), k), size, np.int32)
    for seed, masks in zip(every, known, strict=True):
        seed[: len(masks)] = masks
    return [place(blocks[0]._replace(active=mask)) for mask in every.swapaxes(0, 1)], np.array(used)
