#!/usr/bin/env bash
# The README's results: every method on the whole test split of the embedded tasks, with the shipped
# checkpoints and the configs' settings. Results in runs/results/TASK; what is done is not done again.
#   bash launch/results.sh [TASK ...]
source "$(dirname "$0")/setup.sh"

tasks=("$@")
[ ${#tasks[@]} -gt 0 ] || tasks=(twemoji2fluent noto2fluent fluent2twemoji)
methods=(sdedit ilvr egsde contrastive_sde)

for task in "${tasks[@]}"; do
  common=(--config="configs/$task.py" --workdir="runs/results/$task")
  for method in "${methods[@]}"; do
    .venv/bin/python -m cdsde.main "${common[@]}" --mode=sample --config.method="$method" \
      --config.sample.batch_size=50
  done
  .venv/bin/python -m cdsde.main "${common[@]}" --mode=eval \
    --config.eval.methods="$(IFS=,; echo "${methods[*]}")" | tee "runs/results/$task/table.txt"
done
