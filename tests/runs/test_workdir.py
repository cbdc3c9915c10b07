"""A run's folder: whose it is, what is kept, and that nothing is ever half written."""

import json
import os
import pathlib
import shutil
import subprocess

import jax
import pytest

from ftn_jax.cli.command import load_config
from ftn_jax.core.errors import InputError
from ftn_jax.models.pretrained import Base
from ftn_jax.runs import workdir
from ftn_jax.runs.build import Problem, filled
from ftn_jax.runs.workdir import lock, open_results, pin_problem, save_results
from ftn_jax.streams import Spec, Stream

ROOT = pathlib.Path(__file__).parents[2]
DONE = {"stored": {"final": {"mean": 0.1 + 0.2, "std": None}}}


def config_of(**methods_and_seeds):
    config = filled(load_config(str(ROOT / "configs" / "lora.py")))
    config.update(methods_and_seeds)
    return config


def begun(path, config, *methods):
    """A workdir in which ``methods`` are finished."""
    path.mkdir(parents=True, exist_ok=True)
    results = open_results(config, path)
    results["methods"] |= dict.fromkeys(methods, DONE)
    save_results(results, config, path)
    return (path / "results.json").read_text()


def test_a_new_workdir(tmp_path):
    workdir = tmp_path / "a" / "b"
    with lock(workdir):
        results = open_results(config_of(seeds=(3, 5)), workdir)
    assert json.loads((workdir / "results.json").read_text()) == results
    keys = "experiment base_model config environment task_names metric seeds methods"
    assert set(results) - {"format", "facts", "task_facts", "contents"} == set(keys.split())
    assert (results["experiment"], results["metric"], results["base_model"]) == ("lora", None, None)
    assert results["seeds"] == [3, 5] and results["methods"] == {}
    assert results["task_names"][0] == "upper" and results["config"]["pool"]["modules"] == ["qkv"]
    assert results["environment"]["jax"] == jax.__version__


def test_what_the_version_before_formats_wrote_is_read(tmp_path):
    """Its configs named a GPT-2's modules, which have a word now."""
    held = json.loads(begun(tmp_path, config_of(seeds=(3, 5)), "lora_ftn"))
    del held["format"], held["contents"]
    held["config"]["pool"]["modules"] = [r"attn\.c_attn"]
    (tmp_path / "results.json").write_text(json.dumps(held))
    results = open_results(config_of(seeds=(3, 5)), tmp_path)
    assert list(results["methods"]) == ["lora_ftn"] and results["format"] == 2
    assert results["config"]["pool"]["modules"] == ["qkv"]


@pytest.mark.parametrize(
    ("file", "experiment", "other"),
    [
        ("lora", "lora", None),
        ("synthetic:classification", "classification", "regression"),
        ("synthetic:regression", "regression", "classification"),
    ],
)
def test_a_workdir_whose_config_says_the_experiment_goes_on(tmp_path, file, experiment, other):
    """As until format 1, where no setting of the stream said what is learned of a point."""
    config = filled(load_config(file))
    held = json.loads(begun(tmp_path, config, "nomask"))
    assert held["experiment"] == experiment and "experiment" not in held["config"]
    held |= {"format": 1, "config": held["config"] | {"experiment": experiment}}
    held["config"]["stream"].pop("target", None)
    (tmp_path / "results.json").write_text(json.dumps(held))
    assert workdir.read_results(tmp_path)["config"]["stream"] == json.loads(json.dumps(config.stream.to_dict()))
    if other:
        changed = config.copy_and_resolve_references()
        changed.stream.target = other
        with pytest.raises(InputError, match=f"config.stream.target: '{experiment}' there, '{other}' now"):
            open_results(changed, tmp_path)
    results = open_results(config, tmp_path)
    assert list(results["methods"]) == ["nomask"] and results["experiment"] == experiment
    save_results(results, config, tmp_path)
    after = json.loads((tmp_path / "results.json").read_text())
    assert after["format"] == 2 and "experiment" not in after["config"]


def test_a_workdir_of_a_users_stream_may_have_named_its_experiment(tmp_path):
    """That name stays; the config no longer says it."""
    tree = {"name": "planes", "tasks": ["a"], "steps": 1, "batch": 2}
    held = json.loads(begun(tmp_path, config_of(methods=("nomask",)), "nomask"))
    held["config"] |= {"experiment": "mine", "stream": tree}
    (tmp_path / "results.json").write_text(json.dumps(held | {"format": 1, "experiment": "mine"}))
    results = workdir.read_results(tmp_path)
    assert results["experiment"] == "mine" and "experiment" not in results["config"]
    assert results["config"]["stream"] == tree | {"boundaries": "given", "evaluate": "all"}


