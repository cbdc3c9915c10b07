"""Pretrains the base that ships with the package: a 4-layer, 192-wide GPT-2 with its own byte-level BPE.

    python -m ftn_jax.pretrain --config=configs/pretrain.py --config.corpus=books.txt --workdir=runs/base

`corpus` is any UTF-8 text file with one paragraph per line (``.xz`` is decompressed). The same command continues a
killed run; `steps` may then be raised. The results are in ftn_jax/assets/base/README.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            "corpus": "",  # path of the text
            "export": "",  # the folder to write in Hugging Face format; "" is <workdir>/export
            "seed": 0,
            "vocab_size": 4096,  # byte-level BPE, end-of-text included
            "model": {"n_positions": 256, "n_embd": 192, "n_layer": 4, "n_head": 6, "n_inner": 768},
            "steps": 2000,
            "batch": 32,  # windows per step; the first half running text, the second half repeated spans
            "length": 128,  # tokens per window
            "copies": 120_000,  # repeated spans that are drawn from the text
            "shuffled": 0.2,  # share of the repeated spans whose words are repeated in another order
            "upper": 0.08,  # share of the running text's paragraphs that are upper-cased
            "learning_rate": 3e-3,
            "warmup": 100,  # steps of linear warm-up
            "decay": 0.3,  # share of the steps, at the end, over which the rate falls linearly to zero
            "weight_decay": 0.1,
            "save_every": 100,  # steps between checkpoints; the newest two are kept
        }
    )
