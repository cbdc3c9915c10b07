"""The report of a run: `report.md`, `report.html`, `figures/*.png` and terminal tables, made without training."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
from pathlib import Path

from flax import traverse_util
from matplotlib import rc_context
from matplotlib.figure import Figure
from rich.console import Console
from rich.text import Text

from ftn_jax.core.errors import InputError, writing
from ftn_jax.core.files import whole
from ftn_jax.report import figures, page, paper, tables
from ftn_jax.report.cost import cost_table
from ftn_jax.report.results import load_results
from ftn_jax.report.reuse import reuse_figure, reuse_table
from ftn_jax.report.summary import found_lines, where_line
from ftn_jax.report.transfer import transfer_table

_CAPTIONS = {
    "matrices": "Cell (i, j) is the metric on task j after training through task i; reconfig, mean over "
    "seeds. Dark is worse. Grey numbers are tasks that are not trained yet.",
    "forgetting": "Each task's metric from its own training to the end of the stream; reconfig, mean over "
    "seeds; the band is one std.",
    "stream": "After each task: the mean of the metric over the tasks so far, and how far it has fallen from each "
    "task's best; reconfig, mean over seeds; the band is one std.",
    "masks": "Training-time masks on the grid of components, one tile per seed, one colour per task. Overlapping "
    "masks add their colours; black is a component that no task uses.",
    "wandering": "The first seed's masks at steps of each task's block, one tile per step, one colour per block.",
    "reuse": "Tasks in their order; an arc leads from a task to one that reuses it, wider if more seeds do.",
    "learning": "Training loss, mean over seeds, lightly smoothed within each task; dashed lines are task boundaries.",
}


def write_report(workdir: str | os.PathLike, console: Console | None = None, *, short: bool = False) -> None:
    """Writes `report.md`, `report.html` and `figures/*.png` into a workdir from its `results.json` and `metrics.csv`.

    Everything is rendered before the first file is written, and each file is renamed into place when it is
    complete. Without `metrics.csv` there is no figure of learning curves.

    Args:
        workdir: folder that holds a `results.json` as described in docs/house.md.
        console: also prints the tables, the main one last; None prints nothing.
        short: print only the main table, which masks were found again, and where the report lies.

    Raises:
        InputError: `results.json` or `metrics.csv` is missing, unreadable or malformed.
    """
    workdir = Path(workdir)
    results = load_results(workdir)
    with rc_context({"text.parse_math": False}):  # a task may be called "$x$"
        drawn = {
            "matrices": figures.matrices(results),
            "forgetting": figures.forgetting(results),
            "stream": figures.stream(results),
            "masks": figures.masks(results),
            "wandering": figures.wandering(results),
            "reuse": reuse_figure(results),
        }
        losses = {}
        if (workdir / "metrics.csv").exists():
            losses = _losses(workdir / "metrics.csv", results["task_names"])
            drawn["learning"] = figures.learning(results, losses)
        images = {name: _png(figure) for name, figure in drawn.items() if figure is not None}
    built = tables.all_tables(results)
    built[1:1] = [table for table in (transfer_table(results), reuse_table(results, losses)) if table.rows]
    built += [table for table in [cost_table(results)] if table.rows]
    found, base = found_lines(results), _base_sentence(results)
    command = f"python -m ftn_jax.report --workdir={shlex.quote(str(workdir))}"
    text = _markdown(results, built, list(images), base, command)
    html = page.render(results, built, losses, said=[base, *found], command=command)

    with writing(workdir):
        (workdir / "figures").mkdir(exist_ok=True)
        for name, image in images.items():
            with whole(workdir / "figures" / f"{name}.png") as file:
                file.write_bytes(image)
        for name, content in (("report.md", text), ("report.html", html)):
            with whole(workdir / name) as file:
                file.write_text(content, encoding="utf-8")
    if console is not None:
        for table in built[:1] if short else reversed(built):
            console.print(tables.terminal(table), "")
        for line in [*found, base, where_line(str(workdir), len(built), len(images))] if short else [base]:
            console.print(Text(line), soft_wrap=True)


def _losses(path: Path, task_names: list[str]) -> dict[tuple[str, str], dict[int, list[float]]]:
    """`losses[method, task][step]`, one value per seed, from the columns method, task (its name), step, loss."""
    losses: dict[tuple[str, str], dict[int, list[float]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        for row in reader:
            try:
                if row["task"] not in task_names:
                    raise ValueError(f"unknown task {row['task']!r}")
                steps = losses.setdefault((row["method"], row["task"]), {})
                steps.setdefault(int(row["step"]), []).append(float(row["loss"]))
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(f"{path} line {reader.line_num} is malformed: {error}") from None
    return losses


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _base_sentence(results: dict) -> str:
    """A sentence that names the base model, and says whether the paper's numbers were measured on the same one."""
    base = results.get("base_model")
    if base is None:
        return "These results use no pretrained base model."
    sentence = f"Base model: {base['name']} (hash {base['hash']})."
    published = paper.MAIN.get(results["experiment"])
    if published is None:
        return sentence
    if base["name"] in (published["base"], f"distilbert/{published['base']}"):
        return f"{sentence} The paper's numbers were measured on the same base."
    return (
        f"{sentence} The paper's numbers were measured on {published['base']}, another base: "
        "compare the pattern between methods, not the values."
    )


def _markdown(results: dict, built: list[tables.Table], images: list[str], base: str, command: str) -> str:
    numbers = paper.FIGURES.get(results["experiment"], {})
    environment = traverse_util.flatten_dict(results.get("environment") or {}, sep=".")
    environment = "\n".join(f"{key}: {value}" for key, value in environment.items())
    config = json.dumps(results.get("config"), indent=2)
    parts = [
        f"# Functional Task Networks: the {results['experiment']} experiment\n",
        f"{base}\n",
        f"Made from `results.json` by\n\n```\n{command}\n```\n",
        *(tables.markdown(table) for table in built),
        "## Figures\n",
    ]
    for name in images:
        title = f"**{numbers[name]}.** " if name in numbers else ""
        parts.append(f"![{name}](figures/{name}.png)\n\n{title}{_CAPTIONS[name]}\n")
    parts.append(f"## Environment\n\n```\n{environment}\n```\n")
    parts.append(f"<details><summary>Config</summary>\n\n```json\n{config}\n```\n\n</details>\n")
    return "\n".join(parts)
