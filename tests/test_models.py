"""Model files: whole or absent, and never executed."""

from __future__ import annotations

import pytest
import torch
from huggingface_hub import errors

from cleanrl.dqn_atari import NatureCNN, player
from cleanrl_utils.errors import BadInput
from cleanrl_utils.models.files import ModelError, load_into, load_weights, save_weights
from cleanrl_utils.models.source import ZOO, explained
from tests.conftest import TEACHER, score


def test_weights_come_back_as_they_were(tmp_path):
    network = NatureCNN(6).to(memory_format=torch.channels_last)
    save_weights(network.state_dict(), tmp_path / "x.cleanrl_model")
    assert [path.name for path in tmp_path.iterdir()] == ["x.cleanrl_model"]
    other = NatureCNN(6)
    load_into(other, tmp_path / "x.cleanrl_model")
    obs = torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8)
    assert torch.equal(other.network[0].weight, network.network[0].weight)
    assert torch.allclose(other(obs), network(obs), atol=1e-6)


def test_a_failed_write_leaves_the_file_before(tmp_path, monkeypatch):
    path = tmp_path / "x.cleanrl_model"
    save_weights({"a": torch.ones(2)}, path)

    def full_disk(_, file):
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_weights({"a": torch.zeros(2)}, path)
    assert load_weights(path)["a"].tolist() == [1, 1]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [{"a": 1}, [torch.ones(1)], torch.ones(1)])
def test_what_is_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.cleanrl_model")
    with pytest.raises(ModelError, match="not a state_dict"):
        load_weights(tmp_path / "x.cleanrl_model")


def hub_error(kind: type[Exception]) -> Exception:
    error = kind.__new__(kind)
    Exception.__init__(error, "message of the client")
    return error


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (errors.GatedRepoError, "gated"),
        (errors.RepositoryNotFoundError, "no public repository"),
        (errors.RevisionNotFoundError, "no such revision"),
        (errors.LocalEntryNotFoundError, "cannot be reached"),
        (errors.EntryNotFoundError, "--teacher-model-exp-name"),
        (errors.OfflineModeIsEnabled, "HF_HUB_OFFLINE"),
        (errors.HFValidationError, "neither a local folder"),
        (ConnectionError, "cannot be fetched (message of the client)"),
    ],
)
def test_every_failure_of_the_hub_has_its_own_sentence(kind, says, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # tests are offline
    with pytest.raises(BadInput) as raised, explained("--teacher-policy-hf-repo", "a/b"):
        raise hub_error(kind)
    assert str(raised.value).startswith("--teacher-policy-hf-repo a/b: ")
    assert says in str(raised.value)


def test_other_errors_are_not_hidden():
    with pytest.raises(ZeroDivisionError), explained("--flag", "x"):
        raise ZeroDivisionError


def test_the_teacher_in_the_box_plays_pong():
    """A game, against a bar far below the 20 games of its card: this checks the file, not the score."""
    network = NatureCNN(6)
    load_into(network, TEACHER / "dqn_atari.cleanrl_model")
    scores = score(player(network, torch.device("cpu")), "PongNoFrameskip-v4", 1, seed=11, epsilon=0.01)
    assert scores.mean >= 10
    assert {path.name for path in TEACHER.iterdir()} >= {"README.md", "curve.png", "config.json", "dqn_atari.cleanrl_model"}


def test_the_box_stays_small():
    assert sum(path.stat().st_size for path in ZOO.rglob("*")) < 40e6
