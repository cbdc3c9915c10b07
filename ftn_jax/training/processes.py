"""A run of several processes, each with its devices: how they meet, agree and end (JAX's distributed runtime)."""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ftn_jax.core.errors import InputError

_MEETING = 120  # seconds that the processes have to find one another
_SILENCE = 30  # seconds without a sign of life after which a process is taken for dead
_COLLECTIVES = ("Gloo", "NCCL", "RCCL")  # by which processes exchange what they compute


def join(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Joins the other processes of a run; to be called before jax has looked for devices.

    Args:
      coordinator: HOST:PORT on the first process's host; what is None a cluster's scheduler tells (SLURM, Open MPI,
        Kubernetes: those that JAX detects).
      processes: how many there are.
      process: which of them this is, from 0.

    Raises:
      InputError: something is neither given nor found, or the others did not come.
    """
    # Its handler of SIGTERM would replace ours, which has the run save.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            initialization_timeout=_MEETING,
            heartbeat_timeout_seconds=_SILENCE,
            shutdown_timeout_seconds=_SILENCE,
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"--distributed: {error} Expected a cluster that JAX detects, or --coordinator=HOST:PORT --processes=N "
            "--process=I with the same HOST:PORT on each of N processes"
        ) from error


def is_first() -> bool:
    """Whether this is the process that reports, or the only one."""
    return jax.process_index() == 0


def any_process(value: bool) -> bool:
    """Whether it is true for one of the processes; all have to ask."""
    return bool(np.any(multihost_utils.process_allgather(np.bool_(value))))


def of_first(function: Callable[[], Any]) -> Any:
    """What ``function`` gives on the first process, where alone it is called; something that JSON can hold."""
    if jax.process_count() == 1:
        return function()
    text = json.dumps(function()).encode() if is_first() else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int64(len(text))))
    return json.loads(multihost_utils.broadcast_one_to_all(np.frombuffer(text.ljust(size), np.uint8)).tobytes())


def is_of_another_process(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is that of a computation in which another process does not take part."""
    if error is None or not jax.distributed.is_initialized():
        return False
    failed = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error)
    # A computation that failed on the way is a ValueError to whoever makes NumPy's array of its result.
    collected = isinstance(error, ValueError) and any(library in str(error) for library in _COLLECTIVES)
    return failed or collected or is_of_another_process(error.__cause__ or error.__context__)


def end(code: int) -> None:
    """Ends this process in the midst of a run, and with it all others.

    An exit as any would first wait for the others, who wait for this one to go on computing.
    """
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
