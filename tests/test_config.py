"""Flags from files and from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cleanrl import dqn as dqn_vector
from cleanrl import dqn_atari as dqn
from cleanrl import dqn_atari_jax, dqn_jax, fqi
from cleanrl import qdagger_dqn_atari_impalacnn as qdagger
from cleanrl import qdagger_dqn_atari_jax_impalacnn as qdagger_jax
from cleanrl_utils import config

CONFIGS = Path(__file__).parents[1] / "benchmark" / "configs"


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(tmp_path):
    (tmp_path / "flags.yaml").write_text(
        "num-envs: 3\nlearning_rate: 1e-3\ngamma: 1\ndevice: cpu\ndouble_q: true\nsticky_actions: null\n"
    )
    args = config.parse(dqn.Args, ["--config", "flags.yaml", "--num-envs", "5", "--no-double-q"])
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
            script.check(config.parse(script.Args, ["--config", str(file)]))


def test_lists_and_mappings_come_from_files_and_from_the_command_line(tmp_path):
    (tmp_path / "flags.yaml").write_text("hidden_units: [3, 4]\nenv_kwargs: {sutton_barto_reward: true}\n")
    args = config.parse(dqn_vector.Args, ["--config", "flags.yaml"])
    assert (args.hidden_units, args.env_kwargs) == ((3, 4), {"sutton_barto_reward": True})
    args = config.parse(
        dqn_vector.Args, ["--config", "flags.yaml", "--hidden-units", "5", "--env-kwargs", '{"a": [1, null]}']
    )
    assert (args.hidden_units, args.env_kwargs) == ((5,), {"a": [1, None]})
    assert config.parse(fqi.Args, ["--regressor-kwargs", "{}"]).regressor_kwargs == {}


def test_the_papers_values_are_in_its_file():
    args = config.parse(qdagger.Args, ["--config", str(CONFIGS / "qdagger_paper.yaml")])
    assert (args.n_step, args.temperature, args.distill_coefficient, args.offline_steps) == (3, 0.1, 3.0, 1_000_000)
    assert (args.offline_target_network_frequency, args.target_network_frequency) == (2000, 8000)
    assert (args.learning_rate, args.learning_rate_end, args.adam_eps, args.huber) == (1e-4, 1e-5, 1.5e-4, True)
    assert (args.distill_decay_steps, args.learning_starts, args.sticky_actions) == (1_500_000, 20_000, 0.25)
    assert (args.life_loss, args.student, args.total_timesteps) == (False, "nature", 2_500_000)


def test_every_flag_has_help_text(capsys):
    for script in (dqn, qdagger, dqn_vector, fqi):
        with pytest.raises(SystemExit) as stopped:
            config.parse(script.Args, ["--help"])
        assert stopped.value.code == 0
        text = capsys.readouterr().out
        assert all(config.flag(name) in text for name in vars(script.Args()))
        source = Path(script.__file__).read_text()
        body = source[source.index("class Args:") : source.index("def check")]
        assert body.count('"""') // 2 == len(vars(script.Args())) + 1


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "config.json"
    config.write_json(path, {"a": 1})
    circular: dict = {}
    circular["self"] = circular
    with pytest.raises(ValueError, match="Circular"):
        config.write_json(path, circular)
    assert json.loads(path.read_text()) == {"a": 1}
