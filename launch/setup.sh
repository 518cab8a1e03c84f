# Sourced by the other scripts: creates or reuses a virtual environment in .venv with the package and
# its test extra, and sets the compilation cache. Needs Python 3.11+ and a pip index.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ ! -x .venv/bin/python ]; then
  for python in "${PYTHON:-}" python3.13 python3.12 python3.11 python3; do
    [ -n "$python" ] && command -v "$python" >/dev/null || continue
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
    python=""
  done
  [ -n "$python" ] || { echo "error: no Python 3.11 or newer found; install one or set PYTHON=..." >&2; exit 1; }
  "$python" -m venv .venv
fi

# Install again only if the metadata has changed.
stamp=.venv/.cdsde-$(cat setup.py pyproject.toml | cksum | tr ' ' -)
if [ ! -e "$stamp" ]; then
  echo "installing cdsde into .venv"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
  rm -f .venv/.cdsde-*
  touch "$stamp"
fi

# Keep compiled programs for the next run.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/cdsde/jax}"
mkdir -p "$JAX_COMPILATION_CACHE_DIR" 2>/dev/null || unset JAX_COMPILATION_CACHE_DIR
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}"
