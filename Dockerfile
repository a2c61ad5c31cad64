# Everything but the tests, installed; runs as a user of its own. On a CPU:
#   docker build --tag qdagger .
#   docker run --rm --interactive --tty --volume "$PWD/runs:/home/researcher/qdagger/runs" qdagger make quickstart
# On an NVIDIA GPU, with the driver and NVIDIA's container toolkit on the host (torch and jax bring CUDA along):
#   docker build --tag qdagger-cuda --build-arg TORCH=cu130 --build-arg EXTRAS=atari,plots,video .
#   docker run --rm --gpus all qdagger-cuda python cleanrl/dqn_atari.py --env-id PongNoFrameskip-v4
# BASE may be any Debian or Ubuntu, as an image of NVIDIA's.
ARG BASE=debian:bookworm-slim
FROM ghcr.io/astral-sh/uv:0.13.9 AS uv

FROM ${BASE}
ARG TORCH=cpu
ARG EXTRAS=atari,jax,plots,video
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates g++ git make \
    && rm -rf /var/lib/apt/lists/*
COPY --from=uv /uv /usr/local/bin/
# Ubuntu has a user of this number already.
RUN (userdel --remove ubuntu 2> /dev/null || true) && useradd --create-home --uid 1000 researcher
USER 1000
WORKDIR /home/researcher/qdagger

COPY --chown=1000 . .
ENV UV_NO_CACHE=1 PATH=/home/researcher/qdagger/.venv/bin:$PATH
# The stamps tell make that this is done.
RUN uv venv --seed --python 3.11 .venv \
    && uv pip install --torch-backend "$TORCH" --constraint requirements/constraints.txt --editable ".[$EXTRAS]" \
    && mkdir -p runs && touch .venv/run \
    && case ",$EXTRAS," in *,jax,*) touch .venv/run-jax ;; esac

CMD ["make", "quickstart"]
