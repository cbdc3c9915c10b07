"""A grid over settings, methods and seeds: a run for each member, one table and one figure of them all.

    python launch/sweep.py --config=configs/synthetic.py:classification,quick --out=runs/sweep \\
        --grid.configurer.k=64,128 --grid.optimizer.learning_rate=0.001,0.01 --at_once=2

Needs requirements-launch.txt. Edit nothing; say what is to be run:

  --grid.SETTING=VALUE,VALUE   values of config.SETTING; the members are all combinations. Tuples are values too:
                               --grid.methods="('ftn_slow','kwta'),nomask" --grid.seeds="(0,1),(2,3)"
  --config.SETTING=VALUE       for all members, as in ftn_jax.main
  --executor=slurm             a SLURM job for each member, from a login node, with sbatch's options by their names
                               (and _ for -): --slurm.partition=gpu --slurm.gpus_per_node=1; --slurm.time in minutes

A member is one `python -m ftn_jax.main` with a folder of its own in --out, named after its values. Members that differ
in nothing but methods and seeds are put together in the table. The same command again runs only what has failed or is
missing, from its checkpoints on. The exit code is 1 where members have failed, 2 for a fault of the command line.
"""

import ast
import csv
import hashlib
import itertools
import math
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import rich.console
import submitit
from absl import flags
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from submitit.core.utils import UncompletedJobError

import ftn_jax.main
from ftn_jax import metrics
from ftn_jax.errors import InputError
from ftn_jax.main import UsageError
from ftn_jax.problem import check, seeds_of
from ftn_jax.report import tables
from ftn_jax.settings import Config
from ftn_jax.signals import asked_to_stop
from ftn_jax.workdir import open_results, read_results

_FLAGS = "--config, --out, --executor, --at_once, --grid.SETTING, --config.SETTING, --slurm.OPTION, --help"
_POLL = 0.5  # seconds between looks at the jobs
_PIPED_WIDTH = 120  # columns of the table where the output is not a terminal
_LONGEST_NAME = 150  # of a member's folder
_UNFIT = re.compile(r"[^-\w.]+")  # for it
_YEAR = 365 * 24 * 60  # minutes: no limit
_SLURM = {"job_name": "ftn_jax_sweep", "time": 240}
_MAX_REQUEUES = 100  # of a member that reaches SLURM's time limit; it goes on each time
_MERGED = ("methods", "seeds")  # settings whose members share rows of the table
_STYLES = {"stored": ":s", "reconfig": "-o"}  # line and marker in the figure
_GAP = {"mean": math.nan, "std": math.nan}  # in the figure's lines
_VOICE = "ftn_jax: "  # begins the line with which a run ends early
_SUMMARIES = ("final", "fm", "fm_rise", "bwt")


class Member(NamedTuple):
    """One run of the grid."""

    values: dict[str, str]  # of the grid's settings
    config: Config
    workdir: pathlib.Path
    command: list[str]


class Sweep(NamedTuple):
    """What the command line asks for."""

    config: str
    grid: dict[str, list[str]]
    members: list[Member]
    out: pathlib.Path
    executor: str
    at_once: int
    slurm: dict[str, Any]


class Failure(NamedTuple):
    """A member that has not been finished: one line that says why, and the file with all that it printed, if any."""

    member: Member
    reason: str
    log: pathlib.Path | None


class Row(NamedTuple):
    """One method and protocol at one place of the grid."""

    place: tuple[str, ...]  # see `place_of`
    method: str
    protocol: str
    seeds: int
    summary: dict[str, Any]  # of `metrics.summarise`


class Run(submitit.helpers.Checkpointable):
    """The job of a member: runs its command. After a time limit submitit queues it again, and the command goes on."""

    def __call__(self, command: list[str], log: pathlib.Path) -> str:
        """Appends all that the command prints to ``log``; returns the line that says how it ended."""
        with log.open("ab+") as file:
            begin = file.seek(0, os.SEEK_END)
            with subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as run:
                # It is the command that saves where it stands; this process waits for it.
                signal.signal(signal.SIGTERM, lambda *_: run.terminate())
                try:
                    code = run.wait()
                finally:
                    run.terminate()
            file.seek(begin)
            lines = file.read().decode(errors="replace").strip().splitlines()
        said = [line for line in lines if line.startswith(_VOICE)]
        if said:
            return said[-1].removeprefix(_VOICE)
        return ": ".join([f"exit code {code}", *lines[-1:]])


