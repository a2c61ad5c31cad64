#!/usr/bin/env bash
# DQN on FlappyBird (extra `flappy`). From the repository's root; flags are of the sweep, FLAGS of every run:
#   bash benchmark/flappybird.sh --workers 2
set -euo pipefail
python -m cleanrl_utils.benchmark --num-seeds 3 --env-ids flappy_bird_gymnasium:FlappyBird-v0 \
    --command "python cleanrl/dqn.py --config benchmark/configs/dqn_flappybird.yaml --device cpu ${FLAGS:-}" "$@"
