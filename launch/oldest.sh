#!/usr/bin/env bash
# Run tests with every requirement at its lower bound in setup.py; arguments go to pytest.
#   bash launch/oldest.sh                 command line, published runs, data, edits by words
#   bash launch/oldest.sh tests           all fast tests
# Needs Python 3.11 or 3.12, which those versions support; the environment is .venv/oldest.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ ! -x .venv/oldest/bin/python ]; then
  for python in "${PYTHON:-}" python3.11 python3.12 python3; do
    [ -n "$python" ] && command -v "$python" >/dev/null || continue
    "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && break
    python=""
  done
  [ -n "$python" ] || { echo "error: no Python 3.11 or 3.12 found; install one or set PYTHON=..." >&2; exit 1; }
  "$python" -m venv .venv/oldest
fi
# Each line of install_requires is one requirement: name>=version becomes name==version.
sed -nE 's/^ +"([A-Za-z0-9_.-]+)(\[[a-z]+\])?>=([0-9.]+)",$/\1==\3/p' setup.py |
  grep -v huggingface_hub > .venv/oldest/bounds.txt
# Without extra hub, since huggingface_hub 2.4 excludes the lower bound of tokenizers.
.venv/oldest/bin/python -m pip install --quiet --disable-pip-version-check -e ".[export]" pytest pytest-xdist \
  --constraint .venv/oldest/bounds.txt

export JAX_COMPILATION_CACHE_DIR="${XDG_CACHE_HOME:-$HOME/.cache}/cdsde/jax-oldest"
if [ $# = 0 ]; then
  set -- tests/test_main.py tests/diffusion/test_published_runs.py tests/data/test_sources.py tests/edit/test_words.py
fi
exec .venv/oldest/bin/python -m pytest "$@"
