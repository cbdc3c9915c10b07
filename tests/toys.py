"""Small things to test with: a GPT-2 of two layers, pools, batches, tasks that conflict, a tokenizer."""

import functools
import itertools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from ml_collections import ConfigDict
from transformers import PreTrainedTokenizerFast

from ftn_jax.cli.command import load_config
from ftn_jax.methods import METHODS, Configurer, Method
from ftn_jax.models import decoder, pretrained, writing
from ftn_jax.models.config_json import decoder_config
from ftn_jax.models.tokens import Example, Tokens
from ftn_jax.pools.base import Pool
from ftn_jax.pools.lora import LoraPool, TokenBatch
from ftn_jax.pools.neurons import NeuronPool, PointBatch
from ftn_jax.runs.build import fill_in
from ftn_jax.runs.pretraining import train_tokenizer
from ftn_jax.streams import Context, Stream
from ftn_jax.streams.base import ArrayTask
from ftn_jax.streams.synthetic import synthetic
from ftn_jax.streams.text.sentences import SENTENCES
from ftn_jax.streams.text.task import pad_examples
from ftn_jax.streams.text.transforms import TRANSFORMS
from ftn_jax.testing.methods import MethodRun, method_run
from ftn_jax.training.state import Training, make_optimizer

EOS = 0
END = "<|endoftext|>"
LETTERS = 8  # the toy tasks write with tokens 1 ... 8
SEEDS = (3, 7)  # of the toy runs


def toy_config(**fields: Any) -> decoder.DecoderConfig:
    """The shape of the toy GPT-2; ``fields``, as its config.json has them, replace its own."""
    shape = {"vocab_size": 53, "n_positions": 24, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_inner": 40}
    return pretrained.gpt2_config(**(shape | fields))


def toy_tokens(tokenizer: Any = None, size: int = 600) -> Tokens:
    """The text format of a GPT-2 with a tokenizer, or with the toy one."""
    tokenizer = tokenizer or PreTrainedTokenizerFast(tokenizer_object=toy_tokenizer(), eos_token=END)
    return Tokens(tokenizer, (tokenizer.eos_token_id,), (tokenizer.eos_token_id,), size, "toy")


@functools.cache
def toy_base_params(config: decoder.DecoderConfig | None = None, seed: int = 0) -> Any:
    """Random parameters, all of them (biases and norms too) large enough to matter."""
    config = config or toy_config()
    shapes = decoder.abstract_params(config)
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        scale = leaf.shape[-2] ** -0.5 if name == "kernel" else {"embed": 0.5}.get(name, 0.1)
        return jnp.asarray(scale * rng.standard_normal(leaf.shape) + (name == "scale"), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def kernel(params: Any, config: decoder.DecoderConfig, module: str) -> Any:
    """W [L, d_in, d_out] of a module, to be read or written in place."""
    role = next(role for role, name in config.linears if name == module)
    return params["h"][role]["kernel"]


def toy_pool(**fields: Any) -> LoraPool:
    """H = 16 components of rank 2 on a 4 x 4 torus; ``fields`` replace the pool's own."""
    model = fields.get("model", toy_config())
    own = {"base": toy_base_params(model), "model": model, "size": 16, "rank": 2, "modules": ("attn.c_attn",)}
    return LoraPool(**(own | fields))


def toy_neurons(**fields: Any) -> NeuronPool:
    """H = 16 networks of two layers of four on a 4 x 4 torus; ``fields`` replace the pool's own."""
    return NeuronPool(**({"size": 16, "layers": 2, "width": 4} | fields))


def toy_params(pool: Pool, seed: int = 0, scale: float = 0.3) -> Any:
    """Params [H, ...] of a pool that has been trained on something: moved from where they start, zeros too."""
    rng = np.random.default_rng(seed)
    start = jax.jit(type(pool).init)(pool, jax.random.key(seed))
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32), start)


def toy_batch(rows: int = 5, *, length: int = 11, targets: int = 4, seed: int = 0) -> TokenBatch:
    """Random examples of different lengths, padded to ``length`` columns, with at most ``targets`` scored."""
    rng = np.random.default_rng(seed)
    examples = []
    for i in range(rows):
        target = rng.integers(1, 53, 1 + i % targets).tolist()
        prompt = rng.integers(1, 53, rng.integers(1, length - len(target) + 2)).tolist()
        examples.append(Example.of(prompt, target))
    return pad_examples(examples, length=length, targets=targets, pad=EOS)


