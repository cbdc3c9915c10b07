"""A run whose tasks reuse each other, as something to use: recovered, composed, exported, forgotten, gone on with."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy
import toys
from test_resume import stopped_all_along

import ftn_jax
from ftn_jax.cli import ftn
from ftn_jax.core.errors import InputError
from ftn_jax.methods import Method
from ftn_jax.pools.base import gather
from ftn_jax.runs.driver import train_and_evaluate
from ftn_jax.runs.forget import forget

pytestmark = pytest.mark.slow  # tests/methods and tests/contracts have the method on both Pythons

NAME, TASKS = "lora_ftn_compose", ("lower", "pirate", "lower#2")


def config_of(base, **settings):
    toy = {
        "methods": (NAME, "lora_ftn_reserve"),
        "seeds": (3, 5),
        "stream.tasks": TASKS,
        "stream.steps": 40,
        "pool.size": 25,
        "configurer.support": 16,
        "optimizer.learning_rate": 0.03,
        "checkpoint.every_steps": 20,
        f"variants.{NAME}.share": 0.5,
        f"variants.{NAME}.lateral_steps": 2,
    }
    return toys.styles_config(base, **(toy | settings))


@pytest.fixture(scope="module")
def workdir(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("composed")
    train_and_evaluate(config_of(base), folder)
    return folder


@pytest.fixture(scope="module")
def model(workdir):
    return ftn_jax.load(workdir, NAME)


def test_what_is_reused_is_told(workdir):
    results = json.loads((workdir / "results.json").read_text())
    entry = results["methods"][NAME]
    assert entry["reuses"] == [[[], [0], [1]]] * 2  # a chain: the last has the first's components through the second
    for own, answering in zip(entry["masks"], entry["answering"], strict=True):
        assert list(map(len, own)) == [4, 2, 2]
        assert answering == [sorted(sum(own[: i + 1], [])) for i in range(3)]  # noqa: RUF017
    np.testing.assert_array_equal(np.array(entry["stored"]["fm"]["mean"]), 0)
    # A component is A [2, 24] and B [2, 72] in one layer. Those that are reused count for the task that owns them.
    assert entry["cost"]["parameters"] == entry["cost"]["trained"] == pytest.approx((4 + 2 + 2) / 3 * 2 * (24 + 72))
    assert entry["untrained"] is None and entry["reconfig"]["fwt"]["mean"] is None  # a task comes back
    rows = toys.table_cells((workdir / "report.md").read_text(), "Reuse of components")
    (row,) = (row for row in rows if "#2" in row[1])
    assert row[2:5] == ["2.000 ± 0.000", "6.000 ± 0.000", "pirate"] and float(row[5]) < float(row[6])
    assert "without reuse 12" in (workdir / "report.md").read_text()
    assert (workdir / "figures" / "reuse.png").exists()


def test_a_run_that_is_stopped_within_a_block_that_reuses_ends_in_the_same_bits(base, workdir, tmp_path):
    stopped_all_along(config_of(base, methods=(NAME,)), tmp_path, np.random.default_rng(0))
    folders = (tmp_path, workdir)
    ours, theirs = (json.loads((folder / "results.json").read_text())["methods"][NAME] for folder in folders)
    assert ours | {"seconds": 0, "cost": 0} == theirs | {"seconds": 0, "cost": 0}


def test_its_masks_are_found_and_used(model, tmp_path):
    """Of different sizes in one batch; what is exported answers as the mask does."""
    stored = model.stored
    assert [len(stored[task]) for task in TASKS] == [4, 6, 8]
    pairs = [("The cat sat.\n", "the cat sat."), ("A Dog ran.\n", "a dog ran."), ("We saw it.\n", "we saw it.")] * 2
    losses = {task: model.example_losses(pairs, task).mean() for task in TASKS}
    assert model.recover(pairs).active.tolist() == stored[min(losses, key=losses.__getitem__)].tolist()
    masks = ["lower", "lower#2"] * 3
    each = [model.example_losses([pair], mask)[0] for pair, mask in zip(pairs, masks, strict=True)]
    np.testing.assert_allclose(model.example_losses(pairs, masks), each, rtol=1e-4)
    prompts = [prompt for prompt, _ in pairs[:2]]
    alone = [model.generate(prompt, mask, tokens=5)[0] for prompt, mask in zip(prompts, masks, strict=False)]
    assert model.generate(prompts, masks[:2], tokens=5) == alone
    model.export_peft("lower#2", tmp_path / "adapter")
    written = safetensors.numpy.load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    scale = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    (a,), (b,) = ([w for name, w in written.items() if f"lora_{factor}" in name] for factor in "AB")
    assert len(a) == 8 * model.pool.rank
    rows = gather(model.params["attn.c_attn"], stored["lower#2"])
    delta = np.einsum("klri,klro->oi", rows["a"], rows["b"])
    np.testing.assert_allclose(b @ a * scale["lora_alpha"] / scale["r"], delta, rtol=1e-4, atol=1e-6)


def test_masks_are_composed(model, workdir, tmp_path, capsys):
    pairs = [("The cat sat.\n", "the cat sat."), ("A Dog ran.\n", "a dog ran."), ("We saw it.\n", "we saw it.")] * 4
    found = model.recover(pairs, compose=True)
    losses = {task: model.example_losses(pairs, task).mean() for task in TASKS}
    best = min(losses, key=losses.__getitem__)
    assert found.parts == (best,) or found.loss < losses[best]
    assert found.active.tolist() == sorted({h for part in found.parts for h in model.stored[part].tolist()})
    assert model.recover(pairs).parts == ()
    support = tmp_path / "support.jsonl"
    support.write_text("\n".join(json.dumps({"prompt": prompt, "completion": text}) for prompt, text in pairs))
    ftn.run("recover", ["recover", f"--workdir={workdir}", f"--support={support}", f"--method={NAME}", "--compose"])
    assert f"made of the masks of: {', '.join(found.parts)}" in capsys.readouterr().out
    with pytest.raises(InputError, match="lora_naive does not reserve components, so its masks can't be composed"):
        naive = Method(model.method.select)
        dataclasses.replace(model, method=naive, method_name="lora_naive").recover(pairs, compose=True)


def test_forgetting_knows_who_reuses(model, workdir, tmp_path):
    with pytest.raises(InputError, match=r"task 'lower' is reused by pirate, lower#2: add with_dependents"):
        model.forget("lower")
    assert set(model.forget("lower#2").stored) == {"lower", "pirate"}
    assert not model.forget("lower", with_dependents=True).stored
    rest = model.forget("pirate", with_dependents=True)
    assert set(rest.stored) == {"lower"} and rest.forgotten == ("lower#2", "pirate")
    folder = tmp_path / "run"
    shutil.copytree(workdir, folder)
    with pytest.raises(InputError, match="task 'pirate' is reused by lower#2"):
        forget(folder, "pirate")
    with pytest.raises(InputError, match="all tasks are 'lower' or reuse it"):
        forget(folder, "lower", with_dependents=True)
    ftn.run("forget", ["forget", f"--workdir={folder}", "--task=pirate", "--with_dependents", "--remove_older"])
    after = ftn_jax.load(folder, NAME)
    assert set(after.stored) == {"lower"}
    assert json.loads((folder / "results.json").read_text())["task_names"] == ["lower"]
    for now, then in zip(jax.tree.leaves(after.params), jax.tree.leaves(rest.params), strict=True):
        np.testing.assert_array_equal(now, then)
