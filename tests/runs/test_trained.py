"""A trained run in use: recovery, losses and generation under one mask or one for each row, export."""

import dataclasses
import functools
import gc
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toys

import ftn_jax
from ftn_jax.cli.recover import describe
from ftn_jax.core.errors import CheckpointError, InputError
from ftn_jax.models import decoder
from ftn_jax.models.tokens import encode
from ftn_jax.runs.driver import train_and_evaluate
from ftn_jax.streams.text.task import pad_examples
from ftn_jax.testing import counted_compilations

PAIRS = [(f"{word} {i}\n", f"{word.upper()} {i}") for i in range(2) for word in ("over", "the lazy")]
PROMPTS = ["The quick", "a", "fox jumps over\n"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    toys.save_toy_base(folder / "base")
    config = toys.styles_config(
        str(folder / "base"), methods=("lora_ftn", "lora_fixed", "lora_bank"), **{"stream.steps": 10}
    )
    train_and_evaluate(config, folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def model(workdir):
    return ftn_jax.load(workdir)


def masks(count):
    rng = np.random.default_rng(0)
    return [np.sort(rng.choice(16, 4, replace=False)).astype(np.int32) for _ in range(count)]


def with_components(model, mask):
    """The base's params with Delta W added to W, in NumPy."""
    base = jax.tree.map(np.array, model.base.params)
    for h in mask:
        for module, pair in model.params.items():
            a, b = (np.asarray(pair[side][h]) for side in ("a", "b"))
            kernel = toys.kernel(base, model.base.config, module)
            kernel += np.einsum("lri,lro->lio", a, b)
    return base


def literal_losses(model, pairs, mask):
    """One pair at a time, no padding, in NumPy but for the base's forward pass."""
    losses, base = [], with_components(model, mask)
    for example in encode(pairs, model.base.tokens):
        tokens = np.array([[*example.prompt, *example.target[:-1]]])
        hidden, _ = decoder.Decoder(model.base.config).apply({"params": base}, tokens)
        scores = jax.nn.log_softmax(decoder.logits(base, hidden[0, len(example.prompt) - 1 :]))
        losses.append(-np.mean([scores[i, label] for i, label in enumerate(example.target)]))
    return np.array(losses)


@functools.partial(jax.jit, static_argnames="config")
def likeliest(config, params, tokens):
    """What follows each column of a row, int32[Q]."""
    hidden, _ = decoder.Decoder(config).apply({"params": params}, tokens[None])
    return jnp.argmax(decoder.logits(params, hidden[0]), axis=-1)


def literal_text(model, prompt, mask, tokens):
    """No cache, no adapters: the whole row through the model again for every token."""
    base, text, written = with_components(model, mask), model.base.tokens, []
    read = text.prompt(prompt)
    while len(written) < tokens and not set(written) & set(text.ends):
        row = np.zeros(32, np.int32)
        row[: len(read) + len(written)] = [*read, *written]
        written.append(int(likeliest(model.base.config, base, row)[len(read) + len(written) - 1]))
    return text.text(written)


def test_what_is_loaded_is_what_was_trained(workdir, model):
    results = json.loads((workdir / "results.json").read_text())
    entry = results["methods"]["lora_ftn"]
    assert list(model.stored) == results["task_names"]
    for seed, masks_of in zip(results["seeds"], entry["masks"], strict=True):
        loaded = ftn_jax.load(workdir, seed=seed)
        assert [mask.tolist() for mask in loaded.stored.values()] == masks_of
    # The first is the config's first seed; its untrained components still have B = 0, its trained ones do not.
    trained = np.unique(np.concatenate(list(model.stored.values())))
    norms = np.abs(np.asarray(model.params["attn.c_attn"]["b"])).max(axis=(1, 2, 3))
    assert (norms > 0).nonzero()[0].tolist() == trained.tolist()


def test_losses_of_the_recovered_mask_and_of_the_base(model):
    found = model.recover(PAIRS)
    counts = np.array([len(example.target) for example in encode(PAIRS, model.base.tokens)])
    for loss, mask in ((found.loss, found.active), (found.base_loss, [])):
        expected = (literal_losses(model, PAIRS, mask) * counts).sum() / counts.sum()
        np.testing.assert_allclose(loss, expected, rtol=1e-4)
    assert found.overlap == {t: len(set(found.active) & set(m)) / 4 for t, m in model.stored.items()}


def test_recovery_is_the_methods_own(model):
    """Algorithm 1 once more, on the examples one by one and without padding."""
    batches = [
        pad_examples([e], length=len(e.prompt) + len(e.target) - 1, targets=len(e.target), pad=-1)
        for e in encode(PAIRS, model.base.tokens)
    ]

    example_losses = jax.jit(type(model.pool).example_losses)

    def loss(mask):
        losses = [example_losses(model.pool, model.params, mask, batch) for batch in batches]
        return sum(total[0] for total, _ in losses) / sum(count[0] for _, count in losses)

    config = toys.styles_config("x")
    c, variant = config.configurer, config.variants.lora_ftn
    expected = ftn_jax.smooth_kwta(
        loss, 16, k=c.k, steps=c.steps, learning_rate=c.learning_rate,
        kernel=variant.kernel, lateral_steps=variant.lateral_steps,
    )  # fmt: skip
    best = np.sort(expected.smoothed)[::-1]
    assert best[c.k - 1] - best[c.k] > 0.003  # rounding errors are a hundredth of it
    assert model.recover(PAIRS).active.tolist() == expected.active.tolist()
    assert model.recover(PAIRS, seed=1).active.tolist() == expected.active.tolist()  # nothing ties


def test_a_mask_for_each_row(model):
    many = masks(len(PAIRS))
    together = model.example_losses(PAIRS, many)
    for i, (pair, mask) in enumerate(zip(PAIRS, many, strict=True)):
        np.testing.assert_allclose(together[i], model.example_losses([pair], mask)[0], rtol=1e-4)
    np.testing.assert_allclose(together, [literal_losses(model, [p], m)[0] for p, m in zip(PAIRS, many, strict=True)],
                               rtol=1e-4)  # fmt: skip
    one = model.recover(PAIRS)
    np.testing.assert_allclose(
        model.example_losses(PAIRS, one), model.example_losses(PAIRS, [one] * len(PAIRS)), rtol=1e-4
    )


def test_generation_under_a_mask_for_each_row(model):
    """On a base of two layers, with components that are no small thing."""
    config = dataclasses.replace(model.base.config, layers=2)
    base = model.base._replace(config=config, params=toys.toy_base_params(config))
    pool = model.pool.replace(base=base.params, model=config)
    model = dataclasses.replace(model, base=base, pool=pool, params=toys.toy_params(pool))
    many = masks(len(PROMPTS))
    together = model.generate(PROMPTS, many, tokens=6)
    assert together == [literal_text(model, p, m, 6) for p, m in zip(PROMPTS, many, strict=True)]
    crossed = model.generate(PROMPTS, many[1:] + many[:1], tokens=6)
    assert all(own != other for own, other in zip(together, crossed, strict=True))
    with counted_compilations() as count:
        model.generate(PROMPTS, masks(6)[3:], tokens=6)
        assert count() == 0


def test_generation_without_a_mask_is_the_bases(model):
    silent = dataclasses.replace(model, params=jax.tree.map(jnp.zeros_like, model.params))
    assert model.generate(PROMPTS, None, tokens=6) == silent.generate(PROMPTS, masks(1)[0], tokens=6)
    np.testing.assert_allclose(model.example_losses(PAIRS, None), silent.example_losses(PAIRS, masks(1)[0]), rtol=1e-5)


def test_sampling_depends_on_its_seed(model):
    def written(seed):
        return model.generate(PROMPTS * 3, None, tokens=8, temperature=1.5, seed=seed)

    assert written(0) == written(0) != written(1)


def test_a_stop_ends_what_is_written_before_it(model):
    free = model.generate(PROMPTS, None, tokens=12)
    stop = free[0][3:5]
    assert len(stop) == 2
    for stops in ((stop,), (free[0][5:8], stop, "\0")):
        written = model.generate(PROMPTS, None, tokens=12, stop=stops)
        assert written[0] == free[0][: free[0].find(stop)]
        for text, whole in zip(written, free, strict=True):
            assert whole.startswith(text) and not any(s in text for s in stops)
            assert text == whole or any(whole[len(text) :].startswith(s) for s in stops)


def test_what_cannot_be_asked_for(workdir, model):
    for call, said in {
        (lambda: model.recover([])): "no examples",
        (lambda: model.generate([], None)): "no prompts",
        (lambda: model.generate(["a"] * 3, masks(2))): "2 masks are given for 3 rows",
        (lambda: model.example_losses(PAIRS, masks(2))): "2 masks are given for 4 rows",
        (lambda: model.generate(["word " * 99], None, tokens=64)): r"exceed the 128 positions",
        (lambda: model.generate(["a"], None, tokens=0)): "tokens is 0, expected a whole number above 0",
        (lambda: model.generate(["a"], None, temperature=-0.5)): "temperature is -0.5, expected 0, or 1e-6 or more",
        (lambda: model.generate(["a"], None, top_k=-1)): "top_k is -1, expected a whole number",
        (lambda: model.generate(["a"], None, top_p=1.5)): "top_p is 1.5, expected 1e-6 to 1",
        (lambda: model.generate(["a"], None, top_k=3)): "top_k and top_p have no effect on the likeliest token",
        (lambda: model.generate(["a"], None, temperature="1")): "temperature is '1', expected 0, or 1e-6 or more",
        (lambda: model.generate(["a"], None, temperature=float("nan"))): "temperature is nan",
        (lambda: model.generate(["a"], None, stop=None)): "stop is None, expected a list of texts",
        (lambda: model.generate(["a"], None, temperature=1.0, seed=1.5)): "seed is 1.5, expected a whole number",
        (lambda: model.recover(PAIRS, seed="x")): "seed is 'x'",
        (lambda: model.generate(["a"], None, stop="end")): "stop is 'end', expected a list of texts",
        (lambda: ftn_jax.load(workdir).predict([[1.0]], "lower")): "a LoraPool can't predict",
        (lambda: ftn_jax.load(workdir, "lora_fixed").recover(PAIRS)): "lora_fixed must be told the task",
        (lambda: ftn_jax.load(workdir, "lora_naive")): "no checkpoints of method 'lora_naive', known: lora_bank, lora",
        (lambda: ftn_jax.load(workdir, seed=9)): "has no seed 9, known: 5, 2",
        (lambda: ftn_jax.load(workdir / "checkpoints")): "holds no run",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=said):
            call()


def test_a_bank_recovers_one_adapter(workdir):
    model = ftn_jax.load(workdir, "lora_bank")
    found = model.recover(PAIRS)
    losses = [model.example_losses(PAIRS, np.array([h], np.int32)) for h in range(4)]
    counts = np.array([len(example.target) for example in encode(PAIRS, model.base.tokens)])
    assert found.active.tolist() == [np.argmin([(loss * counts).sum() for loss in losses])]


# Of several files that orbax can't read it raises one error and leaves the others to nobody.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_checkpoints(workdir, tmp_path):
    broken = shutil.copytree(workdir, tmp_path / "run")
    saved = broken / "checkpoints" / "lora_ftn"
    older, newest = sorted(saved.glob("[0-9]*"), key=lambda path: int(path.name))
    files = [path for path in newest.rglob("*") if path.is_file()]
    for path in files:
        path.write_bytes(b"")
    assert list(ftn_jax.load(broken).stored) == ["lower", "reverse_words"]
    assert all(path.exists() for path in files)  # to look is not to tidy up
    for path in older.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        ftn_jax.load(broken)
    gc.collect()


def test_the_picture_of_a_mask():
    found = ftn_jax.Recovery(np.array([0, 1, 4]), 2.0, 1.5, {"upper": 2 / 3, "lower": 0.0})
    assert describe(found, 9, 8) == [
        "loss of the 8 examples, nats per target token: 1.500 under the base alone, 2.000 under the recovered mask",
        "the mask does not beat the base alone: nothing in this pool fits these examples",
        "██·",
        "·█·",
        "···",
        "share of the mask that is also in each task's training-time mask (for information only):",
        "  upper: 0.67",
        "  lower: 0.00",
    ]
    assert not any("beat" in line for line in describe(found._replace(loss=1.4), 9, 8))
    assert "components 0, 1, 4 of 8" in describe(found, 8, 8)
