#!/usr/bin/env bash
# DQN on FlappyBird (extra `flappy`). Run from the repository's root; flags go to the sweep, FLAGS to every run:
#   bash benchmark/flappybird.sh --workers 2
set -euo pipefail
python -m cleanrl_utils.benchmark --num-seeds 3 --env-ids flappy_bird_gymnasium:FlappyBird-v0 \
    --command "python cleanrl/dqn.py --config benchmark/configs/dqn_flappybird.yaml --device cpu ${FLAGS:-}" "$@"
