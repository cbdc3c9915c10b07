"""The model card (README.md) of an export: its base, its tasks, their losses, and the command that made it."""

import os
from typing import Any

import numpy as np

from ftn_jax.models.hub import loadable
from ftn_jax.runs.user_masks import active_of

_USES = {
    "adapter": """import peft, transformers

base = transformers.AutoModelForCausalLM.from_pretrained({base!r})
model = peft.PeftModel.from_pretrained(base, "path/of/this/folder")
""",
    "merged": """import transformers

model = transformers.AutoModelForCausalLM.from_pretrained("path/of/this/folder")
tokenizer = transformers.AutoTokenizer.from_pretrained("path/of/this/folder")
""",
}


def model_card(
    model: Any, mask: Any, *, kind: str, dtype: str, rank: int, base_name: str | None = None, command: str = ""
) -> str:
    """The text of the card.

    Args:
      model: the `ftn_jax.LanguageModel` that is exported.
      mask: the mask whose components are exported.
      kind: "adapter" or "merged".
      dtype: of the weights.
      rank: of the adapter; of the update, if it is merged.
      base_name: the base's name for PEFT; None: its own.
      command: the command that makes the export, if there is one.
    """
    active = active_of(mask, model.stored, model.pool.size)
    base = base_name or loadable(model.base.name)
    overlap = {task: float(np.isin(active, own).mean()) for task, own in model.stored.items()}
    title = mask if isinstance(mask, str) else " and ".join(t for t, s in overlap.items() if s == max(overlap.values()))
    what = {"adapter": f"A LoRA of rank {rank}", "merged": f"A language model with an update of rank {rank} merged in"}
    named = [] if os.path.exists(base) else [f"base_model: {base}"]  # the hub refuses a path
    library = {"adapter": "peft", "merged": "transformers"}[kind]
    lines = ["---", *named, f"library_name: {library}", "tags:", "- ftn_jax", *(["- lora"] * (kind == "adapter"))]
    lines += ["---", "", f"# {model.base.name} for {_plain(title)}" if title else f"# {model.base.name}", ""]
    lines += [
        f"{what[kind]}, in {dtype}: {len(active)} of the {model.pool.size} components of a pool that `ftn_jax` trained "
        "on a stream of tasks (*Functional Task Networks*).",
        "",
        "| | |",
        "|---|---|",
        f"| base | `{base}`, hash of its weights `{model.base.hash}` |",
        f"| mask | {_origin_of(mask)} |",
        f"| components | {', '.join(map(str, active))} (each of rank {model.pool.rank}) |",
        f"| modules | {', '.join(f'`{module}`' for module in model.pool.modules)} |",
        f"| method | `{model.method_name}`, seed {model.seed} |",
        f"| run | `{model.source}` |",
        "",
        "## Tasks",
        "",
        "Losses are the run's: nats per target token on the task's test examples, under the task's own training-time "
        "mask, and under a mask that was found from a few examples. The share is that of the exported components that "
        "are in the task's own mask.",
        "",
        "| task | share | loss, own mask | loss, found mask |",
        "|---|---|---|---|",
    ]
    for task, share in overlap.items():
        scores = (model.scores.get(task, {}).get(protocol) for protocol in ("stored", "reconfig"))
        shown = ("-" if score is None else f"{score:.3f}" for score in scores)
        lines.append(f"| {_plain(task)} | {share:.2f} | {' | '.join(shown)} |")
    lines += ["", "## Use", "", f"```python\n{_USES[kind].format(base=base)}```", ""]
    if start := model.base.tokens.start:
        first = "".join(model.base.tokens.tokenizer.convert_ids_to_tokens(list(start)))
        lines += [
            f"What the tasks learned from began with `{first}`, and a prompt must, too, unless it is a conversation "
            "that the chat template writes: put it before the prompt if the tokenizer does not.",
            "",
        ]
    if command:
        lines += ["## Made by", "", f"```bash\n{command}\n```", ""]
    return "\n".join(lines)


def _origin_of(mask: Any) -> str:
    if isinstance(mask, str):
        return f"the training-time mask of task {_plain(mask)}"
    if not hasattr(mask, "active"):
        return "given by its components"
    of = f", of the masks of {_plain(', '.join(mask.parts))}" if mask.parts else ""
    return (
        f"found from examples{of}: their loss is {mask.base_loss:.3f} under the base alone and {mask.loss:.3f} "
        "under the mask, in nats per target token"
    )


def _plain(name: str) -> str:
    """A name as plain text in Markdown."""
    return "".join(f"\\{letter}" if letter in r"\`*_[]<>|#" else letter for letter in " ".join(name.split()))
