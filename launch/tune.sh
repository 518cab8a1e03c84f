#!/usr/bin/env bash
# The benchmark's fronts on the val split, from which settings are chosen; the table is
# runs/tune/results/table.md.
#   bash launch/tune.sh [TASKS] [METHODS] [FLAGS of python -m cdsde.benchmark, such as --config.KEY=VALUE]
names=()
while [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; do names+=("$1"); shift; done
exec bash "$(dirname "$0")/benchmark.sh" ${names[@]+"${names[@]}"} --config.sample.split=val --output=runs/tune/results \
  --workdir=runs/tune --parts=fronts "$@"
