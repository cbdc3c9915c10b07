"""The report's tables: built once as data, then rendered as markdown and for the terminal."""

from __future__ import annotations

import dataclasses
import re
from itertools import combinations, groupby

import numpy as np
import rich.table
from rich import box
from rich.text import Text

from ftn_jax.core import metrics
from ftn_jax.core.metrics import PROTOCOLS
from ftn_jax.report import paper

UNDEFINED = "-"
_NAMES = ("method", "protocol", "task", "tasks")  # columns that a narrow terminal does not wrap


@dataclasses.dataclass(frozen=True)
class Table:
    """One table; every cell is a string. The columns named in `left` hold text, the others numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    left: tuple[str, ...] = ("method", "protocol")


def all_tables(results: dict) -> list[Table]:
    """Every table that the methods in `results` (docs/house.md) can fill, in the report's order."""
    tables = [
        main_table(results),
        per_task_table(results),
        decomposition_table(results),
        overlap_table(results),
        occupancy_table(results),
        validation_table(results),
        imported_table(results),
        boundaries_table(results),
        wandering_table(results),
        facts_table(results),
        task_facts_table(results),
        *sample_tables(results),
        time_table(results),
    ]
    return [table for table in tables if table.rows]


def main_table(results: dict) -> Table:
    """Table 1, 2 or 3: each method and protocol, with the paper's numbers beside ours where the paper has them."""
    published = paper.MAIN.get(results["experiment"])
    metric = metrics.METRICS[results["metric"]]
    blocks = list(_protocol_blocks(results))
    matched = any("exact_match" in block for _, _, block in blocks)

    beside = ("paper",) if published else ()
    columns = ("method", "protocol", metric.heading, *beside, "FM ↓", *beside, "fm_rise ↓", "BWT ↑")
    columns += ("exact match ↑",) if matched else ()
    rows = []
    for name, protocol, block in blocks:
        row = [method_name(name), protocol]
        for key in ("final", "fm"):
            row += [number(block[key])]
            row += [_published(published, name, protocol, key)] if published else []
        row += [number(block["fm_rise"]), number(block["bwt"])]
        if matched:
            row += [number(block["exact_match"]["final"]) if "exact_match" in block else UNDEFINED]
        rows.append(tuple(row))

    title = f"{published['number']}. " if published else ""
    title += f"The {results['experiment']} stream, {len(results['task_names'])} tasks"
    if results.get("base_model"):
        title += f", base {results['base_model']['name']}"
    seeds = len(results["seeds"])
    note = f"Ours: mean{' ± std' if seeds > 1 else ''} over {_seeds(seeds)}. "
    if published:
        base = f" on {published['base']}" if published["base"] else ""
        note += f"Paper: mean ± std over {_seeds(published['seeds'])}{base}. "
    note += f"{metric.fm_note} BWT is final minus just-trained on prior tasks, up is better. "
    note += "Exact match: share of greedy outputs equal to the target. " if matched else ""
    note += "0.000 is exactly zero; a number that would round to it is printed as a power of ten."
    oracles = [method_name(name) for name, method in results["methods"].items() if method.get("oracle")]
    note += f" Told the task, in training and at evaluation: {', '.join(oracles)}." if oracles else ""
    return Table(title, columns, tuple(rows), note)


def per_task_table(results: dict) -> Table:
    """Each method's final metric task by task, reconfig."""
    rows = []
    for name, protocol, block in _protocol_blocks(results):
        if protocol == "reconfig":
            last_rows = np.asarray(block["matrix"], float)[:, -1]  # [E, N]
            rows.append((method_name(name), *(number(stat(column)) for column in last_rows.T)))
    title = f"Final {metrics.METRICS[results['metric']].label} by task, reconfig"
    return Table(title, ("method", *results["task_names"]), tuple(rows))


