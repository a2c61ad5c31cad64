"""Archives of Stable-Baselines3: their DQN agents play, teach, and give the Q-values that they give there."""

from __future__ import annotations

import base64
import json
import pickle
import zipfile
from pathlib import Path

import gymnasium as gym
import jax
import numpy as np
import pytest
import torch

from cleanrl import dqn, dqn_atari, dqn_atari_jax, dqn_jax, qdagger_dqn_atari_impalacnn
from cleanrl_utils import enjoy, flags
from cleanrl_utils.evals import players
from cleanrl_utils.models import formats
from cleanrl_utils.models.files import (
    ModelError,
    activation,
    hidden_units,
    load_into,
    load_params,
    load_weights,
    read_arrays,
)
from tests.conftest import TEACHER, TINY_RUN, TINY_TEACHER, Bomb

sb3 = pytest.importorskip("stable_baselines3")


class Images(gym.Env):
    """The spaces of Pong as Stable-Baselines3 sees it."""

    observation_space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    action_space = gym.spaces.Discrete(6)


def spoil_data(path: Path) -> None:
    """Put an object that writes a file when it is unpickled where the archive keeps its pickles."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    data = json.loads(content["data"])
    data["policy_class"][":serialized:"] = base64.b64encode(pickle.dumps(Bomb())).decode()
    content["data"] = json.dumps(data).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in content.items():
            archive.writestr(name, value)


@pytest.fixture(scope="module")
def pong(tmp_path_factory) -> tuple[Path, object]:
    """An archive of the teacher in the box, and the agent that wrote it; its `data` is a trap."""
    agent = sb3.DQN("CnnPolicy", Images(), buffer_size=1, device="cpu")
    network = dqn_atari.NatureCNN(6)
    load_into(network, TEACHER / "dqn_atari.cleanrl_model")
    ours = list(network.state_dict().values())
    agent.q_net.load_state_dict(dict(zip(agent.q_net.state_dict(), ours, strict=True)))
    folder = tmp_path_factory.mktemp("dqn-PongNoFrameskip-v4")
    agent.save(folder / "dqn-PongNoFrameskip-v4.zip")
    spoil_data(folder / "dqn-PongNoFrameskip-v4.zip")
    (folder / "train_eval_metrics.zip").write_bytes(b"not read")  # what the zoo has beside it
    return folder, agent


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory) -> tuple[Path, object]:
    agent = sb3.DQN("MlpPolicy", "CartPole-v1", buffer_size=1, seed=3, policy_kwargs={"net_arch": [24, 16]})
    path = tmp_path_factory.mktemp("dqn-CartPole-v1") / "dqn-CartPole-v1.zip"
    agent.save(path)
    return path, agent


def q_values_of(agent, obs: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return agent.q_net(torch.as_tensor(obs)).numpy()


def test_a_cnn_policy_gives_the_same_q_values_in_both_frameworks_and_its_data_is_never_decoded(pong):
    folder, agent = pong
    path = folder / "dqn-PongNoFrameskip-v4.zip"
    obs = np.random.default_rng(0).integers(0, 256, (5, 4, 84, 84), dtype=np.uint8)
    expected = q_values_of(agent, obs)
    assert np.ptp(expected) > 0.05

    network = dqn_atari.NatureCNN(6)
    load_into(network, path)
    assert np.allclose(network(torch.as_tensor(obs)).detach().numpy(), expected, atol=1e-5)
    in_jax = dqn_atari_jax.NatureCNN(6)
    params = load_params(in_jax, in_jax.init(jax.random.key(0), obs[:1]), path)
    assert np.allclose(in_jax.apply(params, obs), expected, atol=1e-5)
    assert not Path("hacked").exists()


@pytest.mark.parametrize("script", [dqn, dqn_jax])
def test_an_mlp_policy_plays_the_same_actions(cartpole, script):
    path, agent = cartpole
    obs = 5 * np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    assert hidden_units(path) == (24, 16)
    act = script.load_player(script.Args(hidden_units=hidden_units(path)), path)
    expected = q_values_of(agent, obs).argmax(1)
    assert len(set(expected.tolist())) == 2
    assert act(obs).tolist() == expected.tolist()


@pytest.mark.parametrize("name", ["Tanh", "ELU", "LeakyReLU"])
@pytest.mark.parametrize("script", [dqn, dqn_jax])
def test_another_activation_function_is_that_of_the_archive(tmp_path, script, name):
    kwargs = {"net_arch": [24, 16], "activation_fn": getattr(torch.nn, name)}
    agent = sb3.DQN("MlpPolicy", "CartPole-v1", buffer_size=1, seed=3, policy_kwargs=kwargs)
    agent.save(tmp_path / "agent.zip")
    obs = 5 * np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    found = activation(tmp_path / "agent.zip")
    assert found in script.ACTIVATIONS if script is dqn else hasattr(script.nn, found)
    act = script.load_player(script.Args(hidden_units=(24, 16), activation=found), tmp_path / "agent.zip")
    assert act(obs).tolist() == q_values_of(agent, obs).argmax(1).tolist()
    with pytest.raises(ModelError, match=f"has the activation function {found}, where this network has relu"):
        script.load_player(script.Args(hidden_units=(24, 16)), tmp_path / "agent.zip")


def test_an_agent_with_another_activation_function_plays_as_it_does_there(tmp_path):
    kwargs = {"net_arch": [24], "activation_fn": torch.nn.Tanh}
    agent = sb3.DQN("MlpPolicy", "CartPole-v1", buffer_size=1, seed=3, policy_kwargs=kwargs)
    agent.save(tmp_path / "dqn-CartPole-v1.zip")
    player = players.from_hub(str(tmp_path), "CartPole-v1", "dqn", "last", None)
    obs = 5 * np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    assert (player.args.hidden_units, player.args.activation) == ((24,), "tanh")
    assert player.act(obs).tolist() == q_values_of(agent, obs).argmax(1).tolist()


@pytest.mark.parametrize(
    ("policy", "kwargs", "says"),
    [
        ("MlpPolicy", {"activation_fn": torch.nn.SiLU}, "has the activation function SiLU; those here are relu, tanh"),
        ("CnnPolicy", {"normalize_images": False}, "not divided by 255"),
    ],
)
def test_an_agent_that_computes_otherwise_is_refused(tmp_path, policy, kwargs, says):
    env = Images() if policy == "CnnPolicy" else "CartPole-v1"
    sb3.DQN(policy, env, buffer_size=1, device="cpu", policy_kwargs=kwargs).save(tmp_path / "agent.zip")
    with pytest.raises(ModelError, match=says):
        if policy == "CnnPolicy":
            load_into(dqn_atari.NatureCNN(6), tmp_path / "agent.zip")
        else:
            activation(tmp_path / "agent.zip")


def test_an_activation_function_that_no_layer_has_is_left_aside(tmp_path):
    kwargs = {"activation_fn": torch.nn.SiLU}
    sb3.DQN("CnnPolicy", Images(), buffer_size=1, device="cpu", policy_kwargs=kwargs).save(tmp_path / "agent.zip")
    load_into(dqn_atari.NatureCNN(6), tmp_path / "agent.zip")


def test_a_cnn_policy_is_a_teacher(train, pong, capsys):
    flags = [*TINY_RUN, *TINY_TEACHER, "--teacher-policy-hf-repo", str(pong[0])]
    folder = train(qdagger_dqn_atari_impalacnn, *flags)
    run = json.loads((folder / "config.json").read_text())
    assert run["status"] == "complete"
    assert "holds dqn-PongNoFrameskip-v4.zip, not" in capsys.readouterr().err
    assert not Path("hacked").exists()


def test_other_archives_are_refused(tmp_path):
    sb3.A2C("MlpPolicy", "CartPole-v1", device="cpu").save(tmp_path / "a2c.zip")
    with pytest.raises(ModelError, match="not of DQN with CnnPolicy or MlpPolicy"):
        load_weights(tmp_path / "a2c.zip")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "no model")
    for read in (load_weights, read_arrays):
        with pytest.raises(ModelError):
            read(tmp_path / "other.zip")


def test_a_network_of_another_shape_is_named(pong, cartpole):
    with pytest.raises(ModelError, match="is not a NatureCNN"):
        load_into(dqn_atari.NatureCNN(6), cartpole[0])
    with pytest.raises(ModelError, match="another game's number of actions"):
        load_into(dqn_atari.NatureCNN(4), pong[0] / "dqn-PongNoFrameskip-v4.zip")


def test_damaged_archives_give_a_sentence_or_the_weights(cartpole, tmp_path):
    content, rng, damaged = cartpole[0].read_bytes(), np.random.default_rng(1), tmp_path / "damaged.zip"
    refused = 0
    for _ in range(150):
        mutant = bytearray(content)
        for _ in range(int(rng.integers(1, 6))):
            mutant[int(rng.integers(len(mutant)))] = int(rng.integers(256))
        damaged.write_bytes(mutant[: int(rng.integers(len(mutant)))] if rng.random() < 0.3 else mutant)
        for read in (load_weights, read_arrays):
            try:
                read(damaged)
            except ModelError:
                refused += 1
    assert refused > 50


def test_an_archive_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "MOST_BYTES", 10 << 20)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        with archive.open("policy.pth", "w", force_zip64=True) as file:
            for _ in range(11):
                file.write(bytes(1 << 20))
    assert (tmp_path / "bomb.zip").stat().st_size < 2e4
    with pytest.raises(formats.FormatError, match="too large"):
        formats.open_sb3(tmp_path / "bomb.zip")


def test_enjoy_plays_an_archive(cartpole, capsys):
    folder = str(cartpole[0].parent)
    source = ["--exp-name", "dqn", "--env-id", "CartPole-v1", "--hf-repository", folder]
    flags.run(enjoy.main, enjoy.Args, [*source, "--eval-episodes", "2"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("episodes=2 mean=")
    with pytest.raises(SystemExit):  # a folder of another project says nothing of itself
        flags.run(enjoy.main, enjoy.Args, ["--run", folder])
    assert "is no run folder" in capsys.readouterr().err
