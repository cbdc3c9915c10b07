"""``python -m ftn_jax.generate``, the same as ``ftn generate``: see `ftn_jax.cli.generate`."""

from ftn_jax.cli.ftn import run

if __name__ == "__main__":
    run("generate")
