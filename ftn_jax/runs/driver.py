"""The one driver: stream x methods x seeds -> results.json, report.md, figures."""

import contextlib
import dataclasses
import functools
import logging
import os
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import rich.console

from ftn_jax.core import metrics
from ftn_jax.core.errors import InputError, Interrupted, NonFiniteLoss, NonFiniteScore
from ftn_jax.core.mesh import bytes_per_device, to_host
from ftn_jax.core.metrics import PROTOCOLS
from ftn_jax.core.rules import Config
from ftn_jax.core.torus import side_of
from ftn_jax.lifelong import reuse
from ftn_jax.lifelong.boundaries import remember, train_unannounced
from ftn_jax.lifelong.growth import free_components, make_room
from ftn_jax.lifelong.novelty import judge
from ftn_jax.lifelong.progress import Progress
from ftn_jax.lifelong.touched import Touched
from ftn_jax.methods import Method
from ftn_jax.pools.base import Pool, resized
from ftn_jax.report import write_report
from ftn_jax.runs.build import Problem, check, filled, grows, make_problem
from ftn_jax.runs.checkpoints import Checkpoints
from ftn_jax.runs.cost import cost_of, peak_memory
from ftn_jax.runs.diagnosis import DIVERGED, cause_of
from ftn_jax.runs.imported_adapters import begin_with, masks_of
from ftn_jax.runs.monitor import CompileClock, Monitor, OnEvent
from ftn_jax.runs.own_parts import own_parts
from ftn_jax.runs.restore import spec_of
from ftn_jax.runs.samples import write_samples
from ftn_jax.runs.workdir import changes, lock, open_results, pin_problem, save_results
from ftn_jax.streams import STREAMS
from ftn_jax.streams.base import without_test
from ftn_jax.training.evaluation import Row, evaluate_row, score_untrained
from ftn_jax.training.loop import train_task
from ftn_jax.training.processes import any_process, is_first, of_first
from ftn_jax.training.state import State, init_state


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
    stop: Callable[[], bool] = lambda: False,
    on_event: OnEvent = lambda event: None,
) -> dict[str, Any]:
    """Trains and evaluates what a config asks for and reports it, continuing from what the workdir already holds.

    Args:
      config: the tree of settings; see configs/.
      workdir: the folder to which everything is written.
      fresh: set aside what the workdir holds and start anew.
      console: for progress and tables; None is silent.
      stop: called every few steps; if it returns True, the run saves its state and ends.
      on_event: called with each event of the run, a dict that JSON can hold: see docs/your_own_tasks.md, section 9.

    Returns:
      The contents of `results.json`.

    Raises:
      InputError: a setting that can't work, or a workdir that belongs to another config or is in use by another run.
      FloatingPointError: a loss that is not finite; what was saved before is kept.
      CheckpointError: checkpoints that can't be written or read.
      Interrupted: ``stop`` returned True.
    """
    config = filled(config)
    check(config)
    workdir = pathlib.Path(workdir)
    first = is_first()
    on_event = on_event if first else lambda event: None
    console = console if console and first else rich.console.Console(quiet=True)
    with contextlib.ExitStack() as held:
        if first:
            held.enter_context(lock(workdir, fresh=fresh))
        # Only the first process writes reports.
        written = workdir if first else pathlib.Path(held.enter_context(tempfile.TemporaryDirectory()))
        results = of_first(lambda: open_results(config, workdir))
        done, pinned = results["methods"], results["base_model"]
        missing = [name for name in config.methods if name not in done]
        kind = STREAMS[config.stream.name]
        contents = kind.contents(config.stream[kind.tasks])
        for line in changes(results, contents, workdir) if first else ():
            logging.getLogger("ftn_jax").warning(line)
        if missing:
            results |= {"contents": contents, "parts": own_parts(config)}
            here = pinned and results["config"]["base"] == config.base  # otherwise the base has moved
            begun = spec_of(results) if "spec" in results else None
            problem = make_problem(config, pinned["name"] if here else config.get("base"), begun)
            pin_problem(results, problem, written)
            save_results(results, config, written)
            with Monitor(written, console, on_event, len(missing)) as monitor, jax.set_mesh(problem.mesh):
                for name in missing:
                    with Checkpoints(workdir / "checkpoints" / name) as checkpoints:
                        entry = run_method(problem, name, monitor, checkpoints, stop)
                    results["methods"][name] = entry
                    save_results(results, config, written)
        save_results(results, config, written)
        write_report(written, console, short=True)
        on_event({"event": "report", "time": time.time(), "file": str(workdir / "report.md")})
    return results


