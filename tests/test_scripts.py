"""What the scripts promise as files: self-contained, alike where they mean the same, light to import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cleanrl import dqn_atari as dqn
from cleanrl import qdagger_dqn_atari_impalacnn as qdagger

SCRIPTS = Path(dqn.__file__).parent
CLEANRL_FLAGS = set(
    "exp_name seed torch_deterministic cuda track wandb_project_name wandb_entity capture_video save_model upload_model "
    "hf_entity env_id total_timesteps learning_rate num_envs buffer_size gamma tau target_network_frequency batch_size "
    "start_e end_e exploration_fraction learning_starts train_frequency".split()
)
CLEANRL_DEFAULTS = {
    "seed": 1,
    "torch_deterministic": True,
    "cuda": True,
    "wandb_project_name": "cleanRL",
    "env_id": "BreakoutNoFrameskip-v4",
    "total_timesteps": 10_000_000,
    "learning_rate": 1e-4,
    "buffer_size": 1_000_000,
    "gamma": 0.99,
    "tau": 1.0,
    "target_network_frequency": 1000,
    "batch_size": 32,
    "start_e": 1.0,
    "end_e": 0.01,
    "exploration_fraction": 0.1,
    "learning_starts": 80_000,
    "train_frequency": 4,
}


def definitions(script) -> dict[str, str]:
    """Source of every function and class of a script, by name."""
    source = Path(script.__file__).read_text()
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return {node.name: ast.get_source_segment(source, node) for node in nodes}


def test_what_both_scripts_define_is_identical():
    ours, theirs = definitions(dqn), definitions(qdagger)
    shared = (ours.keys() & theirs.keys()) - {"Args", "check", "main"}
    assert {"make_envs", "NatureCNN", "ReplayBuffer", "td_target", "make_update", "sync", "cuda_graph"} <= shared
    assert {name for name in shared if ours[name] != theirs[name]} == set()


@pytest.mark.parametrize("script", [dqn, qdagger])
def test_flags_and_defaults_are_cleanrls(script):
    args = script.Args()
    assert vars(args).keys() >= CLEANRL_FLAGS
    assert {name: getattr(args, name) for name in CLEANRL_DEFAULTS} == CLEANRL_DEFAULTS
    assert args.exp_name == Path(script.__file__).stem


def test_qdagger_has_cleanrls_flags_and_defaults():
    args = qdagger.Args()
    expected = {
        "teacher_policy_hf_repo": None,
        "teacher_model_exp_name": "dqn_atari",
        "teacher_eval_episodes": 10,
        "teacher_steps": 500_000,
        "offline_steps": 500_000,
        "temperature": 1.0,
    }
    assert {name: getattr(args, name) for name in expected} == expected


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.stem)
def test_scripts_import_no_other_script(path):
    modules = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
    assert not {module for module in modules if module and module.split(".")[0] == "cleanrl"}


def test_training_imports_neither_opencv_nor_wandb_nor_moviepy_nor_stable_baselines(teacher):
    code = f"""
import sys
from cleanrl import dqn_atari, qdagger_dqn_atari_impalacnn as qdagger
from cleanrl_utils import config
from tests.conftest import TINY_RUN, TINY_TEACHER
dqn_atari.main(config.parse(dqn_atari.Args, TINY_RUN + ["--save-model"]))
qdagger.main(config.parse(qdagger.Args, TINY_RUN + TINY_TEACHER + ["--teacher-policy-hf-repo", {str(teacher)!r}]))
print(sorted({{"cv2", "wandb", "moviepy", "stable_baselines3", "matplotlib", "pandas"}} & set(sys.modules)))
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(SCRIPTS.parent), "PATH": "/usr/bin"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"


def test_published_dqn_model_has_the_keys_and_shapes_of_ours():
    expected = {
        "network.0.weight": (32, 4, 8, 8),
        "network.2.weight": (64, 32, 4, 4),
        "network.4.weight": (64, 64, 3, 3),
        "network.7.weight": (512, 3136),
        "network.9.weight": (6, 512),
    }
    expected |= {key.replace("weight", "bias"): shape[:1] for key, shape in expected.items()}
    dqn.NatureCNN(6).load_state_dict({key: torch.zeros(shape) for key, shape in expected.items()}, strict=True)


def test_published_qdagger_student_has_the_keys_and_shapes_of_ours():
    expected, channels = {}, 4
    for i, out in enumerate((16, 32, 32)):
        expected[f"network.{i}.conv.weight"] = (out, channels, 3, 3)
        for block in (0, 1):
            for conv in (0, 1):
                expected[f"network.{i}.res_block{block}.conv{conv}.weight"] = (out, out, 3, 3)
        channels = out
    expected |= {"network.5.weight": (256, 3872), "network.7.weight": (6, 256)}
    expected |= {key.replace("weight", "bias"): shape[:1] for key, shape in expected.items()}
    qdagger.ImpalaCNN(6).load_state_dict({key: torch.zeros(shape) for key, shape in expected.items()}, strict=True)


@pytest.mark.parametrize("student", ["impala256", "impala512", "nature"])
def test_networks_give_one_float32_value_per_action(student):
    network = qdagger.STUDENTS[student](6)
    obs = torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8)
    q_values = network(obs)
    assert (q_values.shape, q_values.dtype) == ((2, 6), torch.float32)
    in_bf16 = network(obs, bf16=True)
    assert in_bf16.dtype == torch.float32
    assert not torch.equal(in_bf16, q_values)
    assert torch.allclose(in_bf16, q_values, atol=0.02)
