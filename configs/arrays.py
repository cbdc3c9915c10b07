"""Your own tasks of numbers: one .npz or .csv file each, learned one after another by small networks (docs/arrays.md).

    python -m ftn_jax.main --config=configs/arrays.py --config.stream.files="('a.npz','b.csv')"

A .npz file has x [n, d] and y [n]; the last column of a .csv file is y. Whole numbers are classes, floats are values.
Ten tasks of digits (examples/digits.py): accuracy 0.961 with these settings, 3 seeds, and no forgetting.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    return ConfigDict(
        {
            # Each task owns its components; or "nomask", "ewc", "supsup_weights", "replay", "joint", ...
            "methods": ("ftn_reserve",),
            "stream": {
                "name": "arrays",
                "files": ("first.npz", "second.npz"),  # one task each, in the order of training
            },
            "pool": {
                "name": "neurons",
                "size": 400,  # H components, a 20 x 20 torus: room for H / k disjoint tasks
                "layers": 1,  # hidden layers of each network
                "width": 8,  # units of each hidden layer
                "activation": "gelu",  # or "relu", "silu", "tanh"
                "weights": "he_normal",  # init; or "lecun_normal", "xavier_normal"
                "dropout": 0.0,  # rate, on the components' outputs
            },
            "configurer": {
                "k": 40,  # components of each task
                "steps": 10,  # S
                "learning_rate": 0.2,  # eta of the mask's Adam
                "jitter": 0.0,  # no noise on the logits, since here none of them tie
            },
            "variants": {
                "ewc": {"examples": 256},  # for the Fisher information
                "hat": {"strength": 3.0},  # lambda
                "packnet": {"keep": 0.2},  # share of the free weights that a task keeps
            },
            "optimizer": {"learning_rate": 3e-3},  # adam, the default
        }
    )
