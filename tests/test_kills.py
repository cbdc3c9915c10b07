"""`kill -9` at random moments: the same command goes on, and the results are the same bits."""

import kills
import pytest


@pytest.mark.slow
@pytest.mark.parametrize("name", kills.RUNS)
def test_a_run_survives_seven_kills(name):
    outcomes = list(kills.torture_until(7, [name], seed=0))
    assert sum(outcome.kills for outcome in outcomes) >= 7
    assert [outcome.differences for outcome in outcomes] == [[]] * len(outcomes)