def overlap_table(results: dict) -> Table:
    """Table 5: pairwise overlap of training-time masks, over seeds, for every method with a sparse mask."""
    sparse = sparse_methods(results)
    overlaps = {name: np.asarray(method["overlap"], float) for name, method in sparse.items()}
    published = "lora_ftn" if results["experiment"] == "lora" else None
    columns, rows = ["tasks"], []
    for name in overlaps:
        columns += [method_name(name)] + (["paper"] if name == published else [])
    for i, j in combinations(range(len(results["task_names"])), 2) if overlaps else ():
        pair = (results["task_names"][i], results["task_names"][j])
        row = [" / ".join(pair)]
        for name, values in overlaps.items():
            row += [number(stat(values[:, i, j]))]
            row += [_published_overlap(pair)] if name == published else []
        rows.append(tuple(row))
    title = ("Table 5. " if published in overlaps else "") + "Pairwise overlap of training-time masks"
    note = f"|m_i ∩ m_j| / k, over {_seeds(len(results['seeds']))}; 0.000 is exact disjointness."
    return Table(title, tuple(columns), tuple(rows), note, left=("tasks",))


def occupancy_table(results: dict) -> Table:
    """How much of the pool the training-time masks take, over seeds, for every method with a sparse mask."""
    rows = []
    for name, method in sparse_methods(results).items():
        masks = [np.concatenate(seed) for seed in method["masks"]]
        used = [np.unique(mask, return_counts=True)[1] for mask in masks]
        cells = ([len(counts) for counts in used], [(counts > 1).sum() for counts in used])
        free = [method["size"] - len(counts) for counts in used]
        rows.append((method_name(name), str(method["size"]), *(number(stat(np.array(c))) for c in (*cells, free))))
    return Table("The pool", ("method", "components", "in a mask", "in several", "free"), tuple(rows))


def validation_table(results: dict) -> Table:
    """Each task's best step by its validation loss, and the loss there and at the last validation, over seeds."""
    rows = []
    for name, method in results["methods"].items():
        for task, own in groupby(method.get("validation", ()), key=lambda one: one[0]):
            _, steps, losses = zip(*own, strict=True)
            curves = np.asarray(losses, float)  # [validations, E]
            best = curves.argmin(0)
            cells = np.asarray(steps)[best], curves.min(0), curves[-1]
            shown = (number(stat(cell)) for cell in cells)
            rows.append((method_name(name), results["task_names"][task], *shown, str(steps[-1])))
    columns = ("method", "task", "best step", "loss there", "loss at the end", "steps")
    note = "Each task keeps the parameters of its best step. Losses are of its validation examples."
    return Table("Validation", columns, tuple(rows), note, left=("method", "task"))


def imported_table(results: dict) -> Table:
    """The adapters that were imported into each method's pool, whose components no task uses."""
    rows = [
        (method_name(name), adapter, str(len(seeds[0])))
        for name, method in results["methods"].items()
        for adapter, seeds in method.get("imported", {}).items()
    ]
    return Table("Imported adapters", ("method", "adapter", "components"), tuple(rows), left=("method", "adapter"))


def boundaries_table(results: dict) -> Table:
    """How well methods that are not told when a block begins detect it, over seeds."""
    rows = []
    for name, method in results["methods"].items():
        seeds = method.get("boundaries", [])
        if not seeds:
            continue
        counts = [[seed[key] for seed in seeds] for key in ("missed", "false_alarms", "masks", "tasks")]
        decided = [(seed["right"], seed["right"] + seed["wrong"]) for seed in seeds]
        shares = [right / count if count else np.nan for right, count in decided]
        delays = [delay for seed in seeds for delay in seed["delays"]]
        cells = [number(stat(np.array(values, float))) for values in (shares, *counts)]
        longest = str(max(delays)) if delays else UNDEFINED
        rows.append((method_name(name), *cells, number(stat(np.array(delays))) if delays else UNDEFINED, longest))
    columns = ("method", "right", "missed", "false alarms", "masks", "tasks", "delay", "longest")
    note = "Right: share of correct decisions; a change that was missed counts as a wrong one. Delays in steps."
    return Table("Boundaries that nobody announced", columns, tuple(rows), note)