def run_method(
    problem: Problem, name: str, monitor: Monitor, checkpoints: Checkpoints, stop: Callable[[], bool]
) -> dict[str, Any]:
    """Trains one method on the stream, all seeds at once, starting from its last checkpoint.

    Returns:
      The method's entry in `results.json`.

    Raises:
      FloatingPointError: a loss or a metric that is not finite; names method, seed, task and step.
      CheckpointError: checkpoints that can't be written or read.
      Interrupted: ``stop`` returned True; what was trained is saved.
    """
    clock, began = _compile_clock(), time.perf_counter()
    compiled_before, memory_before = clock.total, peak_memory()
    seeds, stream, training, method = problem.seeds, problem.stream, problem.training, problem.methods[name]
    pool = method.adapt_pool(problem.pool)
    progress = checkpoints.restore(pool, method, training, len(stream.names), seeds)
    if progress is None:
        state = init_state(pool, np.asarray(seeds, np.int32), method=method, training=training)
        progress = Progress(state, Touched(len(seeds), len(stream.names), pool.size))
        begin_with(progress, pool, method, problem.adapters)
    taken = sorted(progress.imported.keys() & set(stream.names))
    if taken:
        raise InputError(
            f"a task is named {taken[0]!r}, and so is an adapter that was saved into {name}: rename the task's file"
        )
    earlier = dict(progress.seconds)
    logging.getLogger("ftn_jax").info(f"{name}: {_placement(problem, progress.state)}")

    def seconds():
        compiled = clock.total - compiled_before
        spent = {"compile": compiled, "run": time.perf_counter() - began - compiled}
        return {kind: earlier[kind] + value for kind, value in spent.items()}

    def save(progress):
        progress = dataclasses.replace(progress, seconds=seconds())
        checkpoints.save(progress, progress.task * training.steps + progress.step)

    if progress.task or progress.step:
        at = (
            f"task {stream.names[progress.task]!r}, step {progress.step}"
            if progress.task < len(stream.names)
            else "its end"
        )
        logging.getLogger("ftn_jax").info(f"{name}: continues from its checkpoint at {at}")
    monitor.start_method(name, seeds, stream.names, training.steps, progress)
    try:
        _follow_stream(problem, pool, method, progress, monitor, save, stop)
    except NonFiniteLoss as error:
        where = f"seed {seeds[error.seed]}, task {stream.names[error.task]!r}, step {error.step}"
        data = method.training_data(stream.tasks, error.task, stream.axis)
        feed = method.training_feed(stream.feed, len(stream.names), error.task)
        key = progress.state.keys[error.seed]
        cause = cause_of(error, pool, training, data, key, problem.base, axis=stream.axis, feed=feed)
        raise FloatingPointError(f"{name}: loss is {error.loss} for {where}; {cause}") from error
    except NonFiniteScore as error:
        where = f"seed {seeds[error.seed]}, task {stream.names[error.column]!r}"
        after = f"after training through task {stream.names[error.row]!r}"
        raise FloatingPointError(f"{name}: {error.score} for {where} {after}; {DIVERGED}") from error
    pool = resized(pool, progress.size)
    rows, recovered = progress.rows, progress.rows[-1].recovered
    masks = np.stack([to_host(selection.active) for selection in progress.selections], axis=1)
    every = range(len(seeds))
    found = [[selection.answering(seed, pool.size).tolist() for selection in to_host(recovered)] for seed in every]
    entry: dict[str, Any] = {"size": pool.size, "k": masks.shape[-1], "grid": side_of(pool.size)}
    entry["oracle"] = method.oracle
    untrained = _untrained(problem, pool, method, progress)
    entry["untrained"] = None if untrained is None else metrics.plain(untrained)
    for protocol in PROTOCOLS:
        scores = [getattr(row, protocol) for row in rows]
        matrices = {m: np.stack([s[m] for s in scores], axis=1) for m in scores[0]}
        entry[protocol] = metrics.summarise(matrices[stream.metric], stream.metric, untrained)
        if "exact_match" in matrices:
            entry[protocol]["exact_match"] = metrics.final_summary(matrices["exact_match"])
    own = [[mask[mask < pool.size].tolist() for mask in seed] for seed in masks]
    entry |= {"masks": own, "overlap": metrics.overlap(masks, pool.size).tolist(), "recovered": found}
    if progress.masks[0].frozen is not None:
        blocks = to_host(progress.selections)
        entry["answering"] = [[block.answering(seed, pool.size).tolist() for block in blocks] for seed in every]
    if method.reuses:
        entry["reuses"] = [reuse.directly(reuse.reused(*reuse.masks_of(progress, seed))) for seed in every]
    if progress.imported:
        entry["imported"] = masks_of(progress)
    if training.eval_steps:
        entry["validation"] = progress.validated
    if progress.touched.steps:
        entry["wandering"] = progress.touched.summary(masks)
    if not problem.announced:
        blocks = list(stream.returns or stream.names)
        entry["boundaries"] = [judge(memory.events, blocks) | {"events": memory.events} for memory in progress.memories]
    if problem.base is not None and stream.pairs:
        entry["samples"] = write_samples(
            stream, problem.base, pool, method, progress.state, recovered, support=training.support
        )
    entry["seconds"] = seconds()
    owned = own if method.trains else [[[]]]
    entry["cost"] = cost_of(pool, progress, owned, batch=training.batch, before=memory_before)
    monitor.finish_method(entry, stream.metric)
    return entry


