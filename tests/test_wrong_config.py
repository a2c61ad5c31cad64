"""A config.json that is JSON of another shape: each command that reads it accepts it, or refuses it in one line."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from torch.utils.tensorboard import SummaryWriter

from cleanrl import dqn
from cleanrl_utils import huggingface, private, record
from cleanrl_utils.benchmark.work import Work
from cleanrl_utils.errors import BadInput
from cleanrl_utils.evals import players
from cleanrl_utils.flags import parse, run_flags
from cleanrl_utils.models.source import ZOO
from cleanrl_utils.report import __main__ as report

BOX = ZOO / "CartPole-v1-dqn-seed1"
OURS = json.loads((BOX / "config.json").read_text()) | {"resumed": [{"command": ["dqn.py"], "changed": []}]}
OURS["flags"] |= {"teacher_steps": 10, "dataset": None, "teacher_policy_hf_repo": None}  # of other scripts
MISSING = "missing"
WRONG = (None, "text", 3, [3], {"a": 3}, True, -1, [{}], MISSING)
PLACES = [(key,) for key in OURS] + [("flags", name) for name in OURS["flags"]] + [("evaluations", "agent")]
PLACES += [("evaluations", "agent", key) for key in record.SCORE if not key.endswith("?")]
READ = [name.rstrip("?") for name in record.CONFIG["flags"]]
NEEDED = {("status",), ("flags",), ("flags", "env_id"), ("flags", "exp_name"), ("flags", "seed")}


def spoilt(place: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The config.json of the model in the box with another value at a place, or without that place."""
    config = inside = json.loads(json.dumps(OURS))
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    if value is MISSING:
        del inside[place[-1]]
    return config


def write(folder: Path, config: Any) -> None:
    """A config.json in a folder."""
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_a_value_of_the_wrong_shape_is_refused_or_does_no_harm(place, monkeypatch):
    def offline(*_):
        raise BadInput("--hf-entity", "me", "needs the Hub")

    monkeypatch.setattr(huggingface, "require_entity", offline)
    folder = Path(shutil.copytree(BOX, "run"))
    for value in WRONG:
        config = spoilt(place, value)
        write(folder, config)
        readers = [
            lambda: players.from_folder("run", "--run"),
            lambda: players.from_hub("run", "CartPole-v1", "dqn", "last", None),
            lambda: huggingface.upload(folder, "me"),
            lambda: private.public(record.read_run(folder / "config.json", "RUN_FOLDER", "run")),
            lambda: Work(("cleanrl/dqn.py",), (), OURS["flags"], OURS["flags"]).run(),
        ]
        for read in readers:
            with contextlib.suppress(BadInput):
                read()
        if isinstance(config.get("flags"), dict):
            write(folder, config | {"flags": {k: v for k, v in config["flags"].items() if hasattr(dqn.Args(), k)}})
        with contextlib.suppress(BadInput):
            dqn.Args(**run_flags(folder, dqn.Args)[0])


def test_a_report_leaves_out_runs_of_the_wrong_shape(capsys):
    pytest.importorskip("matplotlib")
    with SummaryWriter("logged") as events:
        events.add_scalar("charts/episodic_return", 1.0, 10)
    read = [place for place in PLACES if place[0] != "flags" or place[-1] in [*READ, "learning_rate"]]
    configs = [OURS, None, [], "text", 3, *(spoilt(place, value) for place in read for value in WRONG)]
    for number, config in enumerate(configs):
        write(Path(shutil.copytree("logged", f"runs/{number}")), config)
    report.main(parse(report.Args, ["--group-by", "exp_name", "seed", "--unfinished"]))
    said = capsys.readouterr().err
    assert said.count("has a config.json that is damaged, or not of a run") > 50


@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_only_what_every_run_has_is_needed(place):
    """Runs from before a key or a flag existed are read."""
    at_least = place in NEEDED or place[2:]
    assert record.is_config(spoilt(place, MISSING)) is not bool(at_least)


def test_the_models_in_the_box_have_the_shape():
    for path in ZOO.glob("*/config.json"):
        record.read_run(path, "--run", path.parent)
