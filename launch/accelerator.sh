#!/usr/bin/env bash
# Measure the accelerator of this machine, then train a stage for the time that is left.
#   bash launch/accelerator.sh [MINUTES]        default: 9; needs CUDA JAX and the package's requirements, no internet
#   OUT=DIR         folder of everything that is left behind (default: runs/accelerator)
#   PYTHON=FILE     interpreter (default: .venv/bin/python, else python3)
#   PUBLISHED=DIR   a checkout of EGSDE, timed beside it where the interpreter has PyTorch
#   BENCH="..."     arguments of the measurements
#   TRAIN="..."     what to train, as for cdsde.main; empty: nothing
# OUT gets machine.txt, bench_DTYPE.{log,json}, train.log, and the work folder of the training in pieces of 15 MB.
# To go on with it elsewhere: cat OUT/train.tar.* | tar x -C runs, then the same TRAIN with --workdir=runs/train.
set -euo pipefail
cd "$(dirname "$0")/.."
minutes="${1:-9}"
out="${OUT:-runs/accelerator}"
python="${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}"
bench="${BENCH:---config=cat2dog --images=1,8,32 --parts=forward,energies,step,train}"
train="${TRAIN---config=twemoji2fluent --config.train.stage=score}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" TF_CPP_MIN_LOG_LEVEL=2
export XLA_PYTHON_CLIENT_PREALLOCATE=false # the published code shares the memory of the device
packing=20 # seconds kept back for the end
end=$((SECONDS + minutes * 60 - packing))
# The measurements take at most two thirds of the time if something is to be trained, half of it for each dtype.
measured=$([ -n "$train" ] && echo $((SECONDS + (minutes * 60 - packing) * 2 / 3)) || echo "$end")
mkdir -p "$out"
rm -f "$out"/train.tar.* # of an earlier run: pieces of two runs are no archive

{
  date -u
  command -v nvidia-smi >/dev/null && nvidia-smi || true
  "$python" -c 'import jax, jaxlib, sys; print(jax.devices(), jax.devices()[0].device_kind); print("jax", jax.__version__, "jaxlib", jaxlib.__version__, "python", sys.version)'
  "$python" -c 'import torch; print("torch", torch.__version__)' 2>/dev/null || echo "no torch"
  git rev-parse HEAD 2>/dev/null || true
} > "$out/machine.txt" 2>&1

beside=()
if [ -n "${PUBLISHED:-}" ] && "$python" -c 'import torch' 2>/dev/null; then
  beside=("--published=$PUBLISHED" "--python=$python")
fi
halfway=$((SECONDS + (measured - SECONDS) / 2))
for dtype in bfloat16 float32; do
  until=$([ "$dtype" = bfloat16 ] && echo "$halfway" || echo "$measured")
  left=$((until - SECONDS))
  [ "$left" -gt 5 ] || { echo "no time was left for $dtype" | tee "$out/bench_$dtype.log"; continue; }
  # shellcheck disable=SC2086
  timeout "$left" "$python" -u -m cdsde.scaling.bench $bench --config.dtype=$dtype \
    ${beside[@]+"${beside[@]}"} --output="$out/bench_$dtype.json" > "$out/bench_$dtype.log" 2>&1 ||
    echo "stopped or failed with status $?; the rows so far are above" >> "$out/bench_$dtype.log"
  tail -n 12 "$out/bench_$dtype.log"
done

left=$((end - SECONDS))
if [ -n "$train" ] && [ "$left" -gt 10 ]; then
  work=$(mktemp -d)
  # SIGTERM: it writes a checkpoint and ends. The same command goes on from it.
  # shellcheck disable=SC2086
  timeout --signal=TERM --kill-after=60 "$left" "$python" -m cdsde.main --mode=train $train \
    --config.train.keep=1 --workdir="$work/train" > "$out/train.log" 2>&1 ||
    echo "ended with status $? (124: the time was over)" >> "$out/train.log"
  tail -n 3 "$out/train.log"
  tar c -C "$work" train | split -b 15M - "$out/train.tar."
  rm -rf "$work"
fi
ls -l "$out"
