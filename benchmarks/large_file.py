"""Opens a JSONL file of a size of your choice: seconds, and the memory that it takes.

    python benchmarks/large_file.py --gigabytes=2

Figures: benchmarks/README.md.
"""

import json
import os
import pathlib
import resource
import tempfile
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from absl import app, flags

from ftn_jax.models import pretrained
from ftn_jax.streams import Context
from ftn_jax.streams.text.jsonl import jsonl
from ftn_jax.streams.text.sentences import SENTENCES

_GIGABYTES = flags.DEFINE_float("gigabytes", 2.0, "Of the file.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    base = pretrained.load("packaged")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "large.jsonl"
        lines = 0
        with path.open("w") as file:
            while file.tell() < _GIGABYTES.value * 1e9:
                for _ in range(1000):
                    texts = [SENTENCES[(lines * 7 + i) % len(SENTENCES)] for i in range(12)]
                    file.write(json.dumps({"prompt": f"{lines} {' '.join(texts)}\n", "completion": texts[0]}) + "\n")
                    lines += 1
        size, before = path.stat().st_size, _peak()
        start = time.perf_counter()
        stream = jsonl(Context((0,), base), (str(path),), max_length=128, recovery=0.1, test=0.1)
        opened = time.perf_counter() - start
        start = time.perf_counter()
        for first in range(0, 200, 10):
            stream.feed(0, first, 10, 8)
        fed = (time.perf_counter() - start) / 200
    figures = {
        "megabytes": size / 1e6,
        "lines": lines,
        "seconds to open": opened,
        "peak memory before, megabytes": before,
        "peak memory, megabytes": _peak(),
        "milliseconds a batch of 8": 1e3 * fed,
    }
    print(json.dumps(figures, indent=2))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    app.run(main)
