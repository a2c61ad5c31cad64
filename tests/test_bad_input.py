"""Every kind of bad input: one line with flag, value and what is allowed, status 2, nothing written."""

from __future__ import annotations

import pickle
from pathlib import Path

import msgpack
import numpy as np
import pytest
import torch

from cleanrl import dqn_atari, qdagger_dqn_atari_impalacnn
from cleanrl.qdagger_dqn_atari_impalacnn import ImpalaCNN, NatureCNN
from tests.conftest import DQN, QDAGGER, TINY_RUN, TINY_TEACHER, Bomb, twin_is_slow


@pytest.mark.parametrize(
    ("flag", "value", "allowed"),
    [
        ("--env-id", "PongNoFrameskip", "PongNoFrameskip-v4"),
        ("--env-id", "CartPole-v1", "Atari game"),
        ("--env-id", "ALE/Pnog-v5", "ALE/Pong-v5"),
        ("--num-envs", "0", "above 0"),
        ("--total-timesteps", "-1", "above 0"),
        ("--buffer-size", "0", "above 0"),
        ("--batch-size", "-4", "above 0"),
        ("--learning-rate", "0", "above 0"),
        ("--learning-rate", "nan", "above 0"),
        ("--train-frequency", "0", "above 0"),
        ("--target-network-frequency", "0", "above 0"),
        ("--n-step", "0", "above 0"),
        ("--eval-episodes", "0", "above 0"),
        ("--learning-starts", "-1", "0 or more"),
        ("--seed", "-1", "0 or more"),
        ("--gamma", "1.5", "between 0 and 1"),
        ("--tau", "-0.1", "between 0 and 1"),
        ("--start-e", "2", "between 0 and 1"),
        ("--end-e", "-1", "between 0 and 1"),
        ("--exploration-fraction", "1.1", "between 0 and 1"),
        ("--eval-epsilon", "7", "between 0 and 1"),
        ("--sticky-actions", "1.25", "between 0 and 1"),
    ],
)
def test_values_out_of_range(refused, script, flag, value, allowed):
    line = refused(script, *TINY_RUN, flag, value)
    assert flag in line
    assert value in line
    assert allowed in line


@pytest.mark.parametrize(
    ("flag", "value", "allowed"),
    [
        ("--teacher-steps", "-1", "0 or more"),
        ("--offline-steps", "-1", "0 or more"),
        ("--temperature", "0", "above 0"),
        ("--teacher-eval-episodes", "0", "above 0"),
        ("--teacher-start-e", "1.5", "between 0 and 1"),
        ("--teacher-end-e", "-1", "between 0 and 1"),
        ("--distill-coefficient", "-1", "0 or more"),
        ("--learning-rate-end", "-1", "0 or more"),
    ],
)
def test_qdagger_values_out_of_range(refused, qdagger, flag, value, allowed):
    line = refused(qdagger, *TINY_RUN, *TINY_TEACHER, flag, value)
    assert flag in line
    assert allowed in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
@pytest.mark.parametrize("flag", ["--device", "--buffer-device"])
def test_cuda_where_there_is_none(refused, script, flag):
    line = refused(script, *TINY_RUN, flag, "cuda")
    assert flag in line
    assert "cpu" in line


def test_a_cuda_graph_without_cuda(refused, script):
    assert "--cuda-graph" in refused(script, *TINY_RUN, "--cuda-graph")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("learnig_rate: 1.0", "did you mean `learning_rate`?"),
        ("num_envs: many", "whole number"),
        ("num_envs: 1.5", "whole number"),
        ("num_envs: true", "whole number"),
        ("learning_rate: fast", "a number"),
        ("double_q: 1", "true or false"),
        ("env_id: 7", "text"),
        ("device: gpu", "'cpu'"),
        ("learning_rate: !!float 1", "line 1 has a tag"),
        ("env_id: !!python/object/apply:os.system ['touch hacked']", "line 1 has a tag"),
        ("- a\n- b", "`flag: value` lines"),
        ("a: b: c", "not YAML"),
        ("config: other.yaml", "unknown key `config`"),
        ("gamma: 0.9\nseed: 1\ngamma: 0.99", "the key `gamma` is there twice"),
        ("seed: 1.5e0", "whole number"),
        ("gamma: 3", "--gamma"),
        ("exp_name: 2024-13-45", "not YAML"),
        ("gamma: " + "9" * 400, "a number"),
        ("[" * 1200, "not YAML"),
        ("? |\n  two\n  lines\n: 1", "unknown key"),
    ],
)
def test_configuration_files(refused, tmp_path, script, text, says):
    (tmp_path / "flags.yaml").write_text(text)
    line = refused(script, *TINY_RUN, "--config", "flags.yaml")
    assert says in line
    assert not Path("hacked").exists()


