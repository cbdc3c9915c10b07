"""``python -m ftn_jax.export``, the same as ``ftn export``: see `ftn_jax.cli.export`."""

from ftn_jax.cli.ftn import run

if __name__ == "__main__":
    run("export")
