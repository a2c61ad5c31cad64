#!/usr/bin/env bash
# Is a student ahead of DQN from scratch at every step count? Pong, at the scale of 2 CPU cores: the same network (Nature
# CNN), replay, optimiser and updates per step for both; 50,000 steps each. The student's include 20,000 that its teacher plays.
# Run from the repository's root; flags go to the sweep, FLAGS to every run:
#   bash benchmark/qdagger_vs_dqn.sh --workers 2
set -euo pipefail
status=0
trap 'exit 130' INT TERM
SAME="--device cpu --no-compile --eval-frequency 5000 --eval-episodes 5 --eval-max-frames 27000 --learning-rate 1e-4 \
    --buffer-size 50000 --learning-starts 1000 --train-frequency 8 --huber --n-step 3 --save-model"
python -m cleanrl_utils.benchmark --num-seeds 3 --env-ids PongNoFrameskip-v4 --command "python \
    cleanrl/qdagger_dqn_atari_impalacnn.py $SAME --student nature --teacher-steps 20000 --teacher-start-e 0.5 \
    --offline-steps 8000 --offline-eval-frequency 2000 --temperature 0.03 --distill-coefficient 1 --start-e 0.01 --total-timesteps 30000 ${FLAGS:-}" "$@" || status=$?
python -m cleanrl_utils.benchmark --num-seeds 3 --env-ids PongNoFrameskip-v4 --command "python \
    cleanrl/dqn_atari.py $SAME --total-timesteps 50000 ${FLAGS:-}" "$@" || status=$?
exit $status
