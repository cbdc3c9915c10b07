"""How programs are compiled in tests: quickly for toys, for speed where a program of a real size is started."""

import importlib.metadata
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]
# A flag that XLA does not know would end the process.
_OLD = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11)
OPTIMIZED = "--xla_cpu_use_fusion_emitters=false" if _OLD else ""
# Programs of a toy's size take longer to optimize than to run.
_LEAST = "--xla_backend_optimization_level=0 --xla_cpu_opt_preset=FAST_COMPILE"
QUICK = f"{_LEAST} --xla_cpu_parallel_codegen_split_count=1 {OPTIMIZED}"


def environment() -> dict[str, str]:
    """A user's, but `python` and `ftn` are those that run the tests."""
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    theirs = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    return theirs | {"XLA_FLAGS": OPTIMIZED, "PATH": path, "PYTHONPATH": str(ROOT)}
