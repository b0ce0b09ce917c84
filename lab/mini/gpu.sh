#!/bin/bash
# The full preset on a lent GPU machine that has torch and no network, in calls of at most ten minutes each.
#
#   bash lab/mini/gpu.sh MINUTES STEPS    what is missing, then the U-Net (MINUTES of it; STEPS in all)
#
# The drawings come along as .lab/mini/artwork_full.zip (python3 -m lab.mini data --preset full makes it where npm is).
# Work files stay on the machine between calls. What comes back in $OUT: the log and the base so far, in parts of
# 15 MB; `cat base.part.* > lab/mini/weights/mini_base.safetensors` joins them.
set -euo pipefail
minutes=$1 steps=$2
preset=${PRESET:-full} work=${WORK:-/tmp/mini_full} out=${OUT:?where results go}
options=(--preset "$preset" --folder "$work" --archive "${ARCHIVE:-.lab/mini/artwork_full.zip}" --steps "$steps")
export PYTHONUNBUFFERED=1
{
    python3 -m lab.mini train "${options[@]}" --minutes "$minutes"
    python3 -m lab.mini export "${options[@]}" --weights "$work/mini_base.safetensors"
} 2>&1 | tee "$out/train.log"
split -b 15M -d "$work/mini_base.safetensors" "$out/base.part."
