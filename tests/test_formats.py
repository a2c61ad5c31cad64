"""Weights of either framework, read without it and converted into the other's names and layouts."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.torch
import torch
from ale_py.vector_env import AtariVectorEnv
from flax import serialization

from cleanrl import dqn_atari, dqn_atari_jax
from cleanrl import qdagger_dqn_atari_impalacnn as in_torch
from cleanrl import qdagger_dqn_atari_jax_impalacnn as in_jax
from cleanrl_utils.models import formats, torch_zip
from cleanrl_utils.models.files import (
    ModelError,
    load_into,
    load_params,
    load_weights,
    read_arrays,
    save_params,
    save_weights,
)
from cleanrl_utils.models.source import fetch
from tests.conftest import TEACHER, all_slow

BLANK = np.zeros((1, 4, 84, 84), np.uint8)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """Observations of a real game, well into it."""
    envs = AtariVectorEnv("pong", 8)
    rng = np.random.default_rng(0)
    envs.reset(seed=np.arange(8))
    for _ in range(150):
        obs, *_ = envs.step(rng.integers(0, 6, 8))
    return obs


def q_values(network, params, obs: np.ndarray) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
        return np.asarray(network.apply(params, obs))


@pytest.mark.parametrize("student", ["nature", *all_slow("impala256", "impala512")])
def test_a_torch_model_has_the_same_q_values_in_jax(student, frames):
    ours, theirs = in_torch.STUDENTS[student](6), in_jax.STUDENTS[student](6)
    save_weights(ours.state_dict(), Path("model"))
    shapes = jax.eval_shape(theirs.init, jax.random.key(0), BLANK)
    params = load_params(theirs, shapes, Path("model"))
    np.testing.assert_allclose(q_values(theirs, params, frames), ours(torch.tensor(frames)).detach(), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("student", ["nature", "impala256", "impala512"])
def test_a_jax_model_has_the_same_q_values_in_torch(student, frames):
    ours, theirs = in_jax.STUDENTS[student](6), in_torch.STUDENTS[student](6)
    params = ours.init(jax.random.key(0), BLANK)
    save_params(params, Path("model"))
    load_into(theirs, Path("model"))
    np.testing.assert_allclose(theirs(torch.tensor(frames)).detach(), q_values(ours, params, frames), atol=1e-4)


def test_the_teacher_in_the_box_has_the_same_q_values_in_both(frames):
    ours, theirs = in_torch.NatureCNN(6), in_jax.NatureCNN(6)
    load_into(ours, TEACHER / "dqn_atari.cleanrl_model")
    shapes = jax.eval_shape(theirs.init, jax.random.key(0), BLANK)
    params = load_params(theirs, shapes, TEACHER / "dqn_atari.cleanrl_model")
    expected = ours(torch.tensor(frames)).detach().numpy()
    np.testing.assert_allclose(q_values(theirs, params, frames), expected, atol=1e-4)
    assert np.abs(expected).max() > 0.1


def test_there_and_back_again_changes_nothing():
    for student in in_torch.STUDENTS.values():
        weights = {key: value.detach().numpy() for key, value in student(6).state_dict().items()}
        back = formats.to_torch(formats.to_flax(weights))
        assert back.keys() == weights.keys()
        assert all(np.array_equal(back[key], weights[key]) for key in weights)


def test_a_linear_layer_reads_the_same_pixel_in_both_layouts():
    """Channel 1, row 2, column 0 of maps (3 channels, 4 x 4) is input 24 in torch and 8 * 3 + 1 = 25 in flax."""
    weight = np.zeros((5, 48), np.float32)
    weight[0, 1 * 16 + 2 * 4 + 0] = 1
    conv = {"network.4.weight": np.zeros((3, 1, 1, 1), np.float32), "network.4.bias": np.zeros(3, np.float32)}
    kernel = formats.to_flax({"network.7.weight": weight, **conv})["Dense_0/kernel"]
    assert kernel.shape == (48, 5)
    assert np.argwhere(kernel).tolist() == [[(2 * 4 + 0) * 3 + 1, 0]]


def test_files_have_the_published_layout():
    params = dqn_atari_jax.NatureCNN(6).init(jax.random.key(0), BLANK)
    save_params(params, Path("model"))
    tree = serialization.msgpack_restore(Path("model").read_bytes())["params"]
    shapes = {layer: {name: value.shape for name, value in arrays.items()} for layer, arrays in tree.items()}
    assert shapes == {
        "Conv_0": {"kernel": (8, 8, 4, 32), "bias": (32,)},
        "Conv_1": {"kernel": (4, 4, 32, 64), "bias": (64,)},
        "Conv_2": {"kernel": (3, 3, 64, 64), "bias": (64,)},
        "Dense_0": {"kernel": (3136, 512), "bias": (512,)},
        "Dense_1": {"kernel": (512, 6), "bias": (6,)},
    }


def test_published_qdagger_student_has_the_names_of_ours():
    shapes = jax.eval_shape(in_jax.ImpalaCNN(6).init, jax.random.key(0), BLANK)["params"]
    assert shapes.keys() == {*(f"ConvSequence_{i}" for i in range(3)), "Dense_0", "Dense_1"}
    assert shapes["ConvSequence_1"].keys() == {"Conv_0", "ResidualBlock_0", "ResidualBlock_1"}
    assert shapes["ConvSequence_1"]["ResidualBlock_1"].keys() == {"Conv_0", "Conv_1"}
    assert shapes["Dense_0"]["kernel"].shape == (3872, 256)


def test_reading_torch_files_gives_what_torch_gives():
    """With views, strides, kinds of floats, shared memory, and the old and the new order of keys."""
    base = torch.arange(24, dtype=torch.float32)
    weights = OrderedDict(
        plain=torch.randn(3, 4),
        transposed=base.view(4, 6).T,
        part=base[5:9],
        strided=base[::3],
        channels_last=torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        half=torch.randn(3).half(),
        double=torch.randn(3).double(),
        scalar=torch.tensor(2.5),
    )
    for content in (weights, dict(weights)):
        torch.save(content, "model")
        read = torch_zip.read_torch(Path("model"))
        assert read.keys() == weights.keys()
        for key, value in weights.items():
            assert np.array_equal(read[key], value.numpy()), key
            assert read[key].dtype == value.numpy().dtype
    torch.save(dict(in_torch.NatureCNN(6).named_parameters()), "model")
    assert torch_zip.read_torch(Path("model"))["network.9.bias"].shape == (6,)
    torch.save(in_torch.NatureCNN(6).state_dict(), "model")  # with the version that a module's state_dict carries
    assert torch_zip.read_torch(Path("model")).keys() == in_torch.NatureCNN(6).state_dict().keys()


def rewritten(changes: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """A torch file of one tensor with some of its parts replaced."""
    torch.save({"a": torch.ones(4)}, "whole")
    with zipfile.ZipFile("whole") as whole, zipfile.ZipFile("model", "w", compression) as model:
        for name in whole.namelist():
            model.writestr(name, changes.get(name.split("/", 1)[1], whole.read(name)))
    return Path("model")


def described(entry: bytes) -> dict[str, bytes]:
    """The pickle of a dictionary {"a": entry}, with a storage of 4 floats to build upon."""
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x04tQ"
    return {"data.pkl": b"\x80\x02}X\x01\0\0\0a" + entry.replace(b"STORAGE", storage) + b"s."}


def tensor(shape: bytes, strides: bytes, offset: bytes = b"K\x00") -> dict[str, bytes]:
    return described(
        b"ctorch._utils\n_rebuild_tensor_v2\n(STORAGE" + offset + shape + strides + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def test_what_is_built_by_hand_is_read_as_torch_reads_it():
    path = rewritten(tensor(b"K\x02\x85", b"K\x01\x85", offset=b"K\x01"))
    assert torch_zip.read_torch(path)["a"].tolist() == torch.load(path, weights_only=True)["a"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data/0": b"12345678"}, "beyond its memory"),
        (tensor(b"K\x05\x85", b"K\x01\x85"), "beyond its memory"),
        (tensor(b"K\x04\x85", b"K\x01\x85", offset=b"K\x01"), "beyond its memory"),
        (tensor(b"K\x02\x85", b"J\xff\xff\xff\xff\x85"), "beyond its memory"),
        (tensor(b"J\x00\x00\x00\x7f\x85", b"K\x00\x85"), "beyond its memory"),  # one number, shown two billion times
        (tensor(b"K\x04\x85", b"K\x01K\x01\x86"), "cannot be read"),
        (described(b"K\x01"), "not a state_dict"),
        (described(b"N"), "not a state_dict"),
        (described(b"ctorch._utils\n_rebuild_sparse_tensor\n)R"), "not a state_dict"),
        (described(b"cos\nsystem\n(X\x0c\0\0\0touch hackedtR"), "holds code"),
        (described(b"(X\x0c\0\0\0touch hackedios\nsystem\n"), "holds code"),
        ({"data.pkl": b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s."}, "not a state_dict"),  # deep keys to hash
        ({"data.pkl": b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"K\x01s."}, "not a state_dict"),  # 2^60 keys to hash
        ({"data.pkl": b"\x80\x02]."}, "not a state_dict"),
        ({"data.pkl": b"\x80\x02}"}, "cannot be read"),
        ({"data.pkl": b""}, "cannot be read"),
        ({"data.pkl": b"\x80\x02h\x05."}, "cannot be read"),
    ],
)
def test_torch_files_that_are_damaged_or_made_to_harm_are_refused(changes, says):
    with pytest.raises(formats.FormatError, match=says):
        torch_zip.read_torch(rewritten(changes))
    assert not Path("hacked").exists()


def test_a_compressed_archive_is_refused():
    """Torch writes none, and a small one may hold gigabytes."""
    with pytest.raises(formats.FormatError, match="does not compress"):
        torch_zip.read_torch(rewritten({}, zipfile.ZIP_DEFLATED))


@pytest.mark.parametrize(
    ("content", "flax"),
    [
        (b"", False), (b"PK\x03\x04", False), (b"\x80\x02}", False), (b"\x89PNG\r\n", False), (b"\x81", False),
        (b"\x81\xa6params", True), (b"\xde\x00\x11\xa1a", True), (b"\xdf\x00\x00\x00\x11\xd9", True), (b"\x80", False),
    ],
)  # fmt: skip
def test_the_kind_of_file_is_found_by_looking_at_it(content, flax):
    Path("model").write_bytes(content)
    assert formats.is_flax(Path("model")) is flax


def test_models_of_the_other_framework_are_read_without_it():
    params = dqn_atari_jax.NatureCNN(6).init(jax.random.key(0), BLANK)
    save_params(params, Path("flax.cleanrl_model"))
    code = f"""
