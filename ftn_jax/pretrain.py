"""``python -m ftn_jax.pretrain``, the same as ``ftn pretrain``: see `ftn_jax.cli.pretrain`."""

from ftn_jax.cli.ftn import run

if __name__ == "__main__":
    run("pretrain")
