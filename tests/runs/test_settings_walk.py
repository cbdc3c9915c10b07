"""Every setting of the tree, through the command: a value that can't be works or ends in one line that names it."""

import re

import kills
import pytest
import toys

from ftn_jax.cli import ftn, train
from ftn_jax.core.rules import flatten
from ftn_jax.runs.driver import train_and_evaluate

_LOGGED = re.compile(r"adapted: |\w+: seed \d+ x data ")
_EXTREMES = {
    "int": ["2.5", "-1", "1000000000000"],
    "float": ["abc", "-1", "1e38"],
    "bool": ["abc"],
    "str": ["", "x" * 5000],
    "tuple": ["abc", "()", f"('{'x' * 5000}',)"],
    "seeds": ["2.5", "0", "1000000000000", "(0, -1)", "(1000000000000,)"],
}


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    base = tmp_path_factory.mktemp("base")
    toys.save_toy_base(base)
    lines = [f'{{"prompt": "{i}", "completion": "{i + 1}"}}' for i in range(60)]
    (base / "counted.jsonl").write_text("\n".join(lines))
    trees = {
        "lora": toys.styles_config(str(base), **{"variants.ewc.examples": 8}),
        "jsonl": toys.jsonl_config(str(base), [str(base / "counted.jsonl")]),
        "synthetic": toys.points_config(),
        "arrays": toys.arrays_config(toys.write_arrays(base)),
    }
    for tree in trees.values():
        others = ("supsup", "hat", "packnet") if tree.pool.name == "lora" else ("lora_bank", "o_lora")
        for name in [name for name in tree.variants if name.startswith(others)]:
            del tree.variants[name]  # of a method that can't have the pool
    return trees


@pytest.mark.slow
@pytest.mark.parametrize("file", ["lora", "jsonl", "synthetic", "arrays"])
def test_an_extreme_value_works_or_is_refused_by_name(file, trees, tmp_path, monkeypatch, capfd):
    """What works is stopped after its first steps."""

    def begin(*arguments, **settings):
        return train_and_evaluate(*arguments, **settings | {"stop": lambda: True})

    monkeypatch.setattr(train, "train_and_evaluate", begin)
    faults = []
    settings = flatten(trees[file])
    alike = {"jsonl": "lora", "synthetic": "lora", "arrays": "synthetic"}.get(file)  # what they share is tried there
    if alike:
        settings = {name: value for name, value in settings.items() if name not in flatten(trees[alike])}
    for i, (name, now) in enumerate(settings.items()):
        config = trees[file].copy_and_resolve_references()
        parts = name.split(".")
        config.methods = (parts[2],) if parts[1] == "variants" else config.methods[:1]
        for j, value in enumerate(_EXTREMES["seeds" if name == "config.seeds" else type(now).__name__]):
            workdir = tmp_path / f"{i}-{j}"
            code = 0
            try:
                others = [flag for flag in kills.command(config, workdir)[2:] if not flag.startswith(f"--{name}=")]
                ftn.run("train", [*others, f"--{name}={value}"])
            except SystemExit as error:
                code = error.code
            except Exception as error:
                code = f"{type(error).__name__}: {error}"
            said = [line for line in capfd.readouterr().err.splitlines() if not _LOGGED.match(line)]
            one_line = len(said) == 1 and said[0].startswith("ftn_jax: ") and name in said[0]
            works = code == 0 or (code == 143 and said[-1].startswith("ftn_jax: stopped by SIGTERM"))
            if not works and not (code in (1, 2) and one_line and "is set twice" not in said[0]):
                faults.append(f"--{name}={value[:20]}: {code}: {said[-1:]}")
    assert faults == []
