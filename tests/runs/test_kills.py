"""`kill -9` at random moments: the same command goes on, and the results are the same bits."""

import kills
import pytest


# The two that save most between them; all of them: tests/soak.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["classification", "unannounced"])
def test_a_run_survives_three_kills(name):
    """Compiled as a user's. That kills hit a run in its midst is no matter of course: most may hit its start."""
    outcomes = list(kills.torture_until(3, [name], seed=0))
    assert [outcome.differences for outcome in outcomes] == [[]] * len(outcomes)
    assert sum(outcome.midway for outcome in outcomes) >= 1
