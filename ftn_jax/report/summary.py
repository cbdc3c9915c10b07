"""What a terminal shows at a run's end: the headline table, which masks were found again, and where the rest lies."""

import numpy as np

from ftn_jax.report.tables import method_name, sparse_methods


def found_lines(results: dict) -> list[str]:
    """For each method whose masks are recovered, how many of the tasks' masks are found again, and which tasks reuse.

    A mask is found if the one that is recovered after the last task is the same; *in part* is the mean share of the
    other masks' components that are.
    """
    lines = []
    for name, method in sparse_methods(results).items():
        if method.get("oracle") or "recovered" not in method:
            continue
        shares = [
            [len(set(mask) & set(found)) / max(len(mask), 1) for mask, found in zip(masks, recovered, strict=True)]
            for masks, recovered in zip(method.get("answering", method["masks"]), method["recovered"], strict=True)
        ]
        whole = np.array(shares) == 1
        line = f"{method_name(name)}: {_mean(whole.sum(1))} of {whole.shape[1]} masks found again"
        if not whole.all():
            line += f"; of the others {np.array(shares)[~whole].mean():.0%} of the components"
        if "reuses" in method:
            reusing = np.array([[bool(others) for others in seed] for seed in method["reuses"]])
            line += f"; {_mean(reusing.sum(1))} of {reusing.shape[1]} tasks reuse components of earlier ones"
        lines.append(line)
    return lines


def _mean(counts: np.ndarray) -> str:
    return f"{counts.mean():.1f}".removesuffix(".0")


def where_line(workdir: str, tables: int, images: int) -> str:
    """Where the report lies, and what it has beside the headline table."""
    return (
        f"{workdir}/report.md has {tables} tables and {images} figures, report.html shows them in a browser; "
        "python -m ftn_jax.report prints the tables"
    )
