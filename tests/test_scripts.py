"""What the scripts promise as files: self-contained, alike where they mean the same, light to import."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from cleanrl import dqn, dqn_atari, dqn_atari_jax, dqn_jax, qdagger_dqn_atari_impalacnn, qdagger_dqn_atari_jax_impalacnn
from cleanrl.qdagger_dqn_atari_impalacnn import STUDENTS, ImpalaCNN, NatureCNN
from tests.conftest import TINY_DQN, TINY_FQI, TINY_RUN, TINY_TEACHER
from tests.support.mutants import MUTANTS
from tests.support.twin_diff import share_of_same_lines

SCRIPTS = Path(dqn_atari.__file__).parent
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


IN_TORCH, IN_JAX = (dqn_atari, qdagger_dqn_atari_impalacnn), (dqn_atari_jax, qdagger_dqn_atari_jax_impalacnn)
TWINS = pytest.mark.parametrize(
    ("ours", "theirs"), [*zip(IN_TORCH, IN_JAX, strict=True), (dqn, dqn_jax)], ids=["dqn_atari", "qdagger", "dqn"]
)


def definitions(script) -> dict[str, str]:
    """Source of every function and class of a script, by name."""
    source = Path(script.__file__).read_text()
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return {node.name: ast.get_source_segment(source, node) for node in nodes}


@pytest.mark.parametrize("scripts", [IN_TORCH, IN_JAX], ids=["torch", "jax"])
def test_what_both_scripts_of_a_framework_define_is_identical(scripts):
    ours, theirs = map(definitions, scripts)
    shared = (ours.keys() & theirs.keys()) - {"Args", "check", "main", "load_player", "Learner", "State"}
    assert {"Step", "Games", "NatureCNN", "ReplayBuffer", "td_target", "sync", "player"} <= shared
    assert ("make_learn" in shared) == (scripts is IN_JAX)
    assert {name for name in shared if ours[name] != theirs[name]} == set()


@pytest.mark.parametrize("name", ["Step", "Games", "linear_schedule", "crossed", "epsilon_greedy", "evaluate_teacher"])
def test_games_and_schedules_are_the_same_text_in_every_atari_script(name):
    texts = [found[name] for found in map(definitions, [*IN_TORCH, *IN_JAX]) if name in found]
    assert len(texts) == (2 if name == "evaluate_teacher" else 4)
    assert len(set(texts)) == 1


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_each_mutant_can_be_made(mutant):
    """So `make mutants` breaks what it says."""
    assert mutant.old in (Path(__file__).parents[1] / mutant.path).read_text(encoding="utf-8")


def changes(ours: str, theirs: str) -> tuple[set[str], set[str]]:
    """Lines that only one of two functions has, or has elsewhere, but for its name and what it says of itself."""
    lines, their_lines = ([line.strip() for line in text.split('"""', 2)[2].splitlines()] for text in (ours, theirs))
    found = list(difflib.ndiff(lines, their_lines))
    return tuple({line[2:] for line in found if line[0] == sign} - {""} for sign in "-+")


ONLINE = {
    "_, lr_start, lr_end = learning_rates(args)",
    'goals = state.scores["teacher"].mean, state.scores["random"].mean',
    "# The exploration clock runs on from the offline phase: from 0 it would play the distilled student at random.",
    "epsilon = linear_schedule(args.start_e, args.end_e, exploration_steps, args.offline_steps + state.step)",
    "left = fading(state.returns, *goals, state.step, args.distill_decay_steps)",
    "state.returns.extend(episodic_return for episodic_return, _ in step.finished)",
    'run.scalars({"charts/distill_coeff": args.distill_coefficient * left}, state.step)',
}
"""What QDagger's online loop has that DQN's has not, apart from where its rates go in."""
RATES = {
    dqn_atari: {"learner.set_rates(args.distill_coefficient * left, lr_end + (lr_start - lr_end) * left)"},
    dqn_atari_jax: {
        "learning_rate = lr_end + (lr_start - lr_end) * left",
        "state.metrics = learner.update(rb, indices, learning_rate, args.distill_coefficient * left)",
        "learner.warm_up(rb, args, args.num_envs // args.train_frequency, -(-args.num_envs // args.train_frequency))",
    },
}


