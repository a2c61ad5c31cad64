#!/usr/bin/env bash
# QDagger on Atari, each game with the teacher in the box, or else cleanrl's with seed 1 from the Hub. Run from the
# repository's root; flags go to the sweep, FLAGS to every run:
#   bash benchmark/qdagger_dqn_atari_impalacnn.sh --backend slurm --slurm-gpus-per-task 1 --slurm-cpus-per-task 4
set -euo pipefail
python -m cleanrl_utils.benchmark --num-seeds 3 \
    --env-ids PongNoFrameskip-v4 BeamRiderNoFrameskip-v4 BreakoutNoFrameskip-v4 \
    --command "python cleanrl/qdagger_dqn_atari_impalacnn.py --save-model ${FLAGS:-}" "$@"
