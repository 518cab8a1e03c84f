#!/usr/bin/env bash
# Run a command, and again for as long as it ends with 75: "stopped by SIGTERM, work saved, the same
# command goes on" (cdsde/runtime/preemption.py). SIGTERM, Ctrl-C and SIGHUP to this
# script are passed on as SIGTERM, and then end it too.
#   bash launch/cluster/again.sh .venv/bin/python -m cdsde.main --config=configs/cat2dog.py --mode=train
set -u
asked=no
child=
# Ctrl-C does not reach a command that a script has put into the background.
trap 'asked=yes; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null' TERM INT HUP
while :; do
  "$@" &
  child=$!
  code=0
  wait "$child" || code=$?
  # The signal ends the wait, and not yet the command.
  while kill -0 "$child" 2>/dev/null; do
    code=0
    wait "$child" || code=$?
  done
  if [ "$code" != 75 ] || [ "$asked" = yes ]; then exit "$code"; fi
  echo "again.sh: ended with 75, starting again" >&2
done