@pytest.mark.parametrize("dqn", twin_is_slow(*DQN), ids=["torch", "jax"])
def test_an_initial_model_that_is_not_there(refused, dqn):
    assert "--initial-model no.cleanrl_model" in refused(dqn, *TINY_RUN, "--initial-model", "no.cleanrl_model")


def test_a_missing_configuration_file(refused, script):
    assert "--config no.yaml" in refused(script, *TINY_RUN, "--config=no.yaml")


@pytest.fixture
def refused_teacher(refused, qdagger):
    """Run QDagger with a teacher's folder or repository; returns the error line."""

    def run(source: str, *flags: str) -> str:
        flags = ["--teacher-model-exp-name", "dqn_atari", *flags]
        line = refused(qdagger, *TINY_RUN, *TINY_TEACHER, "--teacher-policy-hf-repo", source, *flags)
        assert "--teacher-policy-hf-repo" in line
        return line

    return run


def folder_with(tmp_path: Path, content: bytes) -> str:
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "dqn_atari.cleanrl_model").write_bytes(content)
    return str(tmp_path / "teacher")


def test_a_teacher_that_is_no_repository_name(refused_teacher):
    assert "neither a local folder nor a repository name" in refused_teacher("./no/such/folder")


def test_a_teacher_that_is_not_in_the_cache_when_offline(refused_teacher):
    assert "cache" in refused_teacher("cleanrl/PongNoFrameskip-v4-dqn_atari-seed1")


def test_a_folder_without_the_file(refused_teacher, tmp_path):
    assert "holds no file dqn_atari.cleanrl_model" in refused_teacher(str(tmp_path))


@pytest.mark.parametrize(
    "content", [b"", b"this is not a model", b"\x80\x02", pickle.dumps(1) * 5, b"PK\x03\x04", b"\x89PNG"]
)
def test_a_teacher_that_is_not_a_model_file(refused_teacher, tmp_path, content):
    line = refused_teacher(folder_with(tmp_path, content))
    assert "is not a plain state_dict" in line or "cannot be read as a torch model" in line


@pytest.mark.parametrize(
    "weights",
    [
        {1: torch.ones(2), "a": torch.ones(1)},
        {"network.0.weight": torch.ones(2).to_sparse()},
        {"network.0.weight": torch.ones(2, device="meta")},
        {"network.0.weight": torch.ones(2, dtype=torch.complex64)},
        {"network.0.weight": "text"},
    ],
)
def test_a_teacher_of_odd_entries(refused_teacher, tmp_path, weights):
    (tmp_path / "teacher").mkdir()
    torch.save(weights, tmp_path / "teacher" / "dqn_atari.cleanrl_model")
    assert "not a state_dict of plain tensors" in refused_teacher(str(tmp_path / "teacher"))


@pytest.mark.parametrize(
    "content",
    [
        b"\x81\xa6params",  # cut short
        msgpack.packb({"params": {"Conv_0": 1}}),
        msgpack.packb({"params": [1, 2]}),
        msgpack.packb({"params": msgpack.ExtType(2, b"")}),
        msgpack.packb({"params": {"a": msgpack.ExtType(1, msgpack.packb([[2], "object", b"12345678"]))}}),
        msgpack.packb({"params": {"a": msgpack.ExtType(1, msgpack.packb([[3], "float32", b"12345678"]))}}),
        msgpack.packb({"params": {"a": msgpack.ExtType(1, b"nonsense")}}),
        msgpack.packb({"params": {"a": msgpack.ExtType(1, msgpack.packb([[1], ">f4", b"1234"]))}}),
        b"\x81\xa1a" * 1000 + b"\x01",  # a map in a map in a map
        msgpack.packb({"a": {"b": 1}}) + b"more",
    ],
)
def test_a_flax_teacher_that_is_damaged(refused_teacher, tmp_path, content):
    line = refused_teacher(folder_with(tmp_path, content))
    assert "is not a flax model of plain arrays" in line or "cannot be read as a flax model" in line