def decomposition_table(results: dict) -> Table:
    """Table 4: each method's loss on prior tasks against the oracle, split into overlap and recall."""
    methods = {name: method for name, method in results["methods"].items() if set(PROTOCOLS) <= method.keys()}
    reference = next((name for name in paper.REFERENCES if name in methods), None)
    published = paper.DECOMPOSITION.get(results["experiment"], {})
    columns, rows = ["method"], []
    for part in ("overlap", "recall"):
        columns += [f"{part} ↓"] + (["paper"] if published else [])
    for name in [name for name in methods if name != reference] if reference else ():
        parts = metrics.decomposition(
            methods[name]["stored"]["matrix"],
            methods[name]["reconfig"]["matrix"],
            methods[reference]["stored"]["matrix"],
            results["metric"],
        )
        row = [method_name(name)]
        for part, stat in parts.items():
            row += [number(stat)]
            row += [f"{published[name][part]:+.3f}" if name in published else UNDEFINED] if published else []
        rows.append(tuple(row))
    title = ("Table 4. " if published else "") + "Loss on prior tasks: mask overlap in training, and recall"
    note = f"Against {method_name(reference)}, stored; up is worse. " if reference else ""
    note += f"Means over prior tasks, {_seeds(len(results['seeds']))}; recall below 0: recovery beats the stored mask."
    return Table(title, tuple(columns), tuple(rows), note)


def wandering_table(results: dict) -> Table:
    """The components that blocks of methods with moving masks touched, and their share of earlier tasks' masks."""
    columns: tuple[str, ...] = ("method", "task")
    rows = []
    for name, method in results["methods"].items():
        if "wandering" not in method:
            continue
        found = method["wandering"]
        steps = [f"> {limit} steps" if limit else "any step" for limit in found["more_than"]]
        columns = ("method", "task", "k", *steps, *(f"earlier, {step}" for step in steps))
        touched = np.asarray(found["touched"], float)
        for task, task_name in enumerate(results["task_names"]):
            row = [method_name(name), task_name, str(method["k"])]
            row += [number(stat(touched[:, task, limit])) for limit in range(len(steps))]
            shares = [seed[task] for seed in found["earlier"]]
            if shares[0] is None:
                row += [UNDEFINED] * len(steps)
            else:
                row += [number(stat(column)) for column in np.asarray(shares, float).T]
            rows.append(tuple(row))
    note = "Components that were active in so many steps of the task's block; the stored mask has k. "
    note += "Earlier: the share of the earlier tasks' stored masks that is among them. "
    note += "Theorem 2.1 is about every mask of a block, not only the last one."
    return Table("What a block touched", columns, tuple(rows), note, left=("method", "task"))


def facts_table(results: dict) -> Table:
    """Facts about each seed's data, a row per seed."""
    facts = results.get("facts") or {}
    rows = [(str(seed), *(f"{values[e]:.3f}" for values in facts.values())) for e, seed in enumerate(results["seeds"])]
    note = "Positive: share of inputs in the positive class. Agree: share on which two tasks have the same class."
    return Table("The stream, seed by seed", ("seed", *facts), tuple(rows) if facts else (), note, left=())


def task_facts_table(results: dict) -> Table:
    """Facts about each task's data, a row per task."""
    facts = results.get("task_facts") or {}
    rows = [(name, *(str(values[i]) for values in facts.values())) for i, name in enumerate(results["task_names"])]
    return Table("The stream, task by task", ("task", *facts), tuple(rows) if facts else (), left=("task",))


def sample_tables(results: dict) -> list[Table]:
    """What each method generates: a table for each."""
    return [sample_table(results, name) for name in results["methods"]]


def sample_table(results: dict, name: str) -> Table:
    """What one method generates for a held-out example of each task: greedy, first seed, recovered mask."""
    columns = ("task", "source", "target", "output")
    rows = tuple(
        (sample["task"], *(_one_line(sample[key]) for key in ("prompt", "target", "output")))
        for sample in results["methods"][name].get("samples", ())
    )
    title = f"Sample generations, {method_name(name)}"
    return Table(title, columns, rows, "Greedy, under the recovered mask, first seed.", left=columns)


