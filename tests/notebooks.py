"""Runs the notebooks of examples/. As a program it writes their outputs: ``python tests/notebooks.py [NAME ...]``."""

import pathlib
import sys
import tempfile
from typing import Any

import nbclient
import nbformat
from programs import ROOT, environment

FOLDER = ROOT / "examples"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def read(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def executed(name: str, folder: pathlib.Path) -> Any:
    """The notebook with the outputs of a fresh kernel that works in a folder.

    Raises:
      CellExecutionError: a cell raises.
    """
    notebook = read(name)
    client = nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=environment())
    return notebook


def outputs(notebook: Any) -> list[Any]:
    """All outputs, in their order; an empty one is the progress line of a run that has ended."""
    found = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output for output in found if output.get("data") != {"text/plain": ""}]


def cleaned(notebook: Any) -> Any:
    """The notebook without progress lines and what only its editor or kernel says."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("data") != {"text/plain": ""}]
    return notebook


def main(names: list[str]) -> None:
    for name in names or NAMES:
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(cleaned(executed(name, pathlib.Path(folder))), FOLDER / f"{name}.ipynb")


if __name__ == "__main__":
    main(sys.argv[1:])
