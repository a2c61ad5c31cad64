"""Fixtures: every test runs in an empty folder, on one set of tiny sizes; most runs are made by both twins."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
import torch

from cleanrl import dqn as dqn_vector
from cleanrl import dqn_atari, dqn_atari_jax, dqn_jax, fqi, qdagger_dqn_atari_impalacnn, qdagger_dqn_atari_jax_impalacnn
from cleanrl_utils import console
from cleanrl_utils.evals.play import Act, Evaluation, evaluate
from cleanrl_utils.flags import parse, run
from cleanrl_utils.models.files import load_weights, save_params
from cleanrl_utils.models.source import ZOO
from cleanrl_utils.record import read_series
from cleanrl_utils.seeds import EVALUATION
from tests.support import children

# Each run compiles the same again, so what JAX compiles is kept. The first process makes the folder and removes it at its
# exit; those that it starts (pytest's workers, scripts) find it in their environment. A limit makes JAX lock the folder.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    COMPILED = tempfile.TemporaryDirectory(prefix="jax-cache-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
for name, value in (("JAX_COMPILATION_CACHE_MAX_SIZE", 2**32), ("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", 0.1)):
    os.environ[name] = str(value)
    jax.config.update(name.lower(), value)

# A run that is given no number of threads would time some. What XLA uses is decided when it is first used.
os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))
os.environ["NPROC"] = os.environ["OMP_NUM_THREADS"]

# What `before` of a run may be stands in test modules, which import this one, and that takes longer than many a run.
children.FORKS.set_forkserver_preload(["tests.support.children", "tests.conftest"])

signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored, also by what tests start

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")

TEACHER = ZOO / "PongNoFrameskip-v4-dqn_atari-seed1"

TINY_RUN = (
    "--env-id PongNoFrameskip-v4 --num-envs 2 --total-timesteps 64 --learning-starts 16 --buffer-size 200 --batch-size 4 "
    "--target-network-frequency 16 --eval-episodes 1 --eval-max-frames 200 --no-compile --device cpu"
).split()
TINY_DQN = (
    "--total-timesteps 1500 --learning-starts 100 --train-frequency 1 --batch-size 32 --hidden-units 16 --gamma 0.5 "
    "--learning-rate 0.01 --target-network-frequency 20 --buffer-size 500 --end-e 1 --eval-episodes 1 --eval-max-steps 5 "
    "--device cpu"
).split()
TINY_FQI = "--n-steps 200 --n-iterations 10 --regressor tree --gamma 0.5 --eval-episodes 1 --eval-max-steps 5".split()
TINY_TEACHER = (
    "--teacher-steps 64 --teacher-eval-episodes 2 --eval-max-frames 600 --offline-steps 8 "
    "--offline-target-network-frequency 4 --student nature"
).split()


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in an empty folder, so that `runs/` is the test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def train() -> Callable[..., Path]:
    """Run a script's `main` in process with the flags given; returns the run folder."""
    return lambda script, *flags: script.main(parse(script.Args, [*flags]))


@pytest.fixture
def refused(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run a script with bad flags; returns the one line of error, after checking status 2 and that nothing was written."""

    monkeypatch.setattr(console, "SHOW_AFTER", 60.0)  # no line for work that takes longer here

    def refuse(script, *flags: str) -> str:
        before, _ = sorted(Path().rglob("*")), capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run(script.main, script.Args, list(flags))
        assert stopped.value.code == 2
        assert sorted(Path().rglob("*")) == before, "something was written"
        lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
        assert len(lines) == 1, lines
        return lines[0]

    return refuse


DQN = (dqn_atari, dqn_atari_jax)
VECTOR_DQN = (dqn_vector, dqn_jax)
QDAGGER = (qdagger_dqn_atari_impalacnn, qdagger_dqn_atari_jax_impalacnn)


def all_slow(*values: Any) -> list[Any]:
    """Parameters of tests, each marked slow."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def twin_is_slow(torch_script: Any, jax_script: Any) -> list[Any]:
    """Parameters of tests with whole runs, which take long in JAX: its formulas and a golden run are tested quickly."""
    return [torch_script, *all_slow(jax_script)]


def evaluations(monkeypatch: pytest.MonkeyPatch, script: ModuleType) -> list[tuple[Any, ...]]:
    """Of each evaluation that a script will make: how many games, the seed, epsilon and what else it is told."""
    made, evaluate = [], script.evaluate

    def watched(act: Any, games: Any, *about: Any) -> Any:
        made.append((games.num_games, *about))
        return evaluate(act, games, *about)

    monkeypatch.setattr(script, "evaluate", watched)
    return made


WITHOUT: dict[tuple[str, ...], dict[str, torch.Tensor]] = {}
"""Weights of the runs that other flags are compared with, by script and flags."""


@pytest.fixture
def unchanged(train):
    """Whether a run with more flags ends with the weights of the run without them."""

    def same(script: ModuleType, *flags: str, more: str) -> bool:
        key = (script.__name__, *flags)
        if key not in WITHOUT:
            WITHOUT[key] = weights(script, train(script, *flags))
        found = weights(script, train(script, *flags, *more.split()))
        return all(torch.equal(WITHOUT[key][name], found[name]) for name in found)

    return same


@pytest.fixture(params=DQN, ids=["torch", "jax"])
def dqn(request: pytest.FixtureRequest) -> ModuleType:
    """Each of the two DQN scripts."""
    return request.param


@pytest.fixture(params=QDAGGER, ids=["torch", "jax"])
def qdagger(request: pytest.FixtureRequest) -> ModuleType:
    """Each of the two QDagger scripts."""
    return request.param


@pytest.fixture(params=[*DQN, *QDAGGER], ids=["dqn", "dqn_jax", "qdagger", "qdagger_jax"])
def script(request: pytest.FixtureRequest) -> ModuleType:
    """Each of the four Atari scripts."""
    return request.param


@pytest.fixture(params=VECTOR_DQN, ids=["torch", "jax"])
def vector_dqn(request: pytest.FixtureRequest) -> ModuleType:
    """Each of the two DQN scripts for vector observations."""
    return request.param


@pytest.fixture(params=[*VECTOR_DQN, fqi], ids=["dqn", "dqn_jax", "fqi"])
def agent(request: pytest.FixtureRequest) -> ModuleType:
    """Each script that learns from vector observations."""
    return request.param


class Bomb:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("hacked"),))


