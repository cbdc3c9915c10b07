"""Algorithm 1 as it is written, in slow NumPy."""

import numpy as np


def literal_smoothing(values, kernel, lateral_steps):
    side = round(values.size**0.5)
    field = values.reshape(side, side)
    reach = range(-(kernel // 2), kernel // 2 + 1)
    for _ in range(lateral_steps):
        field = sum(np.roll(field, (dy, dx), (0, 1)) for dy in reach for dx in reach) / kernel**2
    return field.reshape(-1)


def literal_winners(values, k):
    return np.sort(np.argsort(-values, kind="stable")[:k])
