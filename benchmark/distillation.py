r"""How much does a student learn from its teacher in a short offline phase, by temperature and weight of the distillation?

    python benchmark/distillation.py --pairs 1:0 1:1 1:32 0.1:3 --seeds 1 2 3 --out distillation.csv

For each game, framework, pair and seed it runs the QDagger script up to the end of its offline phase (Nature student), then
counts in which share of the states of the teacher's own games (epsilon 0.05, other seeds) the student's best action is the
teacher's, and plays games with the student. Runs that are already in the file are skipped, so it can be interrupted.
"""

from __future__ import annotations

import csv
import itertools
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from cleanrl import dqn_atari
from cleanrl_utils.console import notice
from cleanrl_utils.evals import players
from cleanrl_utils.models.source import ZOO
from cleanrl_utils.record import commit, read_run
from cleanrl_utils.seeds import EVALUATION

SCRIPTS = {"torch": "qdagger_dqn_atari_impalacnn", "jax": "qdagger_dqn_atari_jax_impalacnn"}
COLUMNS = ("env_id", "framework", "pair", "seed", "agreement", "score", "teacher", "commit")


@dataclass
class Args:
    """Measure the offline phase."""

    pairs: tuple[str, ...] = ("1:0", "1:1", "1:32", "0.1:3")
    """temperature:weight"""
    env_ids: tuple[str, ...] = ("PongNoFrameskip-v4", "SpaceInvadersNoFrameskip-v4")
    """games with a teacher in the box"""
    frameworks: tuple[str, ...] = ("torch", "jax")
    """torch, jax"""
    seeds: tuple[int, ...] = (1, 2, 3)
    """seeds of the runs"""
    updates: int = 4000
    """offline updates"""
    teacher_steps: int = 20_000
    """steps of the teacher's data"""
    episodes: int = 5
    """games that the student plays"""
    out: Path = Path("distillation.csv")
    """file of results; what stands there is not run again"""


def teacher_states(env_id: str, num_games: int = 10, steps: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Observations (S, 4, 84, 84) of the teacher's games and its best actions (S,)."""
    teacher = players.from_folder(str(ZOO / f"{env_id}-dqn_atari-seed1"), "--env-ids")
    games, rng = dqn_atari.Games(dqn_atari.Args(env_id=env_id, seed=12345), EVALUATION, num_games), np.random.default_rng(0)
    seen, best = [], []
    for _ in range(steps):
        seen.append(games.obs.copy())
        best.append(teacher.act(games.obs))
        random = rng.integers(games.num_actions, size=num_games)
        games.send(np.where(rng.random(num_games) < 0.05, random, best[-1]))
        games.recv()
    games.close()
    return np.concatenate(seen), np.concatenate(best)


def measure(env_id: str, framework: str, pair: str, seed: int, args: Args) -> dict[str, object]:
    """One run, and what its offline student is worth."""
    temperature, weight = pair.split(":")
    flags = f"--env-id {env_id} --seed {seed} --temperature {temperature} --distill-coefficient {weight} --student nature "
    flags += f"--teacher-steps {args.teacher_steps} --offline-steps {args.updates} --offline-eval-frequency 0 --save-model "
    flags += f"--teacher-eval-episodes 3 --eval-episodes {args.episodes} --total-timesteps 8 --checkpoint-frequency 0"
    flags += " --no-compile" if framework == "torch" else ""  # compilation takes longer than it saves
    script = Path(__file__).parents[1] / "cleanrl" / f"{SCRIPTS[framework]}.py"
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([sys.executable, str(script), *flags.split()], cwd=folder, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        (run,) = Path(folder, "runs").iterdir()
        student = players.from_folder(str(run), "run", weights="offline")
        record = read_run(run / "config.json", "run", run)
    states, best = teacher_states(env_id)
    taken = np.concatenate([student.act(states[i : i + 200]) for i in range(0, len(states), 200)])
    scores = {name: float(np.mean(result["returns"])) for name, result in record["evaluations"].items()}
    found = (env_id, framework, pair, seed, f"{np.mean(taken == best):.4f}", f"{scores['offline student']:.2f}")
    return dict(zip(COLUMNS, (*found, f"{scores['teacher']:.2f}", (commit() or "")[:7]), strict=True))


def main(args: Args) -> None:
    """Run what is missing; write a line for each run."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows = list(csv.DictReader(args.out.open())) if args.out.exists() else []
    done = {tuple(row[name] for name in COLUMNS[:4]) for row in rows}
    for seed, framework, env_id, pair in itertools.product(args.seeds, args.frameworks, args.env_ids, args.pairs):
        if (env_id, framework, pair, str(seed)) in done:
            continue
        rows.append(measure(env_id, framework, pair, seed, args))
        notice(str(rows[-1]))
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main(tyro.cli(Args))