def _follow_stream(
    problem: Problem,
    pool: Pool,
    method: Method,
    progress: Progress,
    monitor: Monitor,
    save: Callable[[Progress], None],
    stop: Callable[[], bool],
) -> None:
    """Trains and evaluates the rest of the stream in ``progress``; saves at boundaries and as often as configured."""
    stream, training, every, clock = problem.stream, problem.training, problem.save_every, _compile_clock()
    pool = resized(pool, progress.size)

    def room(pool):
        """The pool, which grows if it has no room for one more mask and may grow."""
        if not grows(problem.grow, method):
            if progress.imported and min(free_components(pool, method, progress)) < method.reserves:
                adapters = ", ".join(progress.imported)
                raise InputError(
                    f"config.pool.size is {pool.size}, and tasks and adapters ({adapters}) leave fewer than "
                    f"config.configurer.k = {method.reserves} components free: remove an adapter with python -m "
                    "ftn_jax.forget, or start a new workdir with a larger pool"
                )
            return pool
        divisor = problem.mesh.shape["pool"]
        return make_room(pool, method, training, progress, divisor=divisor)

    def earlier(task):
        """The earlier block whose mask this one trains further, if there is one."""
        return stream.continues[task] if stream.continues and method.reserves else None

    def running():
        """Seconds, without those that JAX has spent compiling."""
        return time.perf_counter() - clock.total

    def on_chunk(step, losses, masks, snapshot):
        nonlocal since
        progress.pace["steps"] += losses.shape[1]
        progress.pace["seconds"] += running() - since
        keep(step, losses, masks, snapshot)
        since = running()

    def on_validation(step, losses):
        progress.validated.append([progress.task, step, losses.tolist()])
        monitor.validation(progress.task, step, losses)
        monitor.tell("validation", task=stream.names[progress.task], step=step, losses=losses.tolist())

    def keep(step, losses, masks, snapshot):
        monitor.chunk(progress.task, step, losses)
        if masks is not None:
            progress.touched.add(progress.task, step, masks)
        if step == training.steps:
            return  # the end of the block is saved below
        ending = any_process(stop())
        due = step // every > (step - losses.shape[1]) // every
        if due or ending:
            state, selection = snapshot()
            now = dataclasses.replace(
                progress,
                state=state,
                step=step,
                masks=list(progress.masks),
                used=list(progress.used),
                validated=list(progress.validated),
            )
            if problem.announced:
                now.begin(selection, earlier(progress.task))
            save(now)
        if ending:
            raise Interrupted

    while True:
        if progress.task > len(progress.rows):
            i = progress.task - 1
            monitor.evaluating(i)
            state, installed, support = progress.state, progress.selections, training.support
            columns = scored_after(i, len(stream.tasks), problem.evaluate)
            row = evaluate_row(
                pool,
                method,
                state,
                stream.tasks,
                i,
                installed,
                support=support,
                axis=stream.axis,
                columns=columns,
            )
            _check_finite(row, i, columns)
            progress.rows.append(row)
            monitor.row(i, row)
            scores = {p: {m: metrics.plain(v) for m, v in getattr(row, p).items()} for p in PROTOCOLS}
            monitor.tell("scores", task=stream.names[i], **scores)
            if any_process(stop()):
                raise Interrupted
        if progress.task == len(stream.tasks):
            return
        data = method.training_data(list(map(without_test, stream.tasks)), progress.task, stream.axis)
        block = {
            "axis": stream.axis,
            "feed": method.training_feed(stream.feed, len(stream.tasks), progress.task),
            "on_chunk": on_chunk,
        }
        if training.eval_steps:
            block |= {"validation": stream.tasks[progress.task].validation, "on_validation": on_validation}
        since = running()
        if not problem.announced:
            pool = train_unannounced(pool, method, training, progress, data, room=room, **block)
        else:
            task, start, again = progress.task, progress.step, earlier(progress.task)
            known = task if start else again
            begun = None if known is None else progress.selection(known)
            pool = pool if begun else room(pool)
            progress.state, selection = train_task(
                pool, method, training, progress.state, data, task,
                start=start, begun=begun, installed=progress.held, **block,
            )  # fmt: skip
            progress.begin(selection, again)
            if method.reserves:
                remember(pool, method, training, progress, data, axis=stream.axis)
        progress.task, progress.step = progress.task + 1, 0
        save(progress)
        if any_process(stop()):
            raise Interrupted


