#!/usr/bin/env bash
# Translate held-out pictures with the shipped checkpoints by SDEdit and Contrastive-SDE, evaluate
# both, print a table and the path of the sheet of pictures for each task.
#   bash launch/demo.sh [TASK ...]     default: gothic2mincho twemoji2fluent
source "$(dirname "$0")/setup.sh"

[ $# -gt 0 ] || set -- gothic2mincho twemoji2fluent
methods=(sdedit contrastive_sde)

for task in "$@"; do
  out=demo/$task
  limit=64
  [ "$task" != gothic2mincho ] || limit=32  # of 64² rather than 32²
  for method in "${methods[@]}"; do
    .venv/bin/python -m cdsde.main --config="configs/$task.py" --mode=sample --workdir="$out" \
      --config.method="$method" --config.sample.limit=$limit --config.sample.batch_size=$limit
  done
  .venv/bin/python -m cdsde.main --config="configs/$task.py" --mode=eval --workdir="$out" \
    --config.eval.methods="$(IFS=,; echo "${methods[*]}")" --config.sample.limit=$limit
done

echo
echo "sheets (source | SDEdit | Contrastive-SDE | true target):"
for task in "$@"; do echo "  $PWD/demo/$task/eval/sheet.png"; done
