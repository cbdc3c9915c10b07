"""Generates after each prompt of a JSONL file, batch by batch, and writes the lines in their order.

Memory holds one batch, and a few numbers for each line. What is finished is kept in a journal beside the output, from
which a stopped call continues.
"""

import array
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import pathlib
import secrets
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ftn_jax.core.errors import InputError, Interrupted, writing
from ftn_jax.core.files import whole
from ftn_jax.models.chat import Chat
from ftn_jax.models.generate import pad_prompts
from ftn_jax.pools.base import gather
from ftn_jax.runs.trained import Mask
from ftn_jax.runs.trained_language import LanguageModel, adapters_of, check_room, continued, decoded
from ftn_jax.runs.user_masks import active_of
from ftn_jax.streams.text.jsonl import read_lines
from ftn_jax.streams.text.records import answered, parse_record, prompt_of, reference_of, string
from ftn_jax.streams.text.task import padded

_FORMAT = 1


class _Lines(NamedTuple):
    """The lines of a file of prompts that are not blank: n of them."""

    offsets: array.array  # of each line, in bytes
    lengths: array.array  # tokens of its prompt
    masks: array.array  # index in `names`
    names: list[str]  # the tasks that lines name; "" is the mask for all
    digest: str  # of the file


class _Batch(NamedTuple):
    """Lines that are generated together: under one mask, padded to one length."""

    lines: list[int]  # the places of n lines
    name: str  # of the mask
    rows: int  # n, or more to share a compiled program
    columns: int  # tokens to which prompts are padded


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How to generate: the arguments of `LanguageModel.generate`, and the most prompts that are in memory at once."""

    tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None  # of sampling; None: a new one, or that of the call that is continued
    batch: int = 32


def generate_file(
    model: LanguageModel,
    prompts: pathlib.Path,
    output: pathlib.Path,
    mask: Mask | None,
    settings: Settings,
    *,
    overwrite: bool = False,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int, int], Any] = lambda done, total: None,
) -> int | None:
    """Writes ``output``: the records of ``prompts`` in their order, each with what the model wrote as "completion".

    A completion that a record has already is kept as "reference". Of a conversation, prompt and completion are lists of
    messages.

    Args:
      model: the trained model.
      prompts: a JSONL file of records with a prompt; with a task, too, whose mask then answers, if ``mask`` is None.
      output: the file to write. Until it is complete, ``<output>.partial`` has what is finished.
      mask: one mask for all lines; None: each line names its task.
      settings: how to generate.
      overwrite: replace an output that is there, and a partial one of other prompts or settings.
      stop: asked after each batch; once it returns True, the call ends.
      progress: is told after each batch how many lines are finished, and of how many.

    Returns:
      The seed of sampling; None if nothing is sampled.

    Raises:
      InputError: a line that is no record, has no mask or does not fit the base, or an output that is there already.
      Interrupted: ``stop`` returned True; what is finished is kept.
    """
    check_output(prompts, output, overwrite=overwrite)
    found = _read(model, prompts, mask, settings)
    used: dict[str, Mask] = {name: name if mask is None else mask for name in found.names}
    active = {name: active_of(one, model.stored, model.pool.size) for name, one in used.items()}
    longest = max(map(len, active.values()))
    header = {
        "format": _FORMAT,
        "prompts": found.digest,
        "base": model.base.hash,
        "masks": {name: _digest(model.params_under(one), active[name]) for name, one in used.items()},
        **{name: value for name, value in dataclasses.asdict(settings).items() if name != "seed"},
    }
    with _journal(output, json.loads(json.dumps(header)), settings, overwrite=overwrite) as (journal, seed):
        places = array.array("q", [-1]) * len(found.offsets)  # of each line's completion in the journal
        for place, line in _finished(journal, len(places), _partial(output)):
            places[line] = place
        key = None if seed is None else jax.random.key(seed)
        done, name, adapters = sum(place >= 0 for place in places), None, None
        progress(done, len(places))
        with prompts.open("rb") as source:
            for number, batch in enumerate(_batches(found, settings, model.base.config.positions)):
                missing = [line for line in batch.lines if places[line] < 0]
                if not missing:
                    continue
                if stop():
                    raise Interrupted
                if batch.name != name:
                    adapters = None  # frees the last mask's
                    name, own = batch.name, active[batch.name]
                    routing = np.pad(own, (0, longest - len(own)), constant_values=model.pool.size)
                    adapters = adapters_of(model.pool, model.params_under(used[name]), routing)
                texts = [prompt_of(_line_at(source, found.offsets[line])) for line in batch.lines]
                noise = None if key is None else jax.random.fold_in(key, number)
                written = _completions(model, adapters, texts, batch, settings, noise)
                for line, text in zip(batch.lines, written, strict=True):
                    places[line] = journal.tell()
                    journal.write(json.dumps({"line": line, "completion": text}).encode() + b"\n")
                journal.flush()
                done += len(missing)
                progress(done, len(places))
        _write(prompts, output, found, journal, places)
        _partial(output).unlink()
    return seed


def check_output(prompts: pathlib.Path, output: pathlib.Path, *, overwrite: bool) -> None:
    """Raises InputError if the output is there already and may not be replaced, or if it is the file of prompts."""
    if output.exists():
        if output.is_dir() or (prompts.exists() and output.samefile(prompts)):
            raise InputError(f"--output={output} is a folder or the file of prompts, expected another file")
        if not overwrite:
            raise InputError(f"{output} exists already: name another --output, or add --overwrite to replace it")


def _batches(lines: _Lines, settings: Settings, positions: int) -> list[_Batch]:
    """The batches: of one mask each, of prompts of similar length, of at most ``settings.batch`` rows."""
    masks, found = np.asarray(lines.masks), []
    order = np.lexsort((np.asarray(lines.lengths), masks))
    for mask in range(len(lines.names)):
        own = order[masks[order] == mask].tolist()
        for first in range(0, len(own), settings.batch):
            part = own[first : first + settings.batch]
            longest = max(lines.lengths[line] for line in part)
            rows = min(1 << (len(part) - 1).bit_length(), settings.batch)  # few sizes, for few compiled programs
            found.append(_Batch(part, lines.names[mask], rows, padded(longest, positions - settings.tokens)))
    return found


def _read(model: LanguageModel, prompts: pathlib.Path, mask: Mask | None, settings: Settings) -> _Lines:
    """Checks every line of a file of prompts."""
    found = _Lines(array.array("q"), array.array("i"), array.array("i"), [], _hash_of(prompts))
    for number, offset, line in read_lines(prompts):
        try:
            record = parse_record(line)
            prompt, task = prompt_of(record), record.get("task")
            if reference_of(record) is not None and "reference" in record:
                raise ValueError("has completion and reference, expected at most one: the completion is written anew")
            if task is None and mask is None:
                raise ValueError("has no task, expected the name of one, or one mask for all lines (--task, --support)")
            if task is not None and mask is not None:
                raise ValueError("has a task, and --task or --support gives one mask for all lines: leave out either")
            if task is not None and string(record, "task") not in model.stored:
                raise ValueError(f"has task {task!r}, known: {', '.join(model.stored) or '-'}")
            length = len(model.base.tokens.prompt(prompt))
            check_room(length, settings.tokens, model.base)
        except ValueError as error:
            colon = ":" if isinstance(error, InputError) else ""
            raise InputError(f"{prompts} line {number}{colon} {error}") from error
        name = task or ""
        if name not in found.names:
            found.names.append(name)
        found.offsets.append(offset)
        found.lengths.append(length)
        found.masks.append(found.names.index(name))
    if not found.offsets:
        raise InputError(f"{prompts} has no lines, expected records with a prompt")
    return found


def _completions(
    model: LanguageModel, adapters: Any, prompts: list[str | Chat], batch: _Batch, settings: Settings, key: Any
) -> list[str]:
    """What the model writes after each prompt of a batch."""
    tokens = model.base.tokens
    encoded = [tokens.prompt(prompt) for prompt in prompts]
    encoded += [encoded[0]] * (batch.rows - len(encoded))
    ids, valid = pad_prompts(encoded, tokens.ends[0], batch.columns)
    sampling = {name: getattr(settings, name) for name in ("tokens", "temperature", "top_k", "top_p")}
    rows = continued(model.base, adapters, ids, valid, **sampling, key=key)
    return [decoded(row, tokens, settings.stop) for row in rows[: len(prompts)]]


def _line_at(file: IO[bytes], offset: int) -> dict[str, Any]:
    file.seek(offset)
    return parse_record(file.readline().strip())


def _write(prompts: pathlib.Path, output: pathlib.Path, lines: _Lines, journal: IO[bytes], places: array.array) -> None:
    """Writes the output from the prompts and the journal."""
    if _hash_of(prompts) != lines.digest:
        raise InputError(f"{prompts} has changed while it was in use: put it back, or start anew with --overwrite")
    with whole(output) as partial, partial.open("wb") as target, prompts.open("rb") as source:
        for offset, place in zip(lines.offsets, places, strict=True):
            record = _line_at(source, offset)
            reference = reference_of(record)
            if reference is not None:
                record["reference"] = reference
            journal.seek(place)
            record |= answered(prompt_of(record), json.loads(journal.readline())["completion"])
            if isinstance(record["prompt"], list):
                record.pop("messages", None)
            target.write(_encoded(record) + b"\n")


def _encoded(record: dict[str, Any]) -> bytes:
    try:
        return json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can write as an escape alone
        return json.dumps(record).encode()


def _hash_of(path: pathlib.Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror or error})") from error


def _digest(params: Any, active: np.ndarray) -> str:
    """A hash of a mask's components with their weights."""
    digest = hashlib.sha256(active.tobytes())
    for leaf in jax.tree.leaves(gather(params, jnp.asarray(active))):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


