#!/usr/bin/env bash
# Translate 32 held-out pictures with the shipped checkpoints by SDEdit, Contrastive-SDE and, where there is
# a score network of the source's style, DDIB; evaluate them, print a small table and the path of a sheet of
# pictures for each task. Tasks run side by side.
# Everything that was printed on the way is in demo/TASK/log.txt. Replaces an earlier demo/TASK.
#   bash launch/demo.sh [TASK ...]     default: gothic2mincho twemoji2fluent
source "$(dirname "$0")/setup.sh"

[ $# -gt 0 ] || set -- gothic2mincho twemoji2fluent
images=32

translate_and_evaluate() {
  local task=$1 method methods=(sdedit contrastive_sde)
  [ "$task" = noto2fluent ] || methods+=(ddib)
  local cdsde=(.venv/bin/python -m cdsde.main --config="configs/$task.py" --workdir="demo/$task"
    --config.sample.limit=$images)
  for method in "${methods[@]}"; do
    "${cdsde[@]}" --mode=sample --config.method="$method" --config.sample.batch_size=$images || return
  done
  # 150 characters or 69 emoji as the reference of style, in place of all training images: quick.
  "${cdsde[@]}" --mode=eval --config.eval.methods="$(IFS=,; echo "${methods[*]}")" \
    --config.eval.reference=val
}

echo "translating $images pictures of $*: one to two minutes"
trap 'trap - INT TERM; kill 0' INT TERM
processes=()
for task in "$@"; do
  rm -rf "demo/$task"
  mkdir -p "demo/$task"
  translate_and_evaluate "$task" >"demo/$task/log.txt" 2>&1 &
  processes+=($!)
done
for process in "${processes[@]}"; do
  task=$1
  shift
  wait "$process" || { cat "demo/$task/log.txt" >&2; wait; exit 1; }
  echo
  echo "$task"
  grep -v '^I[0-9]' "demo/$task/log.txt" | awk -v RS= 'END { print }'  # the last table
  echo "source, results, true target: $PWD/demo/$task/eval/sheet.png"
done
