"""Flags from files and from the command line."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
from annotated_types import Le

from cleanrl import dqn as dqn_vector
from cleanrl import dqn_atari as dqn
from cleanrl import dqn_atari_jax, dqn_jax, fqi
from cleanrl import qdagger_dqn_atari_impalacnn as qdagger
from cleanrl import qdagger_dqn_atari_jax_impalacnn as qdagger_jax
from cleanrl_utils import flags
from cleanrl_utils.errors import BadInput
from cleanrl_utils.files import write_json
from cleanrl_utils.ranges import (
    FileName,
    NotNegative,
    NotNegativeFloat,
    Positive,
    PositiveFloat,
    PositiveSizes,
    Probability,
    Seed,
)

CONFIGS = Path(__file__).parents[1] / "benchmark" / "configs"


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(tmp_path):
    (tmp_path / "flags.yaml").write_text(
        "num-envs: 3\nlearning_rate: 1e-3\ngamma: 1\ndevice: cpu\ndouble_q: true\nsticky_actions: null\n"
    )
    args = flags.parse(dqn.Args, ["--config", "flags.yaml", "--num-envs", "5", "--no-double-q"])
    assert (args.num_envs, args.learning_rate, args.gamma, args.double_q) == (5, 1e-3, 1.0, False)
    assert isinstance(args.gamma, float)
    assert (args.sticky_actions, args.device) == (None, "cpu")
    assert args.batch_size == dqn.Args().batch_size


def test_the_files_in_benchmark_configs_are_accepted():
    files = sorted(CONFIGS.glob("*.yaml"))
    scripts = {
        "quickstart": (qdagger, qdagger_jax),
        "quickstart_small": (qdagger, qdagger_jax),
        "qdagger": (qdagger, qdagger_jax),
        "qdagger_paper": (qdagger, qdagger_jax),
        "cleanrl_torch": (qdagger, qdagger_jax),
        "cleanrl_jax": (qdagger, qdagger_jax),
        "dqn_cartpole": (dqn_vector, dqn_jax),
        "dqn_flappybird": (dqn_vector, dqn_jax),
        "space_invaders": (dqn, dqn_atari_jax),
        "atari_1m": (dqn, dqn_atari_jax),
        "qdagger_1m": (qdagger, qdagger_jax),
    }
    assert {file.stem for file in files} == scripts.keys()
    for file in files:
        for script in scripts[file.stem]:
            script.check(flags.parse(script.Args, ["--config", str(file)]))


def test_whole_numbers_may_be_written_with_an_exponent_or_a_point(tmp_path):
    (tmp_path / "flags.yaml").write_text("total_timesteps: 1e6\nbuffer_size: 2.0e+5\nseed: 3\nnum_envs: 2.0\n")
    args = flags.parse(dqn.Args, ["--config", "flags.yaml"])
    assert (args.total_timesteps, args.buffer_size, args.seed, args.num_envs) == (1_000_000, 200_000, 3, 2)
    assert isinstance(args.total_timesteps, int)
    words = ["--total-timesteps", "1e6", "--buffer-size=2.5e5", "--seed", "7", "--checkpoint-frequency", "1e3"]
    args = flags.parse(dqn.Args, words)
    assert (args.total_timesteps, args.buffer_size, args.seed, args.checkpoint_frequency) == (1_000_000, 250_000, 7, 1000)
    assert isinstance(args.total_timesteps, int)
    assert flags.parse(dqn_vector.Args, ["--hidden-units", "1e1", "5.0"]).hidden_units == (10, 5)
    assert flags.parse(dqn.Args, ["--total-timesteps", f"{2**53 + 1}"]).total_timesteps == 2**53 + 1


@pytest.mark.parametrize("number", ["1.5", "1e-3", "ten", "nan", "inf", "1e999"])
def test_what_is_no_whole_number_is_refused(refused, number):
    assert f"--total-timesteps {number}: must be a whole number" in refused(dqn, "--total-timesteps", number)


@pytest.mark.parametrize("words", [["--cuda", "False"], ["--track", "True"], ["--no-compile", "true"]])
def test_a_boolean_with_a_value_is_met_with_how_it_is_written(refused, words):
    name = words[0].removeprefix("--").removeprefix("no-")
    assert f"write --{name} or --no-{name}, without `{words[1]}`" in refused(dqn, *words)


def test_lists_and_mappings_come_from_files_and_from_the_command_line(tmp_path):
    (tmp_path / "flags.yaml").write_text("hidden_units: [3, 4]\nenv_kwargs: {sutton_barto_reward: true}\n")
    args = flags.parse(dqn_vector.Args, ["--config", "flags.yaml"])
    assert (args.hidden_units, args.env_kwargs) == ((3, 4), {"sutton_barto_reward": True})
    args = flags.parse(
        dqn_vector.Args, ["--config", "flags.yaml", "--hidden-units", "5", "--env-kwargs", '{"a": [1, null]}']
    )
    assert (args.hidden_units, args.env_kwargs) == ((5,), {"a": [1, None]})
    assert flags.parse(fqi.Args, ["--regressor-kwargs", "{}"]).regressor_kwargs == {}


def test_the_papers_values_are_in_its_file():
    args = flags.parse(qdagger.Args, ["--config", str(CONFIGS / "qdagger_paper.yaml")])
    assert (args.n_step, args.temperature, args.distill_coefficient, args.offline_steps) == (3, 0.1, 3.0, 1_000_000)
    assert (args.offline_target_network_frequency, args.target_network_frequency) == (2000, 8000)
    assert (args.learning_rate, args.learning_rate_end, args.adam_eps, args.huber) == (1e-4, 1e-5, 1.5e-4, True)
    assert (args.distill_decay_steps, args.learning_starts, args.sticky_actions) == (1_500_000, 20_000, 0.25)
    assert (args.life_loss, args.student, args.total_timesteps) == (False, "nature", 2_500_000)
    assert args.eval_epsilon == 0.001


SCRIPTS = [dqn, dqn_atari_jax, qdagger, qdagger_jax, dqn_vector, dqn_jax, fqi]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__.split(".")[-1])
def test_help_has_every_flag_in_its_group_with_its_default_and_a_sentence(script, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")  # wider ones are divided
    with pytest.raises(SystemExit) as stopped:
        flags.parse(script.Args, ["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert script.__doc__.splitlines()[0] in text
    titles = ["run", "environment", *(["teacher-and-distillation"] if "qdagger" in script.__name__ else []), "algorithm"]
    lines = [line.strip(" │╭╮─") for line in text.splitlines()]
    assert [line.removesuffix(" options") for line in lines if line.endswith(" options")] == titles
    lines = [line for line in lines if not line.endswith(" options") and set(line) - {"-"}]
    args = vars(script.Args())
    explained = dict(re.findall(r"^--(\w[\w-]*)(.*(?:\n[^-].*)*)", "\n".join(lines), re.M))
    assert list(explained) == [name.replace("_", "-") for name in args], "in the order of the script"
    for (name, value), words in zip(args.items(), explained.values(), strict=True):
        sentence, default = re.fullmatch(r".*?([a-zA-Z]\w* \w+.*) \(default: (.*)\)", " ".join(words.split())).groups()
        assert len(sentence) > 10
        assert default in (str(value), repr(value), as_typed(value)), name


def as_typed(value):
    """A tuple and a mapping as the command line takes them."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else f"'{json.dumps(value)}'"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__.split(".")[-1])
