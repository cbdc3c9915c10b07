"""Pretraining at toy size: what it reads, what it draws, and that a killed run ends as if it had not been."""

import json
import lzma
import pathlib
import random
import shutil
import signal
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest
import toys
from flax import traverse_util
from ml_collections import ConfigDict

from ftn_jax.core.errors import CheckpointError, InputError
from ftn_jax.models import decoder, pretrained
from ftn_jax.runs import pretraining
from ftn_jax.streams.text.sentences import SENTENCES


@pytest.mark.parametrize("write", [str, str.upper, str.lower, str.swapcase])
def test_lines_that_hold_a_sentence_of_the_stream_are_dropped(tmp_path, write):
    kept = ["A harmless line.", "The quick brown fox sleeps."]
    lines = [kept[0], "", "   "]
    lines += [f"He said: {write(sentence)} And then he left." for sentence in SENTENCES]
    lines += [write(SENTENCES[0].rstrip(".")) + ", they wrote", kept[1]]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    assert pretraining.read_paragraphs(str(tmp_path / "text.txt")) == kept


def test_compressed_text_is_read_as_it_is(tmp_path):
    with lzma.open(tmp_path / "text.txt.xz", "wt", encoding="utf-8") as file:
        file.write("One naïve line that is read.\n\n  Two.  \n")
    assert pretraining.read_paragraphs(str(tmp_path / "text.txt.xz")) == ["One naïve line that is read.", "Two."]


@pytest.mark.parametrize(
    ("lines", "count"), [(["One two."] * 150, 0), (["One."] * 400 + ["A b c d."] * 3, 3), ([""], 0)]
)
def test_too_few_sentences_to_repeat(tmp_path, lines, count):
    file = tmp_path / "short.txt"
    file.write_text("\n".join(lines))
    with pytest.raises(InputError, match=f"short.txt has {count} lines with a sentence of 4 words or more"):
        pretraining.read_paragraphs(str(file))
    file.write_text("\n".join([*lines, *["A b c d."] * 10]))
    assert "A b c d." in pretraining.read_paragraphs(str(file))


def test_spans_are_repeated_from_the_text():
    paragraphs = ["One two three four five. Six seven eight nine ten eleven!", "Short one."]

    def make(copies=50, shuffled=0.0, upper=0.0):
        return pretraining.make_documents(paragraphs, copies=copies, shuffled=shuffled, upper=upper, seed=0)

    running, spans = make()
    assert running == paragraphs
    assert len(spans) == 50
    for span in spans:
        first, second = span.split("\n")
        assert first in paragraphs[0] and second == first
    assert make()[1] == spans
    assert make(copies=1, upper=1.0)[0] == [p.upper() for p in paragraphs]
    pairs = [span.split("\n") for span in make(shuffled=1.0)[1]]
    assert all(sorted(first.split()) == sorted(second.split()) for first, second in pairs)
    assert sum(first != second for first, second in pairs) > 25


STREAMS = [np.arange(1000, dtype=np.uint16), np.arange(10_000, 10_500, dtype=np.uint16)]


def test_windows_are_runs_of_the_two_streams():
    rows = pretraining.windows(STREAMS, seed=3, step=5, batch=7, length=20)
    chex.assert_shape(rows, (7, 20))
    assert rows.dtype == np.int32
    assert (np.diff(rows, axis=1) == 1).all()
    assert (rows[:4] < 1000).all()
    assert (rows[4:] >= 10_000).all()


def test_windows_are_a_function_of_seed_and_step_only():
    draw = lambda seed, step: pretraining.windows(STREAMS, seed, step, 6, 10)[:, 0].tolist()  # noqa: E731
    first = draw(3, 5)
    others = [draw(3, 6), draw(4, 5), draw(5, 3)]
    np.random.seed(0)
    assert draw(3, 5) == first
    assert first not in others


def test_weight_decay_spares_biases_and_scales_of_stacked_blocks_too():
    params = decoder.abstract_params(toys.toy_config())
    decayed = traverse_util.flatten_dict(pretraining.decayed(params), sep="/")
    kernels = {f"h/{name}/kernel" for name in ("qkv", "o", "up", "down")}
    assert {name for name, on in decayed.items() if on} == {"embed", "positions", *kernels}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    rng = random.Random(0)
    words = "the a old small sea boat captain wind went came saw took and of under over quickly home".split()
    lines = [" ".join(rng.choices(words, k=rng.randint(6, 20))).capitalize() + "." for _ in range(150)]
    file = tmp_path_factory.mktemp("corpus") / "text.txt"
    file.write_text("\n".join([*lines, SENTENCES[3]]))
    return file