def main(argv: Sequence[str], asked: Callable[[], int | None] = lambda: None) -> int:
    """Runs the command line ``argv`` (its first entry is the program), until ``asked`` gives a signal.

    Returns:
      The exit code: 1 where members have failed.

    Raises:
      UsageError: see `parse` and `make_executor`.
    """
    sweep = parse(argv)
    console = rich.console.Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH, highlight=False, markup=False)
    failures, missing = [], []
    for member in sweep.members:
        try:
            check(member.config)
            if not finished(member):
                missing.append(member)
        except InputError as error:
            failures.append(Failure(member, str(error), None))
    have = len(sweep.members) - len(missing) - len(failures)
    console.print(f"{len(sweep.members)} members in {sweep.out}, {have} finished already")
    if missing:
        failures += run_members(sweep, missing, console, asked)
    if not asked():
        report(sweep, failures, console)
    for member, reason, log in failures:
        where = f"log: {log}" if log else "not started"
        print(f"failed: {member.workdir.name}: {reason} ({where})", file=sys.stderr)
    return 1 if failures else 0


def parse(argv: Sequence[str]) -> Sweep:
    """The command line ``argv``, with a config for each member.

    Raises:
      UsageError: an unknown flag or setting, a value of the wrong type, members that are the same.
      SystemExit: after --help.
    """
    own = flags.FlagValues()
    flags.DEFINE_string("config", None, "A file of configs/, with ':argument' if it takes one.", flag_values=own)
    flags.DEFINE_string("out", None, "Where to write; default runs/<config file>-<argument>-sweep.", flag_values=own)
    flags.DEFINE_enum("executor", "local", ["local", "slurm"], "Where the members run.", flag_values=own)
    flags.DEFINE_integer(
        "at_once", None, "Members side by side; default 1 locally, all of them on SLURM.", 1, flag_values=own
    )
    flags.DEFINE_bool("help", False, "Show this.", flag_values=own)
    own.set_gnu_getopt(True)
    try:
        rest = own(argv, known_only=True)[1:]
    except flags.Error as error:
        raise UsageError(f"{error}; see --help") from error
    if own.help:
        print(f"{__doc__}\n{own.get_help(include_special_flags=False)}")
        sys.exit()
    if not own.config:
        raise UsageError("--config is missing, expected a config's file, as --config=configs/lora.py:quick")
    grid, slurm, shared = {}, {}, {}
    for argument in rest:
        match = re.fullmatch(r"--?(grid|slurm|(?:no)?config)\.([\w.]+)(?:=(.*))?", argument, re.DOTALL)
        if not match or (match[1] in ("grid", "slurm") and match[3] is None):
            raise UsageError(f"unexpected argument {argument!r}, expected {_FLAGS}, each with =VALUE")
        if match[1] == "grid":
            grid[match[2]] = split_values(match[3])
        elif match[1] == "slurm":
            slurm[match[2]] = _literal(match[3])
        else:
            shared[match[2]] = argument
    if not grid:
        raise UsageError("--grid is missing, expected values of a setting, as --grid.configurer.k=64,128")
    for name in grid.keys() & shared.keys():  # tuples would be put together
        raise UsageError(f"{name} is in --grid.{name} and in {shared[name]}, expected one of them")
    if "experiment" in grid:
        raise UsageError("--grid.experiment: the members of one sweep are compared by one metric, start two")
    if not isinstance(slurm.get("time", 1), int):
        raise UsageError(f"--slurm.time={slurm['time']}, expected a whole number of minutes")
    if slurm and own.executor != "slurm":
        raise UsageError(f"--slurm.{next(iter(slurm))} needs --executor=slurm, found --executor={own.executor}")
    out = pathlib.Path(own.out or f"{ftn_jax.main.default_workdir(own.config)}-sweep")
    members = []
    for choice in itertools.product(*grid.values()):
        values = dict(zip(grid, choice, strict=True))
        workdir = out / member_name(values)
        overrides = [*shared.values(), *(f"--config.{name}={value}" for name, value in values.items())]
        arguments = [f"--config={own.config}", *overrides, f"--workdir={workdir}"]
        config = ftn_jax.main.parse(["sweep", *arguments]).config
        members.append(Member(values, config, workdir, [sys.executable, "-m", "ftn_jax.main", *arguments]))
    _check_different(members)
    at_once = own.at_once or (1 if own.executor == "local" else len(members))
    return Sweep(own.config, grid, members, out, own.executor, at_once, slurm)