def test_every_number_among_the_flags_of_a_script_has_a_range(script):
    plain = typing.get_type_hints(script.Args)
    numbers = {name for name, hint in plain.items() if {int, float} & {hint, *typing.get_args(hint)}}
    ranged = typing.get_type_hints(script.Args, include_extras=True)
    assert {name for name in numbers if ranged[name] == plain[name]} == set()


@dataclass
class Tried:
    """Flags of someone's copy of a script, with one that nobody has described yet."""

    exp_name: str = "tried"
    """name"""
    save_model: bool = False
    new_idea: float = 0.5
    env_id: str = "CartPole-v1"
    """environment"""


def test_a_flag_without_a_docstring_is_a_flag():
    args = flags.parse(Tried, ["--new-idea", "2", "--save-model", "--env-id", "Acrobot-v1"])
    assert args == Tried(new_idea=2.0, save_model=True, env_id="Acrobot-v1")
    unseen = dataclasses.make_dataclass("Unseen", [("save_model", bool, False), ("new_idea", float, 0.5)])
    assert flags.parse(unseen, ["--new-idea", "3"]) == unseen(new_idea=3.0), "nor is its source needed"
    with pytest.raises(SystemExit) as stopped:
        flags.parse(unseen, ["--help"])
    assert stopped.value.code == 0