# --- the journal: a line that says what it belongs to, then a line for each completion -------------------------------


def _partial(output: pathlib.Path) -> pathlib.Path:
    return output.with_name(f"{output.name}.partial")


@contextlib.contextmanager
def _journal(
    output: pathlib.Path, header: dict[str, Any], settings: Settings, *, overwrite: bool
) -> Iterator[tuple[IO[bytes], int | None]]:
    """The journal, locked and read up to its header, and the seed of sampling."""
    path = _partial(output)
    with writing(path), path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{path} is in use by another call: wait for it, or name another --output") from None
        file.seek(0)
        first = file.readline()
        held = _header(first)
        wanted = header if settings.seed is None or not settings.temperature else header | {"seed": settings.seed}
        differs = [] if held is None else sorted(name for name in wanted if held.get(name) != wanted[name])
        if (held is None and first.strip()) or differs:
            if not overwrite:
                what = f"was begun with other {', '.join(differs)}" if differs else "is no partial output"
                raise InputError(f"{path} {what}: expected the same as now; to begin anew, add --overwrite")
            held = None
        if held is None:
            seed = secrets.randbelow(2**31) if settings.seed is None else settings.seed
            held = header | {"seed": seed if settings.temperature else None}
            file.truncate(0)
            file.write(json.dumps(held).encode() + b"\n")
            file.flush()
        yield file, held["seed"]


def _header(line: bytes) -> dict[str, Any] | None:
    """The header in the first line of a journal; None if it is none."""
    try:
        held = json.loads(line)
    except ValueError:
        return None
    return held if isinstance(held, dict) and held.get("format") == _FORMAT and "seed" in held else None


def _finished(file: IO[bytes], lines: int, path: pathlib.Path) -> Iterator[tuple[int, int]]:
    """(place in the journal, finished line); cuts off the half entry that a killed call has left."""
    file.seek(0)
    file.readline()
    while True:
        place = file.tell()
        line = file.readline()
        if not line:
            return
        if not line.endswith(b"\n"):
            file.truncate(place)
            file.seek(place)
            return
        try:
            entry = json.loads(line)
            finished = range(lines).index(entry["line"])
            entry["completion"].encode()
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{path} is damaged (byte {place}), expected what ftn generate wrote: delete it"
            ) from error
        yield place, finished
