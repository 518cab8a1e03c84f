#!/usr/bin/env bash
# Translate held-out pictures with the shipped checkpoints by SDEdit and Contrastive-SDE, evaluate
# both, print a table and the path of a sheet of pictures for each task. Replaces an earlier demo/TASK.
#   bash launch/demo.sh [TASK ...]     default: gothic2mincho twemoji2fluent
source "$(dirname "$0")/setup.sh"

[ $# -gt 0 ] || set -- gothic2mincho twemoji2fluent
methods=(sdedit contrastive_sde)
images=32

show() {
  local task=$1 out=demo/$1 method
  for method in "${methods[@]}"; do
    .venv/bin/python -m cdsde.main --config="configs/$task.py" --mode=sample --workdir="$out" \
      --config.method="$method" --config.sample.limit=$images --config.sample.batch_size=$images
  done
  .venv/bin/python -m cdsde.main --config="configs/$task.py" --mode=eval --workdir="$out" \
    --config.eval.methods="$(IFS=,; echo "${methods[*]}")" --config.sample.limit=$images
}

# The first task writes here and the others into files, so that they use all cores: a process
# imports and compiles on one.
others=()
stop_others() { for pid in "${others[@]}"; do kill -- "-$pid" 2>/dev/null || true; done; }
trap stop_others EXIT
for task in "$@"; do rm -rf "demo/$task"; mkdir -p "demo/$task"; done
set -m # a process group each, which can be stopped as one
for task in "${@:2}"; do
  show "$task" >"demo/$task/log.txt" 2>&1 &
  others+=($!)
done
set +m
show "$1"
tasks=("${@:2}") failed=0
for i in "${!others[@]}"; do
  wait "${others[i]}" || failed=$?
  cat "demo/${tasks[i]}/log.txt"
done
others=()
[ $failed = 0 ] || exit $failed

echo
echo "sheets (source | SDEdit | Contrastive-SDE | true target):"
for task in "$@"; do echo "  $PWD/demo/$task/eval/sheet.png"; done