def toy_task(shift: int, *, seed: int = 0) -> ArrayTask:
    """Write on: each letter is the one before plus ``shift``, modulo `LETTERS`. Different shifts conflict."""
    rng = np.random.default_rng(seed)

    def example():
        first = rng.integers(LETTERS)
        letters = (1 + (first + shift * np.arange(1, 5)) % LETTERS).tolist()
        return Example.of([EOS, int(rng.integers(LETTERS + 1, 53)), 1 + int(first)], letters)

    def split(size):
        return pad_examples([example() for _ in range(size)], length=6, targets=4, pad=EOS)

    return ArrayTask(split(40), split(20), split(20))


def toy_stream(tasks: int = 3) -> Stream:
    """Conflicting tasks: shifts 1, 2, ..."""
    names = tuple(f"plus_{shift}" for shift in range(1, tasks + 1))
    return Stream(names, [toy_task(shift, seed=shift) for shift in range(1, tasks + 1)], "cross_entropy")


def toy_points(classes: int = 2, *, rows: int = 5, seed: int = 0) -> PointBatch:
    """Random inputs, each with a class, or where there are none with a value."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, rows, np.int32) if classes else rng.standard_normal(rows, np.float32)
    return PointBatch(jnp.asarray(rng.standard_normal((rows, 2), np.float32)), jnp.asarray(y))


@functools.cache
def toy_synthetic(target: str = "classification", seeds: tuple[int, ...] = SEEDS) -> Stream:
    """Three conflicting tasks of points, for each seed its own."""
    names = ("first", "second", "third")
    return synthetic(Context(seeds), names, target=target, block=2, scale=1.2, frequency=2.0, test=64)


@functools.cache  # one object for equal settings, so that tests share compiled programs
def toy_training(
    optimizer: str = "adam",
    learning_rate: float = 0.02,
    weight_decay: float = 0.0,
    mu_dtype: str = "float32",
    **fields: Any,
) -> Training:
    """Sixty steps of batch 8 in three chunks: enough for `toy_task`; ``fields`` replace those of `Training`."""
    own = {"steps": 60, "batch": 8, "support": 8, "chunk": 20}
    return Training(make_optimizer(optimizer, learning_rate, weight_decay, mu_dtype=mu_dtype), **(own | fields))


def toy_configurer(**fields: Any) -> Configurer:
    return Configurer(**({"k": 4, "steps": 15, "learning_rate": 0.5, "jitter": 1e-6, "tasks": 3} | fields))


_PARTS = (
    ("a cat", "the dog", "one fox"),
    ("saw", "ate", "hid", "found"),
    ("a bone", "the red ball", "nothing at all", "some of it"),
)
SHORT = [" ".join(parts) for parts in itertools.product(*_PARTS)]
WRITE: dict[str, Callable[[str], str]] = {"loud": str.upper, "title": str.title, "twice": lambda text: f"{text} {text}"}

# The settings in ``config.variants`` that a registered method needs.
VARIANTS: dict[str, dict[str, Any]] = {
    "ewc": {"strength": 10.0, "examples": 6},
    "ftn_compose": {"kernel": 3, "lateral_steps": 2, "share": 0.5},
    "ftn_fast": {"kernel": 3, "lateral_steps": 2, "every": "batch"},  # apart at the paper's size only
    "ftn_reserve": {"kernel": 3, "lateral_steps": 2},
    "ftn_slow": {"kernel": 3, "lateral_steps": 2, "every": "batch"},
    "kwta": {"kernel": 1, "lateral_steps": 0, "every": "batch"},
    "lora_bank": {"b_std": 0.02},
    "lora_ftn": {"kernel": 3, "lateral_steps": 2},
    "lora_ftn_compose": {"kernel": 3, "lateral_steps": 2, "share": 0.5},
    "lora_ftn_reserve": {"kernel": 3, "lateral_steps": 2},
    "replay": {"examples": 6},
    "supsup": {"signed": False, "widen": 1},
    "supsup_wide": {"signed": True, "widen": 2},
    "supsup_weights": {"signed": False, "widen": 1},
    "supsup_weights_wide": {"signed": True, "widen": 2},
}


def toy_method(name: str, configurer: dict[str, Any] | None = None) -> Method:
    """The registered method of that name, four winners of sixteen; one object for names that build the same."""
    return _method(METHODS[name].build, toy_configurer(**configurer or {}), *VARIANTS.get(name, {}).items())


@functools.cache
def _method(build: Callable[..., Method], configurer: Configurer, *variant: tuple[str, Any]) -> Method:
    return build(configurer, **dict(variant))


_LLAMA = {"vocab_size": 53, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 10,
          "num_key_value_heads": 2, "intermediate_size": 40, "max_position_embeddings": 24}  # fmt: skip
# A small base of every family of `ftn_jax.models.families`, as its config.json has it.
BASES: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 53, "n_positions": 24, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_inner": 40},
    "llama": _LLAMA,
    "mistral": _LLAMA | {"sliding_window": 4},
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma3_text": _LLAMA | {"sliding_window": 4, "sliding_window_pattern": 2},
}


def toy_family(family: str, **fields: Any) -> decoder.DecoderConfig:
    """The shape of a small base of a family."""
    numerics = {key: fields.pop(key) for key in ("dtype", "remat") if key in fields}
    return decoder_config({"model_type": family} | BASES[family] | fields, family, **numerics)


def family_pool(family: str) -> LoraPool:
    """Components on every linear module of a small base of a family."""
    model = toy_family(family)
    return toy_pool(model=model, modules=tuple(model.modules))


# Every pool, by name, and what it reads: what the contract tests run over. Each builder gives a pool of 16.
POOLS: dict[str, Callable[[], Any]] = {
    "lora": toy_pool,
    "neurons": toy_neurons,
    "regression": lambda: toy_neurons(classes=0, activation="tanh", weights="lecun_normal"),
}
_BATCHES: dict[str, Callable[[], Any]] = {
    "lora": toy_batch,
    "neurons": toy_points,
    "regression": lambda: toy_points(classes=0),
}
_STREAMS: dict[str, Callable[[tuple[int, ...]], Stream]] = {
    "lora": lambda _: toy_stream(),
    "neurons": lambda seeds: toy_synthetic("classification", seeds),
    "regression": lambda seeds: toy_synthetic("regression", seeds),
}


def toy_pool_batch(name: str) -> Any:
    """A batch for the pool of that name."""
    return _BATCHES[name]()


def toy_pool_stream(name: str, seeds: tuple[int, ...] = SEEDS) -> Stream:
    """Three tasks for the pool of that name."""
    return _STREAMS[name](seeds)


def toy_run(name: str, pool_name: str = "lora", configurer: dict[str, Any] | None = None) -> MethodRun:
    """Trains and evaluates a method with `toy_training` on `SEEDS`; where its mask moves, for few steps."""
    return _run(toy_method(name, configurer), pool_name)


def training_of(method: Method) -> Training:
    """How `toy_run` trains it."""
    return toy_training(steps=4, chunk=2) if method.every == "batch" else toy_training()


@functools.cache
def _run(method: Method, pool_name: str) -> MethodRun:
    training, pool = training_of(method), POOLS[pool_name]()
    if method.in_context:  # room for eight examples and one more
        pool = toy_pool(model=toy_config(n_positions=64))
    return method_run(method, pool, toy_pool_stream(pool_name), training=training, seeds=SEEDS)


def blob_sizes(active: Any, side: int) -> list[int]:
    """Sizes of the connected parts of a mask on the torus (four neighbours), largest first."""
    left, sizes = {divmod(int(a), side) for a in active}, []
    while left:
        front, size = [left.pop()], 0
        while front:
            y, x = front.pop()
            size += 1
            near = {((y + dy) % side, (x + dx) % side) for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0))} & left
            left -= near
            front.extend(near)
        sizes.append(size)
    return sorted(sizes, reverse=True)


@functools.cache
def toy_tokenizer(vocab_size: int = 600) -> tokenizers.Tokenizer:
    """A byte-level BPE of the sentences and the paper's six transforms of them; ``<|endoftext|>`` is token 0."""
    texts = (f"{write(s)}\n" for write in list(TRANSFORMS.values())[:6] for s in SENTENCES)
    return train_tokenizer(texts, vocab_size)


