#!/usr/bin/env bash
# Format, lint, types and every test that needs no PyTorch; stops at the first step that fails.
# Arguments go to pytest: bash launch/test.sh -k configurer
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup
require requirements-test.txt
say "ruff format --check"
"$python" -m ruff format --check .
say "ruff check"
"$python" -m ruff check .
say "pyright"
"$python" -m pyright --pythonpath "$python"
say "pytest"
exec "$python" -m pytest -n auto --maxprocesses=4 --dist=loadfile --max-worker-restart=0 -m "not parity and not slow" "$@"
