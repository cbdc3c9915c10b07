"""Streams of arrays: what is read is what was written, splits stay, and all that can't be used is named."""

import csv
import hashlib
import sys

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftn_jax.core.errors import InputError
from ftn_jax.pools.neurons import PointBatch
from ftn_jax.streams import Context, Spec, arrays_stream
from ftn_jax.streams.arrays import arrays
from ftn_jax.streams.base import ArrayTask, with_rows, without_test
from ftn_jax.streams.examples import read_examples

CONTEXT = Context((0,))


def points(rows=60, inputs=3, classes=4, seed=0):
    """Random inputs, each with a class, or where there are none with a value."""
    rng = np.random.default_rng(seed)
    y = np.arange(rows) % classes if classes else rng.standard_normal(rows)
    return rng.standard_normal((rows, inputs)), y


def write_csv(path, x, y, header=None):
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerows([header] if header else [])
        out.writerows([*row, target] for row, target in zip(x.tolist(), y.tolist(), strict=True))
    return path


def refusal(call, *arguments, **settings):
    with pytest.raises(InputError) as caught:
        call(*arguments, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [4, 0])
@pytest.mark.parametrize("header", [None, ["a", "b", "c", "y"], ["0", "1", "2", "target"]])
def test_both_kinds_of_files_say_the_same(classes, header, tmp_path):
    x, y = points(classes=classes)
    np.savez(tmp_path / "a.npz", x=x, y=y)
    write_csv(tmp_path / "a.csv", x, y, header)
    for name in ("a.npz", "a.csv"):
        found = read_examples(tmp_path / name)
        assert (found.x.dtype, found.y.dtype) == (np.float32, np.int32 if classes else np.float32)
        np.testing.assert_array_equal(found.x, x.astype(np.float32))
        np.testing.assert_array_equal(found.y, y.astype(found.y.dtype))
    assert found.columns == tuple(header[:-1] if header else ())


def test_what_decides_that_y_is_classes(tmp_path):
    path = tmp_path / "a.csv"
    for column, kind in {"0 1": "i", "0 1.0": "f", "+0 1e0": "f", " 1 0": "i", "-1 1.5": "f", "70000 0.5": "f"}.items():
        path.write_text("".join(f"0.5,{y}\n" for y in column.split(" ") if y))
        assert read_examples(path).y.dtype.kind == kind, column
    for y, kind in ((np.array([True, False]), "i"), (np.array([1, 0], np.uint8), "i"), (np.array([1.0, 0.0]), "f")):
        np.savez(tmp_path / "a.npz", x=np.zeros((2, 1)), y=y)
        assert read_examples(tmp_path / "a.npz").y.dtype.kind == kind


def test_spaces_quotes_blank_lines_and_a_byte_order_mark(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'\xef\xbb\xbf"x, 1",y\r\n\r\n 1.5 , 2\r\n\r\n"-3e-1","0"\r\n')
    found = read_examples(tmp_path / "a.csv")
    assert found.columns == ("x, 1",)
    np.testing.assert_array_equal(found.x, np.array([[1.5], [-0.3]], np.float32))
    np.testing.assert_array_equal(found.y, [2, 0])


BAD_CSV = {
    "": "has no examples",
    "a,b\n": "has no examples",
    "1\n2\n": "line 1 has 1 column, expected inputs and y with commas between them",
    "1;2\n": "line 1 has 1 column",
    "1,2\n\n1,2,3\n": "line 3 has 3 columns, expected 2 as in the line before",
    "a,y\n1,2\n1\n": "line 3 has 1 columns, expected 2",
    "1,2\nx,2\n": "line 2 has 'x' in column 1, expected a number",
    "1,2\n1,\n": "line 2 has '' in column 2, expected a number",
    "1,2\n1_0,2\n": "line 2 has '1_0' in column 1, expected a number",
    "1,2\nnan,2\n": "line 2: x[0] is nan, expected a finite number",
    "1,2\n\n1,2\n1,inf\n": "line 4: y is inf, expected a finite number",
    "1,2\n1,NaN\n": "line 2: y is nan",
    "4,1,2\n1e39,0,2\n": "line 2: x[0] is 1e+39, expected a finite number that float32 can hold",
    "a,y\n1,0\n1,-1\n": "line 3: y is -1, expected a class from 0 to 65535",
    "1,0\n1,65536\n": "line 2: y is 65536, expected a class from 0 to 65535; values to regress on are floats",
    "1,0\n1,1" + 30 * "0" + "\n": "line 2: y is 1000000000000000019884624838656, expected a class",
    "0,1,2\n5,6,1\n": "line 1 is 0, 1, 2, ...: these may be the columns' numbers or an example",
    ",a,y\n0,1,1\n": "line 1 has no name for column 1, expected one for each; leave out an index column",
    "1.5,cat\n2,0\n": "line 1 has '1.5' in column 1 and 'cat' in the last: expected all names or all numbers",
    '1,2\n"1,2\n': "can't be read as CSV (",
}