@pytest.mark.parametrize(("ours", "theirs"), [IN_TORCH, IN_JAX], ids=["torch", "jax"])
def test_the_online_loop_of_qdagger_is_that_of_dqn_but_for_the_distillation(ours, theirs):
    online = definitions(theirs)["train_online"].replace("evaluate_student", "evaluate_agent")
    only_ours, only_theirs = changes(definitions(ours)["train"], online.replace('"online training"', '"training"'))
    assert only_theirs == ONLINE | RATES[ours]
    assert all("epsilon = " in line or "learning_rate" in line or "warm_up" in line for line in only_ours)
    assert len(only_ours) == (2 if ours is dqn_atari else 3)


@pytest.mark.parametrize(("ours", "theirs"), [IN_TORCH, IN_JAX], ids=["torch", "jax"])
def test_the_evaluation_of_qdagger_is_that_of_dqn_but_for_the_name_of_its_phase(ours, theirs):
    only_ours, only_theirs = changes(definitions(ours)["evaluate_agent"], definitions(theirs)["evaluate_student"])
    assert len(only_ours) == 3
    assert all("phase" in line or "offline" in line for line in only_theirs)


OF_A_FRAMEWORK = re.compile(
    "torch|jax|be_deterministic|[Ll]earner|teacher_|indices|rb.draw|compiling|update\\(index\\)|learning_rate = "
    "|save_(weights|params)|choose_threads|Tensor|Array"
)


@TWINS
def test_what_the_loops_of_twins_do_differently_is_the_frameworks(ours, theirs):
    found, twins = definitions(ours), definitions(theirs)
    names = {"State", "train", "collect", "train_offline", "train_online", "evaluate_agent", "evaluate_student", "main"}
    assert len(names & found.keys()) >= 4
    for name in names & found.keys():
        for lines in changes(found[name], twins[name]):
            assert [line for line in lines if not OF_A_FRAMEWORK.search(line)] == [], name
            assert len(lines) <= 12, name


def test_a_state_has_the_same_fields_in_every_script(script, vector_dqn):
    """Of QDagger, more: the phase, the scores, the latest returns."""
    shared = ["learner", "rb", "games", "act_rng", "sample_rng", "step", "metrics", "best"]
    fields = [field.name for field in dataclasses.fields(script.State)]
    more = {"phase", "scores", "returns"} if hasattr(script, "train_online") else set()
    assert set(fields) == {*shared, *more}
    of_vectors = [field.name for field in dataclasses.fields(vector_dqn.State)]
    assert of_vectors == ["envs" if name == "games" else name for name in shared]


MANY_PARAMETERS = {"update"}  # of six: what an update is made of


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.stem)
def test_functions_have_a_size_that_can_be_read(path):
    """`main` 70 lines, a loop 50, five parameters; losses take what they are of."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.FunctionDef):
            continue
        lines = node.end_lineno - node.lineno + 1
        assert lines <= 70, node.name
        if re.match("train|collect", node.name):
            assert any(isinstance(part, ast.While | ast.For) for part in ast.walk(node)), node.name
            assert lines <= 50, node.name
        given = node.args
        names = [argument.arg for argument in (*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs) if argument]
        names = [name for name in names if name != "self"]
        if not node.name.endswith("_loss"):
            assert len(names) <= (6 if node.name in MANY_PARAMETERS else 5), (node.name, names)


@pytest.mark.parametrize(("vectors", "atari"), [(dqn, dqn_atari), (dqn_jax, dqn_atari_jax)], ids=["torch", "jax"])
def test_what_means_the_same_on_vectors_and_on_atari_is_identical(vectors, atari):
    ours, theirs = map(definitions, (vectors, atari))
    alike = {"linear_schedule", "crossed", "td_target", "epsilon_greedy", "sync"}
    assert {name for name in alike if ours[name] != theirs[name]} == set()


def test_the_replay_of_vectors_is_identical_in_both_frameworks():
    ours, theirs = map(definitions, (dqn, dqn_jax))
    assert ours["ReplayBuffer"] == theirs["ReplayBuffer"]


@TWINS
def test_twins_have_the_same_flags_in_the_same_order_with_the_same_defaults(ours, theirs):
    def flags(script):
        of_a_framework = ("cuda", "torch_deterministic", "xla_deterministic")
        fields = [field for field in dataclasses.fields(script.Args) if field.name not in of_a_framework]
        return [(field.name, field.default) for field in fields if "exp_name" not in field.name]

    assert flags(ours) == flags(theirs)


@TWINS
def test_twins_define_the_same_in_the_same_order(ours, theirs):
    """What only one has is the framework's: states and arrays that are passed."""
    names, twin_names = list(definitions(ours)), list(definitions(theirs))
    in_torch, in_jax = set(names) - set(twin_names), set(twin_names) - set(names)
    assert in_torch == set()
    assert in_jax <= {
        "make_learn",
        "QState",
        "Rings",
        "store",
        "gather",
        "stacked",
        "max_pool",
    }
    assert [name for name in names if name in twin_names] == [name for name in twin_names if name in names]


