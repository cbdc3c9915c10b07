"""Where the winners lie between two avoided tasks, by the smoothing kernel's width (docs/reproduction.md).

    python benchmarks/kernel_width.py

A field is -1 on the disc of one task and -w on that of another, which the proposal avoids less, and 0 elsewhere. It is
smoothed, and k winners are taken: the table has the share of the weaker task's components among them, mean and
largest over placings of the discs. The sizes are those of Experiment 1: 128 winners on a torus of 32 x 32.
"""

import numpy as np
from absl import app, flags

from ftn_jax.core.configurer import kwta
from ftn_jax.core.torus import smooth

_PLACINGS = flags.DEFINE_integer("placings", 200, "Places of the two discs.", lower_bound=1)
_SIDE, _K = 32, 128
_KERNELS = ((3, 15), (7, 4), (9, 2), (11, 2), (13, 2), (15, 2), (17, 2), (21, 2))  # s, T
_WEIGHTS = (1.0, 0.5, 0.25, 0.17, 0.1, 0.05)


def disc(centre: np.ndarray) -> np.ndarray:
    """The k components nearest to a point of the torus, bool[H]."""
    gaps = [(np.arange(_SIDE) - c + _SIDE / 2) % _SIDE - _SIDE / 2 for c in centre]
    distance = np.hypot(gaps[0][:, None], gaps[1]).reshape(-1)
    mask = np.zeros(_SIDE**2, bool)
    mask[np.argsort(distance, kind="stable")[:_K]] = True
    return mask


def placings(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of discs that share nothing."""
    rng, found = np.random.default_rng(0), []
    while len(found) < count:
        pair = disc(rng.uniform(0, _SIDE, 2)), disc(rng.uniform(0, _SIDE, 2))
        if not np.any(pair[0] & pair[1]):
            found.append(pair)
    return found


def main(_):
    pairs = placings(_PLACINGS.value)
    print("| s | T | width | second wave | " + " | ".join(f"w = {w:g}" for w in _WEIGHTS) + " |")
    print("| --: | --: | --: | --: |" + " --: |" * len(_WEIGHTS))
    for kernel, times in _KERNELS:
        width = (times * (kernel**2 - 1) / 12) ** 0.5  # standard deviation of T uniform kernels
        wave = np.cos(4 * np.pi * np.arange(_SIDE) / _SIDE)
        left = smooth(np.tile(wave, _SIDE).astype(np.float32), kernel=kernel, lateral_steps=times)[0]
        cells = []
        for weight in _WEIGHTS:
            shares = []
            for strong, weak in pairs:
                field = smooth((-1.0 * strong - weight * weak).astype(np.float32), kernel=kernel, lateral_steps=times)
                shares.append(weak[kwta(field, _K)].mean())
            cells.append(f"{np.mean(shares):.2f} / {np.max(shares):.2f}")
        print(f"| {kernel} | {times} | {width:.1f} | {left:.2f} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    app.run(main)
