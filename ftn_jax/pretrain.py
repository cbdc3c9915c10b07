"""Pretrains a small GPT-2 on a text file and writes it in Hugging Face format.

    python -m ftn_jax.pretrain --config=configs/pretrain.py --config.corpus=books.txt --workdir=runs/base

Half of every batch is running text; the other half is repeated spans: a sentence, a newline, and the sentence
again, a few times with its words shuffled. Running text alone needs far more tokens than a small base sees before
it learns to copy, and in-context copying is what adapters on attention build on.
"""

import json
import lzma
import pathlib
import random
import re
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import tokenizers
from absl import app, flags, logging
from ml_collections import config_flags

from ftn_jax.models import decoder, pretrained
from ftn_jax.streams.sentences import SENTENCES

EOS = "<|endoftext|>"


def read_paragraphs(path: str) -> list[str]:
    """The text's non-empty lines, less those that hold a sentence of the style stream (in any case)."""
    opener = lzma.open if path.endswith(".xz") else open
    with opener(path, "rt", encoding="utf-8") as file:
        lines = [line.strip() for line in file]
    held_out = re.compile("|".join(re.escape(s.lower().rstrip(".!?")) for s in SENTENCES))
    return [line for line in lines if line and not held_out.search(line.lower())]


def make_documents(
    paragraphs: list[str], *, copies: int, shuffled: float, upper: float, seed: int
) -> tuple[list[str], list[str]]:
    """(running text, repeated spans). A span is a sentence of 4 to 14 words or a run of so many words."""
    rng = random.Random(seed)
    running = [p.upper() if rng.random() < upper else p for p in paragraphs]
    spans = []
    while len(spans) < copies:
        sentence = rng.choice(re.split(r"(?<=[.!?]) +", rng.choice(paragraphs))).split()
        if len(sentence) < 4:
            continue
        length = rng.randint(4, 14)
        start = 0 if rng.random() < 0.5 else rng.randrange(max(len(sentence) - length, 0) + 1)
        words = sentence[start : start + length]
        again = rng.sample(words, len(words)) if rng.random() < shuffled else words
        spans.append(" ".join(words) + "\n" + " ".join(again))
    return running, spans


def train_tokenizer(texts, vocab_size: int) -> tokenizers.Tokenizer:
    """GPT-2's byte-level BPE, with its one special token."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def prepare(config, workdir: pathlib.Path) -> tuple[tokenizers.Tokenizer, list[np.ndarray]]:
    """Tokenizer and the two token streams, made once and kept in the workdir."""
    tokenizer_file, arrays = workdir / "tokenizer.json", [workdir / "running.npy", workdir / "spans.npy"]
    if not arrays[-1].exists():
        workdir.mkdir(parents=True, exist_ok=True)
        documents = make_documents(
            read_paragraphs(config.corpus),
            copies=config.copies,
            shuffled=config.shuffled,
            upper=config.upper,
            seed=config.seed,
        )
        tokenizer = train_tokenizer((text for texts in documents for text in texts), config.vocab_size)
        tokenizer.save(str(tokenizer_file))
        eos = tokenizer.get_vocab()[EOS]
        for texts, path in zip(documents, arrays, strict=True):
            ids = [i for e in tokenizer.encode_batch_fast(texts) for i in (eos, *e.ids)]
            partial = path.with_suffix(".partial.npy")
            np.save(partial, np.asarray(ids, np.uint16))
            partial.rename(path)
    return tokenizers.Tokenizer.from_file(str(tokenizer_file)), [np.load(path) for path in arrays]


def windows(streams: list[np.ndarray], seed: int, step: int, batch: int, length: int) -> np.ndarray:
    """int32[batch, length]: a pure function of (seed, step), half of it from each stream."""
    rng = np.random.default_rng((seed, step))
    rows = [
        stream[start : start + length]
        for stream, count in zip(streams, (batch - batch // 2, batch // 2), strict=True)
        for start in rng.integers(0, len(stream) - length, count)
    ]
    return np.stack(rows).astype(np.int32)


def decayed(params):
    """Which leaves weight decay applies to: all but biases and scales (by name: the blocks' leaves are stacked)."""
    exempt = ("bias", "scale")
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in exempt, params)