def _untrained(problem: Problem, pool: Pool, method: Method, progress: Progress) -> np.ndarray | None:
    """The untrained model's metric on each task, [E, N]; None unless all tasks are scored before they are trained."""
    stream = problem.stream
    if problem.evaluate != "all" or len(set(stream.returns)) < len(stream.returns):
        return None
    selection = progress.selections[-1]
    found = score_untrained(pool, method, progress.state, stream.tasks, selection, axis=stream.axis)[stream.metric]
    return np.where(np.isfinite(found), found, np.nan)


def scored_after(i: int, tasks: int, evaluate: str) -> list[int]:
    """The tasks that are scored after block i; after the last, every one."""
    if evaluate == "all" or i == tasks - 1:
        return list(range(tasks))
    return list(range(i + 1)) if evaluate == "seen" else [i]


def _check_finite(row: Row, i: int, columns: list[int]) -> None:
    for protocol, scored in (("stored", [j for j in columns if j <= i]), ("reconfig", columns)):
        for metric, values in getattr(row, protocol).items():
            for j, seed in np.argwhere(~np.isfinite(values[:, scored].T)):
                at = int(seed), i, scored[j]
                raise NonFiniteScore(f"{protocol} {metric} is {values[seed, scored[j]]}", *at)


def _placement(problem: Problem, state: State) -> str:
    """The mesh, and the megabytes that each of its devices holds, in words."""
    mesh = problem.mesh
    parts = {
        "base": problem.base.params if problem.base else (),
        "data": problem.stream.tasks,
        "components": (state.params, state.extra),
        "moments": state.opt_state,
    }
    sizes = ", ".join(f"{what} {bytes_per_device(tree) / 1e6:.1f} MB" for what, tree in parts.items() if tree)
    axes = " x ".join(f"{axis} {count}" for axis, count in mesh.shape.items())
    return f"{axes} on {mesh.size} of {jax.device_count()} devices, on each {sizes}"
