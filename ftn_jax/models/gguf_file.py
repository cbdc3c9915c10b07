"""Reads GGUF files (llama.cpp's format): their metadata, and the places and values of their tensors.

The gguf package's own reader makes an array of every string, which takes seconds for a tokenizer, and does not detect
damaged files.
"""

import functools
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gguf
import numpy as np

from ftn_jax.core.errors import InputError

_SCALARS: dict[int, str] = {
    gguf.GGUFValueType.UINT8: "<u1",
    gguf.GGUFValueType.INT8: "<i1",
    gguf.GGUFValueType.UINT16: "<u2",
    gguf.GGUFValueType.INT16: "<i2",
    gguf.GGUFValueType.UINT32: "<u4",
    gguf.GGUFValueType.INT32: "<i4",
    gguf.GGUFValueType.FLOAT32: "<f4",
    gguf.GGUFValueType.BOOL: "?",
    gguf.GGUFValueType.UINT64: "<u8",
    gguf.GGUFValueType.INT64: "<i8",
    gguf.GGUFValueType.FLOAT64: "<f8",
}
_REQUIRED: Any = object()


class Metadata:
    """A file's metadata. Each method reads a value of one type, and refuses a file whose value has another type."""

    def __init__(self, values: Mapping[str, Any], where: Any):
        self._values, self.where, self._read = values, where, set[str]()

    def refuse(self, key: str, value: Any, expected: str) -> InputError:
        return InputError(f"base {self.where}: {key} is {_short(value)}, expected {expected}")

    def text(self, key: str, default: str | None = _REQUIRED) -> Any:
        return self._typed(key, default, "a string", lambda value: isinstance(value, str))

    def flag(self, key: str, default: bool) -> bool:
        return self._typed(key, default, "true or false", lambda value: isinstance(value, bool))

    def count(self, key: str, default: int | None = _REQUIRED, least: int = 1) -> Any:
        """A whole number; a file may have one for each layer, if all are the same."""

        def fits(value):
            return type(value) is int and value >= least

        value = self._values.get(key)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            self._read.add(key)
            if fits(value[0].item()):
                return value[0].item()
        return self._typed(key, default, f"a whole number from {least}", fits)

    def number(self, key: str, default: float = _REQUIRED) -> float:
        def fits(value):
            return type(value) in (int, float) and 0 < value < math.inf

        return self._typed(key, default, "a number above 0", fits)

    def texts(self, key: str) -> list[str]:
        return self._typed(key, _REQUIRED, "a list of strings", lambda value: isinstance(value, list))

    def numbers(self, key: str, length: int) -> np.ndarray:
        def fits(value):
            return isinstance(value, np.ndarray) and value.shape == (length,) and value.dtype.kind in "iuf"

        return self._typed(key, _REQUIRED, f"a list of {length} numbers", fits)

    def neutral(self, key: str, *allowed: Any) -> None:
        """Refuses a value that is neither missing nor one of ``allowed``."""

        def fits(value):
            return not isinstance(value, np.ndarray) and value in allowed

        self._typed(key, allowed[0], " or ".join(map(repr, allowed)), fits)

    def refuse_others(self, prefix: str) -> None:
        """Refuses keys that begin with ``prefix`` and were never read, unless their value means off."""
        for key, value in self._values.items():
            off = not isinstance(value, np.ndarray) and value in (0, "", "none")
            if key.startswith(prefix) and key not in self._read and not off:
                raise InputError(
                    f"base {self.where}: the file has {key!r} = {_short(value)}, which is not known here and may "
                    "change what the model computes"
                )

    def _typed(self, key: str, default: Any, expected: str, fits: Callable[[Any], bool]) -> Any:
        self._read.add(key)
        if key not in self._values:
            if default is _REQUIRED:
                raise InputError(f"base {self.where}: the file has no {key!r}")
            return default
        if not fits(self._values[key]):
            raise self.refuse(key, self._values[key], expected)
        return self._values[key]


def _short(value: Any) -> str:
    if isinstance(value, (np.ndarray, list)):
        return f"a list of {len(value)}"
    return repr(value) if len(repr(value)) < 80 else repr(value)[:80] + "..."


class Tensor(NamedTuple):
    """A tensor's type and its place in the file. ``shape`` is in NumPy's order."""

    kind: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    start: int  # of its first byte
    size: int  # in bytes