@dataclass
class Ranged:
    """Flags that take only some values."""

    exp_name: FileName = "ranged"
    """name"""
    save_model: bool = False
    """not in a range"""
    seed: Seed = 1
    """seed"""
    num_envs: Positive = 8
    """environments"""
    learning_rate: PositiveFloat = 1e-4
    """learning rate"""
    eval_frequency: NotNegative = 0
    """steps"""
    weight_decay: NotNegativeFloat = 0.0
    """share"""
    learning_rate_end: NotNegativeFloat | None = None
    """learning rate at the end"""
    gamma: Probability = 0.99
    """discount"""
    sticky_actions: Probability | None = None
    """probability"""
    hidden_units: PositiveSizes = (120, 84)
    """widths"""
    window: Positive | None = None
    """episodes"""
    level: Annotated[int, Le(3)] = 0
    """a type of someone's own, without words"""
    env_kwargs: flags.Json = dataclasses.field(default_factory=dict)
    """keywords"""
    config: str | None = None
    """file"""


INSIDE = [
    {"exp_name": "a"}, {"exp_name": "7.b_c-D"}, {"exp_name": "x" * 100},
    {"seed": 0}, {"seed": 2**32 - 1},
    {"num_envs": 1}, {"num_envs": 10**400},
    {"learning_rate": math.ulp(0.0)}, {"learning_rate": 1e308}, {"learning_rate": 1},
    {"eval_frequency": 0}, {"weight_decay": 0.0}, {"weight_decay": -0.0}, {"weight_decay": 1e308},
    {"learning_rate_end": None}, {"learning_rate_end": 0.0},
    {"gamma": 0.0}, {"gamma": 1.0}, {"sticky_actions": None}, {"sticky_actions": 1.0},
    {"hidden_units": ()}, {"hidden_units": (1,)}, {"hidden_units": (3, 1)},
    {"window": None}, {"window": 1}, {"level": 3}, {"env_kwargs": {"a": -1}},
]  # fmt: skip


@pytest.mark.parametrize("values", INSIDE, ids=lambda values: str(values)[:40])
def test_values_inside_a_range_are_accepted(values):
    flags.check_ranges(Ranged(**values))


OUTSIDE = [
    ({"num_envs": 0}, "--num-envs 0: must be above 0"),
    ({"num_envs": -3}, "--num-envs -3: must be above 0"),
    ({"learning_rate": 0.0}, "--learning-rate 0.0: must be above 0"),
    ({"learning_rate": math.nan}, "--learning-rate nan: must be above 0"),
    ({"learning_rate": math.inf}, "--learning-rate inf: must be above 0"),
    ({"eval_frequency": -1}, "--eval-frequency -1: must be 0 or more"),
    ({"weight_decay": -math.ulp(0.0)}, "--weight-decay -5e-324: must be 0 or more"),
    ({"weight_decay": math.nan}, "--weight-decay nan: must be 0 or more"),
    ({"weight_decay": math.inf}, "--weight-decay inf: must be 0 or more"),
    ({"weight_decay": -math.inf}, "--weight-decay -inf: must be 0 or more"),
    ({"learning_rate_end": -1.0}, "--learning-rate-end -1.0: must be 0 or more"),
    ({"learning_rate_end": math.nan}, "--learning-rate-end nan: must be 0 or more"),
    ({"gamma": math.nextafter(1, 2)}, "--gamma 1.0000000000000002: must be between 0 and 1"),
    ({"gamma": -0.1}, "--gamma -0.1: must be between 0 and 1"),
    ({"gamma": math.nan}, "--gamma nan: must be between 0 and 1"),
    ({"sticky_actions": 1.25}, "--sticky-actions 1.25: must be between 0 and 1"),
    ({"sticky_actions": math.inf}, "--sticky-actions inf: must be between 0 and 1"),
    ({"seed": -1}, "--seed -1: must be 0 or more, and below 2**32"),
    ({"seed": 2**32}, "--seed 4294967296: must be 0 or more, and below 2**32"),
    ({"hidden_units": (0,)}, "--hidden-units (0,): must be above 0"),
    ({"hidden_units": (3, -1, 4)}, "--hidden-units (3, -1, 4): must be above 0"),
    ({"window": 0}, "--window 0: must be above 0"),
    ({"level": 4}, "--level 4: must be in (Le(le=3),)"),
    ({"gamma": 2.0, "seed": -1}, "--seed -1: must be 0 or more, and below 2**32"),
]


