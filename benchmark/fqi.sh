#!/usr/bin/env bash
# Fitted Q-Iteration on CartPole. Run from the repository's root; flags go to the sweep, FLAGS to every run:
#   bash benchmark/fqi.sh --workers 2
set -euo pipefail
python -m cleanrl_utils.benchmark --num-seeds 3 --env-ids CartPole-v1 \
    --command "python cleanrl/fqi.py ${FLAGS:-}" "$@"
