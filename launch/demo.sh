#!/usr/bin/env bash
# Translate held-out pictures with the shipped checkpoints by SDEdit and Contrastive-SDE, evaluate
# both, print a table and the path of a sheet of pictures for each task. Replaces an earlier demo/TASK.
#   bash launch/demo.sh [TASK ...]     default: gothic2mincho twemoji2fluent
source "$(dirname "$0")/setup.sh"

[ $# -gt 0 ] || set -- gothic2mincho twemoji2fluent
methods=(sdedit contrastive_sde)
images=32

for task in "$@"; do
  out=demo/$task
  rm -rf "$out"
  for method in "${methods[@]}"; do
    .venv/bin/python -m cdsde.main --config="configs/$task.py" --mode=sample --workdir="$out" \
      --config.method="$method" --config.sample.limit=$images --config.sample.batch_size=$images
  done
  .venv/bin/python -m cdsde.main --config="configs/$task.py" --mode=eval --workdir="$out" \
    --config.eval.methods="$(IFS=,; echo "${methods[*]}")" --config.sample.limit=$images
done

echo
echo "sheets (source | SDEdit | Contrastive-SDE | true target):"
for task in "$@"; do echo "  $PWD/demo/$task/eval/sheet.png"; done