def test_finished_methods_are_kept_byte_for_byte(tmp_path):
    config = config_of(methods=("lora_ftn",))
    text = begun(tmp_path, config, "lora_ftn")
    results = open_results(config, tmp_path)
    assert results["methods"] == {"lora_ftn": DONE}
    save_results(results, config, tmp_path)
    assert (tmp_path / "results.json").read_text() == text


def test_a_workdir_may_get_new_variants_and_keeps_those_it_has(tmp_path):
    config = config_of(methods=("lora_ftn",))
    begun(tmp_path, config, "lora_ftn")
    config.variants.mine = {"method": "lora_ftn", "configurer": {"steps": 3}}
    assert list(open_results(config, tmp_path)["methods"]) == ["lora_ftn"]
    config.methods = ("o_lora",)  # whose settings the workdir does not have, nor this config those of lora_ftn
    del config.variants["lora_ftn"]
    assert list(open_results(config, tmp_path)["methods"]) == ["lora_ftn"]
    config.variants.lora_ftn = {"kernel": 5}
    with pytest.raises(InputError, match=r"config\.variants\.lora_ftn\.kernel: 3 there, 5 now"):
        open_results(config, tmp_path)
    plain = config_of(methods=("lora_fixed",))  # a method without settings, which is trained
    begun(tmp_path / "plain", plain, "lora_fixed")
    plain.methods, plain.variants.lora_fixed = ("lora_naive",), {"configurer": {"steps": 3}}
    with pytest.raises(InputError, match=r"config\.variants\.lora_fixed\.configurer\.steps: None there, 3 now"):
        open_results(plain, tmp_path / "plain")


def test_settings_that_an_older_version_did_not_have_are_their_defaults(tmp_path):
    def older(config, *without):
        for name in without or ("configurer.proposal", "configurer.moments", "configurer.start"):
            section, _, setting = name.partition(".")
            del config[section][setting]
        return config

    begun(tmp_path / "a", older(config_of(methods=("lora_ftn",))), "lora_ftn")
    assert open_results(config_of(methods=("lora_ftn",)), tmp_path / "a")["methods"]
    config = config_of(methods=("lora_ftn",))
    config.configurer.proposal = "gradient"
    with pytest.raises(InputError, match=r"config\.configurer\.proposal: 'adam' there, 'gradient' now"):
        open_results(config, tmp_path / "a")
    points = filled(load_config(str(ROOT / "configs" / "synthetic.py")))
    points.methods = ("nomask",)  # the last command's, not all that is in the folder
    begun(tmp_path / "b", older(points.copy_and_resolve_references()), "supsup", "nomask")
    with pytest.raises(InputError, match="has supsup of an older version, with masks over weights"):
        open_results(points, tmp_path / "b")
    files = filled(load_config(str(ROOT / "configs" / "jsonl.py")))
    begun(tmp_path / "c", older(files.copy_and_resolve_references(), "optimizer.max_grad_norm"), "lora_ftn_reserve")
    with pytest.raises(InputError, match=r"config\.optimizer\.max_grad_norm: 0\.0 there, 1\.0 now"):
        open_results(files, tmp_path / "c")  # which had no limit


def test_methods_stand_in_the_configs_order(tmp_path):
    begun(tmp_path, config_of(methods=("lora_naive", "lora_bank")), "lora_naive", "lora_bank")
    config = config_of(methods=("lora_ftn", "lora_bank", "lora_fixed"))
    results = open_results(config, tmp_path)
    results["methods"] |= {"lora_fixed": DONE, "lora_ftn": DONE}
    save_results(results, config, tmp_path)
    held = json.loads((tmp_path / "results.json").read_text())
    assert list(held["methods"]) == ["lora_ftn", "lora_bank", "lora_fixed", "lora_naive"]
    assert held["config"]["methods"] == ["lora_ftn", "lora_bank", "lora_fixed"]


def test_another_config_is_refused_with_every_key_that_differs(tmp_path):
    text = begun(tmp_path, config_of(), "lora_ftn")
    other = config_of(seeds=2)
    other.pool.size, other.stream.tasks = 144, ("upper", "lower")
    with pytest.raises(InputError) as caught:
        open_results(other, tmp_path)
    message = str(caught.value)
    for part in (
        "config.pool.size: 576 there, 144 now",
        "config.seeds: 7 there, 2 now",
        "'pirate'] there, ['upper', 'lower'] now",
        "--workdir",
        "--fresh",
    ):
        assert part in message
    assert "methods" not in message and "rank" not in message and "\n" not in message
    assert (tmp_path / "results.json").read_text() == text


def test_without_a_finished_method_it_belongs_to_no_config(tmp_path):
    open_results(config_of(), tmp_path)
    assert open_results(config_of(seeds=2), tmp_path)["seeds"] == [0, 1]


