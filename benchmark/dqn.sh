#!/usr/bin/env bash
# DQN on classic control. Run from the repository's root; flags go to the sweep, FLAGS to every run:
#   bash benchmark/dqn.sh --workers 2
#   FLAGS="--track --capture-video" bash benchmark/dqn.sh --backend slurm --slurm-partition cpu
set -euo pipefail
python -m cleanrl_utils.benchmark --num-seeds 3 --env-ids CartPole-v1 Acrobot-v1 MountainCar-v0 \
    --command "python cleanrl/dqn.py --device cpu ${FLAGS:-}" "$@"
