"""The stream of a user's own tasks of text: one JSONL file per task, read from disk during training.

A line is ``{"prompt": ..., "completion": ...}`` (TRL's names; the loss is on the completion), ``{"text": ...}`` (the
loss is on the whole text) or ``{"messages": [...]}`` (the loss is on the assistant's turns; see
`ftn_jax.streams.text.records`). Only an index of a file's lines is kept in memory.
"""

import array
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ftn_jax.core.errors import InputError
from ftn_jax.models.chat import Chat
from ftn_jax.models.tokens import (
    Example,
    Pair,
    Text,
    Tokenized,
    Tokens,
    arrange,
    check_length,
    encode,
    measure,
    measure_pieces,
    tokenized,
)
from ftn_jax.pools.lora import TokenBatch
from ftn_jax.streams.base import TEXT, ArrayTask, Context, Stream, with_rows
from ftn_jax.streams.files import (
    NEEDED,
    SPLITS,
    Shares,
    blocks_of,
    check_regular,
    check_shares,
    paths_of,
    split_of,
    task_names,
)
from ftn_jax.streams.text.counting import TokenCounter
from ftn_jax.streams.text.records import parse_record, prompt_of, text_of
from ftn_jax.streams.text.task import pad_examples, padded, padded_targets

_LONGEST = 2**24  # the most bytes of a line
_AT_ONCE = 2**20  # bytes of lines whose tokens are counted in one batch while a file is indexed
_HELD = 256  # the most examples used of the recovery and test splits, and of training to install a mask
_KEPT = 2**24  # the most tokens of long texts kept per split, 4 bytes each
_OTHER_FILES = {
    b"\x1f\x8b": ("compressed with gzip", "unpack it (gunzip)"),
    b"BZh": ("compressed with bzip2", "unpack it (bunzip2)"),
    b"\xfd7zXZ": ("compressed with xz", "unpack it (unxz)"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "unpack it (unzstd)"),
    b"PK\x03\x04": ("a zip archive", "unpack it (unzip)"),
    b"PAR1": ("a Parquet file", "write it as JSON lines (in pandas: to_json(orient='records', lines=True))"),
    b"\xff\xfe": ("UTF-16", "convert it (iconv -f UTF-16 -t UTF-8)"),
    b"\xfe\xff": ("UTF-16", "convert it (iconv -f UTF-16 -t UTF-8)"),
}
Parsed = TypeVar("Parsed")
_BUCKET, _ROWS = range(2)  # the purposes of random numbers


def parse_line(line: bytes) -> Text:
    """The pair (prompt, completion) of a line, or its conversation.

    Raises:
      ValueError: says what is wrong with the line.
    """
    return text_of(parse_record(line))


def parse_prompt(line: bytes) -> str | Chat:
    """The prompt of a line, which may also have a completion.

    Raises:
      ValueError: says what is wrong with the line.
    """
    return prompt_of(parse_record(line))


def read_lines(path: pathlib.Path) -> Iterator[tuple[int, int, bytes]]:
    """(line number, offset, line) of each line that is not blank.

    Raises:
      InputError: the file can't be read, or a line is too long.
    """
    try:
        with path.open("rb") as file:
            number = offset = 0
            _check_plain(path, file.peek(8))  # type: ignore[attr-defined]
            while line := file.readline(_LONGEST + 1):
                number += 1
                if len(line) > _LONGEST:
                    raise InputError(f"{path} line {number} is longer than {_LONGEST} bytes")
                bom = number == 1 and line.startswith(b"\xef\xbb\xbf")
                content = line[3 * bom :].strip()
                if content:
                    yield number, offset + 3 * bom, content
                offset += len(line)
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror or error})") from error


def _check_plain(path: pathlib.Path, beginning: bytes) -> None:
    """Raises InputError if a file's first bytes show that it is not lines of UTF-8."""
    for magic, (kind, remedy) in _OTHER_FILES.items():
        if beginning.startswith(magic):
            raise InputError(f"{path} is {kind}, expected lines of JSON in UTF-8: {remedy}")


