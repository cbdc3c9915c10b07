"""A small GPT-2, pretrained on a text file and written in Hugging Face format.

Half of every batch is running text; the other half is repeated spans: a sentence, a newline, and the sentence
again, sometimes with its words shuffled. Adapters on attention build on in-context copying, which a model learns from
running text alone only after far more tokens than this small base sees.
"""

import contextlib
import hashlib
import json
import logging
import lzma
import os
import pathlib
import random
import re
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import tokenizers

from ftn_jax.core.errors import InputError, Interrupted, writing
from ftn_jax.core.files import whole as written_whole
from ftn_jax.core.rules import COUNT, NOT_NEGATIVE, POSITIVE, SIZE, TEXT, Config, Rule, flatten, hold, whole
from ftn_jax.models import decoder, pretrained
from ftn_jax.models.writing import save_gpt2
from ftn_jax.runs.checkpoints import newest, saving
from ftn_jax.runs.workdir import lock
from ftn_jax.streams.text.sentences import SENTENCES

EOS = "<|endoftext|>"
_SHORTEST = 4  # words; shorter sentences are not repeated
_RAREST = 100  # sentences are drawn until one is long enough, so at least one line in this number must have one
_LOG = logging.getLogger("ftn_jax")
_MAY_CHANGE = ("export", "steps", "save_every")  # when a run continues

_PART: Rule = (lambda value: type(value) in (int, float) and 0 <= value <= 1, "a number from 0 to 1")
SETTINGS: dict[str, Rule] = {
    "corpus": (TEXT[0], "the text to train on, as --config.corpus=FILE"),
    "export": (lambda value: isinstance(value, str), "a folder, or empty for the workdir's"),
    "seed": whole(0, 2**31 - 1),
    "vocab_size": whole(257, 2**16),  # at least 256 bytes and the end of text; ids are stored as uint16
    "model.n_positions": whole(2, 2**20),
    "model.n_embd": SIZE,
    "model.n_layer": SIZE,
    "model.n_head": SIZE,
    "model.n_inner": SIZE,
    "steps": COUNT,
    "batch": SIZE,
    "length": SIZE,
    "copies": COUNT,
    "shuffled": _PART,
    "upper": _PART,
    "learning_rate": POSITIVE,
    "warmup": whole(0),
    "decay": _PART,
    "weight_decay": NOT_NEGATIVE,
    "save_every": COUNT,
}


def check(config: Config) -> None:
    """Refuses a config that can't work, before anything is read.

    Raises:
      InputError: names the setting, its value and what was expected.
    """
    hold(flatten(config), {f"config.{name}": rule for name, rule in SETTINGS.items()})
    if config.model.n_embd % config.model.n_head:
        raise InputError(
            f"config.model.n_embd is {config.model.n_embd}, expected a multiple of n_head = {config.model.n_head}"
        )
    if config.length > config.model.n_positions:
        raise InputError(
            f"config.length is {config.length}, expected at most config.model.n_positions = {config.model.n_positions}"
        )


def read_paragraphs(path: str) -> list[str]:
    """The text's non-empty lines, except those that contain a sentence of the style stream (ignoring case).

    Raises:
      InputError: a file that can't be read, is not UTF-8, or has too few sentences to repeat.
    """
    opener = lzma.open if path.endswith(".xz") else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            lines = [line.strip() for line in file]
    except (OSError, lzma.LZMAError, EOFError) as error:
        raise InputError(
            f"config.corpus: {path} can't be read ({getattr(error, 'strerror', None) or error})"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"config.corpus: {path} is not UTF-8 ({error.reason})") from error
    held_out = re.compile("|".join(re.escape(s.lower().rstrip(".!?")) for s in SENTENCES))
    kept = [line for line in lines if line and not held_out.search(line.lower())]
    count = sum(any(len(sentence.split()) >= _SHORTEST for sentence in _sentences(line)) for line in kept)
    if count < len(kept) / _RAREST or not kept:
        raise InputError(
            f"config.corpus: {path} has {count} lines with a sentence of {_SHORTEST} words or more, of {len(kept)}; "
            f"expected one in {_RAREST}, since such sentences are what is repeated"
        )
    return kept


def _sentences(paragraph: str) -> list[str]:
    return re.split(r"(?<=[.!?]) +", paragraph)


def make_documents(
    paragraphs: list[str], *, copies: int, shuffled: float, upper: float, seed: int
) -> tuple[list[str], list[str]]:
    """(running text, repeated spans). A span is a run of at most 14 words of a sentence."""
    rng = random.Random(seed)
    running = [p.upper() if rng.random() < upper else p for p in paragraphs]
    spans = []
    while len(spans) < copies:
        sentence = rng.choice(_sentences(rng.choice(paragraphs))).split()
        if len(sentence) < _SHORTEST:
            continue
        length = rng.randint(_SHORTEST, 14)
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


def prepare(config: Config, workdir: pathlib.Path) -> tuple[tokenizers.Tokenizer, list[np.ndarray]]:
    """The tokenizer and the two token streams, made once and kept in the workdir.

    Raises:
      InputError: see `read_paragraphs`; a workdir of another config, or a text shorter than a window.
    """
    tokenizer_file, arrays = workdir / "tokenizer.json", [workdir / "running.npy", workdir / "spans.npy"]
    pin(config, workdir)
    if not arrays[-1].exists():
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
            with written_whole(path) as partial:
                np.save(partial, np.asarray(ids, np.uint16))
    streams = []
    for path in arrays:
        with _reading(path):
            streams.append(np.load(path))
    shortest = min(map(len, streams))
    if shortest <= config.length + 1:
        raise InputError(f"config.length is {config.length}, expected less than the {shortest - 1} tokens of the text")
    with _reading(tokenizer_file):
        text = tokenizer_file.read_text(encoding="utf-8")
    try:
        return tokenizers.Tokenizer.from_str(text), streams
    except Exception as error:  # tokenizers raises no more specific error
        raise InputError(f"{tokenizer_file} is damaged ({error}): name another --workdir") from error


