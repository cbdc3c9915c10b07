"""Reads and checks a task's examples of numbers, inputs and targets, from arrays or from a .npz or .csv file."""

import csv
import os
import pathlib
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ftn_jax.core.errors import InputError

SUFFIXES = (".npz", ".csv")
MOST_CLASSES = 2**16
_WHOLE = re.compile(r"\s*[+-]?[0-9]+\s*")


class Examples(NamedTuple):
    """A task's inputs and targets."""

    x: np.ndarray  # f32[n, d]
    y: np.ndarray  # int32[n], classes; or f32[n], values
    columns: tuple[str, ...] = ()  # names of the inputs, if the file has them


def read_examples(file: str | os.PathLike) -> Examples:
    """The examples of a file.

    A .npz file has the arrays ``x`` [n, d] and ``y`` [n], as `numpy.savez` writes them. A .csv file has one example
    per line, with y in the last column. Its first line is a header if the line's last entry is not a number. If every y
    is written as a whole number (``3``, not ``3.0``), y has classes, otherwise values for regression.

    Raises:
      InputError: the file can't be read, or `examples_of` refuses its arrays; names the file, and the line or row.
    """
    path = pathlib.Path(file)
    ending = path.suffix.lower()
    if ending not in SUFFIXES:
        raise InputError(f"{path} ends in {path.suffix!r}, expected {' or '.join(SUFFIXES)}")
    try:
        return _read_npz(path) if ending == ".npz" else _read_csv(path)
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror or error})") from error


def examples_of(where: str, x: Any, y: Any, *, place: Callable[[int], str] = "row {}".format) -> Examples:
    """Arrays as examples: x and floats in y become float32, integers and booleans in y become classes.

    Args:
      where: the arrays' source, for messages.
      x: numbers [n, d].
      y: [n]; integers are classes, from 0, and floats are values.
      place: row -> the row's name in messages.

    Raises:
      InputError: arrays of other shapes or types, numbers that are not finite, or a class out of range.
    """
    x, y = _array(where, "x", x), _array(where, "y", y)
    if x.ndim != 2 or not x.size:
        raise InputError(f"{where}: x has shape {x.shape}, expected (n, d), n examples of d inputs each")
    if y.shape != (len(x),):
        raise InputError(f"{where}: y has shape {y.shape}, expected ({len(x)},), one for each row of x")
    found = _finite(where, "x", x, place)
    if y.dtype.kind == "f":
        return Examples(found, _finite(where, "y", y[:, None], place)[:, 0])
    return Examples(found, _classes(where, y, place))


def _array(where: str, name: str, given: Any) -> np.ndarray:
    """An array of real numbers."""
    if isinstance(given, np.ma.MaskedArray):
        raise InputError(f"{where}: {name} is a masked array, expected one with all its values")
    try:
        found = np.asarray(given)
    except ValueError as error:
        raise InputError(f"{where}: {name} has rows of different length, expected an array") from error
    if found.dtype.kind not in "biuf":
        raise InputError(f"{where}: {name} is an array of {found.dtype}, expected one of numbers")
    return found


def _finite(where: str, name: str, given: np.ndarray, place: Callable[[int], str]) -> np.ndarray:
    """The array [n, d] in float32; numbers that are not finite are refused."""
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(given, np.float32)
    wrong = np.argwhere(~np.isfinite(found))
    if len(wrong):
        row, column = wrong[0].tolist()
        entry = f"{name}[{column}]" if name == "x" else name
        raise InputError(
            f"{where} {place(row)}: {entry} is {given[row, column]}, expected a finite number that float32 can hold"
        )
    return found


def _classes(where: str, y: np.ndarray, place: Callable[[int], str]) -> np.ndarray:
    wrong = np.flatnonzero((y < 0) | (y >= MOST_CLASSES))
    if len(wrong):
        row = wrong[0].item()
        raise InputError(
            f"{where} {place(row)}: y is {y[row]:.0f}, expected a class from 0 to {MOST_CLASSES - 1}; values to "
            "regress on are floats (in a .csv file at least one is written with a point, such as 3.0)"
        )
    return y.astype(np.int32)


