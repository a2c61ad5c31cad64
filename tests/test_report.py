"""Reports: what is read, what is worked out, what is written, and what is refused."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cleanrl_utils import record
from cleanrl_utils.errors import BadInput
from cleanrl_utils.evals.play import Evaluation
from cleanrl_utils.flags import parse
from cleanrl_utils.record import event_files
from cleanrl_utils.report import __main__ as report
from cleanrl_utils.report import statistics
from cleanrl_utils.run.run import Run
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
        path = run.folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"status": status}))
    return run.folder


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
    "selected value": (["--select", "exp_name=dqn"], "--select exp_name=dqn: is of no run; there are toy"),
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
    assert said.startswith("too few runs to tell exp_name=new from exp_name=old: p is 0.10 at the least, 4 of each can tell")
    assert "the difference of means is 10.00 on CartPole-v1" in said
    assert "told apart" not in said


def test_folders_of_runs_and_commits_can_be_compared(capsys):
    for side, level in (("before", 0.0), ("after", 10.0)):
        for seed in (1, 2, 3, 4):
            folder = make([level + seed], seed=seed)
            path = folder / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"commit": side[0] * 40}))
            Path(side).mkdir(exist_ok=True)
            folder.rename(Path(side, folder.name))
    compare("after", "before")
    assert capsys.readouterr().out.splitlines()[-1] == "verdict: after is better than before"
    compare("commit=aaa", "commit=bbb", "--runs", "after", "before")
    assert capsys.readouterr().out.splitlines()[-1] == "verdict: commit=aaa is better than commit=bbb"


def test_comparisons_that_cannot_be_made_are_refused():
    make([1.0], exp_name="a", env_id="CartPole-v1")
    make([1.0], exp_name="b", env_id="Acrobot-v1")
    make([1.0], exp_name="c", env_id="Acrobot-v1")
    for pair, reason in {
        ("exp_name=a", "exp_name=b"): "have no environment in common",
        ("exp_name=b", "exp_name=c"): "one seed only",
        ("exp_name=b", "exp_name=b"): "share 1 runs",
        ("env_id=Acrobot-v1", "exp_name=a"): "has several settings of Acrobot-v1 .exp_name.; --select tells them apart",
        ("exp_name=a", "elsewhere"): "elsewhere: must be key=value, or a folder of runs",
        ("exp_name=b", "exp_name=d"): "is of no run; there are a, b, c",
    }.items():
        with pytest.raises(BadInput, match=reason):
            compare(*pair)
