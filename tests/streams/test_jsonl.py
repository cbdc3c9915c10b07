"""Streams from files: every malformed line is named, splits stay, batches hold the lines that were drawn."""

import dataclasses
import gzip
import json
import lzma
import os
import sys
import tracemalloc

import jax
import numpy as np
import pytest
import toys
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from ftn_jax.core.errors import InputError
from ftn_jax.models.pretrained import Base
from ftn_jax.models.tokens import encode
from ftn_jax.pools.lora import TokenBatch
from ftn_jax.runs.build import make_problem
from ftn_jax.streams import Context
from ftn_jax.streams.base import without_test
from ftn_jax.streams.files import Shares, contents, split_of, task_names
from ftn_jax.streams.text.jsonl import Lines, index_file, jsonl, parse_line, read_texts

TOKENIZER = PreTrainedTokenizerFast(tokenizer_object=toys.toy_tokenizer(), eos_token="<|endoftext|>")
TOKENS = toys.toy_tokens(TOKENIZER)
BASE = Base("toy", "1a", toys.toy_config(n_positions=128), None, TOKENS, "gpt2")


def write(path, count, first=0, words=6):
    rng = np.random.default_rng(first)
    with path.open("w", encoding="utf-8") as file:
        for i in range(first, first + count):
            text = " ".join(["word"] * int(rng.integers(1, words)))
            file.write(json.dumps({"prompt": f"{i} {text}", "completion": f"{text} é {i}"}) + "\n")
    return path


def stream_of(*files, seeds=(0, 3), **settings):
    own = {"max_length": 48, "recovery": 0.2, "test": 0.2}
    return jsonl(Context(seeds, BASE), tuple(map(str, files)), **(own | settings))


def test_both_forms_of_a_line():
    assert parse_line('{"prompt": "a", "completion": "é", "id": 3}'.encode()) == ("a", "é")
    assert parse_line(b'{"prompt": "", "completion": "b"}') == ("", "b")
    assert parse_line(b'{"text": "c\\u0000"}') == ("", "c\0")
    assert parse_line(b'{"prompt": "a", "completion": "b", "text": null}') == ("a", "b")
    assert parse_line(b'{"text": "c", "prompt": null, "completion": null}') == ("", "c")


MALFORMED = {
    b"\xff{}": "is not UTF-8 (byte 0)",
    b'{"prompt": "a", "completion": "b"': "is not JSON (Expecting ',' delimiter at column 34)",
    b'{"prompt": "a\0", "completion": "b"}': "is not JSON (Invalid control character at column 14)",
    b"[" * 100_000: "is nested too deeply",
    b"1" * 5000: "is not JSON (",
    b"[1]": 'is not an object such as {"prompt": ..., "completion": ...}',
    b"null": "is not an object",
    b"{}": "has no prompt, expected",
    b'{"prompt": "a"}': "has no completion, expected",
    b'{"completion": "a"}': "has no prompt, expected",
    b'{"prompt": 3, "completion": "b"}': "prompt is int, expected a string",
    b'{"prompt": "a", "completion": null}': "has no completion, expected",
    b'{"prompt": "a", "completion": ""}': "completion is empty",
    b'{"text": ""}': "text is empty",
    b'{"prompt": "a", "completion": "b", "prompt": "c"}': "has the key 'prompt' twice",
    b'{"text": "a", "meta": {"id": 1, "id": 2}}': "has the key 'id' twice",
    b'{"text": ["a"]}': "text is list, expected a string",
    b'{"text": "a", "prompt": "b"}': "has text and prompt",
    b'{"text": "\\ud800"}': "text has half a surrogate pair (character 0)",
}


@pytest.mark.parametrize(("line", "said"), MALFORMED.items(), ids=range(len(MALFORMED)))
def test_a_malformed_line_is_named(line, said, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n  \n' + line + b'\n{"text": "good"}\n')
    with pytest.raises(InputError) as caught:
        list(read_texts(path))
    assert str(caught.value).startswith(f"{path} line 4 {said}")
    assert "\n" not in str(caught.value)


def test_a_line_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[read_texts.__module__], "_LONGEST", 30)
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b'{"text": "short"}\n{"text": "' + b"x" * 21 + b'"}')
    with pytest.raises(InputError, match=r"mine\.jsonl line 2 is longer than 30 bytes"):
        list(read_texts(path))


GOOD = {"prompt": "a", "completion": "b"}
BROKEN = st.one_of(
    st.binary(min_size=1, max_size=60).filter(lambda line: b"\n" not in line and line.strip()),
    st.fixed_dictionaries(
        {}, optional={k: st.none() | st.integers() | st.text(max_size=3) for k in (*GOOD, "text")}
    ).map(lambda record: json.dumps(record).encode()),
    st.integers(0, 33).map(lambda end: json.dumps(GOOD).encode()[: end + 1]),
    st.text(max_size=5).map(lambda text: json.dumps(GOOD | {"completion": text}).encode().replace(b"\\u", b"\0")),
)


