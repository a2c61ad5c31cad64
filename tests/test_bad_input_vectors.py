"""Bad input to the scripts that learn from vectors: one line with flag, value and what is allowed, status 2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cleanrl import dqn, dqn_jax, fqi
from cleanrl_utils.evals.gym import require_vector_env, sizes
from tests.conftest import TINY_DQN, TINY_FQI, all_slow

pytestmark = pytest.mark.filterwarnings("ignore:.*WARN")  # Gymnasium on environments that are odd on purpose


def tiny(agent) -> list[str]:
    return TINY_FQI if agent is fqi else TINY_DQN


@pytest.mark.parametrize(
    ("env_id", "says"),
    [
        ("CartPol-v1", "closest: CartPole-v1"),
        ("CartPole-v9", "cannot be made"),
        ("MiniGrid-Empty-5x5-v0", "name both: minigrid:MiniGrid-Empty-5x5-v0"),
        ("Taxiing-Together-v0", "name both: PACKAGE:Taxiing-Together-v0"),
        ("tests.support.probes:Continuous-v0", "finite set of actions"),
        ("Pendulum-v1", "finite set of actions"),
        ("tests.support.probes:Images-v0", "shows images (84, 84, 3)"),
        ("tests.support.probes:HiddenImages-v0", "shows images (64, 64, 3)"),
        ("tests.support.probes:OwnSpace-v0", "flatten to a vector"),
        ("tests.support.probes:OldStep-v0", "breaks Gymnasium's rules in its first step"),
        ("tests.support.probes:RewardArray-v0", "must give a number for a reward"),
        ("tests.support.probes:OtherShape-v0", "shows observations of shape (2,)"),
        ("tests.support.probes:FromOne-v0", "number its actions from 0"),
        ("tests.support.probes:Lists-v0", "flatten to a vector"),
        ("tests.support.probes:Broken-v0", "no licence"),
        ("tests.support.probes:BadReset-v0", "no seat"),
        ("no_such_package:Game-v0", "no_such_package"),
        ("tests.support.probes:Nothing-v0", "cannot be made"),
    ],
)
def test_environments(refused, agent, env_id, says):
    line = refused(agent, *tiny(agent), "--env-id", env_id)
    assert "--env-id" in line
    assert env_id in line
    assert says in line


@pytest.mark.parametrize("agent", [dqn, *all_slow(dqn_jax, fqi)])
def test_a_script_without_a_file_is_told_what_to_do(agent):
    env = os.environ | {"PYTHONPATH": str(Path(agent.__file__).parents[1])}
    with Path(agent.__file__).open() as script:
        done = subprocess.run([sys.executable, "-"], stdin=script, env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: this script (piped or pasted): a run keeps a copy of its script")
    assert len(done.stderr.splitlines()) == 1


def test_a_small_board_is_no_picture(agent):
    args = agent.Args(env_id="tests.support.probes:Board-v0")
    require_vector_env(args)
    assert sizes(args) == (16, 2)


def test_atari_images_are_sent_to_the_atari_script(refused, agent):
    assert "dqn_atari.py" in refused(agent, *tiny(agent), "--env-id", "ale_py:ALE/Pong-v5")


def test_an_environment_whose_package_is_an_extra(refused, agent, monkeypatch):
    monkeypatch.setitem(sys.modules, "flappy_bird_gymnasium", None)
    line = refused(agent, *tiny(agent), "--env-id", "flappy_bird_gymnasium:FlappyBird-v0")
    assert "pip install -e '.[flappy]'" in line


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ('{"sped": 3}', "sped"),
        ('{"render_mode": "human"}', "--capture-video"),
        ('{"max_episode_steps": "many"}', "max_episode_steps"),
        ("{speed}", "--env-kwargs"),
        ("[1]", "--env-kwargs"),
        ("3", "--env-kwargs"),
    ],
)
def test_keywords_of_the_environment(refused, agent, value, says):
    line = refused(agent, *tiny(agent), "--env-kwargs", value)
    assert "--env-kwargs" in line
    assert says in line


@pytest.mark.parametrize("seed", ["-1", str(2**32), "9" * 30])
def test_seeds_that_no_library_takes(refused, agent, seed):
    assert f"--seed {seed}: must be 0 or more" in refused(agent, *tiny(agent), "--seed", seed)


def test_a_name_that_is_too_long_for_a_file(refused, agent):
    assert "100 at most" in refused(agent, *tiny(agent), "--exp-name", "x" * 101)


@pytest.mark.parametrize(
    ("flag", "value", "allowed"),
    [
        ("--num-envs", "0", "above 0"),
        ("--hidden-units", "0", "above 0"),
        ("--hidden-units", "wide", "--hidden-units"),
        ("--n-step", "0", "above 0"),
        ("--buffer-size", "-1", "above 0"),
        ("--learning-rate", "nan", "above 0"),
        ("--target-network-frequency", "0", "above 0"),
        ("--tau", "2", "between 0 and 1"),
        ("--eval-epsilon", "-0.1", "between 0 and 1"),
        ("--learning-starts", "-1", "0 or more"),
        ("--device", "gpu", "'cpu'"),
    ],
)
def test_values_out_of_range(refused, vector_dqn, flag, value, allowed):
    line = refused(vector_dqn, *TINY_DQN, flag, value)
    assert flag in line
    assert allowed in line


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hidden_units: 64", "a list"),
        ("hidden_units: [64, wide]", "whole number"),
        ("env_kwargs: 3", "a mapping"),
        ("env_kwargs: [a]", "a mapping"),
        ("env_kwargs: {1: 2, a: 3}", "a mapping"),
        ("env_kwargs: {a: 2020-01-01}", "a mapping"),
        ("hiden_units: [64]", "did you mean `hidden_units`?"),
    ],
)
def test_configuration_files(refused, vector_dqn, tmp_path, text, says):
    (tmp_path / "flags.yaml").write_text(text)
    assert says in refused(vector_dqn, *TINY_DQN, "--config", "flags.yaml")


def test_a_video_of_what_has_no_picture(refused, agent):
    pytest.importorskip("imageio_ffmpeg")
    line = refused(agent, *tiny(agent), "--env-id", "tests.support.probes:Constant-v0", "--capture-video")
    assert "--capture-video" in line


def test_a_video_without_its_packages(refused, agent, monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert "pip install -e '.[video]'" in refused(agent, *tiny(agent), "--capture-video")


def test_toy_sizes_run_and_the_buffer_is_raised_with_one_line(train, vector_dqn, capsys):
    train(vector_dqn, *TINY_DQN, "--total-timesteps", "12", "--buffer-size", "2", "--learning-starts", "0", "--n-step", "3")
    raised = [line for line in capsys.readouterr().err.splitlines() if "--buffer-size" in line]
    assert raised == ["--buffer-size 2 is raised to 6, the least that these settings need"]


def test_a_librarys_warning_before_an_error_is_one_plain_line():
    words = "--env-id CartPole-v0 --initial-model no_such_file --threads 1".split()
    done = subprocess.run([sys.executable, dqn.__file__, *words], capture_output=True, text=True)
    assert done.returncode == 2
    warning, error = done.stderr.splitlines()  # given once, though the environment is made more than once
    assert warning.startswith("warning: The environment CartPole-v0 is out of date.")
    assert error.startswith("error: --initial-model no_such_file")
    assert "\x1b" not in done.stderr