def _read_npz(path: pathlib.Path) -> Examples:
    with path.open("rb") as file:
        try:
            held = np.load(file, allow_pickle=False)
            arrays = {name: held[name] for name in held.files}
        except (ValueError, AttributeError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            if "Object arrays" in str(error):
                raise InputError(
                    f"{path} has an array of Python objects, expected numbers: pickles are not read"
                ) from error
            raise InputError(f"{path} can't be read as .npz ({error or type(error).__name__})") from error
    for name in ("x", "y"):
        if name not in arrays:
            raise InputError(f"{path} has no array {name!r} (it has {', '.join(arrays) or 'none'}), expected x and y")
    for name in arrays:
        if name not in ("x", "y"):
            raise InputError(f"{path} has array {name!r} besides x and y, expected only these two")
    return examples_of(str(path), arrays["x"], arrays["y"])


def _read_csv(path: pathlib.Path) -> Examples:
    columns: tuple[str, ...] = ()
    width, values, lines, whole = 0, list[list[float]](), list[int](), True
    for number, cells in _lines(path):
        where = f"{path} line {number}"
        if not width:
            width = len(cells)
            if width < 2:
                raise InputError(f"{where} has 1 column, expected inputs and y with commas between them")
            columns = _header(where, cells)
            if columns:
                continue
        if len(cells) != width:
            raise InputError(f"{where} has {len(cells)} columns, expected {width} as in the line before")
        values.append([_number(where, i, cell) for i, cell in enumerate(cells)])
        lines.append(number)
        whole = whole and _WHOLE.fullmatch(cells[-1]) is not None
    if not values:
        raise InputError(f"{path} has no examples")
    found = np.array(values)

    def place(row: int) -> str:
        return f"line {lines[row]}"

    examples = examples_of(str(path), found[:, :-1], found[:, -1], place=place)
    y = _classes(str(path), found[:, -1], place) if whole else examples.y
    return Examples(examples.x, y, columns[:-1])


def _lines(path: pathlib.Path) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of each line that is not blank."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 ({error.reason}), expected lines of numbers") from error
        except csv.Error as error:
            raise InputError(f"{path} line {reader.line_num} can't be read as CSV ({error})") from error


def _header(where: str, cells: list[str]) -> tuple[str, ...]:
    """The columns' names, if the first line has them, that is, if its last entry is not a number.

    Raises:
      InputError: the line may be a header or an example, or lacks some names.
    """
    numbered = [_parsed(cell) for cell in cells] == list(range(len(cells)))
    if _parsed(cells[-1]) is not None:
        if numbered and len(cells) > 2:
            raise InputError(
                f"{where} is 0, 1, 2, ...: these may be the columns' numbers or an example; expected names, or no such "
                "line (in pandas: to_csv(header=False, index=False))"
            )
        return ()
    for i, cell in enumerate(cells):
        if not cell.strip():
            raise InputError(
                f"{where} has no name for column {i + 1}, expected one for each; leave out an index column (in pandas: "
                "to_csv(index=False))"
            )
        # pandas numbers the columns that have no names.
        if _parsed(cell) not in (None, i):
            raise InputError(
                f"{where} has {cell!r} in column {i + 1} and {cells[-1]!r} in the last: expected all names or all "
                "numbers"
            )
    return tuple(cells)


def _number(where: str, column: int, cell: str) -> float:
    found = _parsed(cell)
    if found is None:
        raise InputError(f"{where} has {cell!r} in column {column + 1}, expected a number")
    return found


def _parsed(cell: str) -> float | None:
    """The number in a cell; None if it is not a number. (``float`` would accept 1_000.)"""
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None