def settings(corpus) -> dict:
    return {
        "corpus": str(corpus),
        "export": "",
        "seed": 0,
        "vocab_size": 300,
        "model": {"n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_inner": 32},
        "steps": 8,
        "batch": 4,
        "length": 16,
        "copies": 100,
        "shuffled": 0.2,
        "upper": 0.1,
        "learning_rate": 1e-2,
        "warmup": 2,
        "decay": 0.5,
        "weight_decay": 0.1,
        "save_every": 2,
    }


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    folder = pretraining.pretrain(ConfigDict(settings(corpus)), str(workdir))
    return workdir, folder


# Draws the windows of seven steps, then dies as a machine dies.
KILLED = """
import json, os, signal, sys
from flax import traverse_util
from ml_collections import ConfigDict
from ftn_jax.runs import pretraining
from ftn_jax.core.errors import CheckpointError, InputError
windows = pretraining.windows
def windows_until_the_end(streams, seed, step, batch, length):
    if step == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return windows(streams, seed, step, batch, length)
pretraining.windows = windows_until_the_end
pretraining.pretrain(ConfigDict(json.loads(sys.argv[1])), sys.argv[2])
"""


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_end(corpus, uninterrupted, tmp_path, monkeypatch):
    config = settings(corpus)
    command = [sys.executable, "-c", KILLED, json.dumps(config), str(tmp_path)]
    assert subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL
    assert not list((tmp_path / "export").iterdir())
    steps = []
    windows = pretraining.windows
    monkeypatch.setattr(
        pretraining,
        "windows",
        lambda streams, seed, step, *size: steps.append(step) or windows(streams, seed, step, *size),
    )
    folder = pretraining.pretrain(ConfigDict(config), str(tmp_path))
    # Checkpoint 6 may have been half written, checkpoint 4 not.
    assert steps in ([4, 5, 6, 7], [6, 7])
    workdir, expected = uninterrupted
    assert (tmp_path / "losses.jsonl").read_text() == (workdir / "losses.jsonl").read_text()
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "export" / name).read_bytes() == (workdir / "export" / name).read_bytes()
    chex.assert_trees_all_equal(pretrained.load(folder).params, pretrained.load(expected).params)


@pytest.mark.slow
def test_a_damaged_workdir_goes_on_from_what_can_be_read_or_says_so(corpus, uninterrupted, tmp_path, caplog):
    def go_on():
        return pathlib.Path(pretraining.pretrain(ConfigDict(settings(corpus)), str(workdir)))

    workdir = tmp_path / "copy"
    shutil.copytree(uninterrupted[0], workdir)
    for file in (workdir / "checkpoints" / "8").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    folder = go_on()
    assert "checkpoints/8 can't be read" in caplog.text and "the one of step 6 is used" in caplog.text
    for name in ("losses.jsonl", "export/model.safetensors"):
        assert (workdir / name).read_bytes() == (uninterrupted[0] / name).read_bytes()
    assert folder == workdir / "export"

    for file in (workdir / "checkpoints").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be read .* nothing was deleted"):
        go_on()
    (workdir / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer.json is damaged .*: name another --workdir"):
        go_on()


def test_it_learns_and_logs(uninterrupted):
    workdir, _ = uninterrupted
    rows = [json.loads(row) for row in (workdir / "losses.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    assert abs(rows[0]["loss"] - np.log(300)) < 1.0
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_the_exported_folder_is_a_base(uninterrupted, corpus):
    _, folder = uninterrupted
    base = pretrained.load(folder)
    shape = settings(corpus)["model"]
    assert base.config == pretrained.gpt2_config(vocab_size=len(base.tokens.tokenizer), **shape)
    text = "The old captain went home; ÜBER 42!"
    assert base.tokens.text(base.tokens.ids([text])[0]) == text
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(base.params))


def test_the_sentence_of_the_stream_is_not_in_the_prepared_text(uninterrupted):
    workdir, folder = uninterrupted
    tokenizer = pretrained.load(folder).tokens.tokenizer
    for name in ("running.npy", "spans.npy"):
        text = tokenizer.decode(np.load(workdir / name).astype(int)).lower()
        assert "captain" in text
        assert SENTENCES[3].lower().rstrip(".") not in text