def time_table(results: dict) -> Table:
    """The seconds that each method took for all its seeds together."""
    rows = []
    for name, method in results["methods"].items():
        if "seconds" in method:
            compile_s, run_s = method["seconds"]["compile"], method["seconds"]["run"]
            rows.append((method_name(name), f"{compile_s:.1f}", f"{run_s:.1f}", f"{compile_s + run_s:.1f}"))
    title = f"Seconds, {_seeds(len(results['seeds']))} together"
    return Table(title, ("method", "compile", "run", "total"), tuple(rows))


def markdown(table: Table) -> str:
    """`table` as a GitHub-flavoured markdown section, its title a heading of level 2."""
    lines = [[_escape(cell) for cell in row] for row in (table.columns, *table.rows)]
    rule = [":--" if column in table.left else "--:" for column in table.columns]
    text = f"## {_escape(table.title)}\n\n"
    text += "".join(f"| {' | '.join(line)} |\n" for line in (lines[0], rule, *lines[1:]))
    return text + (f"\n{_escape(table.note)}\n" if table.note else "")


def terminal(table: Table) -> rich.table.Table:
    """`table` for a rich console."""
    grid = rich.table.Table(
        title=Text(table.title),
        caption=Text(table.note) if table.note else None,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        padding=0,
        show_edge=False,
    )
    for column in table.columns:
        if column in table.left:
            grid.add_column(Text(column), no_wrap=column in _NAMES)
        else:
            grid.add_column(Text(column), justify="right", min_width=len("± 0.000"))
    for row in table.rows:
        grid.add_row(*(Text(cell) for cell in row))
    return grid


def method_name(name: str) -> str:
    """The paper's name for a method, or the name itself if the paper has none."""
    return paper.METHOD_NAMES.get(name, name)


def sparse_methods(results: dict) -> dict[str, dict]:
    """The methods whose masks are a part of the pool (k < size), by name."""
    return {
        name: method
        for name, method in results["methods"].items()
        if {"overlap", "k", "size"} <= method.keys() and method["k"] < method["size"]
    }


def number(stat: dict) -> str:
    """{"mean", "std"} as "mean ± std" to 3 decimals; only the mean if std is null, "-" if the mean is null."""
    if stat["mean"] is None:
        return UNDEFINED
    return " ± ".join(_digits(value) for value in (stat["mean"], stat["std"]) if value is not None)


def _digits(value: float) -> str:
    if 0 < abs(value) < 0.0005:
        return f"{value:.0e}"
    return f"{value + 0.0:.3f}"  # + 0.0 turns -0.0 into 0.0


def stat(values: np.ndarray) -> dict:
    return metrics.mean_std([None if np.isnan(value) else float(value) for value in values])


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def _protocol_blocks(results: dict):
    for name, method in results["methods"].items():
        for protocol in PROTOCOLS:
            if protocol in method:
                yield name, protocol, method[protocol]


def _published(published: dict, name: str, protocol: str, key: str) -> str:
    pair = published["methods"].get(name, {}).get(protocol, {}).get(key)
    return " ± ".join(f"{value:.{published['decimals']}f}" for value in pair) if pair else UNDEFINED


def _published_overlap(pair: tuple[str, str]) -> str:
    if not set(pair) <= set(paper.OVERLAP["tasks"]):
        return UNDEFINED
    pairs = paper.OVERLAP["pairs"]
    return f"{pairs.get(pair, pairs.get(pair[::-1], paper.OVERLAP['other_pairs'])):.2f}"


def _one_line(text: str) -> str:
    return " ⏎ ".join(text.strip().splitlines())


def _escape(text: str) -> str:
    return re.sub(r"([\\`*_|<>\[\]~#&])", r"\\\1", text)
