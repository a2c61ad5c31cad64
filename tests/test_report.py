"""Reports: what is read, what is worked out, what is written, and what is refused."""

from __future__ import annotations

import csv
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from torch.utils.tensorboard import SummaryWriter

from cleanrl_utils import record
from cleanrl_utils.errors import BadInput
from cleanrl_utils.evals.play import Evaluation
from cleanrl_utils.flags import parse
from cleanrl_utils.record import event_files
from cleanrl_utils.report import __main__ as report
from cleanrl_utils.report import runs, statistics
from cleanrl_utils.run.run import Run
from tests.conftest import Bomb
from tests.support import toy_training

pytest.importorskip("matplotlib")


def make(returns: list[float], status: str = "complete", teacher: tuple[float, float] | None = None, **flags) -> Path:
    """A run folder whose episodes ended every 10 steps with these returns."""
    run = Run(toy_training.Args(**flags))
    with run.started({"threads": 1}):
        for i, value in enumerate(returns):
            run.scalars({"charts/episodic_return": value, "charts/SPS": 100.0}, 10 * (i + 1))
        scores = {}
        if teacher is not None:
            scores = {"random": Evaluation([teacher[0]], [1], 0), "teacher": Evaluation([teacher[1]], [1], 0)}
        run.finish({"steps": 10 * len(returns)}, scores)
    if status != "complete":
        rewrite(run.folder, lambda config: config.update(status=status))
    return run.folder


def rewrite(folder: Path, edit: Callable[[dict], object]) -> None:
    """Edit a run's config.json."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    edit(config)
    path.write_text(json.dumps(config))


def write(*flags: str) -> str:
    """The page of a report."""
    return (report.main(parse(report.Args, [*flags])) / "index.md").read_text()


def cells(page: str, beginning: str) -> list[str]:
    """Cells of the first line of a table that begins so."""
    line = next(line for line in page.splitlines() if line.startswith(f"| {beginning} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.fixture(name="two_groups")
def make_two_groups() -> None:
    """Two settings, two environments, three seeds: `good` ends 10 above `bad`; Acrobot's returns are below 0."""
    for env_id, level in (("CartPole-v1", 100), ("Acrobot-v1", -200)):
        for name, more in (("good", 10), ("bad", 0)):
            for seed in (1, 2, 3):
                make([level, level, level + more + seed], env_id=env_id, exp_name=name, seed=seed)


@pytest.mark.usefixtures("two_groups")
def test_scores_are_of_the_last_episodes_and_their_mean_and_deviation_over_seeds():
    page = write("--window", "1")
    assert cells(page, "CartPole-v1 | good")[:4] == ["CartPole-v1", "good", "3", "112.00 +- 0.82"]
    assert cells(page, "Acrobot-v1 | bad")[3:] == ["-198.00 +- 0.82", "-199.00 to -197.00"]
    with Path("report/scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert {(row["env_id"], row["group"], row["seed"]): float(row["score"]) for row in rows}[
        "CartPole-v1", "good", "2"
    ] == 112
    page = write("--window", "2")
    assert cells(page, "CartPole-v1 | good")[3] == "106.00 +- 0.41", "the mean of the last two episodes"


def test_the_window_of_training_returns_is_a_hundred_episodes_and_of_another_metric_one_value():
    make([0.0] * 50 + [1.0] * 100 + [3.0] * 50)
    assert cells(write(), "CartPole-v1 | toy")[3] == "2.00"
    assert cells(write("--metric", "charts/SPS"), "CartPole-v1 | toy")[3] == "100.00"


def test_scores_are_normalised_by_teacher_and_random_player():
    make([-1.0], env_id="PongNoFrameskip-v4", teacher=(-21.0, 19.0))
    make([3.0], env_id="PongNoFrameskip-v4", exp_name="dqn", seed=2)
    make([3.0], env_id="PongNoFrameskip-v4", exp_name="dqn", seed=3)
    page = write()
    assert cells(page, "PongNoFrameskip-v4 | toy")[-2:] == [f"{100 * (-1 + 20.7) / (14.6 + 20.7):.1f}%", "50.0%"]
    assert cells(page, "PongNoFrameskip-v4 | dqn")[-1] == "60.0%", "by the teacher of the other runs of this game"
    assert "teacher-normalised" in page
    assert cells(page.split("teacher-normalised\n")[1], "dqn | 2")[2:4] == ["0.600", "0.600 to 0.600"]


def test_a_game_whose_teacher_is_no_better_than_a_random_player_has_no_normalised_score(capsys):
    for seed in (1, 2):
        make([-1.0], env_id="PongNoFrameskip-v4", teacher=(-21.0, 19.0), seed=seed)
        make([0.0], env_id="MontezumaRevengeNoFrameskip-v4", teacher=(0.0, 0.0), seed=seed)
    page = write()
    assert cells(page, "MontezumaRevengeNoFrameskip-v4 | toy")[-1] == ""
    assert cells(page.split("teacher-normalised\n")[1], "toy | 2")[2] == "0.500", "Pong alone"
    said = capsys.readouterr().err
    without = "without MontezumaRevengeNoFrameskip-v4, where the teacher is no better than a random player"
    assert said.count(f"teacher-normalised: {without}") == 1