import sys
from pathlib import Path
from cleanrl_utils.models import formats, torch_zip
formats.read_flax(Path("flax.cleanrl_model")), torch_zip.read_torch(Path({str(TEACHER / "dqn_atari.cleanrl_model")!r}))
assert not {{"jax", "flax", "torch"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(TEACHER.parents[2])})


# --- Files as other projects leave them ---


def as_left_by(kind: str, weights: dict) -> object:
    """The weights as another project's file holds them."""
    return {
        "DataParallel": {f"module.{name}": value for name, value in weights.items()},
        "torch.compile": {f"_orig_mod.{name}": value for name, value in weights.items()},
        "a checkpoint": {"step": 5, "q_network_state_dict": weights, "optimizer": {"state": {0: {"step": 3}}, "lr": 1e-4}},
        "bfloat16": {name: value.bfloat16() for name, value in weights.items()},
    }[kind]


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "torch.compile"])
def test_a_file_of_safetensors_serves_both_frameworks(kind, frames):
    network = dqn_atari.NatureCNN(6)
    load_into(network, TEACHER / "dqn_atari.cleanrl_model")
    Path("other").mkdir()
    weights = network.state_dict()
    safetensors.torch.save_file(weights if kind == "float32" else as_left_by(kind, weights), "other/model.safetensors")
    expected = {name: value.bfloat16().float() if kind == "bfloat16" else value for name, value in weights.items()}
    in_torch_, in_jax_, path = dqn_atari.NatureCNN(6), dqn_atari_jax.NatureCNN(6), fetch("other", "any", None)
    load_into(in_torch_, path)
    assert all(torch.equal(value, expected[name]) for name, value in in_torch_.state_dict().items())
    params = load_params(in_jax_, in_jax_.init(jax.random.key(0), frames[:1]), path)
    np.testing.assert_array_equal(params["params"]["Dense_1"]["bias"], expected["network.9.bias"].numpy())


