"""docs/house.md: every module has its line there, imports point one way, and no module is two."""

import ast
import re

import pytest
from kills import ROOT

HOUSE = (ROOT / "docs" / "house.md").read_text()
ROOMS = ("core", "models", "pools", "streams", "methods", "training", "testing", "lifelong", "report", "runs", "cli")
BESIDE = {("streams", "methods"), ("lifelong", "report")}  # neither knows the other
PACKAGE = ROOT / "ftn_jax"
MODULES = sorted(
    path.relative_to(PACKAGE)
    for path in PACKAGE.rglob("*.py")
    if path.relative_to(PACKAGE).parts[0] in ROOMS and path.name not in ("__init__.py", "__main__.py")
)


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ftn_jax":
            names = [node.module] if node.module != "ftn_jax" else [f"ftn_jax.{alias.name}" for alias in node.names]
            yield from (name.split(".")[1] for name in names)
        elif isinstance(node, ast.Import):
            assert not any(alias.name.split(".")[0] == "ftn_jax" for alias in node.names), path


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_one_way(room):
    own = [path for path in (PACKAGE / room).rglob("*.py") if path.name != "__main__.py"]
    assert len(own) > 2
    for path in own:
        for other in imported_rooms(path):
            assert ROOMS.index(other) <= ROOMS.index(room), f"{path} imports {other}"
            assert (other, room) not in BESIDE, f"{path} imports {other}"


def test_every_module_has_its_line():
    told = re.findall(r"^    (\S+)/$|^      ([a-z_/]+\.py) ", HOUSE, re.MULTILINE)
    room, listed = "", []
    for folder, file in told:
        room = folder or room
        if file:
            listed.append(f"{room}/{file}")
    assert sorted(listed) == [str(path) for path in MODULES]


def test_no_module_is_two():
    assert {str(path): n for path in MODULES if (n := len((PACKAGE / path).read_text().splitlines())) > 400} == {}