@TWINS
def test_twins_have_the_same_sections_and_metrics(ours, theirs):
    def found(pattern: str, script) -> list[str]:
        return re.findall(pattern, Path(script.__file__).read_text(), re.M)

    assert found("^# --- .* ---$", ours) == found("^# --- .* ---$", theirs) != []
    metric = r'"(?:charts|losses|eval)/[^"]*"'
    assert found(metric, ours) == found(metric, theirs) != []


@TWINS
def test_twins_share_most_of_their_lines(ours, theirs):
    assert share_of_same_lines(Path(ours.__file__), Path(theirs.__file__)) >= 0.6


def test_flags_and_defaults_are_cleanrls(script):
    args = script.Args()
    of_torch = {"cuda", "torch_deterministic"} if script in IN_JAX else set()
    assert vars(args).keys() >= CLEANRL_FLAGS - of_torch
    expected = {name: value for name, value in CLEANRL_DEFAULTS.items() if name not in of_torch}
    assert {name: getattr(args, name) for name in expected} == expected
    assert args.exp_name == Path(script.__file__).stem


def test_dqn_has_cleanrls_flags_and_defaults(vector_dqn):
    of_torch = {"cuda", "torch_deterministic"} if vector_dqn is dqn_jax else set()
    expected = CLEANRL_DEFAULTS | {
        "exp_name": Path(vector_dqn.__file__).stem,
        "env_id": "CartPole-v1",
        "total_timesteps": 500_000,
        "learning_rate": 2.5e-4,
        "num_envs": 1,
        "buffer_size": 10_000,
        "target_network_frequency": 500,
        "batch_size": 128,
        "end_e": 0.05,
        "exploration_fraction": 0.5,
        "learning_starts": 10_000,
        "train_frequency": 10,
        "hidden_units": (120, 84),
    }
    args = vars(vector_dqn.Args())
    assert args.keys() >= CLEANRL_FLAGS - of_torch
    assert {name: args[name] for name in expected.keys() - of_torch} == {
        name: value for name, value in expected.items() if name not in of_torch
    }


def test_qdagger_has_cleanrls_flags_and_defaults(qdagger):
    args = qdagger.Args()
    qdagger.check(args)
    expected = {
        "teacher_policy_hf_repo": None,
        "teacher_model_exp_name": "dqn_atari" if qdagger in IN_TORCH else "dqn_atari_jax",
        "teacher_eval_episodes": 10,
        "teacher_steps": 500_000,
        "offline_steps": 500_000,
    }
    assert {name: getattr(args, name) for name in expected} == expected
    assert (args.temperature, args.distill_coefficient) == (0.1, 3.0), "the paper's: CleanRL's distil next to nothing"


BROUGHT = {"jax": "jax", "flax": "jax", "optax": "jax", "sklearn": "fqi", "cleanrl_utils.evals.atari": "atari"}
"""The extra that brings what a script imports."""


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_the_header_of_a_script_asks_for_what_it_imports(path):
    """`uv run cleanrl/dqn.py` makes an environment from it (PEP 723)."""
    source = path.read_text()
    header = source[: source.index('"""')].splitlines()
    assert (header[0], header[-1]) == ("# /// script", "# ///")
    asked = tomllib.loads("\n".join(line.removeprefix("# ") for line in header[1:-1]))
    project = tomllib.loads((SCRIPTS.parent / "pyproject.toml").read_text())["project"]
    imported = re.findall(r"^ *(?:from|import) ([\w.]+)", source, re.M)
    extras = sorted({BROUGHT[name] for name in imported + [name.split(".")[0] for name in imported] if name in BROUGHT})
    assert asked["dependencies"] == [project["name"] + (f"[{','.join(extras)}]" if extras else "")]
    assert project["requires-python"].startswith(f"{asked['requires-python']},")
    assert (path.parent / asked["tool"]["uv"]["sources"]["qdagger"]["path"]).resolve() == SCRIPTS.parent


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.stem)
def test_scripts_import_no_other_script(path):
    modules = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)}
    assert not {module for module in modules if module and module.split(".")[0] == "cleanrl"}


