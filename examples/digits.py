"""Ten tasks of handwritten digits in a row, without a download: `python examples/digits.py [workdir]`.

The images are scikit-learn's, 1,797 of 8 x 8 pixels in ten classes (pip install -r requirements-examples.txt). As in
permuted and rotated MNIST of the literature, five tasks rotate all images by an angle, and five permute the pixels. All
tasks share the ten outputs, so that one task overwrites what another has learned: rotated by 180 degrees, a 6 is a 9.
The tasks are written as .npz files, one each, and each of the `METHODS` learns them one after another.
"""

import pathlib
import sys

import numpy as np
from scipy import ndimage
from sklearn.datasets import load_digits

import ftn_jax
from ftn_jax.cli.command import load_config

METHODS = ("ftn_reserve", "packnet", "hat", "supsup_weights", "replay", "ewc", "nomask", "joint")
ANGLES = (0, 45, 90, 135, 180)
PERMUTATIONS = 5


def write_tasks(folder):
    """The ten files, in the order in which they are trained."""
    digits = load_digits()
    images = digits.images.astype(np.float32) / 16  # grey values from 0 to 1
    turned = {f"rotated{a}": ndimage.rotate(images, a, axes=(1, 2), reshape=False, order=1) for a in ANGLES}
    tasks = {name: x.reshape(len(x), -1) for name, x in turned.items()}
    rng = np.random.default_rng(0)
    for i in range(PERMUTATIONS):
        tasks[f"permuted{i}"] = images.reshape(len(images), -1)[:, rng.permutation(64)]
    folder.mkdir(parents=True, exist_ok=True)
    for name, x in tasks.items():
        np.savez(folder / f"{name}.npz", x=x, y=digits.target)
    return tuple(str(folder / f"{name}.npz") for name in tasks)


def get_config(files):
    """configs/arrays.py for these files: 400 networks of 64 inputs and one hidden layer of 8, 40 for each task."""
    config = load_config("arrays")
    config.methods = METHODS
    config.seeds = 3
    config.stream.files = files
    return config


def main(workdir):
    results = ftn_jax.train_and_evaluate(get_config(write_tasks(pathlib.Path(workdir) / "tasks")), workdir)
    print(f"{'method':16} stored ACC      FM  reconfig ACC      FM  seconds")
    for name, method in results["methods"].items():
        figures = [method[protocol][key]["mean"] for protocol in ("stored", "reconfig") for key in ("final", "fm")]
        print("{:16} {:10.3f} {:7.3f} {:13.3f} {:7.3f}".format(name, *figures), end="")
        print(f" {sum(method['seconds'].values()):8.0f}")
    print(f"The report is in {workdir}/report.md")


if __name__ == "__main__":
    main(*sys.argv[1:] or ["runs/digits"])
