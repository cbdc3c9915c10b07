"""From settings to a problem: what belongs together, and what does not is one line before anything trains."""

import pathlib
import sys

import jax
import numpy as np
import pytest
import toys

from ftn_jax.cli.command import load_config
from ftn_jax.core.errors import InputError
from ftn_jax.methods import METHODS
from ftn_jax.runs.build import (
    build,
    check,
    configurer_of,
    describe,
    fill_in,
    filled,
    make_pool,
    make_problem,
    seeds_of,
    tasks_of,
    variant_of,
)
from ftn_jax.streams import STREAMS, TEXT, Context, Spec, Stream

synthetic = sys.modules["ftn_jax.streams.synthetic"]  # the package has a function of that name
CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
FILE = str(CONFIGS / "lora.py")
POINTS = f"{CONFIGS / 'synthetic.py'}:classification"


def config_of(file=FILE, /, **settings):
    """configs/lora.py, or another, with replaced settings, their names written ``pool__size``."""
    config = fill_in(load_config(file), METHODS)
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


def test_a_long_stream_has_24_tasks_or_some_of_them_in_an_order_by_seed():
    methods = ("lora_ftn_reserve", "lora_fixed", "lora_bank", "replay", "joint")
    config = config_of(f"{FILE}:long", methods=methods)
    check(config)
    every = tasks_of(config)
    assert len(set(every)) == 24 and every[:6] == tasks_of(config_of())
    some, again, other = (tasks_of(config_of(f"{FILE}:long,12,{seed}")) for seed in (3, 3, 4))
    assert some == again != other
    assert len(set(some)) == 12 and set(some) < set(every)


@pytest.mark.parametrize("argument", ("long,25,0", "long,0,0", "long,12", "long,", "longer"))
def test_arguments_that_the_config_does_not_know(argument):
    with pytest.raises(InputError, match=r"configs/lora\.py: (unknown argument|\d+ tasks, expected 1 to 24)"):
        load_config(f"{FILE}:{argument}")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stream__target": "regression"},
        {"configurer__k": 341},  # three tasks of 341 almost fill 1024
        {"pool__size": 80, "configurer__k": 8, "methods": ("kwta", "fixedmask", "nomask", "ewc", "supsup")},
        {"pool__size": 81, "configurer__k": 8},  # 17 = 2 D - 1
        {"variants__kwta__every": "task", "variants__ewc__strength": 0, "variants__supsup__widen": 64},
    ],
)
def test_what_works_with_networks(settings):
    check(config_of(POINTS, **settings))


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
        (
            {"methods": ("lora_ftm",)},
            "unknown method 'lora_ftm', known: ewc, fixedmask, ftn_compose, ftn_fast, ftn_reserve",
        ),
        ({"pool__name": "nets"}, "config.pool.name is 'nets', expected one of lora, neurons"),
        ({"stream__name": "style"}, "config.stream.name is 'style', expected one of arrays, jsonl, styles, synthetic"),
        ({"optimizer__weight_decay": 0.1}, "weight_decay is 0.1, expected 0 since adam has no decay: set config.optim"),
    ],
)
def test_what_does_not(settings, said):
    with pytest.raises(InputError) as caught:
        check(config_of(**settings))
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stream__target": "lora"}, "config.stream.target is 'lora', expected one of classification, regression"),
        (
            {"pool__size": 80, "configurer__k": 8},
            "config.pool.size is 80, expected a square (a D x D torus) since ftn_slow smooths",
        ),
        (
            {"pool__size": 64, "configurer__k": 8},
            "config.variants.ftn_fast.kernel is 17, expected at most 2 D - 1 = 15",
        ),
        (
            {"configurer__k": 342},
            "config.pool.size is 1024, expected at least 1026 since fixedmask gives each of 3 tasks",
        ),
        ({"pool__activation": "sine"}, "config.pool.activation is 'sine', expected one of gelu, relu, silu, tanh"),
        ({"pool__dropout": 1.0}, "config.pool.dropout is 1.0, expected a number from 0 to below 1"),
        ({"variants__kwta__every": "step"}, "config.variants.kwta.every is 'step', expected one of task, batch"),
    ],
)
def test_what_does_not_with_networks(settings, said):
    with pytest.raises(InputError) as caught:
        check(config_of(POINTS, **settings))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_variants_of_an_unknown_method_or_setting():
    config = filled(load_config(FILE))
    config.variants.lora_ftm = {"kernel": 3}
    with pytest.raises(InputError, match=r"config\.variants\.lora_ftm: unknown method"):
        check(config)
    config = filled(load_config(FILE))
    config.variants.lora_bank.kernel = 3
    with pytest.raises(InputError, match=r"config\.variants\.lora_bank: .*'kernel'"):
        check(config)