@settings(max_examples=500, deadline=None)
@given(BROKEN)
@example(b"\xef\xbb\xbf{}")
def test_any_line_is_read_or_named(tmp_path_factory, line):
    path = tmp_path_factory.getbasetemp() / "fuzzed.jsonl"
    good = json.dumps(GOOD).encode()
    path.write_bytes(good + b"\n" + line + b"\n" + good)
    try:
        pairs = [pair for _, _, pair in read_texts(path)]
    except InputError as error:
        assert str(error).startswith(f"{path} line 2 ") and "\n" not in str(error)
        return
    record = json.loads(line)
    whole = record.get("text")
    expected = (record["prompt"], record["completion"]) if whole is None else ("", whole)
    assert pairs == [("a", "b"), expected, ("a", "b")] and expected[1]


def test_a_byte_order_mark_and_other_line_ends(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n{"text": "two"}')
    assert [pair for _, _, pair in read_texts(path)] == [("", "one"), ("", "two")]
    for offset, line, _ in read_texts(path):
        assert path.read_bytes()[offset:].startswith(line)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"gone\.jsonl can't be read \(No such file"):
        stream_of(tmp_path / "gone.jsonl")


def test_splits_do_not_move_when_lines_are_added(tmp_path):
    def splits(path):
        return {line: split_of(line, Shares(0.2, 0.1)) for _, line, _ in read_texts(path)}

    path = write(tmp_path / "mine.jsonl", 300)
    before = splits(path)
    path.write_text(write(tmp_path / "more.jsonl", 100, first=300).read_text() + path.read_text())
    after = splits(path)
    assert len(after) == 400 and before.items() <= after.items()
    shares = [list(after.values()).count(split) / 400 for split in ("train", "recovery", "test")]
    np.testing.assert_allclose(shares, [0.7, 0.2, 0.1], atol=0.07)


def texts(batch):
    """What each row of a batch [n, ...] that is not padding reads and scores, decoded."""
    found, batch = [], TokenBatch(*map(np.asarray, batch))
    for tokens, labels, columns, weights in zip(batch.tokens, batch.labels, batch.columns, batch.weights, strict=True):
        scored = int(weights.sum())
        if not scored:
            assert not tokens.any()
            continue
        assert (np.asarray(columns[:scored]) == columns[0] + np.arange(scored)).all()
        prompt = np.asarray(tokens[: int(columns[0]) + 1])
        found.append((TOKENIZER.decode(prompt[1:]), TOKENIZER.decode(np.asarray(labels[: scored - 1]))))
        assert prompt[0] == labels[scored - 1] == TOKENIZER.eos_token_id
    return found


def test_files_of_different_length_share_shapes_and_padding_is_never_drawn(tmp_path):
    lines = {"a": 200, "b": 190, "c": 180}
    stream = stream_of(*(write(tmp_path / f"{name}.jsonl", count) for name, count in lines.items()))
    shapes = {tuple(leaf.shape for leaf in jax.tree.leaves(without_test(task))) for task in stream.tasks}
    assert len(shapes) == 1 < len({tuple(task.counts.tolist()) for task in stream.tasks}) == 3
    for task, told in zip(stream.tasks, stream.examples, strict=True):
        sizes = [len(texts(split)) for split in (task.train, task.recovery)]
        assert [told["installation"], told["recovery"]] == task.counts.tolist() == sizes
        assert len(task.recovery.tokens) > sizes[1]
        for draw, split, size in ((task.batch, task.train, sizes[0]), (task.support, task.recovery, sizes[1])):
            assert sorted(texts(draw(jax.random.key(0), size))) == sorted(texts(split))


def test_batches_are_of_training_lines_and_depend_on_seed_task_and_step_alone(tmp_path):
    files = [write(tmp_path / name, 200, first) for name, first in (("a.jsonl", 0), ("b.jsonl", 500))]
    stream = stream_of(*files)
    training = {pair for _, line, pair in read_texts(files[1]) if split_of(line, Shares(0.2, 0.2)) == "train"}
    batch = stream.feed(1, 20, 10, 4)
    assert batch.tokens.shape[:3] == (2, 10, 4)
    seen = [[texts(TokenBatch(*(leaf[e, s] for leaf in batch))) for s in range(10)] for e in range(2)]
    for e in range(2):
        for rows in seen[e]:
            assert set(rows) <= training and len(set(rows)) == 4
    assert seen[0] != seen[1] and seen[0][0] != seen[0][1]
    again = stream_of(*files, seeds=(3,)).feed(1, 20, 10, 4)
    np.testing.assert_array_equal(again.tokens[0], batch.tokens[1])
    lengths = {stream.feed(1, first, 10, 4).tokens.shape[-1] for first in range(0, 400, 10)}
    assert len(lengths) > 1 and all(length in (8, 16, 24, 32, 48) for length in lengths)


