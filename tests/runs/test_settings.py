"""Every setting of the tree takes what it should and refuses the rest with one line that names it."""

import json
import math
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict
from ml_collections.config_dict import FieldReference

from ftn_jax.cli.command import load_config
from ftn_jax.core.errors import InputError
from ftn_jax.core.registry import Kind, register
from ftn_jax.core.rules import flatten, whole
from ftn_jax.methods import METHODS
from ftn_jax.pools import POOLS, register_pool
from ftn_jax.runs.build import experiment_of, fill_in, filled
from ftn_jax.runs.build import settings as described
from ftn_jax.runs.settings import MEANINGS, OF_EVERY_VARIANT, SETTINGS, check_settings, fill
from ftn_jax.runs.settings_text import section_of
from ftn_jax.streams import STREAMS, register_stream

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
WHOLE = {
    "lora": filled(load_config(str(CONFIGS / "lora.py"))),
    "jsonl": filled(load_config(str(CONFIGS / "jsonl.py"))),
    "synthetic": fill_in(load_config(f"{CONFIGS / 'synthetic.py'}:classification"), METHODS),
    "arrays": filled(load_config(str(CONFIGS / "arrays.py"))),
}
LEAVES = [(file, name) for file, config in WHOLE.items() for name in flatten(config)]
ZERO_IS_FINE = {
    "config.pool.b_std",
    "config.stream.classes",
    "config.pool.dropout",
    "config.configurer.jitter",
    *(f"config.optimizer.{name}" for name in ("weight_decay", "max_grad_norm", "warmup_steps")),
    "config.optimizer.early_stopping_patience",
    "config.stream.validation",
    "config.mesh.seed",
    "config.mesh.data",
    *(f"config.variants.{name}.lateral_steps" for name in METHODS if "lateral_steps" in METHODS[name].settings),
    "config.variants.lora_bank.b_std",
    "config.variants.lora_ftn_gradient.b_std",
    "config.variants.lora_ftn_gradient.recovery_lateral_steps",
    *(f"config.variants.{name}.strength" for name in ("ewc", "hat", "o_lora")),
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


def checked(config):
    check_settings(config, POOLS, STREAMS, METHODS)


def with_leaf(name, value, file="lora"):
    """The config with one leaf replaced by a value of any type."""
    tree = WHOLE[file].to_dict()
    *place, last = name.split(".")[1:]
    node = tree
    for key in place:
        node = node[key]
    node[last] = value
    return ConfigDict(tree)


def refusal(name, value, file="lora"):
    with pytest.raises(InputError) as caught:
        checked(with_leaf(name, value, file))
    return str(caught.value)


def test_flatten_names_every_leaf():
    assert flatten({"a": 1, "b": {"c": (2,), "d": {}}}) == {"config.a": 1, "config.b.c": (2,)}


@pytest.mark.parametrize("file", WHOLE)
def test_the_rules_are_those_of_the_config_file(file):
    config, leaves = WHOLE[file], flatten(WHOLE[file])
    checked(config)
    plain = {name for name in leaves if not name.startswith("config.variants.")}
    kinds = POOLS[config.pool.name], STREAMS[config.stream.name]
    known = {name for rules in (SETTINGS, *(kind.settings for kind in kinds)) for name in rules}
    assert plain == {f"config.{name}" for name in (*known, f"stream.{kinds[1].tasks}")}


def test_every_rule_for_variants_is_of_some_config():
    variants = {name.split(".")[3] for _, name in LEAVES if name.startswith("config.variants.")}
    own = {setting for kind in METHODS.values() for setting in kind.settings}
    assert variants == own | set(OF_EVERY_VARIANT)


@pytest.mark.parametrize(("file", "name"), LEAVES)
def test_a_value_that_cannot_be_is_refused_by_name(file, name):
    now = flatten(WHOLE[file])[name]
    wrong = [*NEVER, *WRONG["seeds" if name == "config.seeds" else type(now).__name__]]
    if type(now) in (int, float) and name not in ZERO_IS_FINE | {"config.seeds"}:
        wrong.append(0)
    for value in wrong if name != "config.pool.adapters" else [value for value in wrong if value not in ((), [])]:
        message = refusal(name, value, file)
        assert message.startswith(f"{name} is {value!r}, expected ")
        assert "\n" not in message


@pytest.mark.parametrize(("file", "name"), LEAVES)
def test_a_branch_in_a_leafs_place_is_refused(file, name):
    assert refusal(name, {"x": 1}, file).startswith(f"{name}.x is not a setting")


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
    checked(with_leaf(f"config.{name}", value))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stream.target", "regression"),
        ("pool.activation", "relu"),
        ("pool.weights", "xavier_normal"),
        ("pool.dropout", 0),
        ("variants.ftn_slow.every", "task"),
        ("variants.ewc.strength", 1e6),
        ("variants.supsup.signed", True),
    ],
)
def test_what_a_setting_of_networks_may_be_besides(name, value):
    checked(with_leaf(f"config.{name}", value, "synthetic"))


