#!/usr/bin/env bash
# Fronts and ablations on the val split, from which the configs' settings are chosen: the benchmark's
# own runs, with its table kept in benchmark/val/table.md.
#   bash launch/tune.sh [TASKS] [METHODS] [FLAGS of python -m cdsde.benchmark]
source "$(dirname "$0")/setup.sh"

flags=(--set=eval.split=val --output=benchmark/val --workdir=runs/benchmark_val --parts=fronts,ablations)
case "${1:-}" in "" | --*) ;; *) flags+=("--tasks=$1"); shift ;; esac
case "${1:-}" in "" | --*) ;; *) flags+=("--methods=$1"); shift ;; esac
.venv/bin/python -m cdsde.benchmark "${flags[@]}" "$@"
