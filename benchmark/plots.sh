#!/usr/bin/env bash
# Writes the reports in docs/benchmark, from the runs of the sweeps in this folder. Run from the repository's root:
#   bash benchmark/plots.sh             all of them
#   bash benchmark/plots.sh fqi         one
set -euo pipefail
report() { python -m cleanrl_utils.report --out "docs/benchmark/$1" "${@:2}"; }
for name in "${@:-classic-control fqi flappybird qdagger-vs-dqn reincarnation}"; do
    for one in $name; do
        case $one in
            classic-control) # dqn.sh, dqn_jax.sh
                report $one --title "DQN on classic control, measured" \
                    --note "\`dqn.py\` and its twin in JAX with their defaults, which are CleanRL's. Two runs at a time shared the machine
with other work, and some were paused for minutes, so their times say little. CleanRL's numbers: [vectors](../vectors.md)." \
                    --select total_timesteps=500000 \
                    --env-ids CartPole-v1 Acrobot-v1 MountainCar-v0 \
                    --thresholds '{"CartPole-v1": 475, "Acrobot-v1": -100, "MountainCar-v0": -195}' ;;
            fqi) # fqi.sh
                report $one --title "Fitted Q-Iteration on CartPole, measured" --select script=fqi \
                    --note "30 nearest neighbours on 50,000 transitions of the random policy; evaluations of 10 greedy episodes, which stand
over iterations. More regressors: [vectors](../vectors.md)." \
                    --metric eval/episodic_return ;;
            flappybird) # flappybird.sh
                report $one --title "DQN on FlappyBird, measured" \
                    --note "150,000 steps: FLAGS=\"--total-timesteps 150000 --eval-frequency 15000\" (for 500,000 see [vectors](../vectors.md)).
Evaluations of 5 greedy episodes, each cut at 100 pipes, a return of about 469. They swing: judge the best
weights, as [vectors](../vectors.md) does." \
                    --env-ids flappy_bird_gymnasium:FlappyBird-v0 \
                    --metric eval/episodic_return ;;
            qdagger-vs-dqn) # qdagger_vs_dqn.sh
                report $one --title "QDagger compared with DQN from scratch, measured" \
                    --note "Both get 50,000 steps of Pong. DQN from scratch plays all of them. For the student, the teacher in the box plays the
first 20,000; then come 8,000 offline updates, and then the student plays 30,000 steps. Network (Nature CNN), replay, optimiser, learning rate
and updates per step are the same. Evaluations of 5 games." \
                    --metric eval/episodic_return \
                    --select train_frequency=8 buffer_size=50000 env_id=PongNoFrameskip-v4 --thresholds '{"PongNoFrameskip-v4": 0}' ;;
            reincarnation) # reincarnation.sh; its runs are in the repository
                report $one --title "Ways to use a teacher, measured" --runs docs/benchmark/reincarnation/data \
                    --note "Four ways to begin with the Pong teacher in the box, and DQN from scratch. Network (Nature CNN), optimiser, learning rate and
updates per step are the same. QDagger and offline TD train on 20,000 steps that the teacher plays, in 6,000 updates. Then the student
plays 20,000 steps. Kickstarting and the reloaded agent play 20,000 steps, DQN from scratch 40,000. Evaluations of 5 games. Two runs
at a time, with one thread each, shared the machine with other work, so their times say little. What each way is:
[QDagger](../../rl-algorithms/qdagger.md#ways-to-use-a-teacher)." \
                    --metric eval/episodic_return --thresholds '{"PongNoFrameskip-v4": 0}' ;;
            *) echo "error: there is no report $one" >&2; exit 2 ;;
        esac
    done
done