def split_values(text: str) -> list[str]:
    """``"1,(2,3)"`` as ``["1", "(2,3)"]``: at the commas that stand in no bracket."""
    values, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            values.append("")
        else:
            values[-1] += letter
    return [value.strip() for value in values]


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def member_name(values: dict[str, str]) -> str:
    """``configurer.k=64,methods=ftn_slow+kwta``: the name of a member's folder."""
    name = ",".join(f"{name}={_UNFIT.sub('+', value).strip('+')}" for name, value in values.items())
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[:_LONGEST_NAME]}-{hashlib.sha256(repr(values).encode()).hexdigest()[:8]}"


def _check_different(members: Sequence[Member]) -> None:
    """Raises UsageError where members share a folder, or train the same seed of the same method."""
    names, trained = {}, {}
    for member in members:
        other = names.setdefault(member.workdir.name, member)
        if other is not member:
            raise UsageError(f"--grid: two members have the folder {member.workdir}: {other.values}, {member.values}")
        try:
            check(member.config)
        except InputError:
            continue  # it will not be started
        for method, seed in itertools.product(member.config.methods, seeds_of(member.config)):
            other = trained.setdefault((place_of(member), method, seed), member)
            if other is not member:
                both = f"{other.workdir.name} and {member.workdir.name}"
                raise UsageError(f"--grid: {both} train {method} with seed {seed} alike, expected different members")


def finished(member: Member) -> dict[str, Any] | None:
    """The member's `results.json` if it holds every method of the member's config.

    Raises:
      InputError: the folder belongs to another config, or its results can't be read.
    """
    if not (member.workdir / "results.json").exists():
        return None
    try:
        read_results(member.workdir)
    except InputError:
        return None  # nothing is saved yet, or the run itself says what is wrong
    held = open_results(member.config, member.workdir)
    return held if all(name in held["methods"] for name in member.config.methods) else None


def make_executor(sweep: Sweep, folder: pathlib.Path) -> submitit.Executor:
    """What runs the jobs.

    Args:
      sweep: what is asked for.
      folder: for submitit's own files; a new one, since it tells local jobs apart by their process ids alone.

    Raises:
      UsageError: there is no SLURM here, or it has no such option.
    """
    try:
        if sweep.executor == "local":
            executor = submitit.LocalExecutor(folder)
            executor.update_parameters(timeout_min=_YEAR)
        else:
            executor = submitit.SlurmExecutor(folder, max_num_timeout=_MAX_REQUEUES)
            executor.update_parameters(**(_SLURM | sweep.slurm))
    except (RuntimeError, TypeError, ValueError) as error:
        raise UsageError(f"--executor={sweep.executor}: {error}") from error
    return executor


def run_members(
    sweep: Sweep, members: Sequence[Member], console: rich.console.Console, asked: Callable[[], int | None]
) -> list[Failure]:
    """Runs members, so many at once, until all have ended or ``asked`` gives a signal; those that have failed.

    Raises:
      UsageError: see `make_executor`.
    """
    logs, jobs = sweep.out / "logs", sweep.out / "jobs"
    for folder in (logs, jobs):
        folder.mkdir(parents=True, exist_ok=True)
    executor = make_executor(sweep, pathlib.Path(tempfile.mkdtemp(dir=jobs)))
    waiting, running, failures = list(members), [], []
    while waiting or running:
        while waiting and len(running) < sweep.at_once:
            member = waiting.pop(0)
            log = logs / f"{member.workdir.name}.txt"
            try:
                running.append((member, log, _submit(executor, member.command, log)))
            except RuntimeError as error:  # of sbatch
                failures.append(Failure(member, " ".join(str(error).split()), None))
        time.sleep(_POLL)
        if asked():
            _stop([job for _, _, job in running])
            return failures
        for entry in [entry for entry in running if entry[2].done()]:
            running.remove(entry)
            failure = _failure(*entry)
            failures += [failure] if failure else []
            console.print(f"{'failed' if failure else 'finished'}: {entry[0].workdir.name}")
    return failures


