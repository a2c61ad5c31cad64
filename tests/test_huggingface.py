"""Upload to a real server on loopback, and back again as a teacher, through the ordinary client.

The client reads its settings when it is imported, so each test is a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cleanrl import dqn_atari as dqn
from tests.conftest import TINY_DQN, TINY_RUN, TINY_TEACHER
from tests.hub import Hub

SCRIPTS = Path(dqn.__file__).parent


@pytest.fixture
def hub():
    server = Hub(token="hf_secret")
    yield server
    server.shutdown()
    server.server_close()


def run(
    hub: Hub,
    tmp_path: Path,
    script: str,
    *flags: str,
    token: str = "hf_secret",
    offline: bool = False,
    tiny: list[str] = TINY_RUN,
) -> subprocess.CompletedProcess:
    env = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}
    env |= {"HF_HUB_OFFLINE": "1"} if offline else {}
    command = [sys.executable, str(SCRIPTS / f"{script}.py"), *tiny, *flags]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)


def test_a_trained_run_is_uploaded_and_comes_back_as_a_teacher(hub, tmp_path, teacher):
    result = run(hub, tmp_path, "dqn_atari", "--save-model", "--upload-model", "--hf-entity", "me")
    assert result.returncode == 0, result.stderr
    files = hub.repos["me/PongNoFrameskip-v4-dqn_atari-seed1"]
    (folder,) = (tmp_path / "runs").iterdir()
    assert files["dqn_atari.cleanrl_model"] == (folder / "dqn_atari.cleanrl_model").read_bytes()
    assert {"config.json", "README.md"} <= files.keys()
    assert b"mean_reward" in files["README.md"]
    assert not any(str(tmp_path).encode() in content for content in files.values()), "a local path went out"
    assert not [name for name in files if "tfevents" in name], "event files are named after their host"

    # 16 updates do not make a teacher; the one in the box takes its place behind the same name.
    files["dqn_atari.cleanrl_model"] = (teacher / "dqn_atari.cleanrl_model").read_bytes()
    flags = [*TINY_TEACHER, "--teacher-policy-hf-repo", "me/PongNoFrameskip-v4-dqn_atari-seed1"]
    result = run(hub, tmp_path, "qdagger_dqn_atari_impalacnn", *flags)
    assert result.returncode == 0, result.stderr


def test_a_model_of_vectors_is_uploaded_under_a_name_that_the_hub_takes(hub, tmp_path):
    flags = ["--env-id", "flappy_bird_gymnasium:FlappyBird-v0", "--env-kwargs", '{"use_lidar": false}']
    flags += ["--save-model", "--upload-model", "--hf-entity", "me"]
    result = run(hub, tmp_path, "dqn", *flags, tiny=TINY_DQN)
    assert result.returncode == 0, result.stderr
    files = hub.repos["me/flappy_bird_gymnasium-FlappyBird-v0-dqn-seed1"]
    assert {"dqn.cleanrl_model", "config.json", "README.md"} <= files.keys()
    card = yaml.safe_load(files["README.md"].decode().split("---")[1])
    assert card["model-index"][0]["results"][0]["dataset"]["name"] == "flappy_bird_gymnasium:FlappyBird-v0"
    assert "FlappyBird" in card["tags"][0]


def test_a_repository_with_one_model_under_another_name_is_used_also_offline(hub, tmp_path, teacher):
    hub.repos["me/one"] = {"dqn_atari.cleanrl_model": (teacher / "dqn_atari.cleanrl_model").read_bytes(), "README.md": b""}
    flags = [*TINY_TEACHER, "--teacher-policy-hf-repo", "me/one", "--teacher-model-exp-name", "asked"]
    result = run(hub, tmp_path, "qdagger_dqn_atari_impalacnn", *flags)
    assert result.returncode == 0, result.stderr
    said = "me/one holds dqn_atari.cleanrl_model, not asked.cleanrl_model: using that"
    assert said in result.stderr

    result = run(hub, tmp_path, "qdagger_dqn_atari_jax_impalacnn", *flags, offline=True)
    assert result.returncode == 0, result.stderr
    assert said in result.stderr


@pytest.mark.parametrize(
    ("repo", "says"),
    [("me/nothing", "no public repository"), ("me/empty", "holds no file dqn_atari.cleanrl_model")],
)
def test_what_the_hub_does_not_have(hub, tmp_path, repo, says):
    hub.repos["me/empty"] = {}
    result = run(hub, tmp_path, "qdagger_dqn_atari_impalacnn", *TINY_TEACHER, "--teacher-policy-hf-repo", repo)
    assert result.returncode == 2, result.stderr
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "runs").exists()


def test_an_entity_that_the_token_may_not_write_for_is_refused_before_training(hub, tmp_path):
    result = run(hub, tmp_path, "dqn_atari", "--save-model", "--upload-model", "--hf-entity", "someone-else")
    assert result.returncode == 2, result.stderr
    assert "--hf-entity someone-else: must be one this token may write for: me" in result.stderr


def test_a_token_that_the_hub_does_not_know_is_refused_before_training(hub, tmp_path):
    result = run(hub, tmp_path, "dqn_atari", "--save-model", "--upload-model", "--hf-entity", "me", token="hf_wrong")
    assert result.returncode == 2, result.stderr
    assert "--upload-model" in result.stderr
    assert hub.repos == {}
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "says"), [([], "--hf-entity"), (["--hf-entity", "me", "--no-save-model"], "--save-model")]
)
def test_an_upload_without_what_it_needs(refused, flags, says):
    assert says in refused(dqn, *TINY_RUN, "--upload-model", *flags)
