#!/usr/bin/env bash
# Writes the API reference, build/api/index.html, from the docstrings of all modules except programs.
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup
require requirements-docs.txt
modules=$(grep -L '^if __name__' -r ftn_jax --include='*.py' | sed 's|/__init__.py||; s|\.py$||; s|/|.|g' | sort |
  grep -v '^ftn_jax\.\(core\|training\|lifelong\|runs\|cli\|models\|report\|streams\.text\)\.') # pdoc adds the modules of packages without __all__
# shellcheck disable=SC2086  # one word per module
"$python" -m pdoc --docformat google --output-directory build/api $modules
say "the API reference is build/api/index.html"
