#!/usr/bin/env bash
# DQN in JAX on Atari: 10M steps (40M frames) of each game and seed. Run from the repository's root; flags go to the sweep,
# FLAGS to every run:
#   bash benchmark/dqn_atari_jax.sh --backend slurm --slurm-gpus-per-task 1 --slurm-cpus-per-task 4
set -euo pipefail
python -m cleanrl_utils.benchmark --num-seeds 3 \
    --env-ids PongNoFrameskip-v4 BeamRiderNoFrameskip-v4 BreakoutNoFrameskip-v4 SpaceInvadersNoFrameskip-v4 \
    --command "python cleanrl/dqn_atari_jax.py --save-model ${FLAGS:-}" "$@"