def test_a_variant_has_a_name_of_its_own_and_what_it_does_not_say_is_its_methods():
    config = config_of(variants__lora_ftn__kernel=5)
    config.variants.mine = {
        "method": "lora_ftn",
        "lateral_steps": 4,
        "configurer": {"steps": 3, "proposal": "gradient"},
    }
    config.methods = ("mine", "lora_ftn")
    check(config)
    assert variant_of(config, "mine") == (
        "lora_ftn",
        {"kernel": 5, "lateral_steps": 4, "every": "task", "recovery_lateral_steps": None, "b_std": None},
        {"steps": 3, "proposal": "gradient"},
    )
    own, shared = configurer_of(config, "mine"), configurer_of(config, "lora_ftn")
    assert (own.steps, own.proposal, own.learning_rate, own.k) == (3, "gradient", 0.5, 72)
    assert (shared.steps, shared.proposal, shared.start) == (15, "adam", 0.5)
    del config.configurer.start  # a config of before it was a setting
    assert configurer_of(filled(config), "mine") == own


@pytest.mark.parametrize(
    ("name", "variant", "said"),
    [
        ("mine", {"method": "lora_ftm"}, "config.variants.mine.method is 'lora_ftm', expected one of ewc"),
        (
            "mine",
            {"method": "lora_ftn_gradient"},
            "config.variants.mine.method is 'lora_ftn_gradient', expected one of",
        ),
        ("mine", {"kernel": 3}, "config.variants.mine: unknown method"),
        (
            "nomask",
            {"method": "kwta"},
            "config.variants.nomask.method is 'kwta', expected none since nomask is a method",
        ),
        (
            "a/b",
            {"method": "lora_ftn"},
            "config.variants.a/b: expected a name of letters, digits and underscores",
        ),
        (
            "my-own",
            {"method": "lora_ftn"},
            "config.variants.my-own: expected a name of letters, digits and underscores",
        ),
        ("mine", {"method": "lora_ftn", "every": "step"}, "config.variants.mine.every is 'step', expected one of task"),
        (
            "mine",
            {"method": "lora_ftn", "b_sd": 1.0},
            "config.variants.mine: got an unexpected keyword argument 'b_sd'",
        ),
        ("mine", {"method": "lora_ftn", "configurer": 3}, "config.variants.mine.configurer is 3, expected settings of"),
        ("mine", {"method": "lora_ftn", "configurer": {"k": 3}}, "config.variants.mine.configurer.k is not a setting"),
        (
            "mine",
            {"method": "lora_ftn", "configurer": {"start": 1.0}},
            "config.variants.mine.configurer.start is 1.0, expected a number from 1e-6 to 1 - 1e-6",
        ),
        (
            "mine",
            {"method": "lora_ftn", "configurer": {"moments": "kept"}},
            "config.methods: mine: configurer.moments is 'kept', expected 'fresh' where a mask is searched once per",
        ),
        (
            "mine",
            {"method": "lora_ftn", "kernel": 49, "lateral_steps": 0, "recovery_lateral_steps": 1},
            "config.variants.mine.kernel is 49, expected at most 2 D - 1 = 47",
        ),
    ],
)
def test_a_variant_that_cannot_work_is_refused(name, variant, said):
    config = config_of(methods=("lora_fixed", "mine") if name == "mine" else ("lora_fixed",))
    config.variants[name] = variant
    with pytest.raises(InputError) as caught:
        check(config)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_setting_is_named_where_it_stands():
    """A variant's kernel is its method's, unless it has one."""
    config = config_of(POINTS, methods=("ftn_fast_kept",), pool__size=64, configurer__k=8)
    with pytest.raises(InputError, match=r"^config\.variants\.ftn_fast\.kernel is 17, expected at most"):
        check(config)


