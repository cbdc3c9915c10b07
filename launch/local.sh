#!/usr/bin/env bash
# Sets up on the first start, then runs the main command: bash launch/local.sh --config=configs/lora.py:quick
. "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup
export TRANSFORMERS_VERBOSITY=${TRANSFORMERS_VERBOSITY:-error}
exec "$python" -m ftn_jax.main "$@"