def test_a_kind_that_is_not_registered_is_named_before_its_settings():
    assert refusal("config.pool.name", "nets") == "config.pool.name is 'nets', expected one of lora, neurons"
    said = "config.stream.name is 'points', expected one of arrays, jsonl, styles, synthetic"
    assert refusal("config.stream.name", "points", "synthetic") == said


def test_the_settings_of_another_kind_are_none():
    message = refusal("config.pool.name", "neurons")
    assert message.startswith("config.pool.adapters is not a setting")
    said = refusal("config.stream.name", "styles", "synthetic")
    assert said.startswith("config.stream.block is not a setting")


def test_a_registered_kind_brings_its_settings():
    tree = WHOLE["lora"].to_dict()
    tree["pool"] = {"name": "mine", "size": 576, "grow": False, "depth": 3}
    mine = {"mine": Kind(lambda context, stream, **settings: None, {"pool.depth": whole(1, 4)})}
    check_settings(ConfigDict(tree), POOLS | mine, STREAMS, METHODS)
    tree["pool"]["depth"] = 5
    with pytest.raises(InputError, match=r"config\.pool\.depth is 5, expected a whole number from 1 to 4"):
        check_settings(ConfigDict(tree), POOLS | mine, STREAMS, METHODS)


def test_a_name_is_registered_once():
    def make():
        def build():
            return None

        return Kind(build, {})

    kinds = {}
    for again in (make(), make()):  # as a cell of a notebook that is run again
        register(kinds, "pool", "mine", again)
        assert kinds == {"mine": again}
    for other in (Kind(lambda: None, {}), Kind(max, {}), Kind(make, {})):
        with pytest.raises(InputError, match="pool 'mine' is registered already"):
            register(kinds, "pool", "mine", other)
    assert kinds == {"mine": again}
    with pytest.raises(InputError, match="pool 'lora' is registered already"):
        register_pool("lora", lambda *args: None, {})
    with pytest.raises(InputError, match="stream 'styles' is registered already"):
        register_stream("styles", lambda *args: None, {})


def test_even_kernel():
    assert "lora_ftn.kernel is 4, expected an odd whole number" in refusal("config.variants.lora_ftn.kernel", 4)


def test_a_setting_that_does_not_exist_suggests_the_right_one():
    assert refusal("config.pool.sise", 3) == "config.pool.sise is not a setting, known: config.pool.size"


def test_a_setting_that_is_missing():
    tree = WHOLE["lora"].to_dict()
    del tree["configurer"]["k"]
    with pytest.raises(InputError, match=r"config\.configurer\.k is missing, expected a whole number"):
        checked(ConfigDict(tree))
    del tree["pool"]["name"]  # without which no other setting of a pool can be judged
    with pytest.raises(InputError, match=r"config\.pool\.name is missing, expected one of lora, neurons"):
        checked(ConfigDict(tree))


SHORT = {  # what no config can leave out
    "lora": {"stream": {"name": "styles", "tasks": ("upper",)}, "pool": {"name": "lora"}},
    "jsonl": {"stream": {"name": "jsonl", "files": ("a.jsonl",)}, "pool": {"name": "lora"}},
    "synthetic": {"stream": {"name": "synthetic", "tasks": ("first",)}, "pool": {"name": "neurons"}},
    "arrays": {"stream": {"name": "arrays", "files": ("a.npz",)}, "pool": {"name": "neurons"}},
}


