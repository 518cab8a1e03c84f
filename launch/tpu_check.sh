#!/usr/bin/env bash
# Compile the 256² programs for TPU v5e slices on this host, and print the cost per chip.
#   bash launch/tpu_check.sh                                  8, 64 and 256 chips: an hour on 2 cores
#   bash launch/tpu_check.sh --configs=cat2dog --chips=8 --fsdp=1 --programs=classifier,evaluate
source "$(dirname "$0")/setup.sh"

# In a separate folder: with libtpu installed, every JAX program would search for a TPU first.
libtpu=.venv/libtpu
[ -d "$libtpu/libtpu" ] ||
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --target "$libtpu" "libtpu>=0.0.51"
PYTHONPATH="$libtpu${PYTHONPATH:+:$PYTHONPATH}" exec .venv/bin/python -m cdsde.scaling.tpu_check "$@"
