"""`kill -9` at a random moment: the same command goes on, and the results are the same bits."""

import json

import kills
import numpy as np
import pytest
import toys


# The run that saves most, once; all of them, compiled as a user's and killed many times: tests/soak.
@pytest.mark.slow
def test_a_run_whose_boundaries_nobody_announces_survives_a_kill_and_reports_what_was_decided(tmp_path):
    outcome = kills.torture("unannounced", 0, tmp_path, 1, quick=True)
    assert outcome.differences == []
    assert outcome.midway == 1
    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    seeds = results["methods"]["lora_ftn_reserve"]["boundaries"]
    assert len(seeds) == 2
    for seed in seeds:
        assert seed["tasks"] == 3 and seed["events"][0] == {"block": 0, "step": 0, "mask": 0, "new": True}
        assert seed["right"] + seed["wrong"] == len(seed["events"]) + seed["missed"]
    cells = toys.table_cells((tmp_path / "whole" / "report.md").read_text(), "Boundaries that nobody announced")
    shares = [seed["right"] / (seed["right"] + seed["wrong"]) for seed in seeds]
    assert cells[2][0] == "LoRA-FTN-Reserve" and cells[2][1].startswith(f"{np.mean(shares):.3f}")