def weights(script: ModuleType, folder: Path, suffix: str = "") -> dict[str, torch.Tensor]:
    """The model that a run of `script` saved, as a torch state_dict for either framework."""
    return load_weights(folder / f"{script.Args().exp_name}{suffix}.cleanrl_model")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of every metric that a run logged."""
    found = read_series(folder)
    return {tag: list(zip(steps.tolist(), values.tolist(), strict=True)) for tag, (steps, _, values) in found.items()}


def score(act: Act, env_id: str, episodes: int, seed: int, epsilon: float, **flags: Any) -> Evaluation:
    """Whole Atari games played as the scripts' evaluations play them."""
    args = dqn_atari.Args(env_id=env_id, seed=seed, **flags)
    return evaluate(act, dqn_atari.Games(args, EVALUATION, episodes), seed, epsilon)


def require_names_of_metrics(monkeypatch: pytest.MonkeyPatch, script: ModuleType, train: Callable[[], Path]) -> None:
    """What a DQN script logs of an update has the names of what it is: here a mean Q-value of 7, and a loss."""
    td_loss = script.td_loss

    def known(*about: Any, **settings: Any) -> tuple[Any, Any]:
        loss, q_value = td_loss(*about, **settings)
        return loss, 0 * q_value + 7

    monkeypatch.setattr(script, "td_loss", known)
    logged = scalars(train())
    assert {value for _, value in logged["losses/q_values"]} == {7}
    assert 7 not in [value for _, value in logged["losses/td_loss"]]


def watch_updates(monkeypatch: pytest.MonkeyPatch, script: ModuleType, look: Callable[..., Any]) -> list[Any]:
    """What `look(rb)` finds before each update of the run to come."""
    seen: list[Any] = []

    if hasattr(script.Learner, "updater"):
        updater = script.Learner.updater

        def watched_updater(learner, rb, args):
            update = updater(learner, rb, args)
            return lambda index: (seen.append(look(rb)), update(index))[1]

        monkeypatch.setattr(script.Learner, "updater", watched_updater)
        return seen

    make_learn = script.make_learn

    def watched_learn(loss_fn, optimizer, scan):
        learn = make_learn(loss_fn, optimizer, scan)

        def watched(q_state, rb, indices, *rates):
            if np.any(indices):  # all zeros: the warm-up
                seen.extend(look(rb) for _ in indices)
            return learn(q_state, rb, indices, *rates)

        return watched

    monkeypatch.setattr(script, "make_learn", watched_learn)
    return seen


@pytest.fixture
def cpu() -> torch.device:
    return torch.device("cpu")


@pytest.fixture
def teacher() -> Path:
    """The folder of the Pong teacher in the box."""
    return TEACHER


@pytest.fixture
def jax_teacher(tmp_path: Path) -> Path:
    """A folder with the same teacher as a model of JAX."""
    script = qdagger_dqn_atari_jax_impalacnn
    params = script.load_teacher(script.Args(teacher_policy_hf_repo=str(TEACHER)), 6)[1]
    (tmp_path / "jax-teacher").mkdir()
    save_params(params, tmp_path / "jax-teacher" / "dqn_atari_jax.cleanrl_model")
    return tmp_path / "jax-teacher"
