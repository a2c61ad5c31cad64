"""Flags from files and from the command line."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from cleanrl import dqn as dqn_vector
from cleanrl import dqn_atari as dqn
from cleanrl import dqn_atari_jax, dqn_jax, fqi
from cleanrl import qdagger_dqn_atari_impalacnn as qdagger
from cleanrl import qdagger_dqn_atari_jax_impalacnn as qdagger_jax
from cleanrl_utils import flags
from cleanrl_utils.files import write_json

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
        "qdagger_paper": (qdagger, qdagger_jax),
        "dqn_cartpole": (dqn_vector, dqn_jax),
        "dqn_flappybird": (dqn_vector, dqn_jax),
        "space_invaders": (dqn, dqn_atari_jax),
    }
    assert {file.stem for file in files} == scripts.keys()
    for file in files:
        for script in scripts[file.stem]:
            script.check(flags.parse(script.Args, ["--config", str(file)]))


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


def test_help_that_nobody_reads_to_its_end_is_no_error():
    """As in `--help | head`."""
    command = f"{sys.executable} {fqi.__file__} --help | true; echo ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (ended.stdout, ended.stderr) in (("141\n", ""), ("0\n", "")), "0: all of it fitted into the pipe"


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "config.json"
    write_json(path, {"a": 1})
    circular: dict = {}
    circular["self"] = circular
    with pytest.raises(ValueError, match="Circular"):
        write_json(path, circular)
    assert json.loads(path.read_text()) == {"a": 1}
