#!/usr/bin/env bash
# Translate held-out emoji with the shipped checkpoints by SDEdit and Contrastive-SDE, evaluate both,
# print the table and the path of the contact sheet. At most 5 minutes on 2 CPU cores.
#   bash launch/demo.sh [TASK]     TASK: twemoji2fluent (default), noto2fluent, fluent2twemoji
source "$(dirname "$0")/setup.sh"

task="${1:-twemoji2fluent}"
out=demo/$task
images=64
methods=(sdedit contrastive_sde)

for method in "${methods[@]}"; do
  .venv/bin/python -m cdsde.main --config="configs/$task.py" --mode=sample --workdir="$out" \
    --config.method="$method" --config.sample.limit=$images --config.sample.batch_size=$images
done
.venv/bin/python -m cdsde.main --config="configs/$task.py" --mode=eval --workdir="$out" \
  --config.eval.methods="$(IFS=,; echo "${methods[*]}")" --config.sample.limit=$images

echo
echo "contact sheet (source | SDEdit | Contrastive-SDE | true target): $PWD/$out/eval/sheet.png"
