"""Anytime performance and forward transfer in the report: worked out by hand, and what is said where they lack."""

import json

import pytest
from toys import table_cells

from ftn_jax.core import metrics
from ftn_jax.report import write_report
from ftn_jax.report.transfer import transfer_table

# Two seeds. Gains before training: 0.5 - 0.25 and 0.75 - 0.25; anytime: (0.5 + 0.75) / 2 and (1 + 0.75) / 2.
RECONFIG = [[[0.5, 0.5], [0.5, 1.0]], [[1.0, 0.75], [0.5, 1.0]]]
STORED = [[[0.5, None], [0.5, 1.0]], [[1.0, None], [0.5, 1.0]]]
B = [[0.5, 0.25], [0.75, 0.25]]


pytestmark = pytest.mark.usefixtures("pictures_where_figures_are_named")


def results(metric="accuracy", **methods):
    return {"experiment": "mine", "task_names": ["a", "b"], "metric": metric, "seeds": [0, 1], "methods": methods}


def entry(matrices=RECONFIG, untrained=B, metric="accuracy"):
    both = {"stored": STORED, "reconfig": matrices}
    return {"untrained": untrained} | {key: metrics.summarise(r, metric, untrained) for key, r in both.items()}


def test_the_table_by_hand(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(results(mine=entry())))
    write_report(tmp_path)
    report = (tmp_path / "report.md").read_text()
    rows = table_cells(report, "All along the stream")
    assert rows[0] == ["method", "protocol", "anytime ACC ↑", "FWT ↑", "untrained ACC"]
    assert rows[2:] == [
        ["mine", "stored", "0.750 ± 0.177", "-", "-"],
        ["mine", "reconfig", "0.750 ± 0.177", "0.375 ± 0.177", "0.438 ± 0.088"],
    ]
    assert "how much higher a task's ACC is" in report and "No FWT" not in report


def test_a_loss_is_turned():
    table = transfer_table(results("cross_entropy", mine=entry(metric="cross_entropy")))
    assert table.rows[1][3] == "-0.375 ± 0.177" and "how much lower a task's CE is" in table.note


def older(found):
    del found["untrained"]
    for protocol in metrics.PROTOCOLS:
        del found[protocol]["fwt"], found[protocol]["anytime"]
    return found


@pytest.mark.parametrize(
    "found, reason",
    [
        (older(entry()), "an older version trained it"),
        (
            entry(STORED, None),
            "tasks are scored only once they are trained (config.stream.evaluate), or they come back",
        ),
        (entry(STORED), "a task joined the stream later"),
        (entry(untrained=[[0.5, None], [0.5, 0.25]]), "the untrained model's metric is not finite"),
    ],
)
def test_it_is_said_why_there_is_none(tmp_path, found, reason):
    (tmp_path / "results.json").write_text(json.dumps(results(mine=found, other=entry())))
    write_report(tmp_path)
    report = (tmp_path / "report.md").read_text()
    rows = table_cells(report, "All along the stream")
    assert [row[2:4] for row in rows[2:]] == [
        ["0.750 ± 0.177", "-"],
        ["0.750 ± 0.177", "-"],
        ["0.750 ± 0.177", "-"],
        ["0.750 ± 0.177", "0.375 ± 0.177"],
    ]
    assert f"No FWT for mine: {reason}." in report and "for mine, other" not in report


def test_one_task_has_none():
    only = {"untrained": [[0.5]], "reconfig": metrics.summarise([[[0.75]]], "accuracy", [[0.5]])}
    table = transfer_table(results(mine=only) | {"task_names": ["a"], "seeds": [0]})
    assert table.rows == (("mine", "reconfig", "0.750", "-", "0.500"),)
    assert table.note.endswith("No FWT for mine: there is one task.")
