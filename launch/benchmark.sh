#!/usr/bin/env bash
# The benchmark: every method on the test split of the embedded tasks over 5 seeds, fronts, ablations,
# work, convergence, and every editor by words. Writes docs/results/{results.json,table.md,report.html} and
# edits.{json,md}. An interrupted run continues.
#   bash launch/benchmark.sh [TASKS] [METHODS] [FLAGS of python -m cdsde.benchmark]
#   bash launch/benchmark.sh cat2dog egsde,sdedit --config.data.root=DIR --config.weights.score=FILE
source "$(dirname "$0")/setup.sh"

flags=()
case "${1:-}" in "" | --*) ;; *) flags+=("--tasks=$1"); shift ;; esac
case "${1:-}" in "" | --*) ;; *) flags+=("--methods=$1"); shift ;; esac
.venv/bin/python -m cdsde.benchmark ${flags[@]+"${flags[@]}"} "$@"
