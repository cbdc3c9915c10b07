"""``python -m ftn_jax.plan``, the same as ``ftn plan``: see `ftn_jax.cli.plan`."""

from ftn_jax.cli.ftn import run

if __name__ == "__main__":
    run("plan")
