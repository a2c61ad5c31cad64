#!/usr/bin/env bash
# The reports in docs/benchmark, from the runs that the sweeps beside this file leave. From the repository's root:
#   bash benchmark/plots.sh             all of them
#   bash benchmark/plots.sh fqi         one
set -euo pipefail
report() { python -m cleanrl_utils.report --out "docs/benchmark/$1" "${@:2}"; }
for name in "${@:-classic-control fqi flappybird qdagger-vs-dqn}"; do
    for one in $name; do
        case $one in
            classic-control) # dqn.sh, dqn_jax.sh
                report $one --title "DQN on classic control, measured" --select total_timesteps=500000 \
                    --env-ids CartPole-v1 Acrobot-v1 MountainCar-v0 \
                    --thresholds '{"CartPole-v1": 475, "Acrobot-v1": -100, "MountainCar-v0": -195}' ;;
            fqi) # fqi.sh
                report $one --title "Fitted Q-Iteration on CartPole, measured" --select script=fqi \
                    --metric eval/episodic_return ;;
            flappybird) # flappybird.sh
                report $one --title "DQN on FlappyBird, measured" --env-ids flappy_bird_gymnasium:FlappyBird-v0 \
                    --metric eval/episodic_return ;;
            qdagger-vs-dqn) # qdagger_vs_dqn.sh
                report $one --title "QDagger beside DQN from scratch, measured" --metric eval/episodic_return \
                    --select train_frequency=8 env_id=PongNoFrameskip-v4 --thresholds '{"PongNoFrameskip-v4": 0}' ;;
            *) echo "error: there is no report $one" >&2; exit 2 ;;
        esac
    done
done