@pytest.mark.parametrize("file", WHOLE)
def test_a_config_says_what_differs(file):
    """Every other setting of its kinds has a default, which is the one that docs/settings.md names."""
    short = ConfigDict(SHORT[file] | {"methods": ("nomask",)})
    found = flatten(filled(short))
    checked(filled(short))
    assert flatten(short) == flatten(SHORT[file] | {"methods": ("nomask",)})  # the user's own stays as it is
    own = {name for name in flatten(WHOLE[file]) if not name.startswith("config.variants.")}
    assert {name for name in found if name != "config.variants"} == own
    told = {name: (default, where) for name, _, _, default, where in rows_of_docs()}
    kinds = short.pool.name, short.stream.name
    for name, value in found.items():
        if name in flatten(short) or name == "config.variants":
            continue
        default, where = told[name]
        of_each = dict(re.findall(r"([^;]+?) \(([\w, ]+)\)(?:; |$)", default)) or {default: ""}
        named = {kind: d for d, of in of_each.items() for kind in of.split(", ")}
        first = next(kind for kind in (short.stream.name, short.pool.name, "others", "") if kind in named)
        assert named[first] == str(value), name
        assert not where or set(re.split(r"[ ,;]+", where)) & set(kinds)


def test_what_a_config_says_is_not_replaced():
    tree = WHOLE["lora"].to_dict() | {"seeds": (3, 5)}
    tree["pool"] |= {"size": 81, "rank": 1, "grow": True}
    tree["stream"]["steps"], tree["configurer"]["k"], tree["model"]["dtype"] = 7, 9, "bfloat16"
    assert filled(ConfigDict(tree)).to_dict() == tree
    for wrong in ({"x": 1}, None):  # a value or a tree in the other's place is refused as it stands
        config = filled(with_leaf("config.pool.rank", wrong))
        assert config.to_dict()["pool"]["rank"] == wrong
    assert filled(with_leaf("config.mesh", 3)).mesh == 3


def test_a_count_of_seeds_may_be_replaced_by_a_tuple():
    for seeds, other in ((3, (1, 2)), ((1, 2), 3), (FieldReference(3, field_type=object), (4,))):
        config = filled(ConfigDict(SHORT["jsonl"] | {"methods": ("nomask",), "seeds": seeds}))
        config.seeds = other
        assert config.seeds == other


def test_a_users_kinds_have_defaults_too():
    def nothing(*args, **settings):
        return None

    pool = Kind(nothing, {"pool.depth": whole(1, 4)}, defaults={"pool.size": 9, "pool.depth": 3, "configurer.k": 2})
    stream = Kind(nothing, {}, tasks="tasks", defaults={"stream.steps": 5})
    pools, streams = POOLS | {"mine": pool}, STREAMS | {"mine": stream}
    method = Kind(nothing, {"depth": whole(1, 4), "place": whole(1)}, defaults={"depth": 2, "place": None})
    methods = METHODS | {"mine": method}
    tree = {"variants": {"own": {"method": "mine", "depth": 3}, "hat": {"strength": 1.0}, "none": {}}}
    config = ConfigDict({"pool": {"name": "mine", "size": 16}, "stream": {"name": "mine", "batch": 2}} | tree)
    fill(config, pools, streams, methods, ("kwta", "nobody"))
    assert {name: dict(one) for name, one in config.variants.items()} == {
        "own": {"method": "mine", "depth": 3},
        "mine": {"depth": 2},
        "hat": {"strength": 1.0, "sharpness": 400.0},
        "none": {},
        "kwta": {"kernel": 1, "lateral_steps": 0, "every": "batch"},
    }
    assert (config.pool.size, config.pool.depth, config.configurer.k) == (16, 3, 2)
    assert (config.stream.steps, config.stream.batch, config.optimizer.name) == (5, 2, "adam")
    assert "rank" not in config.pool and "base" not in config
    with pytest.raises(InputError, match=r"config\.methods is missing"):
        check_settings(config, pools, streams, methods)
    # A misspelt default is refused as a setting is.
    wrong = POOLS | {"mine": pool._replace(defaults={"pool.dept": 3})}
    config = fill(ConfigDict({"pool": {"name": "mine"}, "stream": {"name": "mine"}}), wrong, streams, {})
    with pytest.raises(InputError, match=r"config\.pool\.dept is not a setting, known: config\.pool\.depth"):
        check_settings(config, wrong, streams, METHODS)