KEPT = {"OMP_NUM_THREADS", "JAX_COMPILATION_CACHE_DIR", "JAX_COMPILATION_CACHE_MAX_SIZE"}


def imported_by(code: str, unneeded: set[str]) -> str:
    """Which of the modules a process has imported after running the code."""
    result = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(sorted({unneeded!r} & set(sys.modules)))"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(SCRIPTS.parent), "PATH": "/usr/bin"}
        | {name: os.environ[name] for name in KEPT & os.environ.keys()},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("vectors", "scripts", "other"),
    [(dqn, IN_TORCH, ("jax", "flax")), (dqn_jax, IN_JAX, ("torch",))],
    ids=["torch", "jax"],
)
def test_training_imports_neither_the_other_framework_nor_what_it_does_not_need(
    vectors, scripts, other, teacher, jax_teacher
):
    """Not even with a teacher of the other framework; and on vectors nothing of Atari, so that comes first."""
    dqn_atari, qdagger = (script.__name__ for script in scripts)
    source = jax_teacher if scripts is IN_TORCH else teacher
    code = f"""
from {vectors.__name__} import Args, main
from cleanrl_utils.flags import parse
main(parse(Args, {[*TINY_DQN, "--total-timesteps", "300", "--save-model"]!r}))
assert not {{"ale_py", "cv2"}} & set(sys.modules)
from {dqn_atari} import Args, main
from {qdagger} import Args as QDaggerArgs, main as qdagger_main
tiny_run, tiny_teacher = {TINY_RUN!r}, {TINY_TEACHER!r}
main(parse(Args, tiny_run + ["--save-model"]))
qdagger_main(parse(QDaggerArgs, tiny_run + tiny_teacher + ["--teacher-policy-hf-repo", {str(source)!r}]))
"""
    unneeded = {"cv2", "wandb", "imageio_ffmpeg", "stable_baselines3", "sklearn", "pygame", "matplotlib", "pandas", *other}
    assert imported_by(code, unneeded) == "[]"


def test_fqi_needs_neither_atari_nor_a_framework():
    code = f"""
from cleanrl.fqi import Args, main
from cleanrl_utils.flags import parse
main(parse(Args, {[*TINY_FQI, "--save-model"]!r}))
"""
    unneeded = {"ale_py", "cv2", "wandb", "imageio_ffmpeg", "stable_baselines3", "pygame", "matplotlib", "torch", "jax"}
    assert imported_by(code, unneeded) == "[]"


def test_published_dqn_model_has_the_keys_and_shapes_of_ours():
    expected = {
        "network.0.weight": (32, 4, 8, 8),
        "network.2.weight": (64, 32, 4, 4),
        "network.4.weight": (64, 64, 3, 3),
        "network.7.weight": (512, 3136),
        "network.9.weight": (6, 512),
    }
    expected |= {key.replace("weight", "bias"): shape[:1] for key, shape in expected.items()}
    NatureCNN(6).load_state_dict({key: torch.zeros(shape) for key, shape in expected.items()}, strict=True)


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
    ImpalaCNN(6).load_state_dict({key: torch.zeros(shape) for key, shape in expected.items()}, strict=True)


@pytest.mark.parametrize("student", ["impala256", "impala512", "nature"])
def test_networks_give_one_float32_value_per_action(student):
    network = STUDENTS[student](6)
    obs = torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8)
    q_values = network(obs)
    assert (q_values.shape, q_values.dtype) == ((2, 6), torch.float32)
    in_bf16 = network(obs, bf16=True)
    assert in_bf16.dtype == torch.float32
    assert not torch.equal(in_bf16, q_values)
    assert torch.allclose(in_bf16, q_values, atol=0.02)
