"""``python -m ftn_jax.recover``, the same as ``ftn recover``: see `ftn_jax.cli.recover`."""

from ftn_jax.cli.ftn import run

if __name__ == "__main__":
    run("recover")
