"""The reports in docs/benchmark are of the sweeps in benchmark/."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REPORTS = sorted(ROOT.glob("docs/benchmark/*/scores.csv"))


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.parent.name)
def test_reports_have_three_seeds_or_more_of_each_setting_from_commits_without_changes(path):
    rows = list(csv.DictReader(path.open(encoding="utf-8")))
    settings = {(row["env_id"], row["group"]) for row in rows}
    several = [str(seed + 1) for seed in range(max(3, len(rows) // len(settings)))]
    for setting in settings:
        seeds = [row["seed"] for row in rows if (row["env_id"], row["group"]) == setting]
        assert sorted(seeds) == several, setting
    assert all(re.fullmatch(r"[0-9a-f]{40}", row["commit"]) for row in rows)
    page = (path.parent / "index.md").read_text(encoding="utf-8")
    assert page.count("| `python ") == len(rows)
    assert "/tmp" not in page


def test_there_are_the_reports_that_plots_makes():
    made = re.findall(r"^ +([a-z-]+)\) #", (ROOT / "benchmark/plots.sh").read_text(), re.M)
    assert sorted(made) == [path.parent.name for path in REPORTS]
