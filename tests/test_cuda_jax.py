"""The JAX scripts on a GPU; skipped where JAX has none."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from cleanrl import dqn_atari_jax as dqn
from cleanrl import dqn_jax
from cleanrl import qdagger_dqn_atari_jax_impalacnn as qdagger
from cleanrl_utils.models.files import load_weights
from tests.conftest import TINY_DQN, TINY_RUN, TINY_TEACHER
from tests.support.oracles import IN_JAX, Games

pytestmark = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a CUDA device that JAX sees")
CUDA = [*TINY_RUN, "--device", "cuda", "--save-model"]


def test_sampling_is_that_of_the_cpu():
    index, batches = np.arange(20, 100), []
    for platform in ("cpu", "cuda"):
        kind = IN_JAX._replace(device=jax.devices(platform)[0])
        rb = kind.make(200, 2, 3)
        kind.play(rb, Games(2, seed=0, p_end=0.1, p_life=0.1, p_cut=0.1), 70)
        batches.append(rb.sample(index))
    for on_cpu, on_cuda in zip(*batches, strict=True):
        np.testing.assert_array_equal(on_cpu, on_cuda)


@pytest.mark.parametrize("flags", [[], ["--cuda-graph"], ["--buffer-device", "cpu"], ["--bf16"], ["--num-envs", "16"]])
def test_runs(train, teacher, flags):
    folder = train(dqn, *CUDA, *flags)
    assert all(value.isfinite().all() for value in load_weights(folder / "dqn_atari_jax.cleanrl_model").values())
    train(qdagger, *CUDA, *TINY_TEACHER, *flags, "--teacher-policy-hf-repo", str(teacher))


def test_dqn_on_vectors_runs(train):
    folder = train(dqn_jax, *TINY_DQN, "--device", "cuda", "--save-model")
    assert all(value.isfinite().all() for value in load_weights(folder / "dqn_jax.cleanrl_model").values())