def save_toy_base(folder: str | pathlib.Path, **fields: Any) -> decoder.DecoderConfig:
    """Writes a toy base that reads English, in Hugging Face format; returns its shape."""
    tokenizer = toy_tokenizer()
    config = toy_config(**({"vocab_size": tokenizer.get_vocab_size(), "n_positions": 128, "n_layer": 1} | fields))
    writing.save_gpt2(folder, config, toy_base_params(config), tokenizer, END)
    return config


CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
# Fifteen would make a field on a torus of side 4 as good as constant: rounding errors would choose the mask.
FEW_BLURS = {f"variants.{name}.lateral_steps": 2 for name in ("lora_ftn", "lora_ftn_reserve")}


def styles_config(base: str, /, **settings: Any) -> ConfigDict:
    """configs/lora.py at toy size on a toy base: tasks of one padded length, equal chunks: nothing compiles twice."""
    toy = {
        "base": base,
        "seeds": (5, 2),
        "stream.tasks": ("lower", "reverse_words", "pirate"),
        "stream.steps": 20,
        "stream.batch": 4,
        "stream.max_length": 64,
        "pool.size": 16,
        "pool.rank": 2,
        **FEW_BLURS,
        "configurer.k": 4,
        "configurer.support": 6,
        "optimizer.learning_rate": 0.01,
    }
    return _replaced("lora", toy | settings)


