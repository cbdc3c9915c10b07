"""A trained pool of small networks in use: prediction, losses, recovery and forgetting."""

import json
import shutil

import jax
import numpy as np
import pytest
import toys

import ftn_jax
from ftn_jax.cli import command, recover
from ftn_jax.core.errors import InputError
from ftn_jax.runs.build import make_problem
from ftn_jax.runs.driver import train_and_evaluate


@pytest.mark.slow
@pytest.mark.parametrize("name", ["supsup_weights", "hat", "packnet"])
def test_methods_that_keep_variants_answer_with_each_task_s_own(name, tmp_path):
    """Against what was scored under the stored masks; inputs of different tasks go together."""
    config = toys.points_config(methods=(name,), **{"stream.steps": 40, "seeds": (5,)})
    results, model = train_and_evaluate(config, tmp_path), ftn_jax.load(tmp_path)
    tasks = [jax.tree.map(lambda leaf: leaf[0], task).test() for task in make_problem(config, None).stream.tasks]
    scores = np.array(results["methods"][name]["stored"]["matrix"])[0, -1]
    predicted = []
    for task, test, score in zip(results["task_names"], tasks, scores, strict=True):
        predicted.append(model.predict(test.x, task))
        np.testing.assert_allclose((predicted[-1] == np.asarray(test.y)).mean(), score, rtol=1e-5)
    assert np.any(model.predict(tasks[0].x, "second") != predicted[0])
    mixed = np.concatenate([test.x[:5] for test in tasks])
    names = [task for task in results["task_names"] for _ in range(5)]
    np.testing.assert_array_equal(model.predict(mixed, names), np.concatenate([p[:5] for p in predicted]))
    with pytest.raises(InputError, match="a mask is given by its components, which tasks share, expected the name"):
        model.predict(mixed, np.arange(16))
    if name == "supsup_weights":
        found = model.recover((tasks[1].x, tasks[1].y))
        losses = [model.example_losses((tasks[1].x, tasks[1].y), task).mean() for task in results["task_names"]]
        assert found.variant == np.argmin(losses)
        np.testing.assert_allclose(found.loss, min(losses), rtol=1e-5)


@pytest.fixture(scope="module", params=["classification", pytest.param("regression", marks=pytest.mark.slow)])
def trained(request, tmp_path_factory):
    """(config, results, workdir, model, test data of each task) of the config's first seed."""
    workdir = tmp_path_factory.mktemp(request.param)
    config = toys.points_config(request.param, methods=("fixedmask",))
    config.stream.steps = 40
    results = train_and_evaluate(config, workdir)
    stream = make_problem(config, None).stream
    tests = [jax.tree.map(lambda leaf: leaf[0], task).test() for task in stream.tasks]
    return config, results, workdir, ftn_jax.load(workdir), tests


def literal(model, x, mask):
    """The answers of the networks under a mask, one input and one component at a time."""
    params = jax.tree.map(np.asarray, model.params)
    answers = []
    for one in np.asarray(x):
        total = np.zeros(params["readout"].shape[1])
        for h in mask:
            value = one
            for w, b in zip(params["w"][:-1], params["b"][:-1], strict=True):
                value = np.asarray(jax.nn.gelu(w[h].T @ value + b[h]))
            total += (params["w"][-1][h].T @ value + params["b"][-1][h]) * params["readout"][h]
        answers.append(total)
    return np.array(answers)


def test_predictions_are_those_that_were_scored(trained):
    config, results, _, model, tests = trained
    last = np.array(results["methods"]["fixedmask"]["stored"]["matrix"])[0, -1]
    for name, test, score in zip(results["task_names"], tests, last, strict=True):
        found, y = model.predict(test.x, name), np.asarray(test.y)
        classify = config.stream.target == "classification"
        assert found.dtype == (np.int32 if classify else np.float32) and found.shape == y.shape
        np.testing.assert_allclose((found == y).mean() if classify else ((found - y) ** 2).mean(), score, rtol=1e-5)
        answers = literal(model, test.x[:8], model.stored[name])
        expected = answers.argmax(1) if classify else answers[:, 0]
        np.testing.assert_allclose(found[:8], expected, rtol=1e-4, atol=1e-5)


def test_each_input_under_a_mask_of_its_own(trained):
    _, results, _, model, tests = trained
    names = results["task_names"]
    x, y = (np.asarray(leaf[:6]) for leaf in (tests[0].x, tests[0].y))
    masks = [names[i % 3] for i in range(6)]
    found = model.predict(x, masks)
    losses = model.example_losses((x, y), masks)
    for i in range(6):
        np.testing.assert_allclose(found[i], model.predict(x[i : i + 1], masks[i])[0], rtol=1e-5)
        np.testing.assert_allclose(
            losses[i], model.example_losses((x[i : i + 1], y[i : i + 1]), masks[i])[0], rtol=1e-5
        )
    nothing = model.example_losses((x, y), None)
    expected = np.full(6, np.log(2)) if y.dtype == np.int32 else y**2
    np.testing.assert_allclose(nothing, expected, rtol=1e-6)


