r"""Does a run that is killed again and again end like an uninterrupted one? Kills real runs at random moments.

    python benchmark/kills.py --kills 100 cleanrl/dqn_atari.py --env-id PongNoFrameskip-v4 --total-timesteps 2000 \
        --learning-starts 200 --buffer-size 1000 --num-envs 2 --checkpoint-frequency 200 --eval-max-frames 400 --save-model

First lets a run with these flags finish. Then starts it again, kills it at a moment drawn uniformly from its length, resumes
it and kills it again until it finishes, and compares models, counters, scores and all that was logged except the rate.
Repeats this with new runs until there were as many kills as asked for. Ends with status 1 if anything differed. `--signal`
says what kills: SIGKILL, or SIGTERM or SIGINT (Ctrl-C), after which the run writes a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from cleanrl_utils.devices.cores import num_cores
from cleanrl_utils.record import read_series

SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}


def outcome(run: Path) -> dict[str, Any]:
    """What two runs with the same flags must have in common, bit for bit."""
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = {key: config[key] for key in ("status", "steps", "evaluations")}
    found |= {path.name: path.read_bytes() for path in run.glob("*.cleanrl_model")}
    logged = {tag: (steps.tolist(), values.tolist()) for tag, (steps, _, values) in read_series(run).items()}
    return found | {tag: points for tag, points in logged.items() if tag != "charts/SPS"}


def differing(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """What two outcomes do not have in common."""
    return sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))


def where(run: Path | None) -> str:
    """What a run was doing when it was killed, as far as its folder tells."""
    if run is None:
        return "before its folder"
    files = sorted(path.name for path in (run / "checkpoints").glob("*"))
    if any(name.endswith(".tmp") for name in files):
        return "writing a checkpoint"
    checkpoints = [name for name in files if name[0].isdigit()]
    return f"after a checkpoint of {checkpoints[-1].split('-')[1]}" if checkpoints else "before its first checkpoint"


def start(command: list[str], folder: Path, run: Path | None) -> subprocess.Popen:
    """The script with its flags, or resumed if it has left a checkpoint."""
    if run is not None and list((run / "checkpoints").glob("[0-9]*.zip")):
        command = [command[0], "--resume", str(run.relative_to(folder))]
    return subprocess.Popen([sys.executable, *command], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def is_complete(run: Path) -> bool:
    """Whether a run has come to its end."""
    config = run / "config.json"
    return config.is_file() and json.loads(config.read_text(encoding="utf-8"))["status"] == "complete"


def latest(folder: Path) -> Path | None:
    """The newest run folder."""
    return max((folder / "runs").glob("*"), key=lambda path: path.stat().st_mtime, default=None)


def killed_until_done(
    command: list[str], folder: Path, seconds: float, kills: Counter, most: int, sent: signal.Signals = signal.SIGKILL
) -> Path:
    """Run, kill, resume, until the run comes to its end; counts the kills by place. Returns its folder."""
    while True:
        run = latest(folder)
        if run is not None and is_complete(run):  # killed in its last moments
            return run
        process = start(command, folder, run)
        try:
            _, errors = process.communicate(timeout=random.uniform(0, seconds) if kills.total() < most else None)
        except subprocess.TimeoutExpired:
            process.send_signal(sent)
            _, errors = process.communicate()
            if process.returncode == 0:  # it was as good as done
                return latest(folder)
            if process.returncode not in (-sent, 128 + sent):
                raise SystemExit(f"status {process.returncode} after {sent.name}: {errors.decode()}") from None
            kills[where(latest(folder))] += 1
            continue
        if process.returncode:
            raise SystemExit(f"status {process.returncode} after {dict(kills)}: {errors.decode()}")
        return latest(folder)


def main() -> None:
    """Kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="how many, over all runs")
    parser.add_argument("--signal", choices=SIGNALS, default="kill", help="what kills")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="a training script and its flags")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(num_cores()))  # the same for all runs that are compared
    if "--save-model" not in arguments.command:
        parser.error("a training script and its flags are missing, among them --save-model")
    random.seed(arguments.seed)
    command = [str(Path(arguments.command[0]).resolve()), *arguments.command[1:]]
    kills: Counter = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        began = time.perf_counter()
        alone = outcome(killed_until_done(command, Path(temporary), 0, kills, 0))
        seconds = time.perf_counter() - began
        runs = wrong = 0
        while kills.total() < arguments.kills:
            with tempfile.TemporaryDirectory() as folder:
                run = killed_until_done(command, Path(folder), seconds, kills, arguments.kills, SIGNALS[arguments.signal])
                different = differing(outcome(run), alone)
            runs, wrong = runs + 1, wrong + bool(different)
            print(f"run {runs}: {kills.total()} kills; differs in: {', '.join(different) or 'nothing'}", flush=True)  # noqa: T201
    name = SIGNALS[arguments.signal].name
    print(f"{kills.total()} {name} in {runs} runs of {seconds:.1f} s alone: {dict(kills)}; {wrong} runs differ")  # noqa: T201
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
