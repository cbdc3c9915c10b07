"""What several files of tests on reports use."""

import pytest


@pytest.fixture
def pictures_where_figures_are_named(request, monkeypatch):
    """In tests whose name has "figure": nothing else in a report depends on them, and they take most of its time."""
    if "figure" not in request.function.__name__:
        monkeypatch.setattr("ftn_jax.report._png", lambda *_, **__: b"\x89PNG")