@pytest.mark.slow
def test_a_workdir_of_a_version_that_kept_no_spec(trained, tmp_path):
    config, results, workdir, model, _ = trained
    classes = 2 if config.stream.target == "classification" else 0
    assert results["spec"] == {"inputs": 2, "classes": classes, "tokens": False}
    shutil.copytree(workdir, tmp_path / "run")
    older = {key: value for key, value in results.items() if key != "spec"}
    (tmp_path / "run" / "results.json").write_text(json.dumps(older))
    assert ftn_jax.load(tmp_path / "run").pool == model.pool
    if not classes:
        return  # what goes on is a matter of the file alone
    config = config.copy_and_resolve_references()
    config.methods = ("fixedmask", "nomask")
    again = train_and_evaluate(config, tmp_path / "run")
    assert again["methods"]["fixedmask"] == results["methods"]["fixedmask"] and again["spec"] == results["spec"]


REFUSED = {
    "predict": [
        ([1.0, 2.0], r"inputs have shape \(2,\), expected \(n, 2\)"),
        (np.zeros((3, 5)), r"inputs have shape \(3, 5\), expected \(n, 2\)"),
        (np.zeros((0, 2)), r"inputs have shape \(0, 2\), expected"),
        ([[1.0, np.nan]], "inputs are float64 or not finite"),
        ([["a", "b"]], "expected an array of finite numbers"),
        ([[1.0], [1.0, 2.0]], "inputs are rows of different length"),
    ],
    "example_losses": [
        (np.zeros((3, 2)), r"examples are ndarray, expected inputs and targets"),
        ((np.zeros((3, 2)), np.zeros(2)), r"targets have shape \(2,\), expected \(3,\)"),
        ((np.zeros((1, 2)), [np.inf]), "targets are float64 or not finite"),
    ],
}


@pytest.mark.parametrize(("call", "given", "said"), [(c, g, m) for c, cases in REFUSED.items() for g, m in cases])
def test_what_is_no_data_is_refused(trained, call, given, said):
    model = trained[3]
    with pytest.raises(InputError, match=said):
        getattr(model, call)(given, "first")


def test_classes_that_there_are_not(trained):
    model = trained[3]
    if not model.pool.classes:
        return
    for y in ([2], [-1], [0.5]):
        with pytest.raises(InputError, match=r"a target is .*, expected a class from 0 to 1"):
            model.example_losses((np.zeros((1, 2)), y), "first")
    with pytest.raises(InputError, match="must be told the task and can't recover a mask"):
        model.recover((np.zeros((1, 2)), [1]))


@pytest.mark.slow
def test_recovery_and_forgetting(tmp_path):
    config = toys.points_config(methods=("ftn_reserve",), **{"stream.steps": 60, "seeds": (5,)})
    results = train_and_evaluate(config, tmp_path)
    model = ftn_jax.load(tmp_path)
    task = jax.tree.map(lambda leaf: leaf[0], make_problem(config, None).stream.tasks[1])
    support = task.support(jax.random.key(3), 8)
    found = model.recover(support)
    losses = {name: model.example_losses(support, name).mean() for name in results["task_names"]}
    best = min(losses, key=losses.__getitem__)  # recovery takes the claim that leaves least
    np.testing.assert_array_equal(found.active, model.stored[best])
    np.testing.assert_allclose(found.loss, losses[best], rtol=1e-5)
    np.testing.assert_allclose(found.base_loss, np.log(2), rtol=1e-5)
    less = model.forget("second")
    assert list(less.stored) == ["first", "third"]
    gone = model.stored["second"]
    for before, after in zip(*(jax.tree.leaves(m.params) for m in (model, less)), strict=True):
        rest = np.setdiff1d(np.arange(16), gone)
        np.testing.assert_array_equal(np.asarray(before)[rest], np.asarray(after)[rest])
    with pytest.raises(InputError, match="no task is named 'second', known: first, third"):
        less.predict(support.x, "second")


def test_the_command_refuses_text_for_networks(trained, tmp_path, capsys):
    support = tmp_path / "support.jsonl"
    support.write_text('{"prompt": "a", "completion": "b"}\n' * 4)
    with pytest.raises(SystemExit):
        command.run(recover.main, ["recover", f"--workdir={trained[2]}", f"--support={support}"])
    assert "holds no language model: expected --support with numbers for small" in capsys.readouterr().err