def test_steps_of_offline_metrics_are_called_updates():
    metric = "charts/offline/avg_episodic_return"
    run = Run(toy_training.Args())
    with run.started({"threads": 1}):
        run.scalars({metric: 1.0}, 1000)
        run.scalars({metric: 2.0}, 2000)
        run.finish({}, {})
    rewrite(run.folder, lambda config: config["flags"].update(teacher_steps=500))
    page = write("--metric", metric, "--thresholds", '{"CartPole-v1": 2}')
    assert "| score | updates | minutes |" in page
    assert "| runs that reached it | updates | minutes |" in page
    picture = Path("report/curves.svg").read_text()
    assert ">updates</text>" in picture
    assert "environment steps" not in picture


def test_steps_and_time_to_a_return_are_of_those_that_reached_it():
    make([1.0, 5.0, 2.0], seed=1)
    make([1.0, 1.0, 7.0], seed=2)
    make([1.0, 2.0, 3.0], seed=3)
    page = write("--thresholds", '{"CartPole-v1": 5}', "--window", "1")
    assert cells(page, "CartPole-v1 | 5 | toy")[3:5] == ["2 of 3", "25 +- 5"]


def test_a_mean_of_fewer_episodes_than_the_window_reaches_nothing(capsys):
    make([9.0, 0.0, 0.0, 0.0])
    make([9.0], seed=2)
    page = write("--thresholds", '{"CartPole-v1": 5}', "--window", "2")
    assert cells(page, "CartPole-v1 | 5 | toy")[3] == "0 of 2"
    assert "1 of 2 runs have fewer than 2 values to take the mean of" in capsys.readouterr().err


@pytest.mark.usefixtures("two_groups")
def test_the_page_holds_what_makes_the_runs_again_and_its_pictures():
    page = write("--title", "Two groups", "--group-by", "exp_name")
    assert page.startswith("# Two groups\n")
    assert page.count("| `python toy_training.py ") == 12
    assert re.search(r"\| `[0-9a-f]{7}\+?` \| `python toy_training.py --exp-name good --seed 2", page)
    assert "- 12 of these runs: hardware " in page
    for name in re.findall(r"\]\((.*?)\)", page):
        for suffix in (".png", ".svg"):
            assert Path("report", name).with_suffix(suffix).stat().st_size > 5000
    svg = Path("report/curves.svg").read_text()
    assert all(text in svg for text in ("environment steps", "minutes of training", "good", "Acrobot-v1"))


@pytest.mark.usefixtures("two_groups")
def test_the_same_runs_give_the_same_report():
    write()
    first = {path.name: path.read_bytes() for path in Path("report").iterdir() if path.suffix != ".png"}
    write()
    assert {path.name: path.read_bytes() for path in Path("report").iterdir() if path.suffix != ".png"} == first


def test_pauses_between_a_stop_and_a_resume_are_not_time_of_the_run():
    folder = make([1.0, 2.0])
    (path,) = event_files(folder)
    events = record.read_events(path)
    for event, wall_time in zip(events, [100.0, 100.0, 110.0, 130.0], strict=True):
        event.wall_time = wall_time
    later = [type(event).FromString(event.SerializeToString()) for event in events]
    for event in later:
        event.wall_time += 5000
        event.step += 20
    for name, content in ((path.name, events), ("events.out.tfevents.9999999999", later)):
        with (folder / name).open("wb") as file:
            for event in content:
                runs_writer(file).write(event.SerializeToString())
    steps, seconds, _ = record.read_series(folder)["charts/SPS"]
    assert (steps.tolist(), seconds.tolist()) == ([10, 20, 30, 40], [10, 30, 40, 60])


def runs_writer(file):
    from tensorboard.summary.writer.record_writer import RecordWriter

    return RecordWriter(file)


# --- What is odd ---


@pytest.mark.usefixtures("two_groups")
def test_a_damaged_event_file_is_named_and_skipped_and_one_cut_short_is_read(capsys):
    (damaged,), (cut,) = (event_files(folder) for folder in sorted(Path("runs").glob("CartPole-v1__good*"))[:2])
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:-3])
    page = write("--window", "1")
    said = capsys.readouterr().err
    assert f"skipped: {damaged} is damaged" in said
    assert f"left out: {damaged.parent} has no charts/episodic_return" in said
    assert cells(page, "CartPole-v1 | good")[2] == "2"


