"""What a method costs: the parameters of a task, the speed of training, peak memory."""

import pathlib
import re
import resource
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ftn_jax.lifelong.progress import Progress
from ftn_jax.pools.base import Pool


class Peak(NamedTuple):
    """The most memory that has been in use since the process began."""

    bytes: int
    of: str  # "device", the fullest of this process's; or "process", its resident size, if devices don't say


def peak_memory() -> Peak:
    """The peak so far, as the devices report it, or else the operating system."""
    devices = [device.memory_stats() or {} for device in jax.local_devices()]
    if all("peak_bytes_in_use" in stats for stats in devices):
        return Peak(max(stats["peak_bytes_in_use"] for stats in devices), "device")
    return Peak(_peak_resident(), "process")


def _peak_resident() -> int:
    status = pathlib.Path("/proc/self/status")
    # Linux counts the peak of the process that started this one into ru_maxrss.
    found = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE) if status.exists() else None
    return 1024 * (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def cost_of(
    pool: Pool, progress: Progress, own: Sequence[Sequence[Sequence[int]]], *, batch: int, before: Peak
) -> dict[str, Any]:
    """A method's entry ``cost`` in `results.json`.

    Args:
      pool: the pool that the method trained.
      progress: at the end of the stream.
      own: for each seed and task the components that the task owns.
      batch: examples of each seed per step.
      before: the peak when the method began.

    Returns:
      "parameters" and "bytes" of a task's own components, and "trained", the parameters of these that the optimizer
      sees, all as means over tasks and seeds; "examples_per_second" of all seeds together, None if no step was timed;
      and "memory", the peak as {"bytes", "of", "at_most"}. A peak can't be reset: if this method's is not above that
      of what ran before, it is only known to be at most as high.
    """
    seeds, components = len(progress.state.keys), np.mean([len(mask) for seed in own for mask in seed])
    answering = jax.tree.leaves(jax.eval_shape(lambda pool: pool.init(jax.random.key(0)), pool))
    per_component = {
        "parameters": sum(leaf.size for leaf in answering) / pool.size,
        "bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in answering) / pool.size,
        "trained": sum(leaf.size for leaf in jax.tree.leaves(progress.state.params)) / (seeds * pool.size),
    }
    steps, seconds = progress.pace["steps"], progress.pace["seconds"]
    peak = peak_memory()
    return {what: float(components * count) for what, count in per_component.items()} | {
        "examples_per_second": steps * seeds * batch / seconds if steps else None,
        "memory": peak._asdict() | {"at_most": peak.bytes <= before.bytes},
    }
