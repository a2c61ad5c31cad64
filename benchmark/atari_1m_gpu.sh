#!/usr/bin/env bash
# atari_1m.sh on one GPU, 10 runs side by side: a run alone leaves most of a large GPU idle, and under CUDA's Multi-Process
# Service the kernels of all overlap. Wants 16 cores, and 40 GB on the GPU. From the repository's root:
#   bash benchmark/atari_1m_gpu.sh
set -uo pipefail
export CUDA_MPS_PIPE_DIRECTORY=${CUDA_MPS_PIPE_DIRECTORY:-/tmp/mps} CUDA_MPS_LOG_DIRECTORY=${CUDA_MPS_LOG_DIRECTORY:-/tmp/mps}
mkdir -p "$CUDA_MPS_PIPE_DIRECTORY" && nvidia-cuda-mps-control -d
trap 'echo quit | nvidia-cuda-mps-control' EXIT
games() { # SEEDS GAME
    FLAGS="--num-envs 32 --cuda-graph --no-torch-deterministic --checkpoint-frequency 0" \
        SEEDS=$1 GAMES=$2 bash benchmark/atari_1m.sh --workers 5
}
{ games 5 PongNoFrameskip-v4; games 3 BeamRiderNoFrameskip-v4; } &
{ games 5 BreakoutNoFrameskip-v4; games 3 SpaceInvadersNoFrameskip-v4; } &
wait
