#!/usr/bin/env bash
# Train on all GPUs of one machine: one process drives them all, nothing else is to be set up.
#   bash launch/cluster/multi_gpu.sh --config=configs/cat2dog.py --config.dtype=bfloat16 --config.data.root=DIR
#   CUDA_VISIBLE_DEVICES=0,1 bash launch/cluster/multi_gpu.sh ...     only two of them
# config.train.STAGE.batch_size is over all GPUs together, and must be a multiple of their number.
source "$(dirname "$0")/../setup.sh"
.venv/bin/python -c "import jax_cuda13_plugin" 2>/dev/null ||
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[cuda]"
exec bash launch/cluster/again.sh .venv/bin/python -m cdsde.main --mode=train "$@"
