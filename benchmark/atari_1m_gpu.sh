#!/usr/bin/env bash
# atari_1m.sh on one GPU, 10 runs side by side: one run leaves most of a large GPU idle, and under CUDA's Multi-Process
# Service the kernels of all runs overlap. Needs 16 cores, and 40 GB on the GPU. Run from the repository's root; flags go
# to the sweep, FLAGS to every run:
#   bash benchmark/atari_1m_gpu.sh
set -uo pipefail
export CUDA_MPS_PIPE_DIRECTORY=${CUDA_MPS_PIPE_DIRECTORY:-/tmp/mps} CUDA_MPS_LOG_DIRECTORY=${CUDA_MPS_LOG_DIRECTORY:-/tmp/mps}
mkdir -p "$CUDA_MPS_PIPE_DIRECTORY" && nvidia-cuda-mps-control -d
trap 'echo quit | nvidia-cuda-mps-control' EXIT
export FLAGS="--num-envs 32 --cuda-graph --no-torch-deterministic --checkpoint-frequency 0 ${FLAGS:-}"
both() { # GAME of 5 seeds, GAME of 3, then the sweep's flags
    local status=0
    SEEDS=5 GAMES=$1 bash benchmark/atari_1m.sh --workers 5 "${@:3}" || status=$?
    SEEDS=3 GAMES=$2 bash benchmark/atari_1m.sh --workers 5 "${@:3}" || status=$?
    return $status
}
status=0
both PongNoFrameskip-v4 BeamRiderNoFrameskip-v4 "$@" &
both BreakoutNoFrameskip-v4 SpaceInvadersNoFrameskip-v4 "$@" || status=$?
wait $! || status=$?
exit $status