def test_the_methods_settings_reach_it():
    config = config_of(variants__lora_bank__b_std=0.5)
    bank = build(config, "lora_bank").adapt_pool(toys.toy_pool(size=576, rank=4))
    assert (bank.size, bank.rank, bank.b_std) == (8, 288, 0.5)
    assert build(config, "lora_fixed").oracle and not build(config, "lora_ftn").oracle
    config = config_of(POINTS, variants__ftn_fast__every="task", variants__supsup__widen=3)
    assert (build(config, "ftn_slow").every, build(config, "ftn_fast").every) == ("batch", "task")
    assert build(config, "supsup").adapt_pool(toys.toy_neurons()).width == 12


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
    assert problem.stream.axis is None and problem.stream.metric == "cross_entropy"
    found = describe(problem.base)
    assert found["name"] == base and len(found["hash"]) == 16
    assert describe(None) is None
    np.testing.assert_array_equal(problem.pool.base["embed"], toys.toy_base_params(problem.base.config)["embed"])


@pytest.mark.parametrize("variant", ["", ":quick", ":smollm2", ":long", ":long,12,3"])
def test_every_variant_of_the_config_runs_every_method(variant):
    config = config_of(FILE + variant, base="packaged")
    config.methods = tuple(dict.fromkeys((*config.methods, "lora_ftn_reserve", "lora_ftn_gradient", "replay", "joint")))
    check(config)
    problem = make_problem(config, "packaged")
    assert len(problem.stream.tasks) * config.configurer.k <= problem.pool.size


@pytest.mark.parametrize(("target", "metric", "classes"), [("classification", "accuracy", 2), ("regression", "mse", 0)])
def test_make_problem_without_a_base(target, metric, classes):
    config = config_of(
        f"{CONFIGS / 'synthetic.py'}:{target}",
        seeds=(3, 7),
        stream__block=2,
        stream__scale=1.2,
        stream__frequency=2.0,
        stream__test=32,
        pool__size=49,
        pool__layers=3,
        pool__width=5,
        pool__activation="tanh",
        pool__weights="lecun_normal",
        pool__dropout=0.5,
        variants__ftn_fast__kernel=5,
        configurer__k=4,
    )
    problem = make_problem(config, None)
    assert problem.pool == toys.toy_neurons(
        size=49, layers=3, width=5, classes=classes, activation="tanh", weights="lecun_normal", dropout=0.5
    )
    assert (problem.stream.metric, problem.stream.axis, problem.base) == (metric, 0, None)
    assert problem.stream.names == ("first", "second", "third")
    assert problem.stream.tasks[0].weights.shape == (2, 2, 2)
    assert len(jax.tree.map(lambda leaf: leaf[0], problem.stream.tasks[0]).test().x) == 32


@pytest.fixture
def quick_points():
    """A config of points whose encoders are found at once."""
    settings = {"seeds": 1, "stream__block": 2, "stream__scale": 1.2, "stream__frequency": 2.0}
    return lambda **others: config_of(POINTS, **(settings | others))


def test_a_method_that_cannot_have_the_pool(base, quick_points):
    config = quick_points(methods=("nomask", "lora_bank"))
    check(filled(config))
    with pytest.raises(InputError, match=r"config\.methods: lora_bank .* expected pool\.name=lora"):
        make_problem(config, None)
    config = config_of(methods=("supsup",), base=base)
    check(config)
    with pytest.raises(InputError, match=r"config\.methods: supsup .* expected pool\.name=neurons"):
        make_problem(config, base)


def test_a_pool_that_cannot_learn_the_stream(base, quick_points):
    lora, points = filled(load_config(FILE)), quick_points()
    with lora.unlocked(), points.unlocked():
        lora.pool, points.pool = points.pool, lora.pool
        points.base, points.model = base, lora.model
    for config, said in (
        (lora, "config.pool.name is 'neurons', expected another for a stream of text"),
        (points, "config.pool.name is 'lora', expected another for a stream of points of 2 inputs and 2 classes"),
    ):
        config.methods, config.configurer.k, config.pool.size = ("nomask",), 4, 16
        check(config)
        with pytest.raises(InputError) as caught:
            make_problem(config, base)
        assert str(caught.value) == said


