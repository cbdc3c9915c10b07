"""The summary at a run's end: the main table, masks that were found again counted by hand, and where the rest lies."""

import io
import json

from rich.console import Console
from test_report import _results

from ftn_jax.report import write_report
from ftn_jax.report.summary import found_lines


def method(masks, recovered, **fields):
    return {"masks": masks, "recovered": recovered, "overlap": [], "k": 2, "size": 9} | fields


def test_masks_that_were_found_again():
    """Of two seeds the first finds one of two masks whole and half of the other, the second both."""
    masks = [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]
    results = {
        "methods": {
            "lora_ftn": method(masks, [[[0, 1], [2, 8]], masks[1]]),
            "mine": method(masks, masks),
            "lora_fixed": method(masks, masks, oracle=True),
            "lora_naive": method(masks, masks, size=2),
            # The second has one component of its own and reuses those of the first.
            "composed": method(
                [[[0, 1], [4]]],
                [[[0, 1], [0, 1, 4]]],
                answering=[[[0, 1], [0, 1, 4]]],
                reuses=[[[], [0]]],
            ),
        }
    }
    assert found_lines(results) == [
        "LoRA-FTN: 1.5 of 2 masks found again; of the others 50% of the components",
        "mine: 2 of 2 masks found again",
        "composed: 2 of 2 masks found again; 1 of 2 tasks reuse components of earlier ones",
    ]


def test_the_terminal_shows_the_main_table_alone(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(_results()))
    shown = {}
    for short in (True, False):
        console = Console(file=io.StringIO(), width=160)
        write_report(tmp_path, console, short=short)
        shown[short] = console.file.getvalue()
    assert "Table 3." in shown[True] and "Table 5." not in shown[True] and len(shown[True].splitlines()) < 25
    assert "Table 5." in shown[False] and "found again" not in shown[False]
    tables = (tmp_path / "report.md").read_text().count("\n## ") - 2  # less figures and environment
    images = len(list((tmp_path / "figures").glob("*.png")))
    assert f"{tmp_path}/report.md has {tables} tables and {images} figures" in shown[True]
