"""The one driver: stream x methods x seeds -> results.json, report.md, figures."""

import functools
import os
import pathlib
import time
from typing import Any

import jax
import numpy as np
import rich.console

from ftn_jax import metrics
from ftn_jax.errors import NonFiniteLoss
from ftn_jax.evaluation import Row, evaluate_row
from ftn_jax.monitor import CompileClock, Monitor
from ftn_jax.pools.base import Pool
from ftn_jax.problem import Problem, build, check, make_problem, seeds_of
from ftn_jax.report import write_report
from ftn_jax.report.tables import PROTOCOLS
from ftn_jax.samples import write_samples
from ftn_jax.settings import Config
from ftn_jax.trainer import init_state, train_task
from ftn_jax.wandering import Wandering
from ftn_jax.workdir import open_results, pin_problem, save_results

_ADVICE = "expected a finite number: lower config.optimizer.learning_rate"


@functools.cache
def _compile_clock() -> CompileClock:
    clock = CompileClock()
    jax.monitoring.register_event_duration_secs_listener(clock.listen)
    return clock


def train_and_evaluate(
    config: Config,
    workdir: str | os.PathLike,
    *,
    fresh: bool = False,
    console: rich.console.Console | None = None,
) -> dict[str, Any]:
    """Runs what a config asks for and reports it; methods that the workdir has finished are kept.

    Args:
      config: the tree of DESIGN.md section 6; see configs/.
      workdir: where everything is written.
      fresh: set aside what the workdir holds and start anew.
      console: for progress and tables; None is silent.

    Returns:
      The contents of `results.json`.

    Raises:
      InputError: a setting that can't work, or a workdir of another config.
      FloatingPointError: a loss that is not finite; what was finished before is kept.
    """
    check(config)
    console = console or rich.console.Console(quiet=True)
    workdir = pathlib.Path(workdir)
    results = open_results(config, workdir, fresh=fresh)
    done, pinned = results["methods"], results["base_model"]
    missing = [name for name in config.methods if name not in done]
    if missing:
        problem = make_problem(config, pinned["name"] if pinned else config.get("base"))
        pin_problem(results, problem, workdir)
        with Monitor(workdir, console, keep=done) as monitor:
            for name in missing:
                results["methods"][name] = run_method(config, problem, name, monitor)
                save_results(results, config, workdir)
    save_results(results, config, workdir)
    write_report(workdir, console)
    return results


def run_method(config: Config, problem: Problem, name: str, monitor: Monitor) -> dict[str, Any]:
    """Trains one method on the stream, all seeds at once; its entry in `results.json`.

    Raises:
      FloatingPointError: a loss or a metric that is not finite; names method, seed, task and step.
    """
    clock, start = _compile_clock(), time.perf_counter()
    compiled_before = clock.total
    seeds, stream, training = seeds_of(config), problem.stream, problem.training
    method = build(config, name)
    pool = method.adapt_pool(problem.pool)
    monitor.start_method(name, seeds, stream.names, training.steps)
    state = init_state(pool, np.asarray(seeds, np.int32), method=method, training=training)
    installed, rows, wandering = [], [], Wandering(len(seeds), len(stream.names), pool.size)
    for i, data in enumerate(stream.tasks):

        def on_chunk(step, losses, masks, i=i):
            monitor.chunk(i, step, losses)
            if masks is not None:
                wandering.add(i, step, masks)

        try:
            state, active = train_task(pool, method, training, state, data, i, axis=stream.axis, on_chunk=on_chunk)
        except NonFiniteLoss as error:
            where = f"seed {seeds[error.seed]}, task {stream.names[error.task]!r}, step {error.step}"
            raise FloatingPointError(f"{name}: loss is {error.loss} for {where}; {_ADVICE}") from error
        installed.append(active)
        monitor.evaluating(i)
        rows.append(
            evaluate_row(pool, method, state, stream.tasks, i, installed, support=training.support, axis=stream.axis)
        )
        _check_finite(rows[-1], i, name, seeds, stream.names)
        for protocol in PROTOCOLS:
            scores = getattr(rows[-1], protocol)
            monitor.row(i, {f"{protocol}/{m}": np.mean(v[:, : i + 1]) for m, v in scores.items()})
    masks = np.stack([np.asarray(selection.active) for selection in installed], axis=1)
    found = np.stack([np.asarray(selection.active) for selection in rows[-1].recovered], axis=1)
    entry: dict[str, Any] = {"size": pool.size, "k": masks.shape[-1], "grid": _grid(pool)}
    for protocol in PROTOCOLS:
        scores = [getattr(row, protocol) for row in rows]
        matrices = {m: np.stack([s[m] for s in scores], axis=1) for m in scores[0]}
        entry[protocol] = metrics.summarise(matrices[stream.metric], stream.metric)
        if "exact_match" in matrices:
            entry[protocol]["exact_match"] = metrics.final_summary(matrices["exact_match"])
    entry |= {"masks": masks.tolist(), "overlap": metrics.overlap(masks).tolist(), "recovered": found.tolist()}
    if wandering.steps:
        entry["wandering"] = wandering.summary(masks)
    if problem.base is not None:
        entry["samples"] = write_samples(stream, problem.base, pool, method, state, rows[-1].recovered)
    compiled = clock.total - compiled_before
    entry["seconds"] = {"compile": compiled, "run": time.perf_counter() - start - compiled}
    monitor.finish_method(entry, stream.metric)
    return entry


def _check_finite(row: Row, i: int, name: str, seeds: tuple[int, ...], task_names: tuple[str, ...]) -> None:
    for protocol, columns in (("stored", i + 1), ("reconfig", len(task_names))):
        for metric, values in getattr(row, protocol).items():
            for seed, j in np.argwhere(~np.isfinite(values[:, :columns])):
                where = f"seed {seeds[seed]}, task {task_names[j]!r} after training through task {task_names[i]!r}"
                raise FloatingPointError(f"{name}: {protocol} {metric} is {values[seed, j]} for {where}; {_ADVICE}")


def _grid(pool: Pool) -> int | None:
    side = round(pool.size**0.5)
    return side if side * side == pool.size else None
