#!/usr/bin/env bash
# DQN on Atari: 1M steps (4M frames), 5 seeds of Pong and Breakout, then 3 of BeamRider and Space Invaders. The same command
# goes on where it was stopped. From the repository's root; flags are of the sweep, FLAGS of every run:
#   bash benchmark/atari_1m.sh --workers 2
set -euo pipefail
both() {
    python -m cleanrl_utils.benchmark --num-seeds 1 --start-seed "$1" --env-ids "$2" "$3" \
        --command "python cleanrl/dqn_atari.py --config benchmark/configs/atari_1m.yaml --save-replay ${FLAGS:-}" "${@:4}"
}
for seed in 1 2 3 4 5; do both $seed PongNoFrameskip-v4 BreakoutNoFrameskip-v4 "$@"; done
for seed in 1 2 3; do both $seed BeamRiderNoFrameskip-v4 SpaceInvadersNoFrameskip-v4 "$@"; done
