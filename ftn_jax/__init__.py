"""Functional Task Networks in JAX: continual learning in sparse, recoverable parts of one model."""

import os
import sys

if os.path.basename("".join(sys.argv[:1])) in ("-m", "ftn", "sweep.py"):  # a command, which is still importing
    from ftn_jax.cli import starting

    starting.watch()

from ftn_jax.core import rules
from ftn_jax.core.configurer import smooth_kwta
from ftn_jax.core.errors import InputError
from ftn_jax.methods import METHODS, Configurer, Method, Selection, register_method
from ftn_jax.methods.building import make_method
from ftn_jax.models import register_family
from ftn_jax.models.pretrained import load as load_base
from ftn_jax.pools import register_pool
from ftn_jax.pools.base import Pool, gather, scatter
from ftn_jax.pools.lora import LoraPool, TokenBatch, lora_pool
from ftn_jax.pools.neurons import NeuronPool, PointBatch
from ftn_jax.report import write_report
from ftn_jax.runs.build import filled
from ftn_jax.runs.driver import train_and_evaluate
from ftn_jax.runs.fit import fit
from ftn_jax.runs.load import load
from ftn_jax.runs.trained import Model, Recovery
from ftn_jax.runs.trained_language import LanguageModel
from ftn_jax.streams import Context, Spec, Stream, register_stream
from ftn_jax.streams.memory import make_stream
from ftn_jax.training.evaluation import evaluate_row
from ftn_jax.training.loop import train_task
from ftn_jax.training.state import Training, init_state

__all__ = [
    "METHODS",
    "Configurer",
    "Context",
    "InputError",
    "LanguageModel",
    "LoraPool",
    "Method",
    "Model",
    "NeuronPool",
    "PointBatch",
    "Pool",
    "Recovery",
    "Selection",
    "Spec",
    "Stream",
    "TokenBatch",
    "Training",
    "evaluate_row",
    "filled",
    "fit",
    "gather",
    "init_state",
    "load",
    "load_base",
    "lora_pool",
    "make_method",
    "make_stream",
    "register_family",
    "register_method",
    "register_pool",
    "register_stream",
    "rules",
    "scatter",
    "smooth_kwta",
    "train_and_evaluate",
    "train_task",
    "write_report",
]