def test_a_damaged_configuration_is_named_and_skipped(capsys):
    make([1.0])
    (make([1.0], seed=2) / "config.json").write_text("{")
    assert cells(write(), "CartPole-v1 | toy")[2] == "1"
    assert "has a config.json that is damaged" in capsys.readouterr().err


def test_one_seed_has_no_interval_and_the_reason_is_said(capsys):
    make([1.0, 2.0])
    assert cells(write(), "CartPole-v1 | toy")[4] == "one seed"
    assert "CartPole-v1, toy: one seed only, so there is no interval" in capsys.readouterr().err


def test_runs_of_unequal_length_are_told_and_the_curve_ends_with_the_shortest(capsys, monkeypatch):
    make([1.0] * 4, seed=1, total_timesteps=40)
    make([1.0] * 8, seed=2, total_timesteps=80)
    drawn = []
    monkeypatch.setattr(statistics, "held", lambda *curve: drawn.append(curve[2]) or np.ones(len(curve[2])))
    write()
    said = capsys.readouterr().err
    assert "CartPole-v1, toy: runs of unequal length, 40 to 80 steps; the curve ends with the shorter" in said
    assert drawn[0][0] == 10
    assert drawn[0][-1] == 40


def test_settings_mixed_in_one_group_are_told(capsys):
    make([1.0], seed=1, level=1.0)
    make([1.0], seed=2, level=2.0)
    write()
    assert "runs of several settings in one group (level); --group-by tells them apart" in capsys.readouterr().err
    write("--group-by", "exp_name", "level")
    assert "several settings" not in capsys.readouterr().err


def test_what_is_kept_of_a_run_and_what_computes_it_are_no_settings(capsys):
    resumed = {"threads": 1, "device": "cpu", "checkpoint_frequency": 500, "keep_checkpoint": True}
    make([1.0], seed=1)
    rewrite(make([1.0], seed=2), lambda config: config["flags"].update(resumed))
    write()
    assert "several settings" not in capsys.readouterr().err


@pytest.mark.parametrize(("level", "told"), [(0.0, False), (2.0, True)])
def test_a_run_from_before_a_flag_was_added_did_what_its_default_does(capsys, level, told):
    rewrite(make([1.0], seed=1), lambda config: config["flags"].pop("level"))
    make([1.0], seed=2, level=level)
    write()
    assert ("several settings in one group (level)" in capsys.readouterr().err) == told


def test_a_run_found_several_times_is_read_once():
    folder = make([1.0])
    make([2.0], seed=2)
    shutil.copytree(folder, Path("copies", folder.name))
    Path("links").symlink_to("runs")
    found = runs.from_folders(["runs", ".", str(folder), "copies", "links"], "--runs")
    assert sorted(run.get("seed") for run in found) == [1, 2]
    assert found[0].name == str(folder), "under the first of its paths"


def test_runs_that_are_not_complete_are_left_out_unless_asked_for(capsys):
    make([1.0], seed=1)
    folder = make([3.0], seed=2, status="stopped")
    assert cells(write(), "CartPole-v1 | toy")[2] == "1"
    assert f"left out: {folder} is stopped, not complete" in capsys.readouterr().err
    assert cells(write("--unfinished"), "CartPole-v1 | toy")[2] == "2"


