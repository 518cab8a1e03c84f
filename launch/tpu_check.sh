#!/usr/bin/env bash
# Compile the 256² programs for TPU v5e slices that are not here, and print what each chip needs.
#   bash launch/tpu_check.sh                                  8, 64 and 256 chips: an hour on 2 cores
#   bash launch/tpu_check.sh --configs=cat2dog --chips=8 --fsdp=1 --programs=classifier,evaluate
source "$(dirname "$0")/setup.sh"

# In a folder of its own: where libtpu is installed, every JAX program looks for a TPU first.
libtpu=.venv/libtpu
[ -d "$libtpu/libtpu" ] ||
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --target "$libtpu" "libtpu>=0.0.51"
PYTHONPATH="$libtpu${PYTHONPATH:+:$PYTHONPATH}" exec .venv/bin/python -m cdsde.scaling.tpu_check "$@"
