# Sourced by the other scripts, from any folder: goes to the repository's root and defines
#   setup           creates the virtual environment and installs what a run needs, once
#   require FILE    installs a requirements file into it, once; further arguments are options of pip
# Set FTN_VENV for a folder other than .venv, and PYTHON for the Python that creates it.
# Must run on the bash 3.2 of macOS.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${FTN_VENV:-.venv}
python=$venv/bin/python
log=$venv/setup.log

say() { printf '[%3ds] %s\n' "$SECONDS" "$*" >&2; }

fail() {
  printf '%s\n' "$*" >&2
  exit 1
}

new_enough() { case $1 in 3.1[1-9] | 3.[2-9][0-9] | [4-9].*) ;; *) return 1 ;; esac; }

# Prints "3.11"; fails if that Python is older than 3.11 or can't create virtual environments.
usable() {
  local version status=0
  version=$("$1" -c 'import sys; sys.stdout.write("%d.%d" % sys.version_info[:2]); import ensurepip, venv' \
    2>/dev/null) || status=$?
  printf '%s' "$version"
  new_enough "$version" && [ "$status" = 0 ]
}

# Prints the Python to create the environment with. Skips shims that only print an error.
find_python() {
  local name version reason="no Python that runs was found: install Python 3.11 or later"
  if [ -n "${PYTHON:-}" ]; then set -- "$PYTHON"; else set -- python3 python3.13 python3.12 python3.11; fi
  for name in "$@"; do
    if version=$(usable "$name"); then
      printf '%s' "$name"
      return
    fi
    if new_enough "$version"; then
      reason="$name is Python $version without venv: install that (on Debian: apt install python$version-venv)"
    elif [ -n "$version" ]; then
      reason="$name is Python $version, too old: install Python 3.11 or later"
    fi
  done
  fail "$reason, or name another with PYTHON=/path/to/python3"
}

# step LABEL COMMAND...: prints the label; a terminal also shows the command's last line; the log has all its output.
step() {
  local label=$1 line
  shift
  say "$label"
  if ! "$@" 2>&1 | while IFS= read -r line; do
    printf '%s\n' "$line" >>"$log"
    [ ! -t 2 ] || printf '\r\033[K       %.70s' "$line" >&2
  done; then
    printf '\n' >&2
    tail -n 15 "$log" >&2
    fail "set-up stopped at: $label (all output: $log)"
  fi
  [ ! -t 2 ] || printf '\r\033[K' >&2
}

# A stamp records what was installed and from which files; an interrupted set-up leaves none and is done again.
fingerprint() {
  { pwd; "$python" -V 2>&1 || true; command -v nvidia-smi || true; cat "$@"; } | cksum
}

stamped() { [ -f "$venv/$1.stamp" ] && [ "$(cat "$venv/$1.stamp")" = "$2" ]; }

# Packages have ten times as many modules as are ever imported: each is compiled when it is.
require() {
  local now
  now=$(fingerprint "$1")
  stamped "$1" "$now" && return
  step "installing $1" "$python" -m pip install --no-compile -r "$1" "${@:2}"
  printf '%s\n' "$now" >"$venv/$1.stamp"
}

setup() {
  local base
  local sources="requirements-cpu.txt requirements.txt pyproject.toml launch/setup.sh"
  stamped setup "$(fingerprint $sources)" && return
  if ! "$python" -m pip --version >/dev/null 2>&1; then
    base=$(find_python)
    mkdir -p "$venv"
    step "making $venv with Python $(usable "$base")" "$base" -m venv "$venv"
  fi
  usable "$python" >/dev/null ||
    fail "$venv holds no Python 3.11 or later that runs: move it away and start again"
  rm -f "$venv/setup.stamp"
  if nvidia-smi >/dev/null 2>&1; then
    step "installing requirements.txt (3 GB of CUDA wheels: minutes)" \
      "$python" -m pip install --no-compile -r requirements.txt
  else
    step "installing requirements-cpu.txt (a minute or two)" "$python" -m pip install --no-compile -r requirements-cpu.txt
  fi
  step "installing ftn_jax" "$python" -m pip install --no-deps -e .
  fingerprint $sources >"$venv/setup.stamp"
  say "ready"
}