def pin(config: Config, workdir: pathlib.Path) -> None:
    """Records the settings and the text of a run in its workdir, or compares them with those it began with.

    Raises:
      InputError: the workdir began with other settings or another text, or can't be written.
    """
    now, path = json.loads(json.dumps(flatten(config))) | {"config.corpus": "the text"}, workdir / "config.json"
    if os.path.exists(config.corpus):  # once prepared, the text is no longer needed
        with _reading(config.corpus), open(config.corpus, "rb") as file:
            now["hash of the text"] = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    with _reading(path):
        held = dict(json.loads(path.read_text())) if path.exists() else now
    free = {f"config.{name}" for name in _MAY_CHANGE}
    differing = [key for key in now if key not in free and held.get(key) != now[key]]
    if differing:
        listed = "; ".join(f"{key}: {held.get(key)!r} there, {now[key]!r} now" for key in differing)
        raise InputError(f"workdir {workdir} belongs to another config ({listed}): name another --workdir")
    with written_whole(path) as partial:
        partial.write_text(json.dumps(held | now))


def check_export(config: Config, workdir: pathlib.Path) -> pathlib.Path:
    """The folder that the base will be written to, checked before anything is trained.

    Raises:
      InputError: the folder can't be written, or has files that this workdir did not write.
    """
    folder, own = pathlib.Path(config.export or workdir / "export"), workdir / "exported.json"
    with _reading(own):
        mine = own.exists() and str(folder.absolute()) in json.loads(own.read_text())
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()) and not mine and config.export:
            raise InputError(f"config.export: {folder} has files that this workdir did not write: name another folder")
        own.write_text(json.dumps([str(folder.absolute())]))
    return folder


@contextlib.contextmanager
def _reading(path: str | os.PathLike) -> Iterator[None]:
    """Turns errors of reading ``path`` into an `InputError`."""
    try:
        yield
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path} can't be read ({type(error).__name__}: {error})") from error


def windows(streams: list[np.ndarray], seed: int, step: int, batch: int, length: int) -> np.ndarray:
    """Windows int32[batch, length], half of them from each stream; a pure function of (seed, step)."""
    rng = np.random.default_rng((seed, step))
    rows = [
        stream[start : start + length]
        for stream, count in zip(streams, (batch - batch // 2, batch // 2), strict=True)
        for start in rng.integers(0, len(stream) - length, count)
    ]
    return np.stack(rows).astype(np.int32)


def decayed(params):
    """True for the leaves with weight decay: all but biases and scales. (By name, since blocks' leaves are stacked.)"""
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
    """Drops the rows after ``step``, which a killed run left; the run writes them again."""
    if log.exists():
        with _reading(log):
            rows = [row for row in log.read_text().splitlines(keepends=True) if row.endswith("\n")]
            kept = [row for row in rows if json.loads(row)["step"] <= step]
        with written_whole(log) as partial:
            partial.write_text("".join(kept))


def pretrain(config: Config, workdir: str, stop: Callable[[], bool] = lambda: False) -> str:
    """Trains up to ``config.steps``, continuing what the workdir holds. Returns the exported folder.

    Raises:
      InputError: see `check`, `prepare` and `check_export`; fewer steps than are trained already, or a workdir in use.
      FloatingPointError: a loss that is not finite.
      CheckpointError: a checkpoint that can't be written.
      Interrupted: ``stop``, called at each step, returned True; what was trained is saved.
    """
    check(config)
    root = pathlib.Path(workdir).absolute()
    with lock(root):
        return _pretrain(config, root, stop)


def _pretrain(config: Config, root: pathlib.Path, stop: Callable[[], bool]) -> str:
    tokenizer, streams = prepare(config, root)
    folder = check_export(config, root)
    _LOG.info("tokens of running text and of repeated spans: %d, %d", *map(len, streams))
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
        begun, latest = state, manager.latest_step() or 0
        if latest > config.steps:
            raise InputError(
                f"config.steps is {config.steps}, and {root} has trained {latest} already: name another --workdir"
            )
        first, state = newest(
            manager,
            root / "checkpoints",
            lambda at: manager.restore(at, args=ocp.args.StandardRestore(begun)),
            otherwise="delete it to begin anew, or name another --workdir",
        ) or (0, begun)
        truncate(root / "losses.jsonl", first)
        losses, start = [], time.time()
        for step in range(first, config.steps):
            state, loss = step_fn(state, windows(streams, config.seed, step, config.batch, config.length + 1))
            jax.block_until_ready(losses[-1:])  # dispatch one step ahead; a stop has to wait for all
            losses.append(loss)
            asked = stop()
            if asked or (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                mean = float(np.mean(jax.device_get(losses)))
                _LOG.info("step %d loss %.3f, %.2f s a step", step + 1, mean, (time.time() - start) / len(losses))
                if not np.isfinite(mean):
                    raise FloatingPointError(f"pretraining: loss is {mean} at step {step + 1}")
                with writing(root), (root / "losses.jsonl").open("a") as file:
                    file.write(json.dumps({"step": step + 1, "loss": mean}) + "\n")
                with saving(root / "checkpoints"):
                    manager.save(step + 1, args=ocp.args.StandardSave(state))
                    if asked or step + 1 == config.steps:
                        manager.wait_until_finished()
                losses, start = [], time.time()
            if asked and step + 1 < config.steps:
                raise Interrupted
    with writing(folder):
        save_gpt2(folder, model_config, state[0], tokenizer, EOS)
    return str(folder)
