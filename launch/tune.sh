#!/usr/bin/env bash
# Try settings of the energies on the val split and print one row each; the log is kept.
#   bash launch/tune.sh TASK [SETTING ...]     SETTING: overrides without `config.`, such as
#                                              "method=contrastive_sde sample.start=350"
# Results in runs/tune/TASK; a setting that is done already is only read again.
source "$(dirname "$0")/setup.sh"

task="${1:?name a task of configs/, such as twemoji2fluent}"
shift
settings=("$@")
if [ ${#settings[@]} -eq 0 ]; then
  for start in 200 250 300; do
    settings+=("method=sdedit sample.start=$start")
  done
  contrastive="method=contrastive_sde sample.start=250 contrastive_sde"
  for weight in 0 500 2000; do
    settings+=("$contrastive.content_weight=2.0 contrastive_sde.weight=$weight")
  done
  for open in space=hidden space=features reference=lowpass content_weight=0; do
    settings+=("$contrastive.content_weight=2.0 contrastive_sde.$open")
  done
  settings+=("$contrastive.content_weight=20.0")
  for weight in 2.0 20.0; do
    settings+=("method=egsde sample.start=250 egsde.content_weight=$weight")
  done
fi

out=runs/tune/$task
mkdir -p "$out"
for setting in "${settings[@]}"; do
  overrides=()
  for override in $setting; do overrides+=("--config.$override"); done
  name=$(echo "$setting" | tr ' =' '__')
  if [ ! -e "$out/$name/done" ]; then
    common=(--config="configs/$task.py" --workdir="$out/$name" --config.sample.split=val
      --config.eval.split=val --config.eval.cache="$out/reference" --config.sample.batch_size=69 ${WEIGHTS:-} "${overrides[@]}")
    .venv/bin/python -m cdsde.main "${common[@]}" --mode=sample >"$out/$name.log" 2>&1
    .venv/bin/python -m cdsde.main "${common[@]}" --mode=eval >>"$out/$name.log" 2>&1
    touch "$out/$name/done"
  fi
  echo "$setting"
  tail -n +2 "$out/$name"/eval/*/metrics.csv |
    awk -F, '{printf "    %-22s %8.3f%s\n", $1, $2, $3 == "" ? "" : sprintf("  [%.3f, %.3f]", $3, $4)}' | grep -v MSE
done | tee "$out/table.txt"
