#!/usr/bin/env bash
# A Cloud TPU slice: create, install, run on all workers, resume after pre-emption, delete.
#   export NAME=cdsde ZONE=us-west4-a TYPE=v5litepod-8 BUCKET=my-bucket
#   bash launch/cluster/tpu_vm.sh keep --config=configs/cat2dog.py --config.dtype=bfloat16 --config.data.root=/data/afhq
#   bash launch/cluster/tpu_vm.sh create | install | run ARGS... | status | delete     one step at a time
# `keep` does all of it, and again after each pre-emption of a spot slice, until training has ended.
# Checkpoints lie in gs://$BUCKET/$NAME, mounted as the work folder, so that a new slice finds them.
# Needs gcloud, logged in; data are expected on the slice (an image, a disk, or the bucket).
set -euo pipefail
cd "$(dirname "$0")/../.."
: "${NAME:?a name for the slice}" "${ZONE:?its zone}" "${TYPE:=v5litepod-8}" "${BUCKET:?a bucket for checkpoints}"
: "${VERSION:=v2-alpha-tpuv5-lite}" "${SPOT:=--spot}"
tpu() { gcloud compute tpus tpu-vm "$@" --zone="$ZONE"; }
everywhere() { tpu ssh "$NAME" --worker=all --command="$1"; }

create() { tpu create "$NAME" --accelerator-type="$TYPE" --version="$VERSION" $SPOT; }
status() { tpu describe "$NAME" --format="value(state)" 2>/dev/null || echo NONE; }
delete() { tpu delete "$NAME" --quiet; }

install() {
  # What is committed here, on every worker.
  git archive --format=tar.gz --output=/tmp/cdsde.tar.gz HEAD
  tpu scp /tmp/cdsde.tar.gz "$NAME:/tmp/cdsde.tar.gz" --worker=all
  everywhere "set -e
    mkdir -p ~/cdsde ~/checkpoints && tar -xzf /tmp/cdsde.tar.gz -C ~/cdsde && cd ~/cdsde
    [ -x .venv/bin/python ] || python3 -m venv .venv
    .venv/bin/pip install --quiet -e '.[tpu]'
    mountpoint -q ~/checkpoints || gcsfuse --implicit-dirs $BUCKET ~/checkpoints"
}

# Every worker runs the same program; on a slice JAX finds the others by itself.
run() {
  local arguments
  arguments=$(printf ' %q' "$@")
  everywhere "cd ~/cdsde && exec .venv/bin/python -m cdsde.main --mode=train --coordinator=auto --workdir=\$HOME/checkpoints/$NAME$arguments"
}

keep() {
  while :; do
    case "$(status)" in
      READY) ;;
      NONE) create || { sleep 60; continue; } ;; # there may be no spot capacity
      *) delete || true; create || { sleep 60; continue; } ;; # pre-empted or broken: made anew
    esac
    if install && run "$@"; then
      delete
      return
    fi
    # 75 (stopped by SIGTERM) and a lost connection look alike from here. A slice that still stands
    # means that the program itself has failed.
    sleep 30
    if [ "$(status)" = READY ]; then
      echo "error: the program ended on a slice that is still there; see above" >&2
      exit 1
    fi
  done
}

"${1:?create, install, run, keep, status or delete}" "${@:2}"