class File(NamedTuple):
    """A GGUF file. ``data`` holds its bytes, mapped into memory."""

    data: np.ndarray
    metadata: Metadata
    tensors: dict[str, Tensor]

    def raw(self, name: str) -> np.ndarray:
        tensor = self.tensors[name]
        return self.data[tensor.start : tensor.start + tensor.size]

    def values(self, name: str) -> np.ndarray:
        """The values of a tensor in float32. The array may be a view of the file's memory.

        Raises:
          InputError: some are not finite.
        """
        tensor = self.tensors[name]
        with np.errstate(all="ignore"):  # values that are not finite are refused below
            values = gguf.quants.dequantize(self.raw(name).reshape(*tensor.shape[:-1], -1), tensor.kind)
        if not np.isfinite(values).all():
            raise InputError(f"base {self.metadata.where}: tensor {name!r} has values that are not finite")
        return values


def read_file(path: pathlib.Path) -> File:
    """Reads a file's header: its metadata, and the list of its tensors.

    Raises:
      InputError: not a GGUF file, a damaged one, or tensors of a type that the gguf package can't read.
    """
    try:
        data = np.asarray(np.memmap(path, mode="r"))
    except (OSError, ValueError) as error:  # ValueError: the file is empty
        raise InputError(f"base {path}: can't be read as a GGUF file ({error})") from error
    bytes_ = _Bytes(data, path)
    if bytes_.take(4) != b"GGUF":
        raise InputError(f"base {path}: not a GGUF file")
    version = bytes_.integer(4)
    if version not in (2, 3):
        raise InputError(f"base {path}: version {version} of GGUF, supported: 2 and 3, little-endian")
    count, pairs = bytes_.integer(8), bytes_.integer(8)
    metadata: dict[str, Any] = {}
    for _ in range(pairs):
        key = bytes_.text()
        metadata[key] = bytes_.value(key)
    file, found = File(data, Metadata(metadata, path), {}), []
    for _ in range(count):
        name = bytes_.text()
        shape = tuple(bytes_.integer(8) for _ in range(min(bytes_.integer(4), 5)))[::-1]
        found.append((name, shape, bytes_.integer(4), bytes_.integer(8)))
    alignment = file.metadata.count("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
    start = -(-bytes_.at // alignment) * alignment
    for name, shape, number, offset in found:
        kind = _kind(number)
        if kind is None:
            names = {int(one): one.name for one in gguf.GGMLQuantizationType}
            known = ", ".join(name for one, name in names.items() if _kind(one) is not None)
            raise InputError(f"base {path}: tensor {name!r} is of type {names.get(number, number)}, known: {known}")
        block, size = gguf.GGML_QUANT_SIZES[kind]
        if not 1 <= len(shape) <= 4 or 0 in shape or shape[-1] % block:
            raise InputError(f"base {path}: tensor {name!r} has shape {shape}, which type {kind.name} can't have")
        tensor = Tensor(kind, shape, start + offset, math.prod(shape) // block * size)
        if tensor.start + tensor.size > len(data):
            raise InputError(f"base {path}: the file ends at {len(data)} bytes, before the end of tensor {name!r}")
        if name in file.tensors:
            raise InputError(f"base {path}: the file has tensor {name!r} twice")
        file.tensors[name] = tensor
    return file


class _Bytes:
    """Reads the bytes of a file in order, and refuses a file that ends too early."""

    def __init__(self, data: np.ndarray, where: Any):
        self._data, self._where, self.at = data.data, where, 0

    def take(self, count: int) -> memoryview:
        if count > len(self._data) - self.at:
            raise InputError(f"base {self._where}: the file ends within its header, at {len(self._data)} bytes")
        self.at += count
        return self._data[self.at - count : self.at]

    def integer(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def text(self) -> str:
        try:
            return str(self.take(self.integer(8)), "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"base {self._where}: the file has a string that is not UTF-8 ({error})") from error

    def value(self, key: str) -> Any:
        """The value of one metadata entry: a number, a string, a list of strings, or an array of numbers."""
        kind, many = self.integer(4), False
        if kind == gguf.GGUFValueType.ARRAY:
            kind, many = self.integer(4), True
        if kind == gguf.GGUFValueType.STRING:
            return [self.text() for _ in range(self.integer(8))] if many else self.text()
        if kind not in _SCALARS:  # an array of arrays, too, which llama.cpp does not read either
            raise InputError(f"base {self._where}: {key!r} is of type {kind}, which metadata can't have")
        dtype = np.dtype(_SCALARS[kind])
        values = np.frombuffer(self.take(dtype.itemsize * (self.integer(8) if many else 1)), dtype)
        if many:
            return values
        # By its shortest decimal, so that a float32 written as 1e-05 is not read as 9.999999747378752e-06.
        return float(str(values[0])) if dtype.kind == "f" else values[0].item()


@functools.cache
def _kind(number: int) -> gguf.GGMLQuantizationType | None:
    """The type of tensors with this number; None if the gguf package can't decode it."""
    try:
        kind = gguf.GGMLQuantizationType(number)
        gguf.quants.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError):  # respectively: no such type; no known size; no decoder
        return None
    return kind
