"""Several processes as one run, each with its own devices: how they join, agree and end (JAX's distributed runtime)."""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ftn_jax.core.errors import InputError

_MEETING = 120  # seconds within which the processes have to connect
_SILENCE = 30  # seconds without a heartbeat after which a process counts as dead
_COLLECTIVES = ("Gloo", "NCCL", "RCCL")  # libraries by which processes exchange data; errors name them


def join(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Joins the other processes of a run; call it before JAX looks for devices.

    Arguments that are None come from the cluster's scheduler, if JAX detects it (SLURM, Open MPI, Kubernetes).

    Args:
      coordinator: HOST:PORT on the first process's host.
      processes: how many there are.
      process: the index of this one, from 0.

    Raises:
      InputError: an argument is neither given nor detected, or the other processes did not connect.
    """
    # The service's handler of SIGTERM would replace ours, which saves the run.
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
    """Whether this is the first process, which reports, or the only one."""
    return jax.process_index() == 0


def any_process(value: bool) -> bool:
    """Whether ``value`` is true in any process; all processes have to call this."""
    return bool(np.any(multihost_utils.process_allgather(np.bool_(value))))


def of_first(function: Callable[[], Any]) -> Any:
    """The result of ``function``, which only the first process calls; it has to be a JSON value."""
    if jax.process_count() == 1:
        return function()
    text = json.dumps(function()).encode() if is_first() else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int64(len(text))))
    return json.loads(multihost_utils.broadcast_one_to_all(np.frombuffer(text.ljust(size), np.uint8)).tobytes())


def is_of_another_process(error: BaseException | None) -> bool:
    """Whether an error, or its cause, comes from a computation that another process failed to join."""
    if error is None or not jax.distributed.is_initialized():
        return False
    failed = isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error)
    # If a computation fails while it runs, converting its result to a NumPy array raises ValueError.
    collected = isinstance(error, ValueError) and any(library in str(error) for library in _COLLECTIVES)
    return failed or collected or is_of_another_process(error.__cause__ or error.__context__)


def end(code: int) -> None:
    """Ends this process in the middle of a run, which ends all the others.

    A normal exit would first wait for the others, which wait for this one to go on computing.
    """
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
