"""The notebooks run as they stand, in a fresh kernel; and they are committed with outputs that are fit to be read."""

import re

import notebooks
import pytest

_SCREEN = 40  # lines
_PLACES = re.compile(r"(?<![\w.])/(home|root|tmp|Users|usr|work|opt)/|[A-Z]:\\|site-packages")


def texts(output):
    """What an output says in words: a stream's text, or those of its data that are not a picture."""
    data = output.get("data", {"text/plain": output.get("text", "")})
    return [text for kind, text in data.items() if kind.startswith("text/")]


def kinds(notebook):
    return [sorted(output.get("data", [output.get("name")])) for output in notebooks.outputs(notebook)]


def test_there_are_four():
    assert notebooks.NAMES == ["first_steps", "the_configurer", "write_a_method", "your_own_tasks"]


@pytest.mark.slow
@pytest.mark.parametrize("name", notebooks.NAMES)
def test_it_runs(name, tmp_path):
    """Its own assertions hold, it says nothing on stderr, and it shows what the committed one shows."""
    ran = notebooks.executed(name, tmp_path)
    assert [output.text for output in notebooks.outputs(ran) if output.get("name") == "stderr"] == []
    assert kinds(ran) == kinds(notebooks.read(name))


@pytest.mark.parametrize("name", notebooks.NAMES)
def test_what_is_committed(name):
    path = notebooks.FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < 200_000
    notebook = notebooks.read(name)
    assert notebook.metadata == notebooks.METADATA and not any(cell.metadata for cell in notebook.cells)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert any("assert" in cell.source for cell in code)
    found = notebooks.outputs(notebook)
    assert {output.output_type for output in found} <= {"stream", "display_data", "execute_result"}
    assert "stderr" not in [output.get("name") for output in found]
    assert name == "your_own_tasks" or any("image/png" in output.get("data", {}) for output in found)
    for text in (text for output in found for text in texts(output)):
        assert len(text.splitlines()) <= _SCREEN and not _PLACES.search(text), text


@pytest.mark.parametrize("name", notebooks.NAMES)
def test_its_links_lead_to_files(name):
    prose = "\n".join(cell.source for cell in notebooks.read(name).cells if cell.cell_type == "markdown")
    links = [link for link in re.findall(r"\]\(([^)#]+)", prose) if "://" not in link]
    assert links and all((notebooks.FOLDER / link).exists() for link in links), links
