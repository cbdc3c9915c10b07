"""How well a method does all along the stream, and what a task gains from the earlier ones: a table."""

import numpy as np

from ftn_jax.core import metrics
from ftn_jax.report.tables import UNDEFINED, Table, method_name, number, stat


def transfer_table(results: dict) -> Table:
    """Anytime performance and forward transfer of each method and protocol."""
    metric = metrics.METRICS[results["metric"]]
    rows, without = [], {}
    for name, method in results["methods"].items():
        for protocol in (protocol for protocol in metrics.PROTOCOLS if protocol in method):
            block, forward, untrained = method[protocol], UNDEFINED, UNDEFINED
            # Older versions did not write it.
            anytime = block.get("anytime") or metrics.summarise(block["matrix"], results["metric"])["anytime"]
            if protocol == "reconfig":
                reason = _why_undefined(results, method)
                if reason:
                    without.setdefault(reason, []).append(method_name(name))
                else:
                    forward = number(block["fwt"])
                if method.get("untrained"):
                    untrained = number(stat(np.asarray(method["untrained"], float).mean(1)))
            rows.append((method_name(name), protocol, number(anytime), forward, untrained))
    columns = ("method", "protocol", f"anytime {metric.heading}", "FWT ↑", f"untrained {metric.label}")
    better = "lower" if metric.lower_is_better else "higher"
    note = (
        f"Anytime {metric.label}: after each task the mean over the tasks so far, then the mean of these means. FWT, "
        f"forward transfer: how much {better} a task's {metric.label} is just before its own training than in the "
        "untrained model, mean over all tasks but the first; only reconfig can score a task before its training. In "
        "the untrained model no component answers: it is the base alone, or with small networks gives every input the "
        "same answer."
    )
    for reason, names in without.items():
        note += f" No FWT for {', '.join(names)}: {reason}."
    return Table("All along the stream", columns, tuple(rows), note)


def _why_undefined(results: dict, method: dict) -> str:
    """Why a method has no forward transfer, in words; empty if it has."""
    if "untrained" not in method or "fwt" not in method["reconfig"]:
        return "an older version trained it"
    if method["reconfig"]["fwt"]["mean"] is not None:
        return ""
    if len(results["task_names"]) == 1:
        return "there is one task"
    if method["untrained"] is None:
        return "tasks are scored only once they are trained (config.stream.evaluate), or they come back"
    if np.isnan(np.asarray(method["untrained"], float)).any():
        return "the untrained model's metric is not finite"
    return "a task joined the stream later"