def _submit(executor: submitit.Executor, command: list[str], log: pathlib.Path) -> submitit.Job[str]:
    if isinstance(executor, submitit.LocalExecutor):
        # submitit hides all GPUs from local jobs.
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES")
        shown = ["-u", "CUDA_VISIBLE_DEVICES"] if gpus is None else [f"CUDA_VISIBLE_DEVICES={gpus}"]
        command = ["env", *shown, *command]
    # A terminal sends Ctrl-C to the jobs too, and submitit's would kill the runs while they save: see `_stop`.
    earlier = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return executor.submit(Run(), command, log)
    finally:
        signal.signal(signal.SIGINT, earlier)


def _stop(jobs: Sequence[submitit.Job[str]]) -> None:
    """Has jobs end, the local ones once they have saved where they stand."""
    for job in jobs:
        if not isinstance(job, submitit.LocalJob):
            job.cancel(check=False)
    while local := [job for job in jobs if isinstance(job, submitit.LocalJob) and not job.done()]:
        for job in local:
            os.kill(int(job.job_id), signal.SIGTERM)  # its cancel() gives a run one second
        time.sleep(_POLL)


def _failure(member: Member, log: pathlib.Path, job: submitit.Job[str]) -> Failure | None:
    """Of a job that has ended; None where it has finished its member."""
    try:
        reason = job.result()
    except UncompletedJobError as error:
        reason, log = str(error).splitlines()[0], job.paths.stderr
    return None if finished(member) else Failure(member, reason, log)


def place_of(member: Member) -> tuple[str, ...]:
    """The member's values of the settings that the table tells apart: all but its methods and seeds."""
    return tuple(value for name, value in member.values.items() if name not in _MERGED)


def collect(members: Sequence[Member]) -> tuple[str, list[Row]]:
    """The metric and the rows of the table, from the members that are finished; seeds are put together."""
    metric, matrices = "", {}
    for member in members:
        try:
            results = finished(member)
        except InputError:
            continue
        if results is None:
            continue
        metric = results["metric"]
        for method, protocol in itertools.product(member.config.methods, metrics.PROTOCOLS):
            if protocol in results["methods"][method]:
                found = results["methods"][method][protocol]["matrix"]
                matrices.setdefault((place_of(member), method, protocol), []).extend(found)
    rows = []
    for (place, method, protocol), found in matrices.items():
        rows.append(Row(place, method, protocol, len(found), metrics.summarise(found, metric)))
    return metric, rows


def report(sweep: Sweep, failures: Sequence[Failure], console: rich.console.Console) -> None:
    """Prints the table of what is finished, and writes `sweep.md`, `sweep.csv` and `sweep.png` into the sweep's folder.

    Where nothing is finished there is nothing to write.
    """
    metric, rows = collect(sweep.members)
    if not rows:
        return
    axes = [name for name in sweep.grid if name not in _MERGED]
    arrow = "↓" if metrics.LOWER_IS_BETTER[metric] else "↑"
    table = tables.Table(
        f"Sweep of {sweep.config}",
        (*axes, "method", "protocol", "seeds", f"{tables.METRIC_NAMES[metric]} {arrow}", "FM ↓", "fm_rise ↓", "BWT ↑"),
        tuple(
            (
                *(*row.place, tables.method_name(row.method), row.protocol, str(row.seeds)),
                *(tables.number(row.summary[name]) for name in _SUMMARIES),
            )
            for row in rows
        ),
        "Mean ± std over seeds; what the columns mean is in the report.md of each member.",
        left=(*axes, "method", "protocol"),
    )
    console.print(tables.terminal(table))
    parts = [tables.markdown(table), "![the sweep](sweep.png)\n"]
    if failures:
        listed = "".join(f"- `{failure.member.workdir.name}`: {failure.reason}\n" for failure in failures)
        parts.append(f"## Failed\n\n{listed}")
    (sweep.out / "sweep.md").write_text("\n".join(parts))
    with (sweep.out / "sweep.csv").open("w", newline="") as file:
        write = csv.writer(file)
        statistics = list(itertools.product(_SUMMARIES, ("mean", "std")))
        write.writerow([*axes, "method", "protocol", "metric", "seeds", *("_".join(pair) for pair in statistics)])
        for row in rows:
            numbers = [row.summary[name][statistic] for name, statistic in statistics]
            write.writerow([*row.place, row.method, row.protocol, metric, row.seeds, *numbers])
    draw({name: sweep.grid[name] for name in axes}, rows, f"{tables.METRIC_NAMES[metric]} {arrow}").savefig(
        sweep.out / "sweep.png"
    )


