"""Golden runs: a short run of each script draws, plays and learns what it did when these numbers were committed.

A change to learning shows here and has to be meant. `RENEW_GOLDEN=1 python -m pytest tests/test_golden.py` writes the
numbers of this machine into tests/golden.json; the commit that does so says why.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from cleanrl_utils.record import versions
from cleanrl_utils.seeds import TRAINING, env_seeds
from tests.conftest import DQN, QDAGGER, TINY_DQN, TINY_RUN, TINY_TEACHER, VECTOR_DQN

FILE = Path(__file__).parent / "golden.json"
RENEW = "RENEW_GOLDEN" in os.environ
AT_RANDOM = ["--start-e", "1", "--end-e", "1", "--save-model", "--checkpoint-frequency", "0"]
"""No action depends on a network, so what is stored and drawn is the same on every machine."""
ATARI = [
    *TINY_RUN,
    *AT_RANDOM,
    "--env-id",
    "BreakoutNoFrameskip-v4",
    "--total-timesteps",
    "700",
    "--n-step",
    "3",
    "--double-q",
]
FLAGS = {
    "dqn": [*TINY_DQN, *AT_RANDOM, "--total-timesteps", "300", "--train-frequency", "4", "--num-envs", "2"],
    "dqn_atari": ATARI,
    "qdagger": [*TINY_RUN, *TINY_TEACHER, *AT_RANDOM, "--teacher-start-e", "1", "--teacher-end-e", "1"],
}
SCRIPTS = {script.__name__.split(".")[1]: script for script in (*VECTOR_DQN, *DQN, *QDAGGER)}


def kind(name: str) -> str:
    """The entry of a script: twins play and draw the same."""
    return "qdagger" if "qdagger" in name else name.removesuffix("_jax")


def digest(*arrays: Any) -> str:
    """A short digest of arrays."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


def machine(script: ModuleType) -> str:
    """What weights depend on: processor, versions, threads."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    vendor, *numbers = (
        re.search(rf"^{name}\s*: (.+)$", cpuinfo, re.MULTILINE).group(1) for name in ("vendor_id", "cpu family", "model")
    )
    of_jax = "jax" in script.__name__
    packages = ("jaxlib", "flax", "optax") if of_jax else ("torch",)
    threads = int(os.environ["NPROC"]) if of_jax else torch.get_num_threads()
    parts = [f"{vendor} {'/'.join(numbers)}", *(f"{name} {versions()[name]}" for name in packages), f"{threads} threads"]
    return ", ".join(parts)


@pytest.fixture(scope="module")
def golden():
    """What is committed; under RENEW_GOLDEN, what the tests found is written back."""
    numbers = json.loads(FILE.read_text()) if FILE.exists() else {"runs": {}, "weights": {}}
    yield numbers
    if RENEW:
        FILE.write_text(json.dumps(numbers, indent=1, sort_keys=True) + "\n")


@pytest.fixture
def short_run(train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], tuple[dict[str, Any], Path]]:
    """Run a script; returns the integers of its run, and its folder."""

    def run(name: str) -> tuple[dict[str, Any], Path]:
        script, draws, rings = SCRIPTS[name], [], {}
        draw, save = script.ReplayBuffer.draw, script.Run.save

        def watched_draw(rb, num_batches, batch_size, rng):
            draws.append(draw(rb, num_batches, batch_size, rng))
            return draws[-1]

        def watched_save(run, state):
            save(run, state)
            stored = getattr(state.rb, "rings", state.rb)
            for ring in ("actions", "rewards", "terminations", "truncations"):
                values = np.asarray(getattr(stored, ring)).astype(np.int64).ravel()
                rings[f"{getattr(state, 'phase', 'training')}: {ring}"] = [int(values.sum()), digest(values)]
            rings["valid"] = [int(state.rb.valid.sum()), digest(state.rb.valid.astype(np.int64))]

        monkeypatch.setattr(script.ReplayBuffer, "draw", watched_draw)
        monkeypatch.setattr(script.Run, "save", watched_save)
        folder = train(script, *FLAGS[kind(name)])
        drawn = np.concatenate([batch.ravel() for batch in draws])
        seeds = env_seeds(1, TRAINING, np.array([0, 0, 1])).tolist()
        return {"seeds": seeds, "first draws": drawn[:12].tolist(), "draws": [drawn.size, digest(drawn)]} | rings, folder

    return run


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * ("atari_jax" in name)) for name in SCRIPTS])
def test_a_short_run_plays_draws_and_learns_what_it_did(name, short_run, golden):
    """The integers on any machine; the weights where those of such a machine are known."""
    integers, folder = short_run(name)
    if RENEW:
        golden["runs"][kind(name)] = integers
    assert integers == golden["runs"][kind(name)]

    (model,) = (path for path in folder.glob("*.cleanrl_model") if "-offline" not in path.name)
    content = model.read_bytes()
    if content[:2] == b"PK":
        content = b"".join(value.numpy().tobytes() for _, value in sorted(torch.load(model, weights_only=True).items()))
    found, known = hashlib.sha256(content).hexdigest()[:16], golden["weights"].setdefault(name, {})
    if RENEW:
        known[machine(SCRIPTS[name])] = found
    if machine(SCRIPTS[name]) not in known:
        pytest.skip(f'weights of this kind of machine are unknown: in {FILE.name} add "{machine(SCRIPTS[name])}": "{found}"')
    assert known[machine(SCRIPTS[name])] == found