@pytest.mark.parametrize(("text", "said"), BAD_CSV.items(), ids=range(len(BAD_CSV)))
def test_a_csv_file_that_cannot_be_used(text, said, tmp_path):
    (tmp_path / "a.csv").write_text(text)
    message = refusal(read_examples, tmp_path / "a.csv")
    assert message.startswith(f"{tmp_path / 'a.csv'} ") and said in message


def test_a_csv_file_that_is_not_utf_8(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"caf\xe9,y\n1,2\n")
    assert "is not UTF-8 (" in refusal(read_examples, tmp_path / "a.csv")


X, Y = points(4)
BAD_NPZ = {
    "no y": ({"x": X}, "has no array 'y' (it has x), expected x and y"),
    "more": ({"x": X, "y": Y, "w": Y}, "has array 'w' besides x and y, expected only these two"),
    "images": ({"x": X.reshape(2, 2, 3), "y": Y}, ": x has shape (2, 2, 3), expected (n, d)"),
    "none": ({"x": X[:0], "y": Y[:0]}, ": x has shape (0, 3), expected (n, d)"),
    "no inputs": ({"x": X[:, :0], "y": Y}, ": x has shape (4, 0), expected (n, d)"),
    "column": ({"x": X, "y": Y[:, None]}, ": y has shape (4, 1), expected (4,), one for each row of x"),
    "short": ({"x": X, "y": Y[:3]}, ": y has shape (3,), expected (4,)"),
    "objects": ({"x": X.astype(object), "y": Y}, "has an array of Python objects, expected numbers: pickles are not"),
    "text": ({"x": X.astype(str), "y": Y}, ": x is an array of <U32, expected one of numbers"),
    "complex": ({"x": X, "y": Y * 1j}, ": y is an array of complex128, expected one of numbers"),
    "nan": ({"x": np.where(np.arange(4)[:, None] == 2, np.nan, X), "y": Y}, " row 2: x[0] is nan, expected a finite"),
    "negative": ({"x": X, "y": Y - 2}, " row 0: y is -2, expected a class from 0"),
    "large": ({"x": X, "y": np.full(4, 2**63, np.uint64)}, " row 0: y is 9223372036854775808, expected a class from 0"),
    "not finite": ({"x": X, "y": np.array([0, 1, -np.inf, 3])}, " row 2: y is -inf, expected a finite number"),
}


@pytest.mark.parametrize(("held", "said"), BAD_NPZ.values(), ids=BAD_NPZ)
def test_a_npz_file_that_cannot_be_used(held, said, tmp_path):
    np.savez(tmp_path / "a.npz", **held)
    message = refusal(read_examples, tmp_path / "a.npz")
    assert message.startswith(f"{tmp_path / 'a.npz'}{said}" if said[0] in ": " else f"{tmp_path / 'a.npz'} {said}")


def test_what_is_no_file_of_examples(tmp_path):
    np.savez(tmp_path / "whole.npz", x=X, y=Y)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:300])
    (tmp_path / "text.npz").write_text("0.5,1\n")
    (tmp_path / "empty.npz").write_bytes(b"")
    with (tmp_path / "single.npz").open("wb") as file:
        np.save(file, X)
    for name in ("cut", "text", "empty", "single"):
        assert "can't be read as .npz (" in refusal(read_examples, tmp_path / f"{name}.npz")
    assert "ends in '.txt', expected .npz or .csv" in refusal(read_examples, tmp_path / "a.txt")
    assert "can't be read (No such file" in refusal(read_examples, tmp_path / "a.csv")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80))
