"""What each method costs: a table."""

from ftn_jax.report.tables import UNDEFINED, Table, method_name

_SIZES = ("parameters", "bytes", "trained")


def cost_table(results: dict) -> Table:
    """For each method what a task holds and trains, the speed of training, and peak memory; a dash if unknown."""
    costs = {name: method.get("cost") for name, method in results["methods"].items()}
    rows = []
    for name, cost in costs.items() if any(costs.values()) else ():
        cells = [UNDEFINED] * (len(_SIZES) + 3)
        if cost:
            speed, memory = cost["examples_per_second"], cost["memory"]
            cells = [f"{cost[size]:,.0f}" for size in _SIZES]
            cells.append(UNDEFINED if speed is None else f"{speed:,.1f}")
            cells += [f"{'≤ ' if memory['at_most'] else ''}{memory['bytes'] / 1e6:,.1f}", memory["of"]]
        rows.append((method_name(name), *cells))
    columns = ("method", *_SIZES, "examples/s", "peak MB", "of")
    note = (
        "Parameters, and their bytes: those of a task's own components; unless the method reserves them, tasks may "
        "share them. Trained: the parameters that a step trains. All three are means over tasks and seeds. "
        "Examples/s: in training, all seeds together, with mask search, without compiling. Peak: the highest memory in "
        "use until the method's end, of the fullest device, or of the process where the device does not say; ≤ if it "
        "was as high before the method began."
    )
    return Table("Cost", columns, tuple(rows), note, left=("method", "of"))
