"""The FLOPs and collectives of a compiled program, read from its jaxpr and its text."""

import math
import re
from typing import Any, NamedTuple

_COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
_SIZES = {"pred": 1, "bf16": 2, "f16": 2, "c64": 8, "c128": 16}  # bytes; other names contain their number of bits


class Exchange(NamedTuple):
    """A collective operation of a program."""

    kind: str  # such as "all-reduce"
    result: str  # its shape on one device, such as "f32[72,768]"
    bytes: int  # of the result
    times: float  # executions in one call of the program
    source: str  # the name of the JAX operation that it comes from


def count_flops(jaxpr: Any) -> float:
    """FLOPs of the matrix products in a jaxpr: two for each multiply-add.

    A scan counts once per iteration, a while loop once, a conditional as its most expensive branch. Inside a
    `jax.shard_map` the count is for one device along the manual axes.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
            continue
        inner = [count_flops(part) for part in _jaxprs(equation.params.values())]
        if equation.primitive.name == "cond":
            total += max(inner, default=0.0)
        else:
            total += equation.params.get("length", 1) * sum(inner)
    return total


def _jaxprs(values: Any) -> list[Any]:
    found = []
    for value in values:
        if isinstance(value, tuple | list):
            found += _jaxprs(value)
        elif hasattr(value, "eqns"):
            found.append(value)
        elif hasattr(value, "jaxpr"):
            found.append(value.jaxpr)
    return found


def exchanges_of(text: str) -> list[Exchange]:
    """The collectives of a compiled program, from its text; those in a loop count once per iteration."""
    bodies = _computations(text)
    times = dict.fromkeys(bodies, 0.0)

    def visit(name, count):
        times[name] += count
        for line in bodies[name]:
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line)
            for called, role in _calls(line, bodies):
                visit(called, count * (int(trips[1]) if trips and role == "body" else 1))

    for entry in re.findall(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE):
        visit(entry, 1.0)
    pattern = re.compile(rf"= (.*?) ({'|'.join(_COLLECTIVES)})(?:-start)?\(")
    found = []
    for name, lines in bodies.items():
        for line in lines:
            match = pattern.search(line)
            if match and times[name]:
                source = re.search(r'op_name="([^"]*)"', line)
                result = re.sub(r"\{[^}]*\}", "", match[1])  # without layouts
                source = source[1] if source else ""
                found.append(Exchange(match[2], result, _bytes(result), times[name], source))
    return found


def _computations(text: str) -> dict[str, list[str]]:
    """The lines of each computation of an HLO module, by its name."""
    bodies, name = {}, None
    for line in text.splitlines():
        begin = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if begin:
            name = begin[1]
            bodies[name] = []
        elif line.startswith("}"):
            name = None
        elif name is not None:
            bodies[name].append(line)
    return bodies


def _calls(line: str, bodies: dict[str, list[str]]) -> list[tuple[str, str]]:
    """The computations that an instruction calls, as (computation, role)."""
    named = re.findall(r"\b(body|condition|to_apply|calls)=%?([\w.\-]+)", line)
    listed = re.search(r"\b(?:branch_computations|called_computations|calls)=\{([^}]*)\}", line)
    more = [("calls", name.strip().lstrip("%")) for name in listed[1].split(",")] if listed else []
    return [(name, role) for role, name in [*named, *more] if name in bodies]


def _bytes(shapes: str) -> int:
    total = 0
    for kind, dims in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shapes):
        bits = re.search(r"\d+$", kind)
        size = _SIZES.get(kind) or (int(bits[0]) // 8 if bits else 4)
        total += size * math.prod(int(n) for n in dims.split(",") if n)
    return total
