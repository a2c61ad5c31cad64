"""The tutorial does what it says: code shown stands in the scripts or runs, and every command runs, at tiny sizes."""

from __future__ import annotations

import importlib.util
import re
import textwrap
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from cleanrl import dqn
from cleanrl_utils.flags import parse
from tests.conftest import TINY_DQN, TINY_FQI
from tests.support import pages

ROOT = Path(__file__).parents[1]
NAME = "docs/tutorial/from-q-learning-to-dqn.md"
PAGE = pages.text_of(NAME)
TINY = {
    "docs/tutorial/q_learning.py": "--total-timesteps 2000 --eval-episodes 20".split(),
    "cleanrl/fqi.py": ["--n-steps", "300", "--n-iterations", "4", "--eval-max-steps", "50"],
    "cleanrl/dqn.py": [*TINY_DQN, "--total-timesteps", "500", "--eval-frequency", "200"],
    "docs/tutorial/plot.py": [],
}


@pytest.fixture(autouse=True)
def in_a_clone(empty_folder: Path) -> None:
    """An empty folder with the project in it, as the page assumes."""
    for name in ("benchmark", "cleanrl", "docs"):
        (empty_folder / name).symlink_to(ROOT / name)


def blocks(language: str) -> list[tuple[str, str]]:
    """(Title, content) of every block in a language."""
    return [(title, content) for found, title, content in pages.blocks(NAME) if found == language]


def script(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


INSTALLATION = {
    ("python3", "-m", "venv", ".venv"),
    ("pip", "install", "-c", "requirements/constraints.txt", "-e", ".[fqi,flappy,plots]"),
}
EXPERIMENTS = {  # experiment: target_network_frequency, double_q, n_step
    "dqn": (10, False, 1),
    "dqn_no_target": (1, False, 1),
    "dqn_slow_target": (250, False, 1),
    "dqn_double": (10, True, 1),
    "dqn_slow_double": (250, True, 1),
    "dqn_n_step": (10, False, 3),
}


def commands() -> list[list[str]]:
    """Every Python command of the page, loops over seeds as their first command."""
    words = [command.words for command in pages.commands() if command.page == NAME and command.words not in INSTALLATION]
    assert {program for program, *_ in words} == {"python"}
    return [rest for _, *rest in words if not re.search("--seed [23]( |$)", " ".join(rest))]


def test_experiments_have_the_flags_that_their_names_promise():
    found = {}
    for path, *flags in commands():
        if path == "cleanrl/dqn.py" and not any("flappybird" in flag for flag in flags):
            args = parse(dqn.Args, flags)
            found[args.exp_name] = (args.target_network_frequency, args.double_q, args.n_step)
    assert found == EXPERIMENTS


def test_every_block_is_looked_at():
    assert len(pages.blocks(NAME)) == PAGE.count("```") // 2


def test_the_installation_brings_what_the_commands_need():
    """Whatever is imported by need is one of the extras that the page installs."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    brought = " ".join(sum((extras[name] for name in ("fqi", "flappy", "plots")), []))
    assert all(package in brought for package in ("scikit-learn", "flappy-bird-gymnasium", "matplotlib"))


def test_every_command_runs():
    assert {command[0] for command in commands()} == set(TINY)
    for path, *flags in commands():
        module = script(path)
        module.main(parse(module.Args, [*flags, *TINY[path]]))
    pictures = {"q-table.png", "fqi.png", "target-network.png", "overestimation.png", "n-step.png"}
    assert {path.name for path in Path().glob("*.png")} == pictures
    assert set(re.findall(r"\]\((\S*?\.png)\)", PAGE)) == pictures
    assert all((ROOT / "docs/tutorial" / picture).is_file() for picture in pictures)


def test_quoted_code_stands_in_the_scripts():
    quoted = [(title, textwrap.dedent(content)) for title, content in blocks("python") if title]
    assert {title for title, _ in quoted} == {"docs/tutorial/q_learning.py", "cleanrl/fqi.py", "cleanrl/dqn.py"}
    for path, content in quoted:
        lines = [line.strip() for line in (ROOT / path).read_text().splitlines()]
        wanted = [line.strip() for line in content.splitlines()]
        assert any(lines[i : i + len(wanted)] == wanted for i in range(len(lines))), content


def test_the_other_code_runs_as_shown(train, capsys):
    fqi = script("cleanrl/fqi.py")
    train(fqi, *TINY_FQI, "--save-model")  # the page loads the run that its first command leaves
    namespace: dict[str, Any] = {}
    shown = [content for title, content in blocks("python") if not title]
    assert len(shown) >= 8
    for content in shown:
        exec(compile(content, "tutorial", "exec"), namespace)  # noqa: S102 - the page is ours
    assert "+-" in capsys.readouterr().out


def test_numbers_of_the_page_are_those_of_the_results():
    """Rows of tables as a whole; elsewhere every mean +- sd, every percentage, every number above 100 and with decimals."""
    results = (ROOT / "docs/benchmark/vectors.md").read_text()
    text = pages.prose(NAME)
    rows = [line.rstrip("| ") for line in text.splitlines() if "+-" in line and line.startswith("|")]
    assert len(rows) == 3
    assert not [row for row in rows if row not in results]
    told = text.split("## 2.")[0] + text.split("## 3.")[1].split("## 6.")[0]
    numbers = re.findall(r"\d+\.\d\d \+- \d+\.\d\d|\d+\.\d%|(?<![\d.])\d\d\.\d(?![\d%])|\d,\d{3}|\b[1-9]\d\d\b", told)
    assert len(numbers) > 25
    found = {number.replace(",", "") for number in re.findall(r"[\d.,]+%?", results)} | {"100", "500"}
    missing = [n for n in numbers if n not in results and n.replace(",", "") not in found]
    assert not missing


# --- Q-learning ---


def test_the_table_is_the_one_that_dynamic_programming_finds():
    q_learning = script("docs/tutorial/q_learning.py")
    env = gym.make("FrozenLake-v1")
    exact = np.zeros((16, 4))
    for _ in range(2000):
        exact = np.array(
            [
                [
                    sum(p * (r + 0.99 * exact[s_next].max() * (not end)) for p, s_next, r, end in env.unwrapped.P[s][a])
                    for a in range(4)
                ]
                for s in range(16)
            ]
        )
    args = q_learning.Args(total_timesteps=100_000)
    learned = q_learning.learn(env, args)
    visited = learned.max(1) > 0
    assert visited.sum() >= 10
    assert np.abs(learned - exact)[visited].max(1).mean() < 0.1
    assert (learned[[5, 7, 11, 12, 15]] == 0).all(), "holes and goal: nothing comes after"
    assert q_learning.success_rate(env, learned, args) > 0.6


@pytest.mark.parametrize(
    ("flags", "says"), [(["--total-timesteps", "0"], "--total-timesteps"), (["--gamma", "2"], "--gamma")]
)
def test_bad_flags_of_q_learning(refused, flags, says):
    assert says in refused(script("docs/tutorial/q_learning.py"), *flags)


def test_a_plot_without_runs(refused):
    assert "has no run on CartPole-v1" in refused(script("docs/tutorial/plot.py"), "--experiments", "nothing")