def test_any_csv_file_is_read_or_named(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzzed.csv"
    path.write_bytes(content)
    try:
        found = read_examples(path)
    except InputError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
        return
    assert len(found.x) == len(found.y) > 0 and np.isfinite(found.x).all() and np.isfinite(found.y).all()


# --- the stream ------------------------------------------------------------------------------------------------


def rows_of(task: ArrayTask) -> dict[str, list[tuple]]:
    """The examples of each split, without padding."""
    counts = [*np.asarray(task.counts).tolist(), len(task.held_out.y)]
    splits = zip(("train", "recovery", "test"), (task.train, task.recovery, task.held_out), counts, strict=True)
    return {name: [(*x, y) for x, y in zip(b.x[:n].tolist(), b.y[:n].tolist(), strict=True)] for name, b, n in splits}


def test_every_example_is_where_its_hash_says():
    x, y = points(400)
    found = rows_of(arrays_stream({"a": (x, y)}, recovery=0.3, test=0.2).tasks[0])
    expected = {name: [] for name in found}
    for row, target in zip(x.astype("<f4"), y.astype("<i4"), strict=True):
        share = int.from_bytes(hashlib.blake2b(row.tobytes() + target.tobytes(), digest_size=8).digest(), "big") / 2**64
        name = "test" if share < 0.2 else "recovery" if share < 0.5 else "train"
        expected[name].append((*row.tolist(), target.item()))
    assert found == expected
    assert all(abs(len(found[name]) / 400 - share) < 0.06 for name, share in (("recovery", 0.3), ("test", 0.2)))


def test_examples_that_are_added_move_no_other_and_doubles_stay_together():
    x, y = points(200)
    before = rows_of(arrays_stream({"a": (x, y)}).tasks[0])
    more = np.concatenate([points(50, seed=1)[0], x]), np.concatenate([points(50, seed=1)[1], y])
    after = rows_of(arrays_stream({"a": more}).tasks[0])
    for name, rows in before.items():
        assert after[name][-len(rows) :] == rows
    twice = rows_of(arrays_stream({"a": (np.concatenate([x, x]), np.concatenate([y, y]))}).tasks[0])
    assert {name: len(rows) for name, rows in twice.items()} == {name: 2 * len(rows) for name, rows in before.items()}


def test_files_and_memory_make_the_same_stream(tmp_path):
    tasks = {"a": points(), "b": points(seed=1)}
    np.savez(tmp_path / "a.npz", x=tasks["a"][0], y=tasks["a"][1])
    write_csv(tmp_path / "b.csv", *tasks["b"])
    files = [str(tmp_path / name) for name in ("a.npz", "b.csv")]
    found, expected = arrays(CONTEXT, files, recovery=0.15, test=0.15), arrays_stream(tasks)
    assert found.names == expected.names == ("a", "b")
    assert (found.spec, found.metric, found.axis) == (Spec(3, 4), "accuracy", None)
    assert found[2:] == expected[2:]
    for one, other in zip(jax.tree.leaves(found.tasks), jax.tree.leaves(expected.tasks), strict=True):
        np.testing.assert_array_equal(one, other)
    sizes = [{name: len(rows) for name, rows in rows_of(task).items()} for task in found.tasks]
    assert found.examples == [{"training": size["train"], "recovery": size["recovery"]} for size in sizes]
    assert found.task_facts == {f"{name} examples": [size[name] for size in sizes] for name in sizes[0]}


def test_regression_and_room_for_classes():
    values = arrays_stream({"a": points(classes=0)})
    assert (values.metric, values.spec) == ("mse", Spec(3, 0))
    assert arrays_stream({"a": points(classes=2), "b": points(classes=5)}).spec == Spec(3, 5)
    assert arrays_stream({"a": points(classes=2)}, classes=7).spec == Spec(3, 7)
    assert arrays_stream({"a": points(classes=1)}, classes=2).spec == Spec(3, 2)


def test_what_is_drawn():
    task = arrays_stream({"a": points(50)}, recovery=0.3, test=0.2).tasks[0]
    rows, counts = rows_of(task), task.counts.tolist()
    assert counts == [len(rows["train"]), len(rows["recovery"])] and len(task.train.y) > counts[0]
    for draw, name, most in ((ArrayTask.batch, "train", counts[0]), (ArrayTask.support, "recovery", counts[1])):
        size = most - 1
        compiled = jax.jit(draw, static_argnums=2)
        seen = []
        for seed in range(40):
            batch = jax.tree.map(np.asarray, compiled(task, jax.random.key(seed), size))
            drawn = [(*x, y) for x, y in zip(batch.x.tolist(), batch.y.tolist(), strict=True)]
            assert len(set(drawn)) == size and set(drawn) <= set(rows[name])
            seen.append(set(rows[name]) - set(drawn))
        left = [sum(row in out for out in seen) for row in rows[name]]  # how often each was the one that was left
        assert sum(left) == 40 and max(left) < 12 and sum(count > 0 for count in left) > len(left) / 3
    whole = task.batch(jax.random.key(0), counts[0])
    assert sorted((*x, y) for x, y in zip(whole.x.tolist(), whole.y.tolist(), strict=True)) == sorted(rows["train"])
    again = task.batch(jax.random.key(0), counts[0])
    np.testing.assert_array_equal(whole.x, again.x)


def test_padding_is_of_few_sizes_and_never_short():
    sizes = {}
    for n in range(1, 200):
        x = np.zeros((n, 1), np.float32)
        x[:, 0] = np.arange(n)
        padded = with_rows(x, sys.modules[arrays.__module__]._rows(n))
        np.testing.assert_array_equal(padded[:n], x)
        assert not padded[n:].any() and n <= len(padded) < max(1.5 * n, 65)
        sizes[len(padded)] = None
    assert list(sizes) == [64, 96, 128, 192, 256]


def test_a_task_without_its_test_set_trains_alike():
    task = arrays_stream({"a": points(50)}).tasks[0]
    less, key = without_test(task), jax.random.key(3)
    assert less.held_out is None and task.held_out is not None
    for draw in ("batch", "support"):
        for one, other in zip(getattr(less, draw)(key, 4), getattr(task, draw)(key, 4), strict=True):
            np.testing.assert_array_equal(one, other)
    other = object()
    assert without_test(other) is other


def test_splits_that_are_not_padded_are_drawn_as_ever():
    """Those of text: the same rows as before there were counts."""
    x, key = np.arange(20.0, dtype=np.float32)[:, None], jax.random.key(5)
    task = ArrayTask(PointBatch(x, x[:, 0]), None, None)
    np.testing.assert_array_equal(task.batch(key, 6).y, x[jax.random.choice(key, 20, (6,), replace=False)][:, 0])


BAD_TASKS = {
    "none": ({}, {}, "a stream of arrays has no tasks"),
    "no pair": ({"a": X}, {}, "task 'a' is ndarray, expected arrays (x, y)"),
    "ragged": ({"a": ([[1.0], [1.0, 2.0]], [0, 1])}, {}, "task 'a': x has rows of different length"),
    "masked": ({"a": (np.ma.masked_invalid(X), Y)}, {}, "task 'a': x is a masked array"),
    "inputs": (
        {"a": points(), "b": points(inputs=2)},
        {},
        "task 'b' has 2 inputs and task 'a' has 3: expected the same number",
    ),
    "mixed": (
        {"a": points(classes=0), "b": points()},
        {},
        "task 'b' has whole numbers in y and task 'a' has floats: expected classes in each task, or values in each",
    ),
    "one class": ({"a": points(classes=1)}, {}, "task 'a': y is 0 in all tasks, expected two classes or more"),
    "few rows": ({"a": points(2)}, {}, "task 'a' has no example for split"),
    "too few classes": ({"a": points()}, {"classes": 3}, "classes is 3, expected at least 4: task 'a' has class 3"),
    "values": ({"a": points(classes=0)}, {"classes": 3}, "classes is 3, expected 0 since y has floats"),
    "shares": ({"a": points()}, {"recovery": 0.5, "test": 0.5}, "recovery + config.stream.test is 1.0, expected less"),
    "a share": ({"a": points()}, {"test": 0}, "test is 0, expected a share between 0 and 1"),
}


@pytest.mark.parametrize(("tasks", "own", "said"), BAD_TASKS.values(), ids=BAD_TASKS)
def test_arrays_that_are_no_stream(tasks, own, said):
    assert said in refusal(arrays_stream, tasks, **own)


def test_files_that_do_not_go_together(tmp_path):
    (tmp_path / "sub").mkdir()
    x, y = points()
    a, b = (str(write_csv(tmp_path / f"{n}.csv", x, y, h)) for n, h in (("a", "pqry"), ("b", "qpry")))
    c = str(write_csv(tmp_path / "c.csv", x, y))
    twin = str(write_csv(tmp_path / "sub" / "a.csv", x, y))
    shares = {"recovery": 0.15, "test": 0.15}
    said = refusal(arrays, CONTEXT, [a, b], **shares)
    assert said == f"{b} has the inputs q, p, r and {a} has p, q, r: expected the same columns in the same order"
    assert arrays(CONTEXT, [a, c], **shares).names == ("a", "c")  # a file without names says nothing
    assert "two are named 'a'" in refusal(arrays, CONTEXT, [a, twin], **shares)
    assert "config.stream.files: /dev/null is not a regular file" in refusal(arrays, CONTEXT, ["/dev/null"], **shares)
    np.savez(tmp_path / "values.npz", x=x, y=y.astype(float))
    assert "values.npz has floats in y" in refusal(arrays, CONTEXT, [a, str(tmp_path / "values.npz")], **shares)