def make_optimizer(config) -> optax.GradientTransformation:
    decay = int(config.decay * config.steps)
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, config.learning_rate, config.warmup),
            optax.constant_schedule(config.learning_rate),
            optax.linear_schedule(config.learning_rate, 0.0, decay),
        ],
        [config.warmup, config.steps - decay],
    )
    adamw = optax.adamw(schedule, b2=0.95, weight_decay=config.weight_decay, mask=decayed)
    return optax.chain(optax.clip_by_global_norm(1.0), adamw)


def truncate(log: pathlib.Path, step: int) -> None:
    """Drops the rows after ``step`` that a killed run has left: they are written anew."""
    if log.exists():
        rows = [row for row in log.read_text().splitlines(keepends=True) if row.endswith("\n")]
        log.write_text("".join(row for row in rows if json.loads(row)["step"] <= step))


def pretrain(config, workdir: str) -> str:
    """Trains up to ``config.steps``, continuing what the workdir holds. Returns the exported folder."""
    root = pathlib.Path(workdir).absolute()
    tokenizer, streams = prepare(config, root)
    logging.info("tokens of running text and of repeated spans: %d, %d", *map(len, streams))
    model_config = pretrained.gpt2_config(vocab_size=tokenizer.get_vocab_size(), **config.model)
    model, optimizer = decoder.Decoder(model_config), make_optimizer(config)
    params = jax.jit(model.init)(jax.random.key(config.seed), jnp.zeros((1, 1), jnp.int32))["params"]
    state = (params, optimizer.init(params))

    def loss_fn(params, tokens):
        hidden, _ = model.apply({"params": params}, tokens[:, :-1])
        logits = decoder.logits(params, hidden)
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

    @jax.jit
    def step_fn(state, tokens):
        params, opt_state = state
        loss, grads = jax.value_and_grad(loss_fn)(params, tokens)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with ocp.CheckpointManager(root / "checkpoints", options=options) as manager:
        first = manager.latest_step() or 0
        truncate(root / "losses.jsonl", first)
        if first:
            state = manager.restore(first, args=ocp.args.StandardRestore(state))
        losses, start = [], time.time()
        for step in range(first, config.steps):
            state, loss = step_fn(state, windows(streams, config.seed, step, config.batch, config.length + 1))
            losses.append(loss)
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                mean = float(np.mean(jax.device_get(losses)))
                logging.info("step %d loss %.3f, %.2f s a step", step + 1, mean, (time.time() - start) / len(losses))
                if not np.isfinite(mean):
                    raise FloatingPointError(f"pretraining: loss is {mean} at step {step + 1}")
                with (root / "losses.jsonl").open("a") as file:
                    file.write(json.dumps({"step": step + 1, "loss": mean}) + "\n")
                manager.save(step + 1, args=ocp.args.StandardSave(state))
                losses, start = [], time.time()
    folder = config.export or str(root / "export")
    pretrained.save(folder, model_config, state[0], tokenizer, EOS)
    return folder


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if not flags.FLAGS.config.corpus:
        raise app.UsageError("name the text to train on: --config.corpus=FILE")
    logging.info("written to %s", pretrain(flags.FLAGS.config, flags.FLAGS.workdir))


if __name__ == "__main__":
    # Not at import: the main command has flags of these names too.
    config_flags.DEFINE_config_file("config", help_string="A config of pretraining.")
    flags.DEFINE_string("workdir", "runs/pretrain", "Checkpoints and the prepared text go here.")
    flags.mark_flags_as_required(["config"])
    app.run(main)