def test_a_flax_teacher_whose_layer_is_empty(refused_teacher, tmp_path):
    bias, kernel = (
        msgpack.ExtType(1, msgpack.packb([shape, "float32", bytes(4 * int(np.prod(shape)))])) for shape in ([64], [0, 512])
    )
    content = msgpack.packb({"params": {"Conv_2": {"bias": bias}, "Dense_0": {"kernel": kernel}}})
    assert "is not a NatureCNN" in refused_teacher(folder_with(tmp_path, content))


def test_a_teacher_that_is_cut_short(refused_teacher, tmp_path, teacher):
    content = (teacher / "dqn_atari.cleanrl_model").read_bytes()
    assert "cannot be read" in refused_teacher(folder_with(tmp_path, content[: len(content) // 2]))


def test_a_teacher_that_holds_code_is_refused_and_not_run(refused_teacher, tmp_path):
    (tmp_path / "teacher").mkdir()
    torch.save({"network.0.weight": Bomb()}, tmp_path / "teacher" / "dqn_atari.cleanrl_model")
    assert "holds code" in refused_teacher(str(tmp_path / "teacher"))
    assert not Path("hacked").exists()


def test_a_bare_pickle_is_refused_and_not_run(refused_teacher, tmp_path):
    refused_teacher(folder_with(tmp_path, pickle.dumps(Bomb())))
    assert not Path("hacked").exists()


def test_a_teacher_of_another_architecture(refused_teacher, tmp_path):
    (tmp_path / "teacher").mkdir()
    torch.save(ImpalaCNN(6).state_dict(), tmp_path / "teacher" / "dqn_atari.cleanrl_model")
    assert "is not a NatureCNN" in refused_teacher(str(tmp_path / "teacher"))


def test_a_teacher_with_another_number_of_actions(refused_teacher, tmp_path):
    (tmp_path / "teacher").mkdir()
    torch.save(NatureCNN(4).state_dict(), tmp_path / "teacher" / "dqn_atari.cleanrl_model")
    assert "number of actions" in refused_teacher(str(tmp_path / "teacher"))


@pytest.mark.parametrize("qdagger", twin_is_slow(*QDAGGER), ids=["torch", "jax"])
def test_a_teacher_that_plays_no_better_than_random(refused_teacher, tmp_path):
    (tmp_path / "teacher").mkdir()
    network = NatureCNN(6)
    network.network[-1].weight.data.zero_()  # always the same action
    torch.save(network.state_dict(), tmp_path / "teacher" / "dqn_atari.cleanrl_model")
    assert "no better than random" in refused_teacher(str(tmp_path / "teacher"))


def test_a_video_without_its_packages(refused, script, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert "imageio_ffmpeg" in refused(script, *TINY_RUN, "--capture-video")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--num-envs", "many"], "error: --num-envs many: must be a whole number"),
        (["--threads", "all"], "error: --threads all: must be a whole number"),
        (["--sticky-actions", "some"], "error: --sticky-actions some: must be a number"),
        (["--threads", "99999999999"], "error: --threads 99999999999: must be between 1 and 1024"),
        (["--device", "gpu"], "'cuda'"),
        (["--nope", "1"], "--nope"),
    ],
)
def test_what_the_parser_refuses_is_one_line_too(refused, script, flags, says):
    assert says in refused(script, *flags)


def test_a_cycle_has_an_end_of_its_own(refused, dqn):
    assert "--one-cycle on: sets the final learning rate" in refused(
        dqn, *TINY_RUN, "--one-cycle", "--learning-rate-end", "0"
    )
    assert "--weight-decay -1.0: must be 0 or more" in refused(dqn, *TINY_RUN, "--weight-decay=-1")


@pytest.mark.parametrize("name", ["a/b", "", "../up", "-x y"])
def test_names_that_make_no_file(refused, script, name):
    assert "--exp-name" in refused(script, *TINY_RUN, f"--exp-name={name}")


@pytest.mark.parametrize("script", [dqn_atari, qdagger_dqn_atari_impalacnn])
def test_a_buffer_on_an_accelerator_without_the_networks(refused, script, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert "--buffer-device cuda: must be cpu" in refused(script, *TINY_RUN, "--buffer-device", "cuda")


def test_notices_do_not_precede_a_refused_teacher(refused, qdagger):
    refused(qdagger, *TINY_RUN, *TINY_TEACHER, "--buffer-size", "1", "--teacher-policy-hf-repo", "./no/such/folder")