@pytest.mark.parametrize("read", [load_weights, read_arrays])
def test_a_damaged_file_of_safetensors_and_one_of_whole_numbers_are_refused(read):
    path = Path("model.safetensors")
    safetensors.torch.save_file({"network.0.weight": torch.zeros(3, dtype=torch.int64)}, path)
    with pytest.raises(ModelError, match="`network.0.weight` has the type I64"):
        read(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelError, match="cannot be read as safetensors"):
        read(path)


@pytest.mark.parametrize("kind", ["DataParallel", "torch.compile", "a checkpoint", "bfloat16"])
def test_weights_are_found_in_files_of_other_projects(kind, frames, capsys):
    network = dqn_atari.NatureCNN(6)
    load_into(network, TEACHER / "dqn_atari.cleanrl_model")
    torch.save(as_left_by(kind, network.state_dict()), "other.pth")
    expected = {
        name: value.bfloat16().float() if kind == "bfloat16" else value for name, value in network.state_dict().items()
    }
    in_torch_, in_jax_ = dqn_atari.NatureCNN(6), dqn_atari_jax.NatureCNN(6)
    load_into(in_torch_, fetch(str(Path.cwd()), "dqn_atari.cleanrl_model", None))
    load_params(in_jax_, in_jax_.init(jax.random.key(0), frames[:1]), fetch("other.pth", "any", None))
    assert all(torch.equal(value, expected[name]) for name, value in in_torch_.state_dict().items())
    said = capsys.readouterr().err
    assert ("which is left out" in said) == (kind in ("DataParallel", "torch.compile"))
    arrays = read_arrays(Path("other.pth"))
    np.testing.assert_array_equal(arrays["Dense_1/bias"], expected["network.9.bias"].numpy())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"\n<html lang='en'>", "a web page"),
    ],
)
@pytest.mark.parametrize("read", [load_weights, read_arrays])
def test_what_is_found_in_place_of_a_model_is_called_what_it_is(content, says, read):
    Path("model.cleanrl_model").write_bytes(content)
    with pytest.raises(ModelError, match=says):
        read(Path("model.cleanrl_model"))


@pytest.mark.parametrize("read", [load_weights, read_arrays])
def test_of_several_state_dicts_none_is_taken(read):
    weights = dqn_atari.NatureCNN(6).state_dict()
    torch.save({"online": weights, "target": weights}, "both.pth")
    with pytest.raises(ModelError, match=r"holds several state_dicts \(online, target\)"):
        read(Path("both.pth"))
