"""``python -m ftn_jax.merge``, the same as ``ftn merge``: see `ftn_jax.cli.merge`."""

from ftn_jax.cli.ftn import run

if __name__ == "__main__":
    run("merge")