def test_a_pool_needs_to_know_the_batches(quick_points):
    config = quick_points()
    for stream, said in (
        (Stream(("a",), [], "accuracy"), "is 'neurons', expected another for a stream of batches that it"),
        (Stream(("a",), [], "mse", Spec(3, 4)), "metric is 'mse', expected 'accuracy' for points of 3 inputs and 4 cl"),
        (Stream(("a",), [], "accuracy", Spec(3)), "is 'accuracy', expected 'mse' for points of 3 inputs and a value"),
    ):
        with pytest.raises(InputError, match=said):
            make_pool(config, Context((0,)), stream)
    pool = make_pool(config, Context((0,)), Stream(("a",), [], "accuracy", Spec(3, 4)))
    shapes = jax.tree.map(lambda leaf: leaf.shape, jax.eval_shape(pool.init, jax.random.key(0)))
    assert (shapes["w"][0], shapes["readout"]) == ((1024, 3, 8), (1024, 4))


def test_a_metric_that_is_not_known(quick_points, monkeypatch):
    kind = STREAMS["synthetic"]
    build = lambda *arguments, **settings: kind.build(*arguments, **settings)._replace(metric="f1")  # noqa: E731
    monkeypatch.setitem(STREAMS, "synthetic", kind._replace(build=build))
    with pytest.raises(InputError, match=r"config\.stream\.name is 'synthetic', whose metric is 'f1': expected one"):
        make_problem(quick_points(), None)


def test_a_stream_goes_on_with_the_pool_that_was_made_for_it(quick_points):
    config = quick_points()
    assert make_problem(config, None, Spec(2, 2)).pool.classes == 2
    wider = make_problem(config, None, Spec(2, 5))  # a task that was forgotten had them
    assert wider.stream.spec == Spec(2, 5) and wider.pool.classes == 5
    for begun, said in (
        (Spec(7, 2), "the data are points of 2 inputs and 2 classes, and the workdir's pool was made for points of 7"),
        (Spec(2), "was made for points of 2 inputs and a value: name another --workdir"),
        (TEXT, "was made for text"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            make_problem(config, None, begun)
        assert "config.stream.classes" not in str(caught.value)


def test_a_stream_whose_tasks_cannot_be_balanced(quick_points, monkeypatch):
    monkeypatch.setattr(synthetic, "_DRAWS", 3)
    with pytest.raises(
        InputError, match=r"config\.stream: no encoder in 3 draws for seed 0 .*raise config\.stream\.block"
    ):
        make_problem(quick_points(stream__scale=0.01), None)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stream__tasks": ("upper", "shout")}, "config.stream.tasks: unknown task 'shout', known: upper, lower"),
        ({"stream__tasks": ("upper+shout",)}, "config.stream.tasks: unknown task 'shout', known: upper, lower"),
        ({"stream__tasks": ("upper+",)}, "config.stream.tasks: unknown task '', known: upper, lower"),
        ({"stream__max_length": 20}, "tokens, config.stream.max_length is 20"),
        ({"stream__max_length": 129}, "config.stream.max_length is 129, expected at most the 128 positions of base"),
        ({"configurer__support": 21}, "config.configurer.support is 21, expected at most the 20 recovery examples of"),
        ({"stream__batch": 81}, "config.stream.batch is 81, expected at most the 80 training examples of task 'upper'"),
        ({"configurer__k": 71}, "config.pool.size is 576, expected a multiple of config.configurer.k = 71"),
        ({"pool__modules": ("attn.c_proj", "mlp(")}, "config.pool.modules: 'mlp(' is not a regular expression"),
        (
            {"pool__modules": ("nothing",)},
            "config.pool.modules: 'nothing' is none of qkv, all-linear and matches none of",
        ),
    ],
)
def test_what_only_the_base_tells(base, settings, said):
    config = config_of(**settings)
    check(config)
    with pytest.raises(InputError) as caught:
        make_problem(config, base)
    assert said in str(caught.value) and "\n" not in str(caught.value)
