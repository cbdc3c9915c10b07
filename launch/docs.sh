#!/usr/bin/env bash
# Builds the site, build/site/index.html: the README, docs/, and the API reference from the docstrings of all modules
# except programs. Fails on a link or anchor that leads nowhere.
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup
require requirements-docs.txt
NO_MKDOCS_2_WARNING=1 "$python" -m mkdocs build
say "the site is build/site/index.html; with its search: $python -m http.server -d build/site"