@pytest.mark.parametrize(
    ("file", "settings", "experiment"),
    [
        ("lora", {}, "lora"),
        ("jsonl", {}, "jsonl"),
        ("synthetic", {}, "classification"),
        ("synthetic", {"target": "regression"}, "regression"),
    ],
)
def test_the_experiment_is_derived(file, settings, experiment):
    tree = WHOLE[file].to_dict()
    tree["stream"] |= settings
    config = filled(ConfigDict(tree))
    assert experiment_of(config) == experiment and "experiment" not in config
    # Configs once said it: the same is read, another is refused.
    assert filled(ConfigDict(tree | {"experiment": experiment})).to_dict() == config.to_dict()
    for wrong in ("styles", None, {"x": 1}):
        with pytest.raises(
            InputError, match=rf"config\.experiment is .*, expected '{experiment}' as config\.stream has"
        ):
            filled(ConfigDict(tree | {"experiment": wrong}))


def test_an_older_config_of_points_says_its_target_in_experiment():
    tree = SHORT["synthetic"] | {"methods": ("nomask",)}
    assert filled(ConfigDict(tree | {"experiment": "regression"})).stream.target == "regression"
    said = r"config\.experiment is 'lora', expected one of classification, regression, as for config\.stream\.target"
    with pytest.raises(InputError, match=said):
        filled(ConfigDict(tree | {"experiment": "lora"}))


def test_a_methods_own_settings_are_its_own_business():
    tree = WHOLE["lora"].to_dict()
    tree["variants"]["mine"] = {"mood": "any", "tree": {"of": (1, None)}}
    checked(ConfigDict(tree))
    for value in (object, float("nan"), math.inf, {1: 2}, (1, {2: 3}), np.int64(3)):
        tree["variants"]["mine"] = {"mood": value}
        with pytest.raises(InputError, match=r"config\.variants\.mine\.mood is .*, expected what JSON can hold"):
            checked(ConfigDict(tree))


def rows_of_docs():
    """(name, meaning, expected, default, where) of each row of docs/settings.md."""
    cells = r"^\| `(config\..+?)` \| (.+?) \| (.+?) \| (.*?) \| (.*?) \|$"
    return re.findall(cells, (CONFIGS.parent / "docs" / "settings.md").read_text(), re.MULTILINE)


def test_the_table_in_docs_is_what_the_code_says(tmp_path):
    # In a process of its own, where no other test has registered anything.
    code = "import json; from ftn_jax.runs.build import settings; print(json.dumps(settings()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=CONFIGS.parent, capture_output=True, text=True, check=True)
    told = [tuple(one[:5]) for one in json.loads(done.stdout)]
    lines, section = [], None
    for name, *cells in told:
        assert "|" not in "".join(cells)
        if section != (section := section_of(name.removeprefix("config."))):
            lines += [
                "",
                f"## {section}",
                "",
                "| setting | meaning | expected | default | only with |",
                "|---" * 5 + "|",
            ]
        lines.append(f"| {' | '.join([f'`{name}`', *cells])} |")
    page = (CONFIGS.parent / "docs" / "settings.md").read_text()
    right = (
        f"{page[: page.index('## run')].rstrip()}\n{chr(10).join(lines)}\n{page[page.index(chr(10) + '`*` stands') :]}"
    )
    (tmp_path / "settings.md").write_text(right)
    assert page == right, f"cp {tmp_path / 'settings.md'} docs/settings.md"
    assert [name.removeprefix("config.") for name, *_ in told] == list(MEANINGS)  # no meaning is of no setting
    assert all(meaning and expected for _, meaning, expected, _, _ in told)


@pytest.mark.parametrize("file", ["lora.py:long", "jsonl.py", "synthetic.py:regression", "arrays.py"])
def test_every_setting_of_a_config_is_told(file):
    config = filled(load_config(str(CONFIGS / file)))
    told = {one.name: one for one in described(config)}
    assert {name: one.value for name, one in told.items()} == flatten(config)
    assert all(one.meaning and one.expected for one in told.values())
    assert (told["config.stream.batch"].default, told["config.methods"].default) == (str(config.stream.batch), "")
    sections = [section_of(name.removeprefix("config.")) for name in told]
    assert sections == sorted(sections, key=list(dict.fromkeys(map(section_of, MEANINGS))).index)  # grouped