@pytest.mark.parametrize(("values", "line"), OUTSIDE, ids=[line for _, line in OUTSIDE])
def test_a_value_outside_its_range_is_refused_by_flag_value_and_what_is_allowed(values, line):
    with pytest.raises(BadInput) as refused:
        flags.check_ranges(Ranged(**values))
    assert str(refused.value) == line


@pytest.mark.parametrize("name", ["", ".a", "-a", "_a", "a/b", "a b", "ä", "a\n", "x" * 101])
def test_a_name_that_is_no_file_name_is_refused(name):
    with pytest.raises(BadInput) as refused:
        flags.check_ranges(Ranged(exp_name=name))
    allowed = "must be letters, digits, `.`, `_`, `-`, a letter or digit first, 100 at most"
    assert str(refused.value) == f"--exp-name {name!r}: {allowed}"


@pytest.mark.parametrize("argv", [["--num-envs", "0"], ["--config", "flags.yaml"]])
def test_a_mistake_in_a_range_ends_a_command_with_one_line_and_status_2(argv, tmp_path, capsys):
    (tmp_path / "flags.yaml").write_text("num-envs: 0\n")
    with pytest.raises(SystemExit) as stopped:
        flags.run(flags.check_ranges, Ranged, argv)
    assert (stopped.value.code, capsys.readouterr().err) == (2, "error: --num-envs 0: must be above 0\n")


def test_ranges_change_nothing_in_how_flags_are_read(tmp_path, capsys, monkeypatch):
    """Not the values from the command line and from files, not the errors of types, not the help."""
    file = tmp_path / "flags.yaml"
    command = ["--config", "flags.yaml", "--window", "5", "--learning-rate-end", "1e-5", "--env-kwargs", '{"a": 1}']

    def everything_read():
        file.write_text("gamma: 1\nlearning_rate: 1e-3\nhidden_units: [3, 4]\nsticky_actions: null\n")
        yield flags.parse(Ranged, command)
        for wrong in ("gamma: high", "num_envs: 1.5", "sticky_actions: [1]", "hidden_units: [a]", "seed: true", "gama: 1"):
            file.write_text(wrong)
            with pytest.raises(BadInput) as refused:
                flags.parse(Ranged, command)
            yield str(refused.value)
        for argv in (["--num-envs", "x"], ["--num-env", "3"], ["--help"]):
            with pytest.raises(SystemExit):
                flags.parse(Ranged, argv)
            yield capsys.readouterr()

    args, *told = ranged = list(everything_read())
    plain = typing.get_type_hints(Ranged) | {"env_kwargs": flags.Json}
    monkeypatch.setattr(Ranged, "__annotations__", plain)
    flags.check_ranges(Ranged(num_envs=0))
    assert ranged == list(everything_read())
    assert (args.gamma, args.hidden_units, args.window, args.learning_rate_end) == (1.0, (3, 4), 5, 1e-5)
    assert any(line.endswith("unknown key `gama`; did you mean `gamma`?") for line in told if isinstance(line, str))
    assert "--hidden-units [INT [INT ...]]" in told[-1].out
    assert "--sticky-actions {None}|FLOAT" in told[-1].out


def test_help_that_nobody_reads_to_its_end_is_no_error():
    """As in `--help | head`."""
    command = f"{sys.executable} {fqi.__file__} --help | true; echo ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) in (("141\n", ""), ("0\n", "")), "0: all of it fitted into the pipe"


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full")
def test_help_on_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        ended = subprocess.run([sys.executable, fqi.__file__, "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (1, "error: standard output: cannot be written (No space left on device)\n")


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "config.json"
    write_json(path, {"a": 1})
    circular: dict = {}
    circular["self"] = circular
    with pytest.raises(ValueError, match="Circular"):
        write_json(path, circular)
    assert json.loads(path.read_text()) == {"a": 1}
