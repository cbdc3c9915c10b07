"""Runs a grid over settings, methods and seeds: one run per member, one table and one figure of all of them.

    python launch/sweep.py --config=configs/synthetic.py:classification,quick --out=runs/sweep \\
        --grid.configurer.k=64,128 --grid.optimizer.learning_rate=0.001,0.01 --at_once=2

Needs requirements-launch.txt. Flags:

  --grid.SETTING=VALUE,VALUE   values of config.SETTING; the members are all combinations. Tuples are values too:
                               --grid.methods="('ftn_slow','kwta'),nomask" --grid.seeds="(0,1),(2,3)"
  --config.SETTING=VALUE       for all members, as in ftn_jax.main
  --executor=slurm             a SLURM job for each member, from a login node, with sbatch's options by their names
                               (and _ for -): --slurm.partition=gpu --slurm.gpus_per_node=1; --slurm.time in minutes

A member is one `python -m ftn_jax.main` with its own folder in --out, named after its values. Members that differ only
in methods and seeds share rows of the table. The same command again runs only the members that failed or are missing,
from their checkpoints. The exit code is 1 if members have failed, 2 for an error in the command line.
"""

# Imported first, since it handles signals while the rest is imported.
import ftn_jax  # noqa: F401, I001

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import rich.console
import submitit
from collected import Failure, report
from members import Member, Sweep, finished, parse
from submitit.core.utils import UncompletedJobError

from ftn_jax.cli import command
from ftn_jax.cli.command import UsageError
from ftn_jax.core.errors import InputError, writing
from ftn_jax.runs.build import check

_POLL = 0.5  # seconds between looks at the jobs
_YEAR = 365 * 24 * 60  # minutes: no limit
_SLURM = {"job_name": "ftn_jax_sweep", "time": 240}
_MAX_REQUEUES = 100  # of a member that reaches SLURM's time limit; it continues each time
_VOICE = "ftn_jax: "  # begins the last line of a run that ends early


class Run(submitit.helpers.Checkpointable):
    """The job of a member: runs its command. After a time limit submitit queues it again, and the command continues."""

    def __call__(self, command: list[str], log: pathlib.Path) -> str:
        """Appends all that the command prints to ``log``; returns the line that says how it ended."""
        with log.open("ab+") as file:
            begin = file.seek(0, os.SEEK_END)
            with subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT) as run:
                # The command saves its state; this process waits for it.
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


def main(argv: Sequence[str], stop: Callable[[], bool] = lambda: False) -> int:
    """Runs the command line ``argv`` (its first entry is the program), until ``stop`` returns True.

    Returns:
      The exit code: 1 if members have failed.

    Raises:
      UsageError: see `members.parse` and `make_executor`.
    """
    sweep = parse(argv, __doc__)
    console = command.Console()
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
        failures += run_members(sweep, missing, console, stop)
    if not stop():
        report(sweep, failures, console)
    for member, reason, log in failures:
        where = f"log: {log}" if log else "not started"
        print(f"failed: {member.workdir.name}: {reason} ({where})", file=sys.stderr)
    return 1 if failures else 0


def make_executor(sweep: Sweep, folder: pathlib.Path) -> submitit.Executor:
    """The submitit executor that runs the jobs.

    Args:
      sweep: the parsed command line.
      folder: for submitit's own files; a new one, since it distinguishes local jobs only by their process ids.

    Raises:
      UsageError: there is no SLURM on this machine, or it has no such option.
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
    sweep: Sweep, members: Sequence[Member], console: rich.console.Console, stop: Callable[[], bool]
) -> list[Failure]:
    """Runs members, ``sweep.at_once`` at a time, until all have ended or ``stop`` returns True; returns the failures.

    Raises:
      UsageError: see `make_executor`.
    """
    logs, jobs = sweep.out / "logs", sweep.out / "jobs"
    with writing(sweep.out):
        for folder in (logs, jobs):
            folder.mkdir(parents=True, exist_ok=True)
        own = pathlib.Path(tempfile.mkdtemp(dir=jobs))
    executor = make_executor(sweep, own)
    waiting, running, failures = list(members), [], []
    while waiting or running:
        while waiting and len(running) < sweep.at_once:
            member = waiting.pop(0)
            log = logs / f"{member.workdir.name}.txt"
            try:
                running.append((member, log, _submit(executor, member.command, log)))
            except RuntimeError as error:  # from sbatch
                failures.append(Failure(member, " ".join(str(error).split()), None))
        time.sleep(_POLL)
        if stop():
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
    # A terminal sends Ctrl-C to the jobs too, and submitit's handler would kill the runs while they save: see `_stop`.
    earlier = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return executor.submit(Run(), command, log)
    finally:
        signal.signal(signal.SIGINT, earlier)


def _stop(jobs: Sequence[submitit.Job[str]]) -> None:
    """Ends jobs, the local ones once they have saved their state."""
    for job in jobs:
        if not isinstance(job, submitit.LocalJob):
            job.cancel(check=False)
    while local := [job for job in jobs if isinstance(job, submitit.LocalJob) and not job.done()]:
        for job in local:
            os.kill(int(job.job_id), signal.SIGTERM)  # its cancel() gives a run one second
        time.sleep(_POLL)


def _failure(member: Member, log: pathlib.Path, job: submitit.Job[str]) -> Failure | None:
    """The failure of a job that has ended; None if it finished its member."""
    try:
        reason = job.result()
    except UncompletedJobError as error:
        reason, log = str(error).splitlines()[0], job.paths.stderr
    return None if finished(member) else Failure(member, reason, log)


if __name__ == "__main__":
    command.run(main, resume=("python", "launch/sweep.py"), name="sweep")
