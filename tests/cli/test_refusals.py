"""docs/refusals.md has every refusal of a foreign file, and none that there is not."""

import ast
import re

import pytest
from kills import ROOT

READERS = {
    "Task files, support files and prompts": (
        "streams/text/jsonl",
        "streams/text/records",
        "streams/files",
        "models/chat",
        "models/tokens",
    ),
    "Arrays, and .npz and .csv files": ("streams/arrays", "streams/examples"),
    "Bases: folders and hub names": ("models/pretrained", "models/config_json", "models/families", "models/hub"),
    "Bases: GGUF files": ("models/gguf", "models/gguf_file", "models/gguf_tokenizer"),
    "PEFT adapters": ("pools/peft", "pools/adapter"),
    "Exports: adapters and merged folders": ("pools/export", "models/writing"),
    "Files of prompts: ftn generate": ("runs/generation",),
    "Workdirs": ("runs/workdir", "runs/restore", "runs/checkpoints", "runs/own_parts"),
}
RAISED = ("InputError", "CheckpointError", "ValueError")


def written(node):
    """The text of a message, with … for what is filled in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(written, node.values))
    return "…"


def messages(module):
    for node in ast.walk(ast.parse((ROOT / "ftn_jax" / f"{module}.py").read_text())):
        call = node.exc if isinstance(node, ast.Raise) else node.value if isinstance(node, ast.Return) else None
        if isinstance(call, ast.Call):
            name = getattr(call.func, "id", getattr(call.func, "attr", ""))
            if name in RAISED:
                yield written(call.args[0])
            elif name == "refuse":
                yield f"… is …, expected {written(call.args[-1])}"


@pytest.mark.parametrize("heading", READERS)
def test_the_table_is_what_the_code_refuses(heading):
    section = (ROOT / "docs" / "refusals.md").read_text().partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(.+?)` \|", section, re.MULTILINE)
    said = [message for module in READERS[heading] for message in messages(module)]
    assert len(rows) > 5 and len(said) > 5
    patterns = {row: re.compile(".*".join(map(re.escape, row.split("…")))) for row in rows}
    assert [message for message in said if not any(p.search(message) for p in patterns.values())] == []
    assert [row for row, pattern in patterns.items() if not any(map(pattern.search, said))] == []
