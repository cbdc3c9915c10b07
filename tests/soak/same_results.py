"""Whether two commits compute the same: short runs of every method at both, compared bit for bit.

python tests/soak/same_results.py --commit=HEAD~1            # against what is checked out here
python tests/soak/same_results.py --commit=v1 --keep=/tmp/x  # keeps the runs, and goes on with those that are there
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable

from absl import app, flags

_COMMIT = flags.DEFINE_string("commit", "HEAD~1", "The other commit.")
_KEEP = flags.DEFINE_string("keep", None, "Folder for the runs; None is one that is deleted at the end.")
_HERE = pathlib.Path(__file__).parents[2]

_POINTS = {
    "stream.steps": 12,
    "stream.batch": 32,
    "stream.test": 128,
    "pool.size": 256,
    "configurer.k": 32,
    "configurer.support": 32,
    "variants.ewc.examples": 64,
    "seeds": 2,
    "checkpoint.every_steps": 7,
}
_TEXT = {"stream.steps": 8, "pool.size": 144, "configurer.k": 18, "checkpoint.every_steps": 5, "base": "packaged"}
_NETWORKS = (
    "ftn_slow ftn_fast kwta fixedmask nomask ewc supsup supsup_wide supsup_weights supsup_weights_wide "
    "ftn_reserve replay joint ftn_slow_kept ftn_slow_gradient ftn_slow_gradient_s10"
).split()
_LORAS = "lora_ftn lora_fixed lora_bank lora_naive lora_ftn_gradient lora_ftn_reserve replay joint".split()
_STYLES = ("upper", "reverse_words", "starred_vowels")

RUNS: dict[str, tuple[str, dict]] = {
    "classification": ("synthetic.py:classification", _POINTS | {"methods": tuple(_NETWORKS)}),
    "regression": ("synthetic.py:regression", _POINTS | {"methods": ("ftn_slow", "ftn_fast", "nomask", "ftn_reserve")}),
    "loras": ("lora.py:quick", _TEXT | {"methods": tuple(_LORAS), "stream.tasks": _STYLES, "seeds": 2}),
    "unknown": (
        "lora.py:quick",
        _TEXT
        | {
            "methods": ("lora_ftn_reserve",),
            "stream.tasks": ("upper", "pirate", "upper#2"),
            "stream.boundaries": "unknown",
            "stream.steps": 30,
            "pool.size": 36,
            "pool.grow": True,
        },
    ),
    "files": ("jsonl.py", _TEXT | {"methods": ("lora_ftn_reserve",)}),
}
"""Of each run: its config file and its settings."""


def commands_of(tree: pathlib.Path) -> Callable[..., str]:
    """What runs a command of a tree, and gives its standard output."""
    environment = os.environ | {"PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"}

    def command(module: str, *arguments: str) -> str:
        line = [sys.executable, "-m", f"ftn_jax.{module}", *arguments]
        done = subprocess.run(line, cwd=tree, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(line)} in {tree}: {done.stderr[-2000:]}")
        return done.stdout

    return command


def run(tree: pathlib.Path, folder: pathlib.Path) -> None:
    """Makes the `RUNS` of a tree in a folder, but for those that are there."""
    command = commands_of(tree)
    for name, (config, settings) in RUNS.items():
        workdir, told = folder / name, folder / f"{name}.json"
        if told.exists():
            continue
        overrides = [f"--config.{key}={value}" for key, value in settings.items()]
        command("main", f"--config=configs/{config}", f"--workdir={workdir}", *overrides)
        results = json.loads((workdir / "results.json").read_text())
        timed, methods = ("seconds", "cost"), results["methods"]
        found = {name: {k: v for k, v in entry.items() if k not in timed} for name, entry in methods.items()}
        kept = {"methods": found, "facts": results["facts"], "metrics.csv": (workdir / "metrics.csv").read_text()}
        if name == "files":
            support = tree / "examples" / "headline.jsonl"
            few = folder / "few.jsonl"
            few.write_text("".join(support.read_text().splitlines(keepends=True)[:12]))
            recovered = [f"--workdir={workdir}", f"--support={few}", "--method=lora_ftn_reserve"]
            kept["recover"] = command(
                "recover", *recovered, "--prompt=A cat sat.\n", "--temperature=1", "--sampling_seed=3"
            )
            command("forget", f"--workdir={workdir}", "--task=spoken", "--remove_older")
            kept["forgotten"] = command("recover", *recovered, "--prompt=A cat sat.\n")
        told.write_text(json.dumps(kept, indent=1))
        print(f"{name}: done in {tree}", flush=True)


def compare(one: pathlib.Path, other: pathlib.Path) -> list[str]:
    """The places at which the runs of two folders differ; an entry that only one of them has is told instead."""

    def walk(a, b, place):
        if isinstance(a, dict) and isinstance(b, dict):
            for key in sorted(a.keys() ^ b.keys()):
                print(f"only one of them has {place}.{key}")
            for key in a.keys() & b.keys():
                yield from walk(a[key], b[key], f"{place}.{key}")
        elif a != b:
            yield place

    return [
        place
        for name in RUNS
        for place in walk(
            json.loads((one / f"{name}.json").read_text()), json.loads((other / f"{name}.json").read_text()), name
        )
    ]


def read_again(there: pathlib.Path, folder: pathlib.Path) -> list[str]:
    """The other commit's workdirs from which the code here does not recover what the code there does."""
    differing = []
    for name, method in (("loras", "lora_ftn"), ("loras", "lora_ftn_reserve"), ("unknown", "lora_ftn_reserve")):
        asked = [f"--workdir={folder / name}", f"--method={method}", f"--support={folder / 'few.jsonl'}"]
        asked += ["--prompt=A cat sat.\n"]
        if commands_of(there)("recover", *asked) != commands_of(_HERE)("recover", *asked):
            differing.append(f"{method} of {folder / name}, read again")
    return differing


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(_KEEP.value or temporary)
        tree = pathlib.Path(temporary) / "tree"
        git = ["git", "-C", str(_HERE)]
        subprocess.run([*git, "worktree", "add", "--detach", str(tree), _COMMIT.value], check=True, capture_output=True)
        try:
            for name, at in (("there", tree), ("here", _HERE)):
                (root / name).mkdir(parents=True, exist_ok=True)
                run(at, root / name)
            again = read_again(tree, root / "there")
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(tree)], check=True)
        differing = compare(root / "there", root / "here") + again
    print("\n".join(differing) or "the same bits")
    sys.exit(bool(differing))


if __name__ == "__main__":
    app.run(main)
