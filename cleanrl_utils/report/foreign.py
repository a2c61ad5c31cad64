"""Read runs of CleanRL and Stable-Baselines3, for reports. Their files are data: nothing is executed or unpickled."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from cleanrl_utils.console import notice
from cleanrl_utils.errors import BadInput, first_line
from cleanrl_utils.record import DataLossError, Series, event_files, read_series, read_text

TRAINING, EVALUATION = "charts/episodic_return", "eval/episodic_return"
COMPLETE = 0.9
"""Least share of its steps that a complete run has logged: the last episode or evaluation may end before the run."""
ZOO_FOLDER = re.compile(r"(.+)_(\d+)(_[0-9a-f-]{36})?")  # {env}_{n}, with a UUID if its user asked for one
ZOO_FLAG = re.compile(r"^(?:- |  )- - (\w+)\n    - (.*(?:\n {6}.*)*)$", re.MULTILINE)  # of an OrderedDict in YAML
ATARI = re.compile(r"(?!.*-ram)(ALE/|.*(NoFrameskip|Deterministic)-v\d)")  # ids of games that show their screen
Found = tuple[dict[str, Any], dict[str, Series]]  # flags; what was logged, by metric


def sb3_files(folder: Path) -> list[Path]:
    """Return evaluations.npz, monitor.csv, 0.monitor.csv and so on; a file with another prefix may be of evaluations."""
    return [path for path in folder.glob("*") if re.fullmatch(r"evaluations\.npz|(\d+\.)?monitor\.csv", path.name)]


def read(folder: Path, flag: str) -> tuple[dict[str, Any], dict[str, Series]]:
    """Return what our config.json would say of a run, and what it logged. Raises `BadInput`, naming `flag` and the file."""
    script, read_run = ("Stable-Baselines3", read_sb3) if sb3_files(folder) else ("CleanRL", read_cleanrl)
    try:
        flags, series = read_run(folder, flag)
    except OSError as error:
        raise BadInput(flag, error.filename or folder, f"cannot be read ({error.strerror})") from None
    end = max((series[tag][0][-1] for tag in (TRAINING, EVALUATION, "charts/SPS") if tag in series), default=0)
    status = "complete" if end >= COMPLETE * flags.get("total_timesteps", 0) else "stopped"
    return {"status": status, "script": script, "flags": flags}, series


def value_of(text: str) -> Any:
    """Parse a flag's value from the text that Python or YAML writes for it; lists stay text."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return {"True": True, "true": True, "False": False, "false": False, "None": None, "null": None}.get(text, text)


def read_cleanrl(folder: Path, flag: str) -> Found:
    """Read a run folder of CleanRL: flags from the event file's table, with `cleanrl-` before `exp_name`, and all metrics.

    Raises `BadInput`, naming `flag` and the event file, if there is no table or it lacks a flag.
    """
    for path in event_files(folder):
        try:
            table = read_text(path, "hyperparameters/text_summary")
        except DataLossError as error:
            raise BadInput(flag, path, f"is damaged ({first_line(error)})") from None
        if table is not None:
            break
    else:
        raise BadInput(flag, path, "holds no hyperparameters as CleanRL writes them, and no config.json is beside it")
    texts = dict(line.strip()[1:-1].split("|", 1) for line in table.splitlines()[2:] if line.count("|") > 2)
    flags = {key: value_of(text) for key, text in texts.items()}
    if missing := {"env_id", "exp_name", "seed", "total_timesteps"} - flags.keys():
        raise BadInput(flag, path, f"has no {', '.join(sorted(missing))} among its hyperparameters")
    for name in ("seed", "total_timesteps", "teacher_steps"):
        if type(flags.get(name, 0)) is not int:
            raise BadInput(flag, path, f"has the hyperparameter {name} {texts[name]}, which must be a whole number")
    flags |= {"env_id": texts["env_id"], "exp_name": f"cleanrl-{texts['exp_name']}"}
    series = read_series(folder)
    steps, seconds, returns = series.get(EVALUATION, ([], [], []))
    if len(steps) and np.array_equal(steps, np.arange(len(steps))):  # numbers of episodes, all played after the training
        series[EVALUATION] = (np.array([flags["total_timesteps"]]), seconds[-1:], np.array([returns.mean()]))
    return flags, series


