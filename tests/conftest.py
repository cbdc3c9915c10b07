"""Settings that hold for every test: two devices of the CPU, no rank promotion, programs quickly compiled and kept."""

import gc
import os
import unittest.mock
from pathlib import Path

import programs

# Set before jax is imported, and in the environment, so that the programs that tests start have them too.
CACHE = Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
os.environ.setdefault("XLA_FLAGS", programs.QUICK)

import jax  # noqa: E402
import pytest  # noqa: E402

# Tracing makes very many small objects that live on: looking through them again and again is a tenth of the time.
gc.set_threshold(200_000, 50, 50)

# jax_numpy_dtype_promotion stays "standard": optax.adam multiplies int32 counts with floats itself.
jax.config.update("jax_numpy_rank_promotion", "raise")


MAPS = Path("/proc/self/maps")


@pytest.fixture(scope="module", autouse=True)
def _few_programs():
    """Gives up the compiled programs of the files before: each holds three memory maps of Linux's 65,530 a process.

    A process that has no more ends in a segmentation fault, wherever it next compiles.
    """
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > 45_000:  # what follows takes seconds
        jax.clear_caches()


@pytest.fixture(scope="module", autouse=True)
def _figures_are_drawn_where_reports_are_tested(request):
    """Elsewhere a run's report has all its figures, but a picture of each is made in tests/report only."""
    if request.path.parent.name == "report":
        yield
        return
    with unittest.mock.patch("ftn_jax.report._png", return_value=b"\x89PNG"):
        yield


@pytest.fixture(scope="session")
def files_run(tmp_path_factory):
    """A folder with a toy base, task files, and ``run``: two of the files, learned with adapters of every module."""
    import toys

    from ftn_jax.runs.driver import train_and_evaluate

    folder = tmp_path_factory.mktemp("files_run")
    toys.save_toy_base(folder / "base", n_positions=64)
    (folder / "base" / "generation_config.json").write_text('{"eos_token_id": [0, 5]}')
    config = toys.jsonl_config(str(folder / "base"), toys.write_tasks(folder)[:2], **{"pool.modules": ("all-linear",)})
    train_and_evaluate(config, folder / "run")
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The folder of a toy base, as a config names it."""
    import toys

    folder = tmp_path_factory.mktemp("base")
    toys.save_toy_base(folder)
    return str(folder)
