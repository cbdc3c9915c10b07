"""The one driver: stream x methods x seeds -> results.json, report.md, figures."""

import importlib.metadata
import json
import logging
import os
import pathlib
import subprocess
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
from ml_collections import ConfigDict

from ftn_jax import metrics
from ftn_jax.errors import InputError
from ftn_jax.evaluation import active_rows, evaluate_row
from ftn_jax.methods import Method
from ftn_jax.models.generate import greedy, pad_prompts
from ftn_jax.monitor import Monitor
from ftn_jax.pools.base import Pool
from ftn_jax.problem import Problem, build, check, describe, make_problem, seeds_of
from ftn_jax.report import write_report
from ftn_jax.streams.text import encode
from ftn_jax.trainer import State, init_state, train_task

_log = logging.getLogger("ftn_jax")
_PROTOCOLS = ("stored", "reconfig")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "transformers", "numpy")


def train_and_evaluate(
    config: ConfigDict,
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
    results = _open_workdir(config, workdir, fresh)
    pinned = results["base_model"]
    missing = [name for name in config.methods if name not in results["methods"]]
    if missing or pinned is None:
        problem = make_problem(config, pinned["name"] if pinned else config.base)
        _pin(results, problem, workdir)
        with Monitor(workdir, console) as monitor:
            for name in missing:
                try:
                    results["methods"][name] = run_method(config, problem, name, monitor)
                except FloatingPointError as error:
                    raise FloatingPointError(f"{name}: {error}") from error
                _write_json(workdir / "results.json", results)
    results["config"] = _plain(config)
    _write_json(workdir / "results.json", results)
    write_report(workdir, console)
    return results


def run_method(config: ConfigDict, problem: Problem, name: str, monitor: Monitor) -> dict[str, Any]:
    """Trains one method on the stream, all seeds at once; its entry in `results.json`."""
    compile_seconds, start = _CompileTime.total(), time.perf_counter()
    seeds, stream, training = seeds_of(config), problem.stream, problem.training
    method = build(config, name)
    pool = method.adapt_pool(problem.pool)
    monitor.start_method(name, seeds, stream.names, training.steps)
    state = init_state(pool, np.asarray(seeds, np.int32), method=method, training=training)
    installed, rows = [], []
    for i, data in enumerate(stream.tasks):
        state, active = train_task(
            pool,
            method,
            training,
            state,
            data,
            i,
            axis=stream.axis,
            on_chunk=lambda step, losses, i=i: monitor.chunk(i, step, losses),
        )
        installed.append(active)
        monitor.evaluating(i)
        rows.append(
            evaluate_row(pool, method, state, stream.tasks, i, installed, support=training.support, axis=stream.axis)
        )
        for protocol in _PROTOCOLS:
            scores = getattr(rows[-1], protocol)
            monitor.row(i, {f"{protocol}/{m}": np.mean(v[:, : i + 1]) for m, v in scores.items()})
    entry: dict[str, Any] = {"size": pool.size, "k": installed[0].shape[1], "grid": _grid(pool)}
    for protocol in _PROTOCOLS:
        scores = [getattr(row, protocol) for row in rows]
        matrices = {m: np.stack([s[m] for s in scores], axis=1) for m in scores[0]}
        entry[protocol] = metrics.summarise(matrices[stream.metric], stream.metric)
        if "exact_match" in matrices:
            entry[protocol]["exact_match"] = metrics.final_summary(matrices["exact_match"])
    masks = np.stack([np.asarray(active) for active in installed], axis=1)
    entry["masks"], entry["overlap"] = masks.tolist(), metrics.overlap(masks).tolist()
    entry["recovered"] = np.stack([np.asarray(active) for active in rows[-1].recovered], axis=1).tolist()
    entry["samples"] = _samples(problem, pool, method, state, rows[-1].recovered)
    compiled = _CompileTime.total() - compile_seconds
    entry["seconds"] = {"compile": compiled, "run": time.perf_counter() - start - compiled}
    return entry


def _grid(pool: Pool) -> int | None:
    side = round(pool.size**0.5)
    return side if side * side == pool.size else None


def _samples(problem: Problem, pool: Any, method: Method, state: State, recovered: list) -> list[dict[str, str]]:
    """What the first seed writes for a held-out sentence of each task, under the recovered masks: one batch."""
    stream, base = problem.stream, problem.base
    assert base is not None
    first = jax.tree.map(lambda leaf: leaf[:1], state)
    rows = [active_rows(first, active[:1], method=method) for active in recovered]
    adapters = pool.adapters(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *rows))
    pairs = [pairs[0] for pairs in stream.pairs]
    prompts = [encode(prompt, None, base.tokenizer).prompt for prompt, _ in pairs]
    tokens, valid = pad_prompts(prompts, base.tokenizer.eos_token_id)
    steps = max(task.test().labels.shape[1] for task in stream.tasks)
    written = greedy(base.params, adapters, tokens, valid, config=base.config, steps=steps)
    return [
        {
            "task": name,
            "prompt": prompt,
            "target": target,
            "output": base.tokenizer.decode(np.asarray(row).tolist(), skip_special_tokens=True),
        }
        for name, (prompt, target), row in zip(stream.names, pairs, written, strict=True)
    ]


