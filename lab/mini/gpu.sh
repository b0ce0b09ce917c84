#!/bin/bash
# The full preset on a lent GPU machine that has torch, Pillow and no network, in calls of at most ten minutes each.
#
#   bash lab/mini/gpu.sh MINUTES [STEPS]    the missing stages, then the U-Net to STEPS (default: the preset's)
#
# MINUTES, such as 8 of a call's ten, limit the autoencoder and the U-Net together; pictures and latents are made
# completely or not at all. The same call goes on from there, while the machine is held: it is released 30 seconds after
# a call ends, with all work files, and the next machine starts empty.
# Results in $OUT: the log, and the present base in parts of 15 MB; `cat base.part.* > FILE.safetensors` joins them.
# They are the averaged weights in fp16, for sampling: training cannot go on from them.
set -euo pipefail
minutes=${1:?how many MINUTES} steps=${2:+--steps $2}
preset=${PRESET:-full} work=${WORK:-/tmp/mini_full} out=${OUT:?where results go}
options=(--preset "$preset" --folder "$work" $steps)
export PYTHONUNBUFFERED=1
{
    python3 -m lab.mini train "${options[@]}" --minutes "$minutes"
    [ ! -e "$work/unet.pt" ] || python3 -m lab.mini export "${options[@]}" --weights "$work/mini_base.safetensors"
} 2>&1 | tee "$out/train.log"
[ ! -e "$work/mini_base.safetensors" ] || split -b 15M -d "$work/mini_base.safetensors" "$out/base.part."
