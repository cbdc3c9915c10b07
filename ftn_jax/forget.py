"""``python -m ftn_jax.forget``, the same as ``ftn forget``: see `ftn_jax.cli.forget`."""

from ftn_jax.cli.ftn import run

if __name__ == "__main__":
    run("forget")
