"""``python -m ftn_jax.main``, the same as ``ftn train``: see `ftn_jax.cli.train`."""

from ftn_jax.cli.ftn import run

if __name__ == "__main__":
    run("train")
