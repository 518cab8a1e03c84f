#!/usr/bin/env bash
# Time the 256² programs and their parts on this machine's devices.
#   bash launch/bench.sh [--config=cat2dog] [--images=1,8] [--config.dtype=bfloat16] [--parts=step,input]
#   bash launch/bench.sh --parts=step --published=EGSDE_CHECKOUT --python=PYTHON_WITH_TORCH
source "$(dirname "$0")/setup.sh"
exec .venv/bin/python -m cdsde.scaling.bench "$@"
