#!/usr/bin/env bash
# Fitted Q-Iteration on CartPole. From the repository's root; flags are of the sweep, FLAGS of every run:
#   bash benchmark/fqi.sh --workers 2
set -euo pipefail
python -m cleanrl_utils.benchmark --num-seeds 3 --env-ids CartPole-v1 \
    --command "python cleanrl/fqi.py ${FLAGS:-}" "$@"