def _open_workdir(config: ConfigDict, workdir: pathlib.Path, fresh: bool) -> dict[str, Any]:
    """What the workdir holds for this config, or an empty `results.json`.

    Raises:
      InputError: it belongs to another config, or can't be read or written.
    """
    path = workdir / "results.json"
    try:
        if fresh and workdir.exists():
            _set_aside(workdir)
        workdir.mkdir(parents=True, exist_ok=True)
        if path.exists():
            results = json.loads(path.read_text())
            _compare(results["config"], _plain(config), workdir)
            return results
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"workdir {workdir}: {error}") from error
    return {
        "experiment": config.experiment,
        "base_model": None,
        "config": _plain(config),
        "environment": _environment(),
        "task_names": list(config.stream.tasks),
        "metric": "cross_entropy",
        "seeds": list(seeds_of(config)),
        "methods": {},
    }


def _set_aside(workdir: pathlib.Path) -> None:
    number = 1
    while (aside := workdir.with_name(f"{workdir.name}.{number}")).exists():
        number += 1
    workdir.rename(aside)
    _log.info(f"what {workdir} held is now in {aside}")


def _compare(held: dict, asked: dict, workdir: pathlib.Path) -> None:
    """Raises InputError unless two configs differ in nothing but the methods that are run."""

    def flatten(tree, prefix="config"):
        if not isinstance(tree, dict):
            return {prefix: tree}
        return {k: v for name, leaf in tree.items() for k, v in flatten(leaf, f"{prefix}.{name}").items()}

    before, now = flatten(held), flatten(asked)
    differing = [key for key in sorted(before | now) if before.get(key) != now.get(key) and key != "config.methods"]
    if differing:
        listed = "; ".join(f"{key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in differing)
        raise InputError(f"workdir {workdir} belongs to another config ({listed}): name another --workdir, or --fresh")


def _pin(results: dict, problem: Problem, workdir: pathlib.Path) -> None:
    """Writes the resolved base into the workdir, or checks it against the one that is there."""
    found, pinned = describe(problem.base), results["base_model"]
    if pinned is not None and pinned != found:
        raise InputError(f"workdir {workdir} was run on base {pinned}, {found} is not the same: use --fresh")
    results["base_model"] = found
    _write_json(workdir / "results.json", results)


def _plain(config: ConfigDict) -> dict:
    """The config as JSON gives it back."""
    return json.loads(json.dumps(config.to_dict()))


def _environment() -> dict[str, Any]:
    git = subprocess.run(
        ["git", "-C", str(pathlib.Path(__file__).parent), "rev-parse", "--short=12", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
    )
    device = jax.devices()[0]
    return {
        "python": ".".join(map(str, __import__("sys").version_info[:3])),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
        "device": f"{len(jax.devices())} x {device.device_kind}",
        "cores": os.cpu_count(),
        "git_commit": git.stdout.strip() or None,
    }


def _write_json(path: pathlib.Path, value: Any) -> None:
    """Atomically: a reader sees the old file or the new one."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, allow_nan=False) + "\n")
    partial.replace(path)


class _CompileTime:
    """Seconds that JAX has spent tracing and compiling in this process."""

    _total: float | None = None

    @classmethod
    def total(cls) -> float:
        if cls._total is None:
            cls._total = 0.0
            jax.monitoring.register_event_duration_secs_listener(cls._listen)
        return cls._total

    @classmethod
    def _listen(cls, event: str, seconds: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            cls._total = (cls._total or 0.0) + seconds
