#!/usr/bin/env bash
# The first checks on a GPU, in about ten minutes: do the CUDA tests pass, does every Atari script run, does a seed give
# the same weights twice, and how fast is it? Run from the repository's root; results go to FOLDER, start with results.txt:
#   bash benchmark/gpu.sh FOLDER
# To try it without a GPU: DEVICE=cpu STEPS=64 UPDATES=2 SPEED="--rounds 1 --window 0.2" PATIENCE=5 bash benchmark/gpu.sh FOLDER
set -uo pipefail
root=$PWD
folder=$(realpath -m "${1:?usage: bash benchmark/gpu.sh FOLDER}")
device=${DEVICE:-cuda} steps=${STEPS:-20000} patience=${PATIENCE:-1} status=0
mkdir -p "$folder"
export PYTHONPATH=$root

note() { echo "$*" | tee -a "$folder/results.txt"; }
part() { # NAME SECONDS COMMAND...: a part that fails or takes too long is reported, and the others still run
    if timeout $(($2 * patience)) "${@:3}" > "$folder/$1.txt" 2>&1; then note "$1: $(tail -n 1 "$folder/$1.txt")"; else
        status=1
        note "$1: FAILED, see $1.txt: $(tail -n 1 "$folder/$1.txt")"
    fi
}
train() { # NAME SCRIPT FLAGS...: trains to the end, in FOLDER/NAME
    mkdir -p "$folder/$1"
    (cd "$folder/$1" && timeout $((240 * patience)) python "$root/cleanrl/$2.py" --env-id PongNoFrameskip-v4 --seed 1 --device "$device" \
        --total-timesteps "$steps" --learning-starts $((steps / 20)) --buffer-size "$((steps + 200))" \
        --exploration-fraction 0.5 --eval-episodes 2 --eval-max-frames 8000 --save-model "${@:3}" > log.txt 2>&1)
}
model() { cat "$folder/$1"/runs/*/*.cleanrl_model 2> /dev/null | sha256sum; }
compared() { # WHAT NAME NAME: notes whether two runs ended with the same weights
    if ! ls "$folder/$2"/runs/*/*.cleanrl_model "$folder/$3"/runs/*/*.cleanrl_model > /dev/null 2>&1; then
        status=1
        note "$1: FAILED, see $2/log.txt and $3/log.txt"
    elif [ "$(model "$2")" = "$(model "$3")" ]; then note "$1: the same weights"; else note "$1: other weights"; fi
}

note "commit $(git rev-parse --short HEAD 2> /dev/null || echo unknown), $device, $steps steps"
part tests 120 python -m pytest -o addopts= -p no:cacheprovider tests/test_cuda.py tests/test_cuda_jax.py

teacher=(--teacher-steps "$((steps / 5))" --teacher-eval-episodes 2 --offline-steps "$((steps / 20))")
graph=() && [ "$device" = cuda ] && graph=(--cuda-graph)
for time in 1 2; do
    train "torch-$time" dqn_atari "${graph[@]}" &
    train "torch-plain-$time" dqn_atari --no-compile &
    train "torch-qdagger-$time" qdagger_dqn_atari_impalacnn "${graph[@]}" "${teacher[@]}" &
    train "jax-$time" dqn_atari_jax --xla-deterministic &
    train "jax-qdagger-$time" qdagger_dqn_atari_jax_impalacnn --xla-deterministic "${teacher[@]}" &
done
train torch-plain-graph dqn_atari --no-compile "${graph[@]}" &
wait
for name in torch torch-plain torch-qdagger jax jax-qdagger; do compared "$name, twice" "$name-1" "$name-2"; done
compared "torch, plain updates and a CUDA graph" torch-plain-1 torch-plain-graph

speed="--device $device ${SPEED:---rounds 2 --window 2}"
for script in dqn_atari qdagger_dqn_atari_impalacnn; do
    part "profile-$script" 60 python benchmark/profile_update.py --script $script --device "$device" --updates "${UPDATES:-50}"
done
part speed 180 python benchmark/speed.py $speed --out "$folder/speed"
part speed-num_envs 180 python benchmark/speed.py $speed --sweep num_envs --out "$folder/speed"
exit $status
