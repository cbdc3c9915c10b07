"""The report as `report.html`: one page that needs no other file and no network."""

from __future__ import annotations

import base64
import difflib
import functools
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flax import traverse_util

from ftn_jax.report import charts, paper, series
from ftn_jax.report.tables import Table, method_name, sample_tables

_FOLDER = Path(__file__).with_name("html")
_FIRST = 2  # tables before the figures
_PIECE = re.compile(r"\s+|\w+|[^\w\s]")  # what is compared as a whole


class Pair(NamedTuple):
    """One method's output for a sample: pieces of the target and of the output, each with whether it differs."""

    method: str
    target: list[tuple[str, bool]]
    output: list[tuple[str, bool]]
    same: bool


class Sample(NamedTuple):
    """A held-out example, and what the methods give for it."""

    task: str
    prompt: str
    pairs: list[Pair]


def render(results: dict, built: Sequence[Table], losses: series.Losses, *, said: Sequence[str], command: str) -> str:
    """The whole page.

    Everything that is not in the package's own template is escaped, and the page's policy lets no other script or
    style run, and nothing be fetched.

    Args:
        results: the contents of `results.json` (docs/house.md).
        built: the report's tables, in their order; samples are shown beside their targets instead.
        losses: the contents of `metrics.csv`; empty: no learning curves.
        said: sentences below the heading.
        command: the command that writes the page again.

    Returns:
        HTML.
    """
    shown = [table for table in built if table not in sample_tables(results)]
    figures, samples = charts.all_figures(results, losses), compared_samples(results)
    first, others = shown[:_FIRST], shown[_FIRST:]
    contents = [
        *((_anchor(table.title), _brief(table.title)) for table in first),
        *((figure.name, figure.title) for figure in figures),
        *([("samples", "Samples")] if samples else []),
        *((_anchor(table.title), _brief(table.title)) for table in others),
        ("settings", "Settings"),
    ]
    environment = traverse_util.flatten_dict(results.get("environment") or {}, sep=".")
    counts = ((results["task_names"], "task"), (results["methods"], "method"), (results["seeds"], "seed"))
    numbers = paper.FIGURES.get(results["experiment"], {})
    return _template().render(
        title=f"Functional Task Networks: the {results['experiment']} experiment",
        facts=[f"{len(many)} {what}{'s' * (len(many) != 1)}" for many, what in counts] + [series.metric_label(results)],
        said=said,
        contents=contents,
        first=first,
        figures=figures,
        numbers=numbers,
        samples=samples,
        others=others,
        config=json.dumps(results.get("config"), indent=2, ensure_ascii=False),
        environment="\n".join(f"{key}: {value}" for key, value in environment.items()),
        command=command,
        css=(_FOLDER / "page.css").read_text(encoding="utf-8"),
        js=(_FOLDER / "page.js").read_text(encoding="utf-8"),
    )


def compared_samples(results: dict) -> list[Sample]:
    """The samples of all methods, those of the same example together, each compared with its target."""
    found: dict[tuple[str, str, str], list[Pair]] = {}
    for name, method in results["methods"].items():
        for sample in method.get("samples", ()):
            target, output = sample["target"].strip(), sample["output"].strip()
            pair = Pair(method_name(name), *differences(target, output), target == output)
            found.setdefault((sample["task"], sample["prompt"].strip(), target), []).append(pair)
    return [Sample(task, prompt, pairs) for (task, prompt, _), pairs in found.items()]


def differences(target: str, output: str) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """Both texts in pieces, each with whether the other text lacks it: words, white space and single signs compared."""
    left, right = _PIECE.findall(target), _PIECE.findall(output)
    pieces: tuple[list, list] = [], []
    for kind, i0, i1, j0, j1 in difflib.SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        for into, words in ((pieces[0], left[i0:i1]), (pieces[1], right[j0:j1])):
            if words:
                into.append(("".join(words), kind != "equal"))
    return pieces


@functools.cache
def _template() -> Any:
    import jinja2  # imported here, since few commands write a report

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"anchor": _anchor, "digest": _digest}
    return environment.get_template("page.html")


def _digest(text: str) -> str:
    """The source of a Content-Security-Policy that allows this script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _anchor(title: str) -> str:
    return f"table-{re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')}"


def _brief(title: str) -> str:
    """A title without its number, and without the text after its first comma or colon."""
    brief = re.split(r"[,:]", re.sub(r"^Table \d+\. ", "", title))[0]
    return brief[:1].upper() + brief[1:]
