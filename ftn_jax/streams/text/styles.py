"""The style stream: one corpus of sentences, and a text transformation for each task (section 3, Experiment 2).

The prompt is the sentence and a newline; the completion is the transformed sentence.
"""

from collections.abc import Sequence

from ftn_jax.core.errors import InputError
from ftn_jax.models.tokens import check_length
from ftn_jax.streams.base import TEXT, Context, Stream, task_of
from ftn_jax.streams.text.sentences import SPLITS
from ftn_jax.streams.text.task import make_task
from ftn_jax.streams.text.transforms import TRANSFORMS, transform


def styles(
    context: Context, names: Sequence[str], *, max_length: int, held_out: str = "test", validation: float = 0.0
) -> Stream:
    """The tasks ``names`` (see `transform`) over the 120 sentences: 80 train, 20 recovery, 20 test.

    ``held_out`` "validation" is for choosing settings: every fifth training sentence is scored instead of trained on,
    and the test sentences are not used. ``validation`` is the share of the training sentences, spread evenly over them,
    by which the best step of each task's training is chosen. A task may come back: "upper#2" is "upper" again.
    "reverse_words+upper" applies both transformations, one after the other.

    Raises:
      InputError: a name is unknown, an example is longer than ``max_length`` tokens, the base has fewer positions, or
        the share for validation is no sentence or all.
    """
    base = context.base
    check_length(max_length, base)
    try:
        writers = [transform(task_of(name)) for name in names]
    except KeyError as error:
        known = ", ".join(TRANSFORMS)
        raise InputError(f"config.stream.tasks: unknown task {error.args[0]!r}, known: {known}") from None
    sentences = dict(SPLITS)
    if held_out == "validation":
        train = SPLITS["train"]
        sentences |= {"train": tuple(x for i, x in enumerate(train) if i % 5), "test": train[::5]}
    if validation:
        train, count = sentences["train"], round(validation * len(sentences["train"]))
        if not 0 < count < len(train):
            raise InputError(f"config.stream.validation is {validation}, which is {count} of {len(train)} sentences")
        chosen = {int((i + 0.5) * len(train) / count) for i in range(count)}
        sentences["validation"] = tuple(train[i] for i in sorted(chosen))
        sentences["train"] = tuple(x for i, x in enumerate(train) if i not in chosen)
    splits = [{s: [(f"{x}\n", write(x)) for x in xs] for s, xs in sentences.items()} for write in writers]
    return Stream(
        tuple(names),
        [make_task(n, split, base.tokens, max_length) for n, split in zip(names, splits, strict=True)],
        "cross_entropy",
        TEXT,
        examples=[{"training": len(split["train"]), "recovery": len(split["recovery"])} for split in splits],
        pairs=[split["test"] for split in splits],
        returns=list(map(task_of, names)),
    )
