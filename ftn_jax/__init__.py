"""Functional Task Networks in JAX: continual learning in sparse, recoverable parts of one model."""

import sys

if sys.argv[:1] == ["-m"]:  # a command, which is still importing
    from ftn_jax import starting

    starting.watch()

from ftn_jax.configurer import MaskProposal, smooth_kwta
from ftn_jax.errors import InputError
from ftn_jax.experiment import train_and_evaluate
from ftn_jax.methods import METHODS, Configurer, Method, Selection, register_method
from ftn_jax.model import Model, Recovery, load
from ftn_jax.pools import register_pool
from ftn_jax.pools.base import Pool
from ftn_jax.pools.lora import LoraPool, TokenBatch
from ftn_jax.pools.neurons import NeuronPool, PointBatch
from ftn_jax.report import write_report
from ftn_jax.streams import Context, Stream, register_stream

__all__ = [
    "METHODS",
    "Configurer",
    "Context",
    "InputError",
    "LoraPool",
    "MaskProposal",
    "Method",
    "Model",
    "NeuronPool",
    "PointBatch",
    "Pool",
    "Recovery",
    "Selection",
    "Stream",
    "TokenBatch",
    "load",
    "register_method",
    "register_pool",
    "register_stream",
    "smooth_kwta",
    "train_and_evaluate",
    "write_report",
]
