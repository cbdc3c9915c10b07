"""Messages about a setting that does not exist: its name here, why there is none, or what is written alike."""

import pytest

from ftn_jax.core import elsewhere
from ftn_jax.runs.build import settings

KNOWN = [described.name for described in settings()]


def test_every_name_stands_for_a_setting():
    assert {f"config.{name}" for name in elsewhere._HERE.values()} <= set(KNOWN)
    assert not set(elsewhere._HERE) & set(elsewhere._NONE)
    assert not {name.rpartition(".")[2] for name in KNOWN} & (set(elsewhere._HERE) | set(elsewhere._NONE))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("config.model.bf16", "known: config.model.dtype"),
        ("config.model.gradient_checkpointing", "known: config.model.remat"),
        ("config.optimizer.lr", "known: config.optimizer.learning_rate"),
        ("config.pool.lora_alpha", "an adapter has no scale of its own; set config.optimizer.learning_rate"),
        ("config.stream.stepz", "known: config.stream.steps"),
    ],
)
def test_what_is_known(name, said):
    assert elsewhere.what_is_known(name, KNOWN) == said


def test_a_name_that_this_config_does_not_have_is_not_offered():
    assert elsewhere.what_is_known("config.pool.r", ["config.seeds"]) == "known: config.seeds"