def test_the_three_splits_share_no_line(tmp_path):
    stream = stream_of(write(tmp_path / "c#.jsonl", 200))
    assert not stream.returns  # a file is a task of its own, whatever its name
    task = stream.tasks[0]
    parts = [set(texts(split)) for split in (task.train, task.recovery, task.held_out)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 200
    assert stream.examples == [dict.fromkeys(("training", "installation"), len(parts[0])) | {"recovery": len(parts[1])}]
    assert set(stream.pairs[0]) == parts[2]


def test_what_does_not_fit_is_cut_on_the_left_of_the_prompt_and_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [{"prompt": "x " * n, "completion": f"{n} done"} for n in range(1, 60)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    longest = 24
    stream = stream_of(path, max_length=longest)
    whole = encode([(line["prompt"], line["completion"]) for line in lines], TOKENS)
    too_long = sum(len(e.prompt) + len(e.target) - 1 > longest for e in whole)
    assert stream.task_facts == {"lines": [59], "split": [0], "cut": [too_long]} and 0 < too_long < 59
    for e, cut in zip(whole, encode([("x " * n, f"{n} done") for n in range(1, 60)], TOKENS, longest), strict=True):
        assert cut.target == e.target
        assert cut.prompt[0] == e.prompt[0] and cut.prompt[1:] == e.prompt[len(e.prompt) - len(cut.prompt) + 1 :]
        assert len(cut.prompt) + len(cut.target) - 1 == min(longest, len(e.prompt) + len(e.target) - 1)
    alone = encode([("prompt", "word " * 60)], TOKENS, longest)[0]
    assert alone.prompt == [TOKENIZER.eos_token_id] and len(alone.target) == longest and alone.cut


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_length": 200}, r"config\.stream\.max_length is 200, expected at most the 128 positions"),
        ({"recovery": 0.5, "test": 0.5}, r"config\.stream\.recovery \+ config\.stream\.test is 1\.0"),
        ({"test": 0.0}, r"a\.jsonl has no line for split 'test' of task 'a'"),
    ],
)
def test_settings_that_cannot_work(settings, said, tmp_path):
    with pytest.raises(InputError, match=said):
        stream_of(write(tmp_path / "a.jsonl", 50), **settings)


def test_as_many_training_examples_as_the_file_has(tmp_path):
    """Whatever is held of them; a batch may be larger than that."""
    path = write(tmp_path / "a.jsonl", 600)
    stream, index = stream_of(path), index_file(path, TOKENS, max_length=48, shares=Shares(0.2, 0.2))
    trained = len(index["train"].offsets)
    assert (
        stream.examples == [{"training": trained, "installation": 256, "recovery": len(index["recovery"].offsets)}]
        and trained > 300
    )
    assert stream.feed(0, 0, 1, 300).tokens.shape[:3] == (2, 1, 300)
    config = toys.jsonl_config("packaged", [str(path)], **{"stream.batch": 300})
    make_problem(config, "packaged")
    for changed, said in (
        ({"stream.batch": trained + 1}, f"the {trained} training examples of task 'a'"),
        ({"configurer.support": 257, "stream.recovery": 0.5}, "the 256 recovery examples of task 'a'"),
    ):
        with pytest.raises(InputError, match=f"expected at most {said}"):
            make_problem(toys.jsonl_config("packaged", [str(path)], **changed), "packaged")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(b'{"text": "a"}'), r"a\.jsonl is compressed with gzip, expected .*: unpack it \(gunzip\)"),
        (lzma.compress(b'{"text": "a"}'), r"is compressed with xz"),
        ('{"text": "a"}'.encode("utf-16"), r"is UTF-16, expected .*: convert it \(iconv -f UTF-16 -t UTF-8\)"),
        (b"PAR1" + bytes(20), r"is a Parquet file"),
    ],
    ids=["gzip", "xz", "UTF-16", "Parquet"],
)
def test_files_that_are_plainly_something_else(content, said, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=said):
        stream_of(tmp_path / "a.jsonl")


def test_a_pipe_is_no_task(tmp_path):
    os.mkfifo(tmp_path / "a.jsonl")
    for file in (tmp_path / "a.jsonl", "/dev/null", tmp_path):
        with pytest.raises(InputError, match="is not a regular file, expected one that can be read repeatedly"):
            stream_of(file)
        with pytest.raises(InputError, match="is not a regular file"):
            contents([str(file)])