def jsonl_config(base: str, files: Sequence[str], /, **settings: Any) -> ConfigDict:
    """configs/jsonl.py at toy size on a toy base."""
    toy = {
        "base": base,
        "stream.files": tuple(files),
        "stream.steps": 30,
        "stream.batch": 4,
        "stream.max_length": 64,
        "stream.recovery": 0.2,
        "stream.test": 0.2,
        "pool.size": 16,
        "pool.rank": 2,
        "pool.modules": ("qkv",),
        **FEW_BLURS,
        "configurer.k": 4,
        "configurer.support": 8,
        "optimizer.learning_rate": 0.01,
    }
    return _replaced("jsonl", toy | settings)


def write_tasks(folder: pathlib.Path) -> list[str]:
    """Files of three tasks of 48 short lines each, in a folder."""
    for name, write in WRITE.items():
        lines = [json.dumps({"prompt": f"{text}\n", "completion": write(text)}) for text in SHORT]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return [str(folder / f"{name}.jsonl") for name in WRITE]


def arrays_config(files: Sequence[str], /, **settings: Any) -> ConfigDict:
    """configs/arrays.py at toy size, with the defaults of what it leaves out."""
    toy = {
        "stream.files": tuple(files),
        "stream.steps": 40,
        "stream.batch": 8,
        "stream.recovery": 0.2,
        "stream.test": 0.2,
        "pool.size": 16,
        "pool.width": 4,
        "configurer.k": 4,
        "configurer.support": 8,
        "variants.ftn_reserve.lateral_steps": 2,
        "optimizer.learning_rate": 0.02,
    }
    return _replaced(str(CONFIGS / "arrays.py"), toy | settings)


def write_arrays(folder: pathlib.Path, *, classes: int = 3, inputs: int = 3) -> list[str]:
    """Files of three tasks of 120 points each: which input is the largest, the classes turned from task to task."""
    x = np.random.default_rng(0).standard_normal((120, inputs)).astype(np.float32)
    files = []
    for i in range(3):
        y = (x.argmax(1) + i) % classes
        if i == 1:
            np.savetxt(folder / "task1.csv", np.c_[x, y], fmt=["%.9g"] * inputs + ["%d"], delimiter=",")
        else:
            np.savez(folder / f"task{i}.npz", x=x, y=y)
        files.append(str(folder / f"task{i}.{'csv' if i == 1 else 'npz'}"))
    return files


def points_config(argument: str = "classification", **settings: Any) -> ConfigDict:
    """configs/synthetic.py at toy size."""
    toy = {
        "seeds": (5, 2),
        "methods": ("ftn_slow", "fixedmask", "supsup"),
        "stream.steps": 20,
        "stream.batch": 8,
        "stream.block": 2,
        "stream.scale": 1.2,
        "stream.frequency": 2.0,
        "stream.test": 32,
        "pool.size": 16,
        "pool.layers": 1,
        "pool.width": 4,
        "configurer.k": 4,
        "configurer.support": 8,
        "variants.ftn_fast.kernel": 3,
        "variants.ewc.examples": 16,
        "optimizer.learning_rate": 0.01,
    }
    return _replaced(f"synthetic:{argument}", toy | settings)


def _replaced(file: str, settings: dict[str, Any]) -> ConfigDict:
    config = fill_in(load_config(file), METHODS)
    config.update_from_flattened_dict(settings)
    return config


def table_cells(report: str, heading: str) -> list[list[str]]:
    """The rows of the markdown table below a heading."""
    section = report.split(f"## {heading}")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]
