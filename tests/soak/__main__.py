"""The long version of test_kills.py, by hand: python tests/soak --kills=200"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import conftest  # noqa: F401  the settings of the tests
import kills
from absl import app, flags

_KILLS = flags.DEFINE_integer("kills", 200, "Commands to kill.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the moments.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    done = differing = 0
    for outcome in kills.torture_until(_KILLS.value, tuple(kills.RUNS), _SEED.value):
        done, differing = done + outcome.kills, differing + bool(outcome.differences)
        moments = ", ".join(f"{moment:.1f}" for moment in outcome.moments)
        found = f"differs in {', '.join(outcome.differences)}" if outcome.differences else "the same bits"
        print(
            f"{outcome.name}: killed after {moments} s ({outcome.midway} of them in the midst of it): {found}",
            flush=True,
        )
    print(f"{done} kills, {differing} runs that differ")
    sys.exit(differing > 0)


if __name__ == "__main__":
    app.run(main)
