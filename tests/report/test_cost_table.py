"""The report's table of costs: what results.json says, dashes for the rest, no table for an older run."""

from ftn_jax.report.cost import cost_table

COST = {
    "parameters": 12345.5,
    "bytes": 49382,
    "trained": 64,
    "examples_per_second": 1234.56,
    "memory": {"bytes": 2345678901, "of": "device", "at_most": False},
}


def rows(*costs):
    return cost_table({"methods": {f"m{i}": {"cost": cost} if cost else {} for i, cost in enumerate(costs)}}).rows


def test_the_cells():
    assert rows(COST) == (("m0", "12,346", "49,382", "64", "1,234.6", "2,345.7", "device"),)


def test_what_is_not_known_is_a_dash_or_a_bound():
    bound = COST | {"examples_per_second": None, "memory": {"bytes": 5 * 10**8, "of": "process", "at_most": True}}
    assert rows(bound, None) == (
        ("m0", "12,346", "49,382", "64", "-", "≤ 500.0", "process"),
        ("m1", "-", "-", "-", "-", "-", "-"),
    )


def test_an_older_run_has_no_such_table():
    assert rows(None, None) == ()
