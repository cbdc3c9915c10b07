"""`kill -9` at random moments: the same command goes on, and the results are the same bits."""

import kills
import pytest


@pytest.mark.kills
def test_a_run_survives_twenty_kills():
    outcomes = list(kills.torture_in_turn(20, seed=0))
    assert {outcome.experiment for outcome in outcomes} >= {"classification", "lora"}
    assert [outcome.differences for outcome in outcomes] == [[]] * len(outcomes)
