"""Every setting of the tree takes what it should and refuses the rest with one line that names it."""

import math
import pathlib

import pytest
from ml_collections import ConfigDict

from ftn_jax.errors import InputError
from ftn_jax.main import load_config
from ftn_jax.settings import SETTINGS, VARIANT_SETTINGS, check_settings, flatten

FILE = str(pathlib.Path(__file__).parents[1] / "configs" / "lora.py")
WHOLE = load_config(FILE)
LEAVES = flatten(WHOLE)
ZERO_IS_FINE = {
    "config.pool.b_std",
    "config.configurer.jitter",
    "config.optimizer.weight_decay",
    "config.variants.lora_ftn.lateral_steps",
    "config.variants.lora_bank.b_std",
}

NEVER = [None, -1, -0.5, math.nan, math.inf, 1j, b"x", "", (), [], ("a", "a"), (["a"],)]
WRONG = {
    "int": [2.5, "2", True, 10**12],
    "float": ["2", True, 1e39, 10**39],
    "bool": [0, 1, "true"],
    "str": [1, ("adam",)],
    "tuple": [1, "abc", (1,)],
    "seeds": [0, True, 10**12, 1.0, (0, 0), (-1,), (2**31,), (1.0,), (True,), "abc"],
}


def with_leaf(name, value):
    """The config with one leaf replaced by a value of any type."""
    tree = WHOLE.to_dict()
    *place, last = name.split(".")[1:]
    node = tree
    for key in place:
        node = node[key]
    node[last] = value
    return ConfigDict(tree)


def refusal(name, value):
    with pytest.raises(InputError) as caught:
        check_settings(with_leaf(name, value))
    return str(caught.value)


def test_flatten_names_every_leaf():
    assert flatten({"a": 1, "b": {"c": (2,), "d": {}}}) == {"config.a": 1, "config.b.c": (2,)}


def test_the_rules_are_those_of_the_config_file():
    check_settings(WHOLE)
    plain = {name for name in LEAVES if not name.startswith("config.variants.")}
    assert plain == {f"config.{name}" for name in SETTINGS}
    assert {name.split(".")[-1] for name in set(LEAVES) - plain} == set(VARIANT_SETTINGS)


@pytest.mark.parametrize("name", LEAVES)
def test_a_value_that_cannot_be_is_refused_by_name(name):
    wrong = [*NEVER, *WRONG["seeds" if name == "config.seeds" else type(LEAVES[name]).__name__]]
    if type(LEAVES[name]) in (int, float) and name not in ZERO_IS_FINE | {"config.seeds"}:
        wrong.append(0)
    for value in wrong:
        message = refusal(name, value)
        assert message.startswith(f"{name} is {value!r}, expected ")
        assert "\n" not in message


@pytest.mark.parametrize("name", LEAVES)
def test_a_branch_in_a_leafs_place_is_refused(name):
    assert refusal(name, {"x": 1}).startswith(f"{name}.x is not a setting")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seeds", 3),
        ("seeds", (5,)),
        ("seeds", [0, 2**31 - 1]),
        ("optimizer.learning_rate", 1),
        ("methods", ["lora_ftn"]),
    ],
)
def test_what_a_setting_may_be_besides(name, value):
    check_settings(with_leaf(f"config.{name}", value))


def test_even_kernel():
    assert "lora_ftn.kernel is 4, expected an odd whole number" in refusal("config.variants.lora_ftn.kernel", 4)


def test_a_setting_that_does_not_exist_suggests_the_right_one():
    assert refusal("config.pool.sise", 3) == "config.pool.sise is not a setting, known: config.pool.size"


def test_a_setting_that_is_missing():
    tree = WHOLE.to_dict()
    del tree["pool"]["rank"]
    with pytest.raises(InputError, match=r"config\.pool\.rank is missing, expected a whole number"):
        check_settings(ConfigDict(tree))


def test_a_methods_own_settings_are_its_own_business():
    tree = WHOLE.to_dict()
    tree["variants"]["mine"] = {"mood": object}
    check_settings(ConfigDict(tree))