def read_texts(path: pathlib.Path) -> Iterator[tuple[int, bytes, Text]]:
    """(offset, line, text) of each line that is not blank.

    Raises:
      InputError: names file, line and field.
    """
    return (entry[1:] for entry in _parsed(path, parse_line))


def _parsed(path: pathlib.Path, parse: Callable[[bytes], Parsed]) -> Iterator[tuple[int, int, bytes, Parsed]]:
    """(line number, offset, line, what it says) of each line that is not blank."""
    for number, offset, line in read_lines(path):
        try:
            yield number, offset, line, parse(line)
        except ValueError as error:
            raise InputError(f"{path} line {number} {error}") from error


def load_texts(path: str | os.PathLike) -> list[Text]:
    """The pairs and conversations of a small file.

    Raises:
      InputError: names file, line and field.
    """
    return [text for _, _, text in read_texts(pathlib.Path(path))]


def load_prompts(path: str | os.PathLike) -> list[str | Chat]:
    """The prompts of a small file of the same format; completions may be missing.

    Raises:
      InputError: names file, line and field.
    """
    return [prompt for *_, prompt in _parsed(pathlib.Path(path), parse_prompt)]


class Index(NamedTuple):
    """The places and lengths of a file's n examples in one split."""

    offsets: np.ndarray  # int64[n], of their lines in the file
    lengths: np.ndarray  # int32[n], tokens that are read
    targets: np.ndarray  # int32[n], tokens that are scored
    pieces: np.ndarray  # int32[n], the number of the piece, if a line is split
    lines: int
    cut: int  # lines that were cut because they are too long
    split: int  # lines that were split into several examples


def index_file(
    path: pathlib.Path, tokens: Tokens, *, max_length: int, shares: Shares, long_texts: str = "split"
) -> dict[str, Index]:
    """The index of each split.

    A text without a prompt that is too long is split into several examples, unless ``long_texts`` is "cut".

    Raises:
      InputError: names file, line and field.
    """
    columns = {split: [array.array(kind) for kind in "qiii"] for split in SPLITS}
    totals = {split: {"lines": 0, "cut": 0, "split": 0} for split in SPLITS}
    waiting: list[tuple[int, str, Pair]] = []
    held = 0
    count = TokenCounter(tokens)

    def add(offset: int, split: str, sizes: list[tuple[int, int]], shortened: bool) -> None:
        for piece, size in enumerate(sizes):
            for column, value in zip(columns[split], (offset, *size, piece), strict=True):
                column.append(value)
        for total, more in (("lines", 1), ("cut", shortened), ("split", len(sizes) > 1)):
            totals[split][total] += more

    def flush():
        counts = count([text for _, _, pair in waiting for text in pair])
        for (offset, split, _), prompt, completion in zip(waiting, counts[::2], counts[1::2], strict=True):
            length, targets, shortened = measure(prompt, completion + 1, max_length, len(tokens.start))
            sizes = [(length, targets)]
            if shortened and not prompt and long_texts == "split":
                sizes, shortened = measure_pieces(completion + 1, max_length, len(tokens.start)), False
            add(offset, split, sizes, shortened)
        waiting.clear()

    for number, offset, line, text in _parsed(path, parse_line):
        split = split_of(line, shares)
        if isinstance(text, Chat):
            try:
                (example,) = encode([text], tokens, max_length)
            except InputError as error:
                raise InputError(f"{path} line {number}: {error}") from error
            flush()  # keeps the order of the file
            add(offset, split, [(len(example.ids) - 1, len(example.scored))], example.cut)
            continue
        waiting.append((offset, split, text))
        held += len(line)
        if held >= _AT_ONCE:
            flush()
            held = 0
    if waiting:
        flush()
    return {s: Index(*map(np.array, columns[s]), **totals[s]) for s in SPLITS}  # type: ignore[arg-type]


class _Bucket(NamedTuple):
    rows: np.ndarray  # of the index
    length: int
    targets: int