def test_fresh_sets_aside_and_loses_nothing(tmp_path):
    path = tmp_path / "run"
    texts = []
    for seeds in (1, 2, 3):
        with lock(path, fresh=True):
            texts.append(begun(path, config_of(seeds=seeds), "lora_ftn"))
    assert [(tmp_path / name / "results.json").read_text() for name in ("run.1", "run.2", "run")] == texts
    with lock(path, fresh=True), pytest.raises(InputError, match="in use by process"), lock(path, fresh=True):
        pass
    with lock(path, fresh=True):  # nothing is there to set aside
        assert sorted(tmp_path.iterdir()) == [path, *(tmp_path / f"run.{i}" for i in (1, 2, 3))]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"methods": {}, "config": {}}', "has no base_model"),
    ],
)
def test_damaged_results(tmp_path, text, said):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(InputError, match=said):
        open_results(config_of(), tmp_path)
    assert (tmp_path / "results.json").read_text() == text


@pytest.mark.parametrize(
    "place",
    ["methods", "task_names", "base_model", "config", "config.seeds", "config.methods"]
    + [f"config.{part}" for part in ("pool", "stream", "configurer", "variants")],
)
def test_a_field_of_another_type_is_damage(tmp_path, place):
    begun(tmp_path, config_of(), "lora_ftn")
    whole = json.loads((tmp_path / "results.json").read_text())
    *path, last = place.split(".")
    node = whole
    for part in path:
        node = node[part]
    for value in (0, "x", [], [1]):
        if place == "config.seeds" and value == [1]:
            continue
        node[last] = value
        (tmp_path / "results.json").write_text(json.dumps(whole))
        for read in (workdir.read_results, lambda path: open_results(config_of(), path)):
            with pytest.raises(InputError, match=rf"is damaged \({place} is .*, expected"):
                read(tmp_path)


@pytest.mark.parametrize("name", ["metrics.csv", "tensorboard"])
def test_what_others_wrote_there_is_not_touched(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=f"holds {name} but no results.json"):
        open_results(config_of(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_workdir_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match=f"workdir {path} can't be used .*--workdir"), lock(path):
            pass
    assert (tmp_path / "file").read_text() == "mine"


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    config = config_of()
    text = begun(tmp_path, config, "lora_ftn")
    results = open_results(config, tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_results(results | {"methods": {"lora_bank": float("nan")}}, config, tmp_path)
    (tmp_path / f".results.json.{os.getpid()}.json").mkdir()  # stands for a disk that can't be written
    with pytest.raises(InputError, match="can't be written"):
        save_results(results | {"methods": {}}, config, tmp_path)
    assert (tmp_path / "results.json").read_text() == text


def problem_of(base, **facts):
    stream = Stream(("only",), [None], "accuracy", Spec(3, 5), facts=facts)
    return Problem(**dict.fromkeys(Problem._fields) | {"stream": stream, "base": base})


def test_the_base_is_pinned(tmp_path):
    results, base = {"base_model": None}, Base("packaged", "1a", None, None, None, "gpt2")
    pin_problem(results, problem_of(base), tmp_path)
    pin_problem(results, problem_of(base._replace(params={})), tmp_path)
    assert results["base_model"] == {"name": "packaged", "hash": "1a"}
    with pytest.raises(InputError, match=r"begun with base .*'1a'.* now .*'2b'.*--fresh"):
        pin_problem(results, problem_of(base._replace(hash="2b")), tmp_path)
    assert results["base_model"]["hash"] == "1a"


def test_what_is_known_of_the_stream_is_noted(tmp_path):
    results = {"base_model": None}
    pin_problem(results, problem_of(None, positive=(0.5, 0.25)), tmp_path)
    pin_problem(results, problem_of(None, positive=(0.5, 0.25)), tmp_path)
    spec = {"inputs": 3, "classes": 5, "tokens": False}
    told = {"metric": "accuracy", "spec": spec, "facts": {"positive": [0.5, 0.25]}, "task_facts": {}}
    assert results == {"base_model": None, **told}
    json.dumps(results)


def test_the_commit_is_the_packages_own_or_none(tmp_path, monkeypatch):
    assert workdir._git_commit(tmp_path) is None
    (tmp_path / ".git").mkdir()
    assert workdir._git_commit(tmp_path) is None  # no repository
    for command in ("init -q -b main", "-c user.name=a -c user.email=b commit -q --allow-empty -m c"):
        subprocess.run(["git", "-C", tmp_path, *command.split()], check=True)
    commit = (tmp_path / ".git" / "refs" / "heads" / "main").read_text()
    assert workdir._git_commit(tmp_path) == commit[:12]
    (tmp_path / "inside").mkdir()
    assert workdir._git_commit(tmp_path / "inside") is None  # that of another project
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert workdir._git_commit(tmp_path) is None