def draw(axes: dict[str, list[str]], rows: Sequence[Row], label: str) -> Figure:
    """The final metric over the values of the first of ``axes``: a panel a method, a line a choice of the others.

    Args:
      axes: the values of each setting that the table tells apart.
      rows: of the table; what has failed leaves a gap.
      label: of the metric.
    """
    first, *others = axes.values() if axes else [[""]]
    lines = list(itertools.product(*others))
    colours = dict(zip(lines, colormaps["viridis"](np.linspace(0, 0.85, len(lines))), strict=True))
    methods = list(dict.fromkeys(row.method for row in rows))
    columns = min(len(methods), 4)
    height = math.ceil(len(methods) / columns)
    figure = Figure((2.3 * columns + 2.8, 2.4 * height + 0.6), dpi=130, layout="constrained")
    panels = dict(itertools.zip_longest(figure.subplots(height, columns, squeeze=False, sharey=True).flat, methods))
    for panel, method in panels.items():
        if method is None:
            panel.set_visible(False)
            continue
        for line, protocol in itertools.product(lines, metrics.PROTOCOLS):
            key = (method, protocol, line)
            finals = {row.place[:1]: row.summary["final"] for row in rows if (*row[1:3], row.place[1:]) == key}
            drawn = [finals.get((value,) if axes else (), _GAP) for value in first]
            panel.errorbar(
                range(len(first)),
                [final["mean"] for final in drawn],
                [final["std"] or 0.0 for final in drawn],
                fmt=_STYLES[protocol],
                color=colours[line],
                linewidth=1.5,
                elinewidth=1,
                capsize=2,
                markersize=4.5,
            )
        panel.set_title(tables.method_name(method))
        panel.set_xticks(range(len(first)), first)
        panel.set_xlim(-0.3, len(first) - 0.7)
        panel.grid(axis="y", color="0.9")
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(next(iter(axes), ""))
    figure.supylabel(label)
    names = [name.rpartition(".")[2] for name in axes][1:]
    texts = {line: ", ".join(f"{n}={value}" for n, value in zip(names, line, strict=True)) for line in lines if line}
    handles = [Line2D([], [], color=colours[line], label=text) for line, text in texts.items()]
    for protocol, style in _STYLES.items():
        handles += figure.axes[0].plot([], [], style, color="0.3", markersize=4.5, label=protocol)
    figure.legend(handles=handles, loc="outside right upper", frameon=False)
    return figure


def run(argv: Sequence[str] | None = None) -> None:
    """Entry point: what the user got wrong ends with one line and exit code 2, a signal with 128 + its number."""
    argv = sys.argv if argv is None else argv

    def farewell(number: int) -> str:
        command = shlex.join(["python", *argv])
        return f"sweep: stopped by {signal.Signals(number).name}; what is saved is kept, to go on: {command}"

    code = 0
    with asked_to_stop(farewell) as asked:
        try:
            code = main(argv, asked)
        except (InputError, OSError) as error:
            print("sweep:", " ".join(str(error).split()), file=sys.stderr)
            code = 2 if isinstance(error, UsageError) else 1
    number = asked()
    if number:
        print(farewell(number), file=sys.stderr)
        code = 128 + number
    sys.exit(code)


if __name__ == "__main__":
    run()
