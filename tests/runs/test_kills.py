"""`kill -9` at random moments: the same command goes on, and the results are the same bits."""

import kills
import pytest


# The one that saves most; all of them: tests/soak.
@pytest.mark.slow
def test_a_run_survives_two_kills():
    """Compiled as a user's. That kills hit a run in its midst is no matter of course: most may hit its start."""
    outcomes = list(kills.torture_until(2, ["unannounced"], seed=0))
    assert [outcome.differences for outcome in outcomes] == [[]] * len(outcomes)
    assert sum(outcome.midway for outcome in outcomes) >= 1