BAD = {
    "no folder": (["--runs", "nowhere"], "--runs nowhere: is no run folder, and holds none"),
    "metric": (
        ["--metric", "charts/return"],
        "charts/return: is in none of 2 runs; there are charts/SPS, charts/episodic_return",
    ),
    "window": (["--window", "0"], "--window 0: must be above 0"),
    "group": (["--group-by", "size"], "--group-by size: is no flag of"),
    "selected key": (["--select", "size=3"], "--select size=3: must be key=value, with a key of the runs: "),
    "selected value": (["--select", "exp_name=dqn"], "--select exp_name=dqn: matches no run; there are toy"),
    "threshold": (["--thresholds", '{"CartPole-v1": "high"}'], "--thresholds CartPole-v1: high: must be a number"),
    "threshold of": (["--thresholds", '{"Pong": 1}'], "--thresholds Pong: is not among the environments: CartPole-v1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name, refused: Callable[..., str]):
    flags, reason = BAD[name]
    for seed in (1, 2):
        make([1.0, 2.0], seed=seed)
    assert reason in refused(report, *flags)


def test_human_scores_are_known_whatever_else_has_been_imported():
    code = "from cleanrl_utils.evals import human; assert human.of_game('BreakoutNoFrameskip-v4') == (1.7, 30.5)"
    env = os.environ | {"PYTHONPATH": str(Path(report.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)


# --- Comparisons ---


def compare(*flags: str) -> None:
    report.compare(parse(report.CompareArgs, [*flags, "--window", "1"]))


def test_a_comparison_has_a_verdict_and_its_interval(capsys):
    for name, level in (("old", 0.0), ("new", 10.0), ("same", 0.5)):
        for seed in (1, 2, 3, 4, 5):
            make([level + seed], exp_name=name, seed=seed)
    compare("exp_name=new", "exp_name=old")
    said = capsys.readouterr().out
    assert "| CartPole-v1 | 13.00 +- 1.41 (5 runs) | 3.00 +- 1.41 (5 runs) | 10.00 |" in said
    assert "probability that a run of A is ahead of one of B: 1.00 (95% interval 1.00 to 1.00; p 0.00" in said
    assert said.splitlines()[-1] == "verdict: exp_name=new is better than exp_name=old"
    compare("exp_name=old", "exp_name=new")
    assert capsys.readouterr().out.splitlines()[-1] == "verdict: exp_name=old is worse than exp_name=new"
    compare("exp_name=same", "exp_name=old")
    assert capsys.readouterr().out.splitlines()[-1] == "verdict: exp_name=same is not told apart from exp_name=old"


def test_too_few_runs_to_tell_are_said_to_be_too_few_with_the_difference_of_means(capsys):
    for name, level in (("old", 0.0), ("new", 10.0)):
        for seed in (1, 2, 3):
            make([level + seed], exp_name=name, seed=seed)
    compare("exp_name=new", "exp_name=old")
    said = " ".join(capsys.readouterr().out.split("verdict: ")[1].split())
    assert said.startswith("too few runs to tell exp_name=new from exp_name=old: p cannot be below 0.10; 4 runs of each")
    assert "the difference of means is 10.00 on CartPole-v1" in said
    assert "told apart" not in said


def test_folders_of_runs_and_commits_can_be_compared(capsys):
    for side, level in (("before", 0.0), ("after", 10.0)):
        for seed in (1, 2, 3, 4):
            folder = make([level + seed], seed=seed)
            rewrite(folder, lambda config, side=side: config.update(commit=side[0] * 40))
            Path(side).mkdir(exist_ok=True)
            folder.rename(Path(side, folder.name))
    compare("after", "before")
    assert capsys.readouterr().out.splitlines()[-1] == "verdict: after is better than before"
    compare("commit=aaa", "commit=bbb", "--runs", "after", "before")
    assert capsys.readouterr().out.splitlines()[-1] == "verdict: commit=aaa is better than commit=bbb"


def test_a_game_with_one_seed_does_not_keep_the_others_from_being_compared():
    for name in ("old", "new"):
        make([1.0], exp_name=name, env_id="Acrobot-v1")
        for seed in (1, 2):
            make([1.0], exp_name=name, seed=seed)
    table = write().split("## Comparisons")[1]
    assert cells(table, "new | old")[2] == "1"
    assert "Environments where A or B has only one run are left out." in table


def test_comparisons_that_cannot_be_made_are_refused(capsys):
    make([1.0], exp_name="a", env_id="CartPole-v1")
    make([1.0], exp_name="b", env_id="Acrobot-v1")
    make([1.0], exp_name="c", env_id="Acrobot-v1")
    for pair, reason in {
        ("exp_name=a", "exp_name=b"): "have no environment in common",
        ("exp_name=b", "exp_name=c"): "Acrobot-v1 has one seed only: no interval, no verdict; --env-ids",
        ("exp_name=b", "exp_name=b"): "share 1 runs",
        ("env_id=Acrobot-v1", "exp_name=a"): "has several settings of Acrobot-v1 .exp_name.; --select tells them apart",
        ("exp_name=a", "elsewhere"): "elsewhere: must be key=value, or a folder of runs",
        ("exp_name=b", "exp_name=d"): "matches no run; there are a, b, c",
    }.items():
        with pytest.raises(BadInput, match=reason):
            compare(*pair)
    assert "Acrobot-v1, exp_name=c: one seed only" in capsys.readouterr().err


# --- Runs of other projects ---


CLEANRL = {"exp_name": "dqn", "seed": 1, "track": False, "wandb_entity": None, "hf_entity": "", "env_id": "CartPole-v1"}
CLEANRL |= {"total_timesteps": 30, "learning_rate": 0.00025, "gamma": 0.99}


def write_cleanrl(returns: list[float], evaluated: tuple[float, ...] = (), folder: str = "theirs", **flags: Any) -> Path:
    """A run folder as CleanRL's dqn.py writes it: an episode every 10 steps, numbered episodes after the training."""
    flags = CLEANRL | flags
    path = Path(folder, f"{flags['env_id']}__{flags['exp_name']}__{flags['seed']}__1700000000")
    writer = SummaryWriter(path)
    table = "\n".join([f"|{key}|{value}|" for key, value in flags.items()])
    writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{table}")
    for i, value in enumerate(returns):
        writer.add_scalar("charts/episodic_return", value, 10 * (i + 1))
    for i, value in enumerate(evaluated):
        writer.add_scalar("eval/episodic_return", value, i)
    writer.close()
    return path


def write_zoo(folder: Path, env_id: str, seed: int, n_timesteps: float, **flags: Any) -> None:
    """args.yml and config.yml as the zoo of Stable-Baselines3 writes them."""
    about = {"algo": "dqn", "env": env_id, "env_kwargs": None, "n_timesteps": -1, "seed": seed, "tensorboard_log": ""}
    flags |= {"env_wrapper": ["stable_baselines3.common.atari_wrappers.AtariWrapper"], "n_timesteps": n_timesteps}
    (folder / env_id).mkdir(parents=True)
    for name, content in (("args", about), ("config", flags)):
        (folder / env_id / f"{name}.yml").write_text(yaml.dump(OrderedDict(sorted(content.items()))))


def write_monitor(path: Path, lengths: list[int], env_id: str = "CartPole-v1", start: float = 1000.0) -> None:
    """A monitor.csv of episodes that return their number and end a second after each other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = json.dumps({"t_start": start, "env_id": env_id})
    rows = "".join(f"{float(i)},{length},{i + 1}.0\r\n" for i, length in enumerate(lengths))
    path.write_text(f"#{header}\nr,l,t\r\n{rows}", newline="")


def read_one(folder: str | Path) -> runs.Run:
    (run,) = runs.from_folders([str(folder)], "--runs")
    return run


@pytest.fixture(scope="module")
def trained_by_sb3(tmp_path_factory) -> tuple[Path, list[Any]]:
    """logs/dqn/CartPole-v1_1 and _2 as Stable-Baselines3 fills them; the callback and the environment of each."""
    sb3 = pytest.importorskip("stable_baselines3")
    from stable_baselines3.common.callbacks import EvalCallback
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.monitor import Monitor

    logs, made = tmp_path_factory.mktemp("logs") / "dqn", []
    for seed in (1, 2):
        folder = logs / f"CartPole-v1_{seed}"
        env = Monitor(gym.make("CartPole-v1"), str(folder / "0"))
        watch = EvalCallback(
            Monitor(gym.make("CartPole-v1")), log_path=str(folder), eval_freq=50, n_eval_episodes=2, verbose=0
        )
        agent = sb3.DQN("MlpPolicy", env, seed=seed, device="cpu", learning_starts=50, buffer_size=200)
        agent.set_logger(Logger(None, []))  # its own makes a folder in /tmp
        agent.learn(200, callback=watch)
        write_zoo(folder, "CartPole-v1", 10 + seed, 200.0, learning_rate=1e-4)
        made.append((watch, env))
    return logs, made


def test_runs_of_stable_baselines3_are_read_as_it_writes_them(trained_by_sb3):
    logs, made = trained_by_sb3
    read = runs.from_folders([str(logs)], "--runs")
    assert [run.get("seed") for run in read] == [11, 12]
    for run, (watch, env) in zip(read, made, strict=True):
        steps, seconds, returns = run.series["charts/episodic_return"]
        assert returns.tolist() == env.get_episode_rewards()
        assert steps.tolist() == np.cumsum(env.get_episode_lengths()).tolist()
        written = Path(run.name, "0.monitor.csv").read_text().splitlines()[2:]
        assert np.allclose(seconds, [float(line.split(",")[2]) for line in written], rtol=0, atol=1e-5)
        steps, times, returns = run.series["eval/episodic_return"]
        assert steps.tolist() == watch.evaluations_timesteps == [50, 100, 150, 200]
        assert returns.tolist() == np.mean(watch.evaluations_results, axis=1).tolist()
        assert seconds[0] <= times[0] <= times[-1] <= seconds[-1]
        flags = {"env_id": "CartPole-v1", "exp_name": "sb3-dqn", "total_timesteps": 200, "learning_rate": 1e-4}
        assert flags.items() <= run.config["flags"].items()
        assert (run.get("status"), run.get("script"), run.get("folder")) == ("complete", "Stable-Baselines3", "dqn")


def test_runs_of_cleanrl_are_read_as_it_writes_them():
    run = read_one(write_cleanrl([1.0, 2.0, 5.0], evaluated=(7.0, 9.0), seed=3))
    steps, seconds, returns = run.series["charts/episodic_return"]
    assert (steps.tolist(), returns.tolist()) == ([10, 20, 30], [1, 2, 5])
    assert 0 <= seconds[0] <= seconds[-1] < 60
    assert run.config["flags"] == CLEANRL | {"exp_name": "cleanrl-dqn", "seed": 3}
    assert (run.get("status"), run.get("script"), run.get("folder")) == ("complete", "CleanRL", "theirs")
    steps, _, returns = run.series["eval/episodic_return"]
    assert (steps.tolist(), returns.tolist()) == ([30], [8]), "CleanRL numbers the episodes that it plays at the end"
    assert read_one(write_cleanrl([1.0], env_id="2048")).get("env_id") == "2048", "a name, not a number"


def test_evaluations_in_between_by_a_script_like_those_of_cleanrl_keep_their_steps():
    folder = write_cleanrl([1.0, 2.0, 3.0])
    writer = SummaryWriter(folder, filename_suffix=".more")
    for step, value in ((10, 4.0), (30, 6.0)):
        writer.add_scalar("eval/episodic_return", value, step)
    writer.close()
    steps, _, returns = read_one(folder).series["eval/episodic_return"]
    assert (steps.tolist(), returns.tolist()) == ([10, 30], [4, 6])


def test_one_report_and_one_comparison_hold_runs_of_all_three(trained_by_sb3, capsys):
    logs, made = trained_by_sb3
    for seed in (1, 2, 3, 4):
        make([1.0, 2.0, 20.0 + seed], exp_name="dqn", seed=seed)
        write_cleanrl([1.0, 2.0, 10.0 + seed], seed=seed)
    page = write("--runs", "runs", "theirs", str(logs), "--window", "1")
    assert cells(page, "CartPole-v1 | dqn")[2:4] == ["4", "22.50 +- 1.12"]
    assert cells(page, "CartPole-v1 | cleanrl-dqn")[2:4] == ["4", "12.50 +- 1.12"]
    last = [env.get_episode_rewards()[-1] for _, env in made]
    assert cells(page, "CartPole-v1 | sb3-dqn")[2:4] == ["2", f"{np.mean(last):.2f} +- {np.std(last):.2f}"]
    assert cells(page, "CartPole-v1 | cleanrl-dqn | 1")[-2:] == ["`none`", "`CartPole-v1__dqn__1__1700000000`"]
    assert "- 4 of these runs: CleanRL, hardware and versions unknown" in page
    said = capsys.readouterr().err
    assert "several settings" not in said
    assert "one seed only" not in said
    svg = Path("report/curves.svg").read_text()
    assert all(f"{name}</text>" in svg for name in (">dqn", "cleanrl-dqn", "sb3-dqn"))
    compare("exp_name=dqn", "exp_name=cleanrl-dqn", "--runs", "runs", "theirs")
    assert capsys.readouterr().out.splitlines()[-1] == "verdict: exp_name=dqn is better than exp_name=cleanrl-dqn"
    compare("theirs", "runs")
    assert capsys.readouterr().out.splitlines()[-1] == "verdict: theirs is worse than runs"


def test_episodes_of_several_environments_are_in_the_order_of_their_ends():
    write_monitor(Path("CartPole-v1_1/0.monitor.csv"), [10, 10], start=1000.5)
    write_monitor(Path("CartPole-v1_1/1.monitor.csv"), [7, 3], start=1000.0)
    write_monitor(Path("CartPole-v1_1/eval.monitor.csv"), [5000])  # not of the training
    steps, seconds, returns = read_one("CartPole-v1_1").series["charts/episodic_return"]
    assert returns.tolist() == [0, 0, 1, 1]
    assert steps.tolist() == [7, 17, 20, 30]
    assert seconds.tolist() == [1, 1.5, 2, 2.5]


ATARI_IDS = {"PongNoFrameskip-v4": 4, "ALE/Pong-v5": 4, "PongDeterministic-v4": 4, "ALE/Pong-ram-v5": 1, "CartPole-v1": 1}


@pytest.mark.parametrize("env_id", ATARI_IDS)
def test_frames_that_monitor_counts_below_the_wrapper_of_atari_are_not_steps(env_id, capsys):
    write_monitor(Path("game_2/0.monitor.csv"), [3056, 4000], env_id)
    steps, _, _ = read_one("game_2").series["charts/episodic_return"]
    assert (steps * ATARI_IDS[env_id]).tolist() == [3056, 7056]
    said = (
        "game_2: its monitor.csv counts each repeat of an action, so steps are a quarter of that" in capsys.readouterr().err
    )
    assert said == (ATARI_IDS[env_id] == 4)


def test_evaluations_without_a_monitor_have_steps_but_no_time():
    for seed in (1, 2):
        Path(f"CartPole-v1_{seed}").mkdir()
        arrays = {"results": [[1.0, 3.0], [8.0, 10.0 + seed]], "ep_lengths": [[1, 3], [8, 10 + seed]]}
        np.savez(f"CartPole-v1_{seed}/evaluations", timesteps=[10, 20], **arrays)
    flags = ["--metric", "eval/episodic_return", "--thresholds", '{"CartPole-v1": 5}']
    page = write("--runs", "CartPole-v1_1", "CartPole-v1_2", *flags)
    assert cells(page, "CartPole-v1 | 5")[3:6] == ["2 of 2", "20 +- 0", ""]
    group = f"sb3-{Path().resolve().name}"
    assert cells(page.split("## Runs")[1], f"CartPole-v1 | {group} | 2")[3:6] == ["10.00", "20", ""]
    assert f"{group}</text>" in Path("report/curves.svg").read_text()


def test_runs_of_which_one_has_no_time_are_not_drawn_over_minutes(monkeypatch):
    for seed in (1, 2):
        folder = Path(f"theirs/CartPole-v1_{seed}")
        folder.mkdir(parents=True)
        npz()(folder)
    write_monitor(Path("theirs/CartPole-v1_1/monitor.csv"), [10, 10])
    drawn = []
    monkeypatch.setattr(statistics, "held", lambda x, _, grid: drawn.append(x.tolist()) or np.ones(len(grid)))
    write("--runs", "theirs", "--metric", "eval/episodic_return")
    assert drawn == [[10, 20], [10, 20]], "over steps only"


def test_runs_of_others_that_ended_early_are_left_out(capsys):
    write_cleanrl([1.0, 2.0, 3.0], seed=1)
    stopped = write_cleanrl([1.0, 2.0], seed=2)
    write_zoo(Path("theirs/CartPole-v1_1"), "CartPole-v1", 5, 100.0)
    write_monitor(Path("theirs/CartPole-v1_1/0.monitor.csv"), [50, 30])
    page = write("--runs", "theirs")
    said = capsys.readouterr().err
    assert cells(page, "CartPole-v1 | cleanrl-dqn")[2] == "1"
    assert f"left out: {stopped} is stopped, not complete; --unfinished takes it in" in said
    assert "left out: theirs/CartPole-v1_1 is stopped" in said
    assert cells(write("--runs", "theirs", "--unfinished"), "CartPole-v1 | cleanrl-dqn")[2] == "2"


def test_settings_of_others_that_are_mixed_are_told(capsys):
    for seed, rate in ((1, 1e-3), (2, 1e-4)):
        write_cleanrl([1.0, 2.0, 3.0], seed=seed, learning_rate=rate)
        folder = Path(f"zoo/CartPole-v1_{seed}")
        write_zoo(folder, "CartPole-v1", seed, 100.0, policy_kwargs=f"dict({'layers=' * 20}, {rate})")  # over two lines
        write_monitor(folder / "0.monitor.csv", [100])
    write("--runs", "theirs", "zoo")
    said = capsys.readouterr().err
    assert "CartPole-v1, cleanrl-dqn: runs of several settings in one group (learning_rate)" in said
    assert "CartPole-v1, sb3-dqn: runs of several settings in one group (policy_kwargs)" in said


def test_tags_in_the_yaml_of_others_are_not_followed():
    folder = Path("CartPole-v1_1")
    write_zoo(folder, "CartPole-v1", 5, 100.0)
    write_monitor(folder / "0.monitor.csv", [100])
    for name in ("args.yml", "config.yml"):
        with (folder / "CartPole-v1" / name).open("a") as file:
            file.write('  - - trap\n    - !!python/object/apply:os.system ["touch hacked"]\n')
    assert read_one(folder).get("trap") == '!!python/object/apply:os.system ["touch hacked"]'
    assert not Path("hacked").exists()


def npz(**arrays: Any) -> Callable[[Path], Path]:
    """What writes an evaluations.npz into a folder, without the arrays that are None."""
    arrays = {"timesteps": [10, 20], "results": [[1.0, 2.0], [3.0, 4.0]], "ep_lengths": [[1, 2], [3, 4]]} | arrays
    arrays = {name: array for name, array in arrays.items() if array is not None}

    def write_into(folder: Path) -> Path:
        np.savez(folder / "evaluations.npz", **arrays)
        return folder / "evaluations.npz"

    return write_into


def put(name: str, content: str | bytes) -> Callable[[Path], Path]:
    """What puts a file into a folder."""

    def write_into(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_into


def events(*without: str, **flags: Any) -> Callable[[Path], Path]:
    """What writes an event file into a folder as CleanRL does, without some hyperparameters or without their table."""

    def write_into(folder: Path) -> Path:
        writer = SummaryWriter(folder)
        table = "\n".join(f"|{key}|{value}|" for key, value in (CLEANRL | flags).items() if key not in without)
        if "table" not in without:
            writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{table}")
        writer.add_scalar("charts/episodic_return", 1.0, 30)
        writer.close()
        return event_files(folder)[0]

    return write_into


def damaged(folder: Path) -> Path:
    path = events()(folder)
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    return path


HEADER = '#{"t_start": 1700000000.5, "env_id": "CartPole-v1"}\nr,l,t\r\n'
START = HEADER + "1.0,10,0.5\r\n"
SB3_BAD = {
    "no results": (npz(results=None), "is no file of EvalCallback ('results is not a file in the archive')"),
    "no timesteps": (npz(timesteps=None), "is no file of EvalCallback ('timesteps is not a file in the archive')"),
    "lengths": (npz(timesteps=[10, 20, 30]), "has timesteps (3,) and results (2, 2), not (E,) and (E, episodes)"),
    "no episodes": (npz(results=np.empty((2, 0))), "has timesteps (2,) and results (2, 0), not (E,) and (E, episodes)"),
    "objects": (npz(results=np.array([[Bomb()], [Bomb()]])), "Object arrays cannot be loaded when allow_pickle=False"),
    "words": (npz(results=[["a"], ["b"]]), "rising whole numbers, and results that are finite numbers"),
    "nan": (npz(results=[[1.0], [np.nan]]), "rising whole numbers, and results that are finite numbers"),
    "falling": (npz(timesteps=[20, 10]), "must have timesteps that are rising whole numbers"),
    "fractions": (npz(timesteps=[0.5, 1.5]), "must have timesteps that are rising whole numbers"),
    "no archive": (put("evaluations.npz", b"PK\3\4 but no more"), "is no file of EvalCallback"),
    "one array": (put("evaluations.npz", b"\x93NUMPY"), "is no file of EvalCallback"),
    "pickle": (put("evaluations.npz", pickle.dumps(Bomb())), "is no file of EvalCallback"),
    "word": (put("0.monitor.csv", HEADER + "1.0,ten,0.5\r\n"), "of Monitor (could not convert string 'ten' to float64"),
    "cut in a number": (put("0.monitor.csv", START + "2.0,10,0."), "or its last line is cut"),
    "cut in a line": (put("monitor.csv", START + "2.0\r\n"), "is no whole file of Monitor (invalid column index 1 at row 2"),
    "cut in the header": (put("monitor.csv", HEADER[:20]), "is no whole file of Monitor"),
    "no header": (put("monitor.csv", "r,l,t\n1.0,10,0.5\n"), "is no whole file of Monitor"),
    "no start": (put("monitor.csv", '#{"env_id": "CartPole-v1"}\nr,l,t\n'), "must begin with t_start and r,l,t"),
    "no list of names": (put("monitor.csv", HEADER.splitlines()[0] + "\n"), "must begin with t_start and r,l,t"),
    "other names": (put("monitor.csv", START.replace("r,l", "l,r")), "must begin with t_start and r,l,t"),
    "no text": (put("monitor.csv", b"\xff\xfe\n\xff\n"), "is no whole file of Monitor ('utf-8' codec can't decode"),
    "infinite": (put("monitor.csv", HEADER + "inf,10,0.5\n"), "a value is not finite, or an episode has no steps"),
    "no steps": (put("monitor.csv", HEADER + "1.0,0,0.5\n"), "a value is not finite, or an episode has no steps"),
    "args": (put("CartPole-v1/args.yml", "seed of the run: 3\n"), "is no OrderedDict as the zoo writes it"),
}
CLEANRL_BAD = {
    "no table": (events("table"), "holds no hyperparameters as CleanRL writes them, and no config.json is beside it"),
    "no seed": (events("seed", "env_id"), "has no env_id, seed among its hyperparameters"),
    "seed": (events(seed="first"), "has the hyperparameter seed first, which must be a whole number"),
    "steps": (events(total_timesteps="many"), "has the hyperparameter total_timesteps many, which must be a whole number"),
    "damaged": (damaged, "is damaged"),
}


@pytest.mark.parametrize("name", [*SB3_BAD, *CLEANRL_BAD])
def test_bad_files_of_others_are_named_in_one_line(name, refused: Callable[..., str], capsys):
    write_into, reason = (SB3_BAD | CLEANRL_BAD)[name]
    folder = Path("theirs/CartPole-v1_1")
    folder.mkdir(parents=True)
    if name == "args":
        npz()(folder)
    path = write_into(folder)
    line = refused(report, "--runs", str(folder))
    assert f"error: --runs {path}: " in line
    assert reason in line
    with pytest.raises(BadInput, match="--runs theirs: holds no run that can be read"):
        runs.from_folders(["theirs"], "--runs")
    assert capsys.readouterr().err.splitlines() == [line.replace("error: ", "skipped: ")], "below a folder it is skipped"
    assert not Path("hacked").exists()


def test_runs_two_levels_below_a_folder_are_found():
    for algo, seed in (("dqn", 1), ("qrdqn", 2)):
        write_monitor(Path(f"logs/{algo}/CartPole-v1_{seed}/monitor.csv"), [100])
    write_monitor(Path("logs/CartPole-v1_3/monitor.csv"), [100])
    put("monitor.csv", "no header")(Path("logs/CartPole-v1_4"))
    found = [(run.get("exp_name"), run.get("seed")) for run in runs.from_folders(["logs"], "--runs")]
    assert found == [("sb3-logs", 3), ("sb3-dqn", 1), ("sb3-qrdqn", 2)], "without the one that cannot be read"


def test_a_run_of_stable_baselines3_that_tells_no_seed_is_refused(refused):
    write_monitor(Path("theirs/monitor.csv"), [10])
    reason = "--runs theirs: has no {env}/args.yml with env and seed, and its name is not {env}_{seed}"
    assert reason in refused(report, "--runs", "theirs")
