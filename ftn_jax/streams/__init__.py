"""The registry of streams of tasks: name -> the function that builds the `Stream`, and its settings."""

from collections.abc import Callable, Mapping
from typing import Any

from ftn_jax.core.registry import Kind, register
from ftn_jax.core.rules import PART, POSITIVE, SHARE, SIZE, Rule, one_of, whole
from ftn_jax.models.pretrained import BASE_SETTINGS
from ftn_jax.streams.arrays import arrays, arrays_stream
from ftn_jax.streams.base import TEXT, Context, Spec, Stream
from ftn_jax.streams.examples import MOST_CLASSES
from ftn_jax.streams.files import LISTING, OWN, contents, listed, task_names
from ftn_jax.streams.synthetic import synthetic
from ftn_jax.streams.text.jsonl import jsonl
from ftn_jax.streams.text.styles import styles

__all__ = ["STREAMS", "TEXT", "Context", "Spec", "Stream", "arrays_stream", "register_stream"]

STREAMS: dict[str, Kind] = {
    "styles": Kind(
        styles,
        {
            **BASE_SETTINGS,
            "stream.max_length": whole(2),
            "stream.held_out": one_of("test", "validation"),
            "stream.validation": SHARE,
        },
        grows=True,
        tasks="tasks",
        defaults={
            "stream.steps": 200,
            "stream.batch": 8,
            "stream.max_length": 96,
            "stream.held_out": "test",
            "stream.validation": 0.0,
            "configurer.support": 16,
        },
        experiment="lora",
    ),
    "jsonl": Kind(
        jsonl,
        {
            **BASE_SETTINGS,
            "stream.max_length": whole(2),
            "stream.recovery": PART,
            "stream.test": PART,
            "stream.validation": SHARE,
            "stream.long_texts": one_of("split", "cut"),
            **LISTING,
        },
        grows=True,
        tasks="files",
        names=task_names,
        contents=contents,
        defaults={
            "stream.steps": 200,
            "stream.batch": 8,
            "stream.max_length": 128,
            "stream.recovery": 0.15,
            "stream.test": 0.15,
            "stream.validation": 0.0,
            "stream.long_texts": "split",
            "stream.drawn": (0, 0),
            "stream.source": OWN,
            "configurer.support": 8,
            # Such tasks are many; each is to be as small as an adapter of today: see docs/many_tasks.md.
            "pool.rank": 2,
            "pool.modules": ("all-linear",),
            "configurer.k": 8,
            "configurer.steps": 1,
            "optimizer.learning_rate": 2e-3,
            "optimizer.max_grad_norm": 1.0,
        },
        listing=("drawn", "source"),
        listed=listed,
    ),
    "arrays": Kind(
        arrays,
        {
            "stream.recovery": PART,
            "stream.test": PART,
            "stream.validation": SHARE,
            "stream.classes": whole(0, MOST_CLASSES),
        },
        grows=True,
        tasks="files",
        names=task_names,
        contents=contents,
        defaults={
            "stream.steps": 300,
            "stream.batch": 32,
            "stream.recovery": 0.15,
            "stream.test": 0.15,
            "stream.validation": 0.0,
            "stream.classes": 0,
            "configurer.support": 64,
        },
    ),
    "synthetic": Kind(
        synthetic,
        {
            "stream.target": one_of("classification", "regression"),
            "stream.block": whole(1, 10**4),
            "stream.scale": POSITIVE,
            "stream.frequency": POSITIVE,
            "stream.test": SIZE,
        },
        tasks="tasks",
        defaults={
            "stream.target": "classification",
            "stream.steps": 1000,
            "stream.batch": 256,
            "stream.block": 8,
            "stream.scale": 0.375,
            "stream.frequency": 8.0,
            "stream.test": 2048,
            "configurer.support": 256,
        },
        experiment="stream.target",
    ),
}


def register_stream(
    name: str,
    build: Callable[..., Stream],
    settings: Mapping[str, Rule],
    *,
    grows: bool = False,
    defaults: Mapping[str, Any] = {},
) -> None:
    """Adds a stream that ``config.stream.name`` can choose.

    Args:
      name: a new name.
      build: (context, names, **settings) -> Stream. It gets ``config.stream.tasks`` as names, and the other settings of
        ``config.stream`` except steps and batch.
      settings: the settings that the stream adds, each with its rule: "stream.length" -> `Rule`.
      grows: whether appending names leaves the earlier tasks unchanged, so that a finished run can go on.
      defaults: values of settings, of the stream or others, for configs that leave them out: "stream.steps" -> 100.

    Raises:
      InputError: the name is taken.
    """
    register(STREAMS, "stream", name, Kind(build, settings, grows, "tasks", defaults=defaults))
