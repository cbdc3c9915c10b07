"""``python -m ftn_jax.report``, the same as ``ftn report``: see `ftn_jax.cli.report`."""

from ftn_jax.cli.ftn import run

if __name__ == "__main__":
    run("report")
