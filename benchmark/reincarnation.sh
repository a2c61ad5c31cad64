#!/usr/bin/env bash
# Ways to use a teacher, compared with DQN from scratch: QDagger, kickstarting, offline training on TD loss only, and training the
# teacher's weights further. Pong with the teacher in the box, Nature CNN, 5 seeds. The same command continues where it stopped.
# Run from the repository's root; flags go to the sweep, FLAGS to every run:
#   bash benchmark/reincarnation.sh --workers 2
set -uo pipefail
status=0
trap 'exit 130' INT TERM
TEACHER=cleanrl_utils/zoo/PongNoFrameskip-v4-dqn_atari-seed1/dqn_atari.cleanrl_model
SAME="--device cpu --no-compile --eval-frequency 5000 --eval-episodes 5 --eval-max-frames 27000 --learning-rate 1e-4 \
    --adam-eps 1.5e-4 --buffer-size 30000 --learning-starts 1000 --train-frequency 8 --huber --n-step 3"
STUDENT="$SAME --student nature --offline-eval-frequency 2000 --total-timesteps 20000 --start-e 0.01"
DATA="--teacher-steps 20000 --teacher-start-e 0.5 --offline-steps 6000"
sweep() { # EXP_NAME SCRIPT FLAGS, then the sweep's flags
    python -m cleanrl_utils.benchmark --num-seeds 5 --env-ids PongNoFrameskip-v4 \
        --command "python cleanrl/$2.py --exp-name $1 $3 ${FLAGS:-}" "${@:4}" || status=$?
}
sweep qdagger qdagger_dqn_atari_impalacnn "$STUDENT $DATA" "$@"
sweep kickstarting qdagger_dqn_atari_impalacnn "$STUDENT --offline-steps 0" "$@"
sweep offline-td qdagger_dqn_atari_impalacnn "$STUDENT $DATA --distill-coefficient 0" "$@"
sweep reloaded dqn_atari "$SAME --total-timesteps 20000 --start-e 0.01 --initial-model $TEACHER" "$@"
sweep scratch dqn_atari "$SAME --total-timesteps 40000 --start-e 1 --exploration-fraction 0.25" "$@"
exit $status
