#!/usr/bin/env bash
# Atari in a million steps (4M frames): QDagger with the teachers in the box, and DQN; 5 seeds of Pong and Breakout, then 3 of
# BeamRider and Space Invaders. The same command continues where it stopped. Run from the repository's root; flags go to the
# sweep, FLAGS to every run:
#   bash benchmark/atari_1m.sh --workers 2
# GAMES and SEEDS choose others:
#   GAMES=PongNoFrameskip-v4 SEEDS=1 bash benchmark/atari_1m.sh
set -uo pipefail
status=0
trap 'exit 130' INT TERM
sweep() { # SCRIPT CONFIG SEEDS GAMES, then the sweep's flags
    python -m cleanrl_utils.benchmark --num-seeds "$3" --env-ids $4 \
        --command "python cleanrl/$1.py --config benchmark/configs/$2 ${FLAGS:-}" "${@:5}" || status=$?
}
both() { # SEEDS GAMES, then the sweep's flags
    sweep qdagger_dqn_atari_impalacnn qdagger_1m.yaml "$@"
    sweep dqn_atari "atari_1m.yaml --save-replay" "$@"
}
if [ -n "${GAMES:-}" ]; then both "${SEEDS:-5}" "$GAMES" "$@"; else
    both 5 "PongNoFrameskip-v4 BreakoutNoFrameskip-v4" "$@"
    both 3 "BeamRiderNoFrameskip-v4 SpaceInvadersNoFrameskip-v4" "$@"
fi
exit $status
