"""configs/words.py: a folder of files as a stream, an order that is drawn, and a folder that is not there."""

import pathlib
import random
import shutil
import unittest.mock

import pytest
import toys

from ftn_jax.cli import command, train
from ftn_jax.cli.command import load_config
from ftn_jax.core.errors import InputError
from ftn_jax.core.rules import flatten
from ftn_jax.models.pretrained import Base
from ftn_jax.runs.build import check, fill_in, filled
from ftn_jax.runs.driver import train_and_evaluate
from ftn_jax.streams import Context
from ftn_jax.streams.text.jsonl import jsonl
from ftn_jax.training.loop import train_task

FILE = str(pathlib.Path(__file__).parents[2] / "configs" / "words.py")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    toys.write_tasks(folder)
    (folder / "LICENSE").write_text("not a task")
    return folder


def config_of(folder, argument="", **settings):
    config = fill_in(load_config(FILE + (argument and f":{argument}")))
    config.stream.files = (str(folder),)
    config.update_from_flattened_dict(settings)
    return filled(config)


def refusal(function, *args, **settings):
    with pytest.raises(InputError) as caught:
        function(*args, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_is_its_files_in_alphabetical_order(folder):
    config = config_of(folder)
    assert config.stream.files == tuple(str(folder / f"{name}.jsonl") for name in ("loud", "title", "twice"))
    check(config)
    assert flatten(filled(config)) == flatten(config)
    assert (config.base, config.stream.steps, config.methods) == ("smollm2", 200, ("lora_ftn_reserve",))
    assert config.configurer.k * config.pool.rank == 16 and config.pool.size // config.configurer.k == 72


@pytest.mark.parametrize("seed", range(6))
def test_an_order_is_drawn(folder, seed):
    config = config_of(folder, f"2,{seed}")
    every = sorted(str(path) for path in folder.glob("*.jsonl"))
    assert config.stream.files == tuple(random.Random(seed).sample(every, 2))
    assert flatten(filled(config)) == flatten(config)  # it is drawn once
    given = load_config(f"{FILE}:3,{seed}")
    given.stream.files = tuple(every[::-1])
    assert filled(given).stream.files == tuple(random.Random(seed).sample(every[::-1], 3))


def test_orders_differ():
    files = tuple(f"{i}.jsonl" for i in range(24))
    orders = []
    for seed in (3, 4):
        config = load_config(f"{FILE}:12,{seed}")
        config.stream.files = files
        orders.append(filled(config).stream.files)
    assert orders[0] != orders[1] and all(len(set(order)) == 12 and set(order) < set(files) for order in orders)


def test_a_folder_that_is_not_there_says_where_the_tasks_come_from(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for flags, name in (([], "words"), (["--config.stream.files=elsewhere/words"], "elsewhere/words")):
        with pytest.raises(SystemExit) as ended:
            command.run(train.main, ["train", f"--config={FILE}:12,3", *flags])
        said = capsys.readouterr().err
        assert ended.value.code == 1 and said.count("\n") == 1
        assert said.startswith(f"ftn_jax: config.stream.files: there is no file or folder {name!r}, expected a folder")
        for part in (
            "Todd et al.",
            "ICLR 2024",
            "MIT licence",
            "dataset_files",
            "github.com/ericwtodd/function_vectors",
        ):
            assert part in said
        assert '{"prompt": "flawed\\n", "completion": "perfect"}' in said
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(SystemExit) as ended:
        command.run(train.main, ["train", f"--config={FILE}", "--help"])
    assert not ended.value.code and "--config.stream.files=('words',)" in capsys.readouterr().out


def test_what_else_is_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "has no .jsonl file, expected a folder" in refusal(config_of, tmp_path / "empty")
    assert "drawn is (4, 1), expected at most the 3 tasks that there are" in refusal(config_of, folder, "4,1")
    for drawn in ((0, 3), (1, -1), (1, 2, 3), (2.0, 1)):
        config = config_of(folder)
        config.stream.drawn = drawn
        assert f"config.stream.drawn is {drawn}, expected a tuple (number of tasks" in refusal(check, config)
    for argument in ("12", "0,3", "a,b", "12,3,4", "quick"):
        with pytest.raises(command.UsageError, match=rf"unknown argument '{argument}', known: <tasks>,<seed of order>"):
            load_config(f"{FILE}:{argument}")
    own = load_config(f"{pathlib.Path(FILE).with_name('jsonl.py')}")
    own.stream.files = ("gone",)
    assert refusal(filled, own).endswith("there is no file or folder 'gone', expected a folder of .jsonl files, or a "
                                         "tuple of files")  # fmt: skip


def test_rows_are_as_long_as_a_task_needs(folder):
    """Not as max_length allows: a step of short lines is short."""
    tokens = toys.toy_tokens()
    base = Base("toy", "1a", toys.toy_config(n_positions=128), None, tokens, "gpt2")
    files = sorted(map(str, folder.glob("*.jsonl")))
    stream = jsonl(Context((0,), base), files, max_length=128, recovery=0.2, test=0.2)
    assert stream.feed is not None
    for task, (name, data) in enumerate(zip(stream.names, stream.tasks, strict=True)):
        pairs = [(f"{text}\n", toys.WRITE[name](text)) for text in toys.SHORT]
        longest = max(sum(len(ids) for ids in tokens.ids(pair)) + 1 for pair in pairs)  # with <start>, without <end>
        for batch in (data.train, data.recovery, data.held_out, stream.feed(task, 0, 1, 8)):
            assert batch.tokens.shape[-1] <= 1.5 * max(longest, 16) < 128


@pytest.mark.slow
def test_a_run_on_a_folder_that_grows(folder, base, tmp_path):
    settings = {
        "base": base,
        "stream.steps": 2,
        "stream.batch": 4,
        "stream.max_length": 64,
        "pool.size": 16,
        "configurer.k": 2,
        "configurer.support": 4,
        "stream.recovery": 0.2,
        "stream.test": 0.2,
        "variants.lora_ftn_reserve.lateral_steps": 2,
    }

    def run():
        return train_and_evaluate(config_of(folder, **settings), tmp_path / "run")

    (folder / "twice.jsonl").unlink()
    results = run()
    assert results["task_names"] == ["loud", "title"] and results["config"]["stream"]["drawn"] == [0, 0]
    assert results["config"]["stream"]["files"] == [str(folder / "loud.jsonl"), str(folder / "title.jsonl")]
    shutil.copy(folder / "title.jsonl", folder / "twice.jsonl")  # of a length that is compiled for
    with unittest.mock.patch("ftn_jax.runs.driver.train_task", side_effect=train_task) as spy:
        assert run()["task_names"] == ["loud", "title", "twice"]
    assert [call.args[5] for call in spy.call_args_list] == [2]
    shutil.copy(folder / "title.jsonl", folder / "aloud.jsonl")  # which would be first
    with pytest.raises(InputError, match=r"belongs to another config \(config\.stream\.files: "):
        run()
