"""From settings to a problem: what belongs together, and what does not is one line before anything trains."""

import pathlib

import numpy as np
import pytest
import toys

from ftn_jax.errors import InputError
from ftn_jax.main import load_config
from ftn_jax.problem import build, check, describe, make_problem, seeds_of

FILE = str(pathlib.Path(__file__).parents[1] / "configs" / "lora.py")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    toys.save_toy_base(folder)
    return str(folder)


def config_of(**settings):
    """configs/lora.py with replaced settings, their names written ``pool__size``."""
    config = load_config(FILE)
    config.update_from_flattened_dict({name.replace("__", "."): value for name, value in settings.items()})
    return config


@pytest.mark.parametrize(("seeds", "expected"), [(3, (0, 1, 2)), (1, (0,)), ((5, 2), (5, 2)), ([7], (7,))])
def test_seeds_of(seeds, expected):
    assert seeds_of(config_of(seeds=seeds)) == expected


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"configurer__k": 96},  # six tasks of 96 fill 576
        {"pool__size": 80, "configurer__k": 8, "variants__lora_ftn__lateral_steps": 0},  # no torus is needed
        {"pool__size": 80, "configurer__k": 8, "methods": ("lora_fixed", "lora_naive")},
        {"pool__size": 9, "configurer__k": 9, "methods": ("lora_ftn",), "variants__lora_ftn__kernel": 5},
        {"optimizer__name": "adamw", "optimizer__weight_decay": 0.1},
    ],
)
def test_what_works(settings):
    check(config_of(**settings))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"configurer__k": 577}, "config.configurer.k is 577, expected at most config.pool.size = 576"),
        ({"pool__size": 575}, "config.pool.size is 575, expected a square (a D x D torus) since lora_ftn smooths"),
        ({"variants__lora_ftn__kernel": 2}, "config.variants.lora_ftn.kernel is 2, expected an odd whole number"),
        ({"variants__lora_ftn__kernel": 49}, "kernel is 49, expected at most 2 D - 1 = 47 on the 24 x 24 torus"),
        (
            {"configurer__k": 97},
            "config.pool.size is 576, expected at least 582 since lora_fixed gives each of 6 tasks",
        ),
        ({"methods": ("lora_ftm",)}, "unknown method 'lora_ftm', known: lora_bank, lora_fixed, lora_ftn, lora_naive"),
        ({"optimizer__weight_decay": 0.1}, "weight_decay is 0.1, expected 0 since adam has no decay: set config.optim"),
    ],
)
def test_what_does_not(settings, said):
    with pytest.raises(InputError) as caught:
        check(config_of(**settings))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_variants_of_an_unknown_method_or_setting():
    config = load_config(FILE)
    config.variants.lora_ftm = {"kernel": 3}
    with pytest.raises(InputError, match=r"config\.variants\.lora_ftm: unknown method"):
        check(config)
    config = load_config(FILE)
    config.variants.lora_bank.kernel = 3
    with pytest.raises(InputError, match=r"config\.variants\.lora_bank: .*'kernel'"):
        check(config)
    config = load_config(FILE)
    del config.variants["lora_ftn"]
    with pytest.raises(InputError, match=r"config\.variants\.lora_ftn: missing a required .*'kernel'"):
        check(config)


def test_the_methods_settings_reach_it():
    config = config_of(variants__lora_bank__b_std=0.5)
    bank = build(config, "lora_bank").adapt_pool(toys.toy_pool(size=576, rank=4))
    assert (bank.size, bank.rank, bank.b_std) == (8, 288, 0.5)
    assert build(config, "lora_fixed").oracle and not build(config, "lora_ftn").oracle


def test_make_problem(base):
    config = config_of(
        base=base,
        pool__size=16,
        pool__rank=2,
        pool__b_std=0.25,
        configurer__k=4,
        stream__tasks=("lower", "pirate"),
        stream__steps=7,
        stream__batch=3,
        configurer__support=5,
        optimizer__reset=False,
        optimizer__rows="dense",
    )
    problem = make_problem(config, base)
    assert (problem.pool.size, problem.pool.rank, problem.pool.b_std) == (16, 2, 0.25)
    assert problem.pool.modules == ("attn.c_attn",)
    training = problem.training
    assert (training.steps, training.batch, training.support) == (7, 3, 5)
    assert (training.rows, training.reset) == ("dense", False)
    assert problem.stream.names == ("lower", "pirate")
    assert problem.configurer.k == 4
    found = describe(problem.base)
    assert found["name"] == base and len(found["hash"]) == 16
    assert describe(None) is None
    np.testing.assert_array_equal(problem.pool.base["wte"], toys.toy_base_params(problem.base.config)["wte"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stream__tasks": ("upper", "shout")}, "config.stream.tasks: unknown task 'shout', known: upper, lower"),
        ({"stream__max_length": 20}, "tokens, config.stream.max_length is 20"),
        ({"stream__max_length": 129}, "config.stream.max_length is 129, expected at most the 128 positions of base"),
        ({"configurer__support": 21}, "config.configurer.support is 21, expected at most the 20 recovery examples of"),
        ({"stream__batch": 81}, "config.stream.batch is 81, expected at most the 80 training examples of task 'upper'"),
        ({"configurer__k": 71}, "config.pool.size is 576, expected a multiple of config.configurer.k = 71"),
        ({"pool__modules": ("attn.c_proj", "mlp(")}, "config.pool.modules: 'mlp(' is not a regular expression"),
        ({"pool__modules": ("nothing",)}, "config.pool.modules: 'nothing' matches none of"),
    ],
)
def test_what_only_the_base_tells(base, settings, said):
    config = config_of(**settings)
    check(config)
    with pytest.raises(InputError) as caught:
        make_problem(config, base)
    assert said in str(caught.value) and "\n" not in str(caught.value)