def read_sb3(folder: Path, flag: str) -> Found:
    """Read a run folder of Stable-Baselines3 or its zoo: evaluations.npz, monitor.csv, {env}/args.yml, {env}/config.yml.

    An evaluation is the mean return of its episodes, at the time that monitor.csv has for its step; NaN without that file.
    `exp_name` is `sb3-` and the algorithm, or the folder above. Raises `BadInput`, naming `flag` and the file.
    """
    monitors = [read_monitor(path, flag) for path in sb3_files(folder) if path.suffix == ".csv"]
    args, flags = (zoo_flags(folder, name, flag) for name in ("args.yml", "config.yml"))
    named = ZOO_FOLDER.fullmatch(folder.resolve().name)
    env_id = str(args.get("env") or next((env_id for *_, env_id in monitors), "") or (named[1] if named else ""))
    seed = args.get("seed", int(named[2]) if named else None)
    if not env_id or type(seed) is not int:
        raise BadInput(flag, folder, "has no {env}/args.yml with env and seed, and its name is not {env}_{seed}")
    rows = np.concatenate([np.empty((0, 3)), *(rows + [0, 0, start] for rows, start, _ in monitors)])
    returns, lengths, seconds = rows[np.argsort(rows[:, 2], kind="stable")].T
    steps, seconds = np.cumsum(lengths).astype(int), seconds - min((start for _, start, _ in monitors), default=0)
    if ATARI.match(env_id) and len(steps):  # Monitor is below AtariWrapper, which repeats an action four times
        notice(f"{folder}: its monitor.csv counts each repeat of an action, so steps are a quarter of that")
        steps //= 4
    series = {TRAINING: (steps, seconds, returns)} if len(steps) else {}
    if (path := folder / "evaluations.npz").is_file():
        at, means = read_evaluations(path, flag)
        series[EVALUATION] = (at, np.interp(at, steps, seconds) if len(steps) else np.full(len(at), np.nan), means)
    totals = (args.get("n_timesteps"), flags.pop("n_timesteps", None))  # -1 in args.yml: the number in config.yml
    if total := next((int(one) for one in totals if isinstance(one, int | float) and 0 < one < 1e18), None):
        flags["total_timesteps"] = total
    flags |= {"env_id": env_id, "exp_name": f"sb3-{args.get('algo') or folder.resolve().parent.name}", "seed": seed}
    return flags, series


def read_monitor(path: Path, flag: str) -> tuple[np.ndarray, float, str]:
    """Read episodes (N, 3): return, steps, seconds at end; start in seconds since 1970; env id or "". Raises `BadInput`."""
    try:
        text = path.read_text(encoding="utf-8")
        first, _, rest = text.partition("\n")
        header, (names, *lines) = json.loads(first.removeprefix("#")), rest.splitlines() or [""]
        if "t_start" not in header or not names.startswith("r,l,t") or not text.endswith("\n"):
            raise ValueError("it must begin with t_start and r,l,t, or its last line is cut")
        start, env_id = float(header["t_start"]), str(header.get("env_id"))
        rows = np.loadtxt(lines, delimiter=",", usecols=(0, 1, 2), ndmin=2) if lines else np.empty((0, 3))
        if not np.isfinite([*rows.flat, start]).all() or (rows[:, 1] < 1).any():
            raise ValueError("a value is not finite, or an episode has no steps")
    except (TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise BadInput(flag, path, f"is no whole file of Monitor ({first_line(error)})") from None
    rows[:, 2] = np.maximum.accumulate(rows[:, 2])  # a clock that was set back, or a second run in the file
    return rows, start, "" if env_id == "None" else env_id


def read_evaluations(path: Path, flag: str) -> tuple[np.ndarray, np.ndarray]:
    """Read the steps (E,) in an evaluations.npz, and the mean return (E,) at each. Raises `BadInput`."""
    try:
        with np.load(path, allow_pickle=False) as file:
            steps, results = file["timesteps"], file["results"]
    except Exception as error:  # zipfile and NumPy raise whatever the damage leads to
        raise BadInput(flag, path, f"is no file of EvalCallback ({first_line(error)})") from None
    if steps.ndim != 1 or results.ndim != 2 or len(steps) != len(results) or not results.size:
        raise BadInput(flag, path, f"has timesteps {steps.shape} and results {results.shape}, not (E,) and (E, episodes)")
    numbers = steps.dtype.kind in "iu" and results.dtype.kind in "fiu"
    if not numbers or (steps[1:] <= steps[:-1]).any() or not np.isfinite(results).all():
        raise BadInput(flag, path, "must have timesteps that are rising whole numbers, and results that are finite numbers")
    return steps.astype(int), results.mean(axis=1)


def zoo_flags(folder: Path, name: str, flag: str) -> dict[str, Any]:
    """Read the flags in the zoo's {env}/{name}, {} without that file; read as lines, so that no tag of YAML is followed."""
    for path in sorted(folder.glob(f"*/{name}")):
        if found := ZOO_FLAG.findall(path.read_text(encoding="utf-8", errors="replace")):
            return {key: value_of(text.strip("'")) for key, text in found}
        raise BadInput(flag, path, "is no OrderedDict as the zoo writes it")
    return {}
