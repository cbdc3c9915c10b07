"""configs/synthetic.py: what it asks for, and that wrong settings are one line before anything trains."""

import pathlib

import pytest

from ftn_jax.cli import command, ftn
from ftn_jax.core.errors import InputError
from ftn_jax.runs.build import check, fill_in, make_problem

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
FILE, LORA = str(CONFIGS / "synthetic.py"), str(CONFIGS / "lora.py")
METHODS = ("ftn_slow", "ftn_fast", "kwta", "fixedmask", "nomask", "ewc", "supsup", "supsup_wide")


def config_of(settings=(), file=FILE):
    """A config with replaced settings, by their full names; ``variants.<method>`` whole."""
    config = fill_in(command.load_config(file), METHODS)
    for name, value in dict(settings).items():
        section, _, last = name.rpartition(".")
        if section == "variants":
            config.variants[last] = value
        else:
            config.update_from_flattened_dict({name: value})
    return config


def refusal(function, *args):
    with pytest.raises(InputError) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the variants ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argument, target, seeds, steps, inner_steps, learning_rate",
    [
        ("", "classification", 8, 1000, 1, 1.0),
        (":classification", "classification", 8, 1000, 1, 1.0),
        (":regression", "regression", 8, 1000, 10, 0.2),
        (":classification,quick", "classification", 2, None, 1, 1.0),
        (":regression,quick", "regression", 2, None, 10, 0.2),
    ],
)
def test_variants(argument, target, seeds, steps, inner_steps, learning_rate):
    """The paper's protocol (section 3 and appendix C)."""
    config = config_of(file=FILE + argument)
    check(config)
    assert (config.stream.target, config.seeds, config.methods) == (target, seeds, METHODS)
    assert config.stream.steps == steps if steps else config.stream.steps < 1000
    assert (config.configurer.steps, config.configurer.learning_rate) == (inner_steps, learning_rate)
    assert (config.pool.size, config.pool.layers, config.pool.width, config.pool.dropout) == (1024, 8, 8, 0.2)
    assert (config.configurer.k, config.stream.batch, len(config.stream.tasks)) == (128, 256, 3)
    o = config.optimizer
    assert (o.name, o.learning_rate, o.weight_decay, o.reset) == ("adam", 3e-4, 0.0, True)
    v = config.variants
    assert (v.ftn_slow.kernel, v.ftn_slow.lateral_steps, v.ftn_fast.kernel, v.ftn_fast.lateral_steps) == (3, 15, 17, 2)
    assert v.kwta.lateral_steps == 0 and {v[name].every for name in METHODS[:3]} == {"batch"}
    assert (v.ewc.strength, v.ewc.examples) == (400.0, 1024)


@pytest.mark.parametrize("argument", ["", "regresion", "quick", "classification,fast", "classification,quick,quick"])
def test_unknown_arguments(argument, capsys):
    said = refusal(command.load_config, f"{FILE}:{argument}")
    assert f"unknown argument {argument!r}, known: classification, regression, each with ,quick" in said
    with pytest.raises(SystemExit) as stopped:
        ftn.run("train", ["main", f"--config={FILE}:{argument}"])
    assert stopped.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1


# --- wrong input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, said",
    [
        (
            {"configurer.k": 342},
            "config.pool.size is 1024, expected at least 1026 since fixedmask gives each of 3 tasks",
        ),
        ({"configurer.k": 1025}, "config.configurer.k is 1025, expected at most config.pool.size = 1024"),
        ({"pool.size": 1000}, "config.pool.size is 1000, expected a square (a D x D torus) since ftn_slow smooths"),
        ({"variants.ftn_slow.kernel": 4}, "config.variants.ftn_slow.kernel is 4, expected an odd whole number"),
        ({"variants.ftn_fast.kernel": 65}, "config.variants.ftn_fast.kernel is 65, expected at most 2 D - 1 = 63"),
        ({"variants.kwta.every": "step"}, "config.variants.kwta.every is 'step', expected one of task, batch"),
        ({"variants.ewc.strength": -1.0}, "config.variants.ewc.strength is -1.0, expected a number from 0 to 1e9"),
        ({"variants.ewc.examples": 0}, "config.variants.ewc.examples is 0, expected a whole number from 1"),
        ({"variants.supsup.widen": 0}, "config.variants.supsup.widen is 0, expected a whole number from 1"),
        ({"pool.activation": "swish"}, "config.pool.activation is 'swish', expected one of gelu, relu, silu, tanh"),
        ({"pool.weights": "he"}, "config.pool.weights is 'he', expected one of he_normal, lecun_normal, xavier_normal"),
        ({"pool.dropout": 1.0}, "config.pool.dropout is 1.0, expected a number from 0 to below 1"),
        ({"pool.layers": 0}, "config.pool.layers is 0, expected a whole number from 1"),
        ({"stream.frequency": 0.0}, "config.stream.frequency is 0.0, expected a number above 0"),
        ({"stream.test": 0}, "config.stream.test is 0, expected a whole number from 1"),
        (
            {"stream.tasks": ("a", "a", "b")},
            "config.stream.tasks is ('a', 'a', 'b'), expected a tuple of different names",
        ),
        ({"stream.target": "lora"}, "config.stream.target is 'lora', expected one of classification, regression"),
        (
            {"stream.name": "synthetik"},
            "config.stream.name is 'synthetik', expected one of arrays, jsonl, styles, synthetic",
        ),
        ({"pool.name": "neuron"}, "config.pool.name is 'neuron', expected one of lora, neurons"),
        ({"stream.name": "styles"}, "config.stream.block is not a setting"),
        ({"pool.name": "lora"}, "is not a setting"),
        ({"methods": ("supsub",)}, "config.methods: unknown method 'supsub', known: ewc, fixedmask,"),
    ],
)
def test_wrong_settings(settings, said):
    assert said in refusal(check, config_of(settings))


def test_an_oracle_s_blocks_need_not_fit_where_there_is_no_oracle():
    check(config_of({"configurer.k": 342, "methods": tuple(name for name in METHODS if name != "fixedmask")}))
    check(config_of({"pool.size": 1000, "methods": ("kwta", "fixedmask", "supsup")}))  # nothing is smoothed


def test_the_command_line_ends_with_one_line(capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        ftn.run("train", ["main", f"--config={FILE}", "--config.pool.dropout=1.0", f"--workdir={tmp_path / 'run'}"])
    said = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 1 and len(said) == 1 and "config.pool.dropout is 1.0" in said[0]
    assert not (tmp_path / "run").exists()


def test_a_fisher_of_more_examples_than_a_task_of_text_has(base):
    settings = {"base": base, "methods": ("ewc",), "variants.ewc": {"strength": 1.0, "examples": 81}}
    config = config_of(settings, LORA)
    check(config)
    said = "config.variants.ewc.examples is 81, expected at most the 80 training examples of task 'upper'"
    assert said in refusal(make_problem, config, base)
