"""The pages on sweeps and reports: their commands have flags that exist, and the reports are of the sweeps in the box."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import pytest

from cleanrl_utils import benchmark, config, report
from cleanrl_utils.tracking import LAYOUT

ROOT = Path(__file__).parents[1]
PAGES = ["docs/sweeps.md", "docs/benchmark/dashboards.md", "benchmark/slurm.md", "README.md", "docs/index.md"]
TEXT = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
COMMANDS = [
    line.split("    #")[0].strip()
    for line in re.findall(r"(?:^|`)(python -m cleanrl_utils\.(?:benchmark|report) .*?)(?:`|$)", TEXT, re.M)
]
REPORTS = sorted(ROOT.glob("docs/benchmark/*/scores.csv"))


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_have_flags_that_exist(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, _, module, *words = shlex.split(line)
    if module.endswith("benchmark"):
        assert benchmark.plan(config.parse(benchmark.Args, words))
    elif words[0] == "compare":
        config.parse(report.CompareArgs, words[1:])
    else:
        config.parse(report.Args, words)


def test_pages_name_files_that_exist():
    assert len(COMMANDS) >= 6
    for name in re.findall(r"`((?:benchmark|tests)/[\w./-]+)`", TEXT):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"bash (benchmark/\w+\.sh)", TEXT):
        assert (ROOT / name).is_file(), name


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.parent.name)
def test_reports_have_three_seeds_of_each_setting_from_commits_without_changes(path):
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    settings = {(row["env_id"], row["group"]) for row in rows}
    for setting in settings:
        seeds = [row["seed"] for row in rows if (row["env_id"], row["group"]) == setting]
        assert sorted(seeds) == ["1", "2", "3"], setting
    assert all(re.fullmatch(r"[0-9a-f]{40}", row["commit"]) for row in rows)
    page = (path.parent / "index.md").read_text(encoding="utf-8")
    assert page.count("| `python ") == len(rows)
    assert "/tmp" not in page


def test_there_are_the_reports_that_plots_makes():
    made = re.findall(r"^ +([a-z-]+)\) #", (ROOT / "benchmark/plots.sh").read_text(), re.M)
    assert sorted(made) == [path.parent.name for path in REPORTS]


def test_the_page_on_dashboards_names_metrics_of_the_layout():
    page = (ROOT / "docs/benchmark/dashboards.md").read_text(encoding="utf-8")
    tags = {tag for charts in LAYOUT.values() for chart in charts.values() for tag in chart}
    named = set(re.findall(r"`((?:charts|eval|losses)/[\w/]+)`", page))
    assert named
    assert named <= tags