def _identity(path: pathlib.Path) -> tuple[int, int]:
    """A file's size and the time of its last change, to detect changes of its content."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


class Lines:
    """The lines of one split in buckets of similar length; batches are read from disk."""

    def __init__(self, path: pathlib.Path, index: Index, tokens: Tokens, max_length: int, long_texts: str = "split"):
        self._path, self._index, self._tokens, self._max_length = path, index, tokens, max_length
        self._splits = long_texts == "split"
        self._long: dict[int, tuple[Sequence[int], Sequence[int]]] = {}  # offset -> ids of a long text, oldest first
        self._kept = 0  # number of tokens in these
        self._content = _identity(path)

    @property
    def count(self) -> int:
        return len(self._index.offsets)

    def texts(self, rows: np.ndarray) -> list[Text]:
        """The pairs and conversations of the given rows of the index.

        Raises:
          InputError: the file has changed since it was indexed, or can't be read any more.
        """
        found = []
        try:
            if _identity(self._path) != self._content:
                raise InputError(f"{self._path} has changed while it was in use: start again")
            with self._path.open("rb") as file:
                for offset in self._index.offsets[rows]:
                    file.seek(offset)
                    found.append(parse_line(file.readline(_LONGEST).strip()))
        except OSError as error:
            raise InputError(f"{self._path} can't be read any more ({error.strerror or error})") from error
        return found

    def batches(self, seeds: Sequence[int], task: int, first: int, steps: int, size: int) -> TokenBatch:
        """The batches of ``steps`` steps from ``first``, leaves [E, steps, size, ...]; no batch repeats an example.

        All are from one bucket, drawn with a probability proportional to its size. The bucket is a function of task and
        first step only, so that seeds share shapes. The examples are a function of (seed, task, step).
        """
        buckets = self._buckets(size)
        shares = np.array([len(bucket.rows) for bucket in buckets], float)
        bucket = buckets[np.random.default_rng((_BUCKET, task, first)).choice(len(shares), p=shares / shares.sum())]
        rows = [
            np.random.default_rng((_ROWS, seed, task, step)).choice(bucket.rows, size, replace=False)
            for seed in seeds
            for step in range(first, first + steps)
        ]
        chosen = np.concatenate(rows)
        batch = self._pad(self.texts(chosen), chosen, bucket.length, bucket.targets)
        return TokenBatch(*(leaf.reshape(len(seeds), steps, size, -1) for leaf in batch))

    def spread(self, most: int) -> tuple[np.ndarray, int, int]:
        """The rows of up to ``most`` examples, evenly spread over the file, their most tokens and scored positions."""
        rows = np.linspace(0, self.count - 1, min(most, self.count)).round().astype(np.int64)
        return rows, int(self._index.lengths[rows].max()), int(self._index.targets[rows].max())

    def read(self, rows: np.ndarray, length: int, targets: int) -> tuple[TokenBatch, list[Text]]:
        """These rows as one batch [n, ...] and as texts."""
        texts = self.texts(rows)
        return self._pad(texts, rows, length, targets), texts

    @functools.cache  # noqa: B019  there are few `Lines`, three per file
    def _buckets(self, size: int) -> list[_Bucket]:
        return _buckets(self._index, size, self._max_length)

    def _ids(self, texts: Sequence[Text], rows: np.ndarray) -> list[Tokenized]:
        """`tokenized` with a cache of long texts, since the pieces of a text are drawn one at a time."""
        offsets = self._index.offsets[rows].tolist()
        new = {offset: text for offset, text in zip(offsets, texts, strict=True) if offset not in self._long}
        found = dict(zip(new, tokenized(list(new.values()), self._tokens) if new else (), strict=True))
        known: dict[int, Any] = {offset: self._long[offset] for offset in offsets if offset not in new} | found
        for offset, ids in found.items():
            if not isinstance(ids, Example) and not ids[0] and len(ids[1]) > self._max_length:
                self._long[offset] = known[offset] = ids[0], array.array("i", ids[1])
                self._kept += len(ids[1])
        while self._kept > _KEPT:
            self._kept -= len(self._long.pop(next(iter(self._long)))[1])
        return [known[offset] for offset in offsets]

    def _pad(self, texts, rows, length, targets):
        pieces = self._index.pieces[rows].tolist() if self._splits else None
        examples = arrange(self._ids(texts, rows), self._tokens, self._max_length, pieces)
        return pad_examples(examples, length=length, targets=targets, pad=self._tokens.ends[0])


def _buckets(index: Index, least: int, most: int) -> list[_Bucket]:
    """Groups lines by padded length; a group of fewer than ``least`` lines is joined to the next longer one."""
    sizes = np.array([padded(length, most) for length in range(most + 1)])[index.lengths]
    buckets, waiting = [], np.array([], np.int64)
    for length in np.unique(sizes).tolist():
        waiting = np.concatenate([waiting, np.flatnonzero(sizes == length)])
        if len(waiting) >= least or length == sizes.max():
            buckets.append(_Bucket(waiting, length, padded_targets(int(index.targets[waiting].max()), length)))
            waiting = waiting[:0]
    while len(buckets) > 1 and len(buckets[-1].rows) < least:
        short, last = buckets.pop(-2), buckets.pop()
        rows = np.concatenate([short.rows, last.rows])
        buckets.append(_Bucket(rows, last.length, max(short.targets, last.targets)))
    return buckets


def _held(splits: dict[str, Lines], max_length: int) -> tuple[ArrayTask, list[Text]]:
    """What is held in memory of a file, its splits padded to sizes that other files share; and its test texts."""
    chosen = {split: own.spread(_HELD) for split, own in splits.items() if own.count}
    length = padded(max(longest for _, longest, _ in chosen.values()), max_length)
    targets = padded_targets(max(scored for *_, scored in chosen.values()), length)
    read = {split: splits[split].read(rows, length, targets) for split, (rows, *_) in chosen.items()}
    train, recovery = (with_rows(read[split][0], _HELD) for split in ("train", "recovery"))
    test, validation = (
        with_rows(own[0], padded(len(own[1]), _HELD)) if (own := read.get(split)) else None
        for split in ("test", "validation")
    )
    counts = np.array([len(chosen["train"][0]), len(chosen["recovery"][0])], np.int32)
    return ArrayTask(train, recovery, test, counts, validation), read["test"][1]


def jsonl(
    context: Context,
    files: Sequence[str],
    *,
    max_length: int,
    recovery: float,
    test: float,
    validation: float = 0.0,
    long_texts: str = "split",
) -> Stream:
    """A stream with one task for each file; a hash of each line decides its split. FILE#2 trains FILE's task further.

    ``recovery``, ``test`` and ``validation`` are the shares of these splits; the other lines are for training. A text
    without a prompt that has more than ``max_length`` tokens is split into several examples; if ``long_texts`` is
    "cut", only the first is kept.

    Raises:
      InputError: a file can't be read or used (the message names the line), two files have the same name, a split has
        no lines, or the base has fewer positions than ``max_length``.
    """
    base, names = context.base, task_names(files)
    check_length(max_length, base)
    shares = Shares(recovery, test, validation)
    check_shares(shares)
    tasks, pairs, lines = [], [], []
    facts: dict[str, list[float]] = {"lines": [], "split": [], "cut": []}
    for name, file in zip(names, paths_of(files), strict=True):
        path = pathlib.Path(file)
        check_regular(path)
        indices = index_file(path, base.tokens, max_length=max_length, shares=shares, long_texts=long_texts)
        for split in SPLITS if validation else NEEDED:
            if not len(indices[split].offsets):
                raise InputError(
                    f"{path} has no line for split {split!r} of task {name!r}: add lines, or change the shares "
                    "of the splits (config.stream.recovery, .test, .validation)"
                )
        splits = {s: Lines(path, index, base.tokens, max_length, long_texts) for s, index in indices.items()}
        task, shown = _held(splits, max_length)
        tasks.append(task)
        pairs.append(shown)
        lines.append(splits["train"])
        for fact, own in facts.items():
            own.append(sum(getattr(index, fact) for index in indices.values()))

    def feed(task, first, steps, size):
        return lines[task].batches(context.seeds, task, first, steps, size)

    counts = [
        {"training": own.count} | dict(zip(("installation", "recovery"), task.counts.tolist(), strict=True))
        for task, own in zip(tasks, lines, strict=True)
    ]
    told: dict[str, Any] = {"examples": counts, "pairs": pairs, "feed": feed, "task_facts": facts, **blocks_of(files)}
    return Stream(names, tasks, "cross_entropy", TEXT, **told)