def test_names_of_tasks():
    assert task_names(("data/support.jsonl", "legal.v2.jsonl")) == ("support", "legal.v2")
    with pytest.raises(InputError, match=r"config\.stream\.files: two are named 'a'"):
        task_names(("x/a.jsonl", "y/a.jsonl"))


def test_a_file_that_changes_while_it_is_used(tmp_path):
    path = write(tmp_path / "a.jsonl", 100)
    stream = stream_of(path)
    path.write_bytes(b"x" + path.read_bytes())
    with pytest.raises(InputError, match=r"a\.jsonl has changed while it was in use: start again"):
        stream.feed(0, 0, 10, 8)


def test_a_long_text_is_tokenized_once_and_its_pieces_are_those_of_the_whole(tmp_path, monkeypatch):
    text = " ".join(f"word {i}" for i in range(3000))
    path = tmp_path / "books.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"{i} {text}"}) for i in range(20)))
    stream, counted = stream_of(path), []
    ids = type(TOKENS).ids
    monkeypatch.setattr(type(TOKENS), "ids", lambda self, texts: counted.append(len(texts)) or ids(self, texts))
    batches = [stream.feed(0, first, 10, 8) for first in (0, 10, 20)]
    assert sum(counted) <= 2 * 20  # prompts and texts
    whole = [" ".join(map(str, one)) for one in ids(TOKENS, [f"{i} {text}" for i in range(20)])]
    drawn = [row for batch in batches for row in batch.tokens.reshape(-1, batch.tokens.shape[-1])[:, 1:20].tolist()]
    full = [" ".join(map(str, row)) for row in drawn if TOKENS.ends[0] not in row]
    assert len(full) > 200 and all(any(row in one for one in whole) for row in full)


def test_an_index_is_much_smaller_than_its_file(tmp_path):
    path = tmp_path / "a.jsonl"
    line = json.dumps({"prompt": "word " * 400, "completion": "done"}) + "\n"
    with path.open("w") as file:
        for i in range(1000):
            file.write(line.replace("done", str(i)))
    tracemalloc.start()
    index = index_file(path, TOKENS, max_length=48, shares=Shares(0.1, 0.1))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(len(part.offsets) for part in index.values()) == 1000
    assert sum(leaf.nbytes for part in index.values() for leaf in part[:3]) < 20_000
    assert path.stat().st_size > 2 * 10**6
    assert peak < 20e6  # what is tokenized together: half of these lines


@pytest.mark.parametrize("start", [(0,), ()])
def test_a_long_text_is_split_and_each_token_is_scored_once(start, tmp_path):
    """Pieces in their order, read back token by token; a document's end is marked by the end of text."""
    tokens = dataclasses.replace(TOKENS, start=start)
    lines = [{"text": f"{i} " + " ".join(["word"] * (3 + 11 * i))} for i in range(20)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    whole = [[*tokens.ids([line["text"]])[0], tokens.ends[0]] for line in lines]
    index = index_file(path, tokens, max_length=20, shares=Shares(0.0, 0.0))["train"]
    assert index.lines == 20 and index.cut == 0 and index.split == sum(len(ids) > 20 for ids in whole) > 10
    lines_of = Lines(path, index, tokens, 20)
    batch, pairs = lines_of.read(*lines_of.spread(1000))
    assert len(pairs) == len(index.offsets) == len(batch.tokens) and batch.tokens.shape[1] <= 20
    read, scored = [], []
    for row, (columns, labels, weights) in enumerate(zip(*batch[1:], strict=True)):
        used = weights > 0
        if index.pieces[row] == 0:
            read.append([] if start else [int(batch.tokens[row, 0])])
            scored.append([])
        else:
            assert batch.tokens[row, 0] == scored[-1][-1]
        assert columns[used].tolist() == list(range(used.sum()))
        assert (index.lengths[row], index.targets[row]) == (columns[used][-1] + 1, used.sum())
        scored[-1] += labels[used].tolist()
    for ids, first, found in zip(whole, read, scored, strict=True):
        assert first + found == ids


def test_a_long_text_is_cut_where_that_is_asked_for(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": f"{i} " + "word " * 40}) for i in range(30)))
    for long_texts, facts in (
        ("split", {"lines": [30], "split": [30], "cut": [0]}),
        ("cut", {"lines": [30], "split": [0], "cut": [30]}),
    ):
        stream = stream_of(path, max_length=16, long_texts=long_texts)
        assert stream.task_facts == facts
        assert (stream.examples[0]["training"] > 30) == (long_texts == "split")
    prompts = tmp_path / "b.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": f"{i} ", "completion": "word " * 40}) for i in range(30)))
    assert stream_of(prompts, max_length=16).task_facts == {"lines": [30], "split": [0], "cut": [30]}
