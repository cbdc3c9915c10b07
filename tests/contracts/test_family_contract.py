"""What every registered family of bases keeps (`ftn_jax.testing`), on small bases that transformers has saved."""

import json
import operator
import pathlib

import numpy as np
import pytest

from ftn_jax.models import FAMILIES
from ftn_jax.testing import check_base
from ftn_jax.testing.families import FAMILY_CHECKS, family_case

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures"
BASES = {
    "gpt2": "gpt2_tiny/bare",
    "llama": "families/llama_linear",
    "mistral": "families/mistral",
    "qwen2": "families/qwen2_window",
    "qwen3": "families/qwen3",
    "gemma3_text": "families/gemma3",
}


@pytest.fixture(scope="module")
def folder(request):
    return FIXTURES / BASES[request.param]


@pytest.fixture(scope="module")
def case(folder):
    return family_case(json.loads((folder / "config.json").read_text()))


every_family = pytest.mark.parametrize("folder", BASES, indirect=True)


def test_every_family_is_tried():
    assert BASES.keys() == FAMILIES.keys()


@every_family
@pytest.mark.parametrize("check", FAMILY_CHECKS, ids=operator.attrgetter("__name__"))
def test_contract(check, case):
    check(case)


@every_family
def test_a_family_computes_what_transformers_does(folder):
    expected = np.load(folder / "expected.npz")
    check_base(folder, expected["tokens"], expected["logits"], expected["valid"])
