"""Breaks the wiring of the scripts, one line at a time, and sees whether a test fails: `make mutants`.

    python -m tests.support.mutants [--only TEXT] [--workers 2]

Each mutant is a copy of the project in which one piece of text is replaced. It is killed if the tests named for it
fail. Ends with status 1 if one lives.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[2]
UTILS = "cleanrl_utils/"
WIRING = "tests/test_wiring.py"
PASSED, FAILED, NONE_CHOSEN = 0, 1, 5
"""What pytest ends with."""
LIMIT = 20 * 60
"""Seconds after which tests hang: a mutant that has no end is killed too."""


@dataclass(frozen=True)
class Mutant:
    """`old` becomes `new` in `path`, at its first place or, with `last`, at its last; `tests` should see it."""

    path: str
    old: str
    new: str
    tests: str = WIRING
    last: bool = False

    def __str__(self) -> str:
        return f"{Path(self.path).name}: {' '.join(self.old.split())} -> {' '.join(self.new.split()) or '(nothing)'}"


def both(torch: str, jax: str, *pairs: tuple[str, ...]) -> list[Mutant]:
    """The same mutants of two twins."""
    return [Mutant(f"cleanrl/{path}.py", *pair) for pair in pairs for path in (torch, jax)]


ATARI = ("dqn_atari", "dqn_atari_jax")
STUDENT = ("qdagger_dqn_atari_impalacnn", "qdagger_dqn_atari_jax_impalacnn")
VECTORS = ("dqn", "dqn_jax")
PROBES = "tests/test_probes.py tests/test_dqn.py"
GAMES = "tests/test_environments.py tests/test_evals.py"
ALL_GAMES = f"{WIRING} {GAMES}"

OF_ALL = (
    ("rewards=np.sign(step.rewards)", "rewards=step.rewards"),
    ("learner.sync(args.tau, syncs)", "pass"),
    ("learner.sync(args.tau, syncs)", "learner.sync(1.0, syncs)"),
    ("args.n_step, args.gamma,", "args.n_step, 0.99,"),
    ("args.n_step, args.gamma,", "1, args.gamma,"),
    ("eps=args.adam_eps", "eps=1e-8"),
    ("state.step >= args.learning_starts", "state.step >= 0"),
    ("args.num_envs, args.train_frequency)", "args.num_envs, 4)"),
    ("args.num_envs, args.target_network_frequency)", "args.num_envs, 1000)"),
    ("linear_schedule(args.start_e, args.end_e", "linear_schedule(args.end_e, args.end_e"),
    ("args.exploration_fraction * args.schedule_length", "0.1 * args.schedule_length"),
    ("args.exploration_fraction * args.schedule_length", "args.exploration_fraction * args.total_timesteps"),
    ("args.seed, args.eval_epsilon)", "args.seed, 0.0)"),
    ("Games(args, EVALUATION, args.eval_episodes)", "Games(args, EVALUATION, 1)"),
)
# Text that is the same in the other Atari scripts, or in both of a framework: tests/test_scripts.py compares it.
OF_GAMES = (
    ("actions = np.where(self.fire, 1, actions)", "", GAMES),
    (
        "        self.envs.send(actions)\n        return actions",
        "        self.envs.send(np.where(self.fire, 1, actions))\n        return np.where(self.fire, 0, actions)",
        ALL_GAMES,
    ),
    ("life_loss_info=args.life_loss and not evaluation", "life_loss_info=False", ALL_GAMES),
    ("args.eval_max_frames if evaluation else MAX_FRAMES", "MAX_FRAMES", GAMES),
)
OF_DQN = (
    ("step.resets, 0, np.minimum", "False, 0, np.minimum"),
    ("self.valid[self.head] = ~step.resets", "self.valid[self.head] = True"),
    ("Games(args, TRAINING,", "Games(args, TRAINING + 7,"),
    ("args.double_q, args.huber", "False, args.huber"),
    ("args.double_q, args.huber", "args.double_q, False"),
    (
        "    end = args.learning_rate if args.learning_rate_end is None else args.learning_rate_end",
        "    end = args.learning_rate",
    ),
    ("one_cycle(args.learning_rate, args.schedule_length, step)", "args.learning_rate"),
    ('METRICS = ("losses/td_loss", "losses/q_values")', 'METRICS = ("losses/q_values", "losses/td_loss")'),
)
OF_QDAGGER = (
    (
        'state.scores["teacher"].mean, state.scores["random"].mean',
        'state.scores["random"].mean, state.scores["teacher"].mean',
    ),
    ('(("random", 1.0), ("teacher", args.eval_epsilon))', '(("random", args.eval_epsilon), ("teacher", 1.0))'),
    ("state.step, args.distill_decay_steps)", "state.step, 10**9)"),
    ("args.distill_coefficient * left", "args.distill_coefficient"),
    ("lr_end + (lr_start - lr_end) * left", "lr_start"),
    ("crossed(state.step, 1, args.offline_target_network_frequency)", "crossed(state.step, 1, 1000)"),
    ("args.offline_steps + state.step)", "state.step)"),
    ("state.returns.extend(", "[].extend("),
    ("args.temperature)", "1.0)"),
    ("Games(args, 5 if online else 0,", "Games(args, 0,", f"{WIRING} tests/test_qdagger.py"),
    ("linear_schedule(args.teacher_start_e, args.teacher_end_e", "linear_schedule(1.0, args.teacher_end_e"),
    (
        "linear_schedule(args.teacher_start_e, args.teacher_end_e",
        "linear_schedule(args.teacher_start_e, args.teacher_start_e",
    ),
    (
        "size = args.buffer_size if online else num_saved + args.teacher_steps",
        "size = args.teacher_steps",
        "tests/test_qdagger.py tests/test_teacher_data.py",
    ),
    ('"charts/offline/loss", "charts/offline/q_loss"', '"charts/offline/q_loss", "charts/offline/loss"'),
    ('"charts/offline/distill_loss", "charts/offline/q_values"', '"charts/offline/q_values", "charts/offline/distill_loss"'),
    ('"losses/td_loss", "losses/distill_loss"', '"losses/distill_loss", "losses/td_loss"'),
    ("state.learner.sync(tau=1.0)", "pass", "tests/test_qdagger.py"),
    ("warn_if_blind(learner", "str(learner"),
)
OF_VECTORS = (
    ('METRICS = ("losses/td_loss", "losses/q_values")', 'METRICS = ("losses/q_values", "losses/td_loss")', PROBES),
    ("self.valid[self.head] = ~step.resets", "self.valid[self.head] = True", PROBES),
    ("learner.sync(args.tau, syncs)", "pass", PROBES),
    ("args.n_step, args.gamma)", "args.n_step, 0.99)", PROBES),
    ("args.n_step, args.gamma)", "1, args.gamma)", PROBES),
    ("self.terminations[self.head] = step.terminations", "self.terminations[self.head] = step.truncations", PROBES),
    ("state.step >= args.learning_starts", "state.step >= 0", PROBES),
    ("args.num_envs, args.train_frequency)", "args.num_envs, 10)", PROBES),
    ("args.exploration_fraction * args.schedule_length", "0.5 * args.schedule_length", PROBES),
    ("double_q=args.double_q", "double_q=False", PROBES),
    ("huber=args.huber", "huber=False", PROBES),
    ("args.eval_epsilon, args.eval_max_steps)", "0.0, args.eval_max_steps)", PROBES),
    ("args.eval_epsilon, args.eval_max_steps)", "args.eval_epsilon)", PROBES),
)
MUTANTS = [
    *both(*ATARI, *OF_ALL, *OF_DQN),
    *both(*STUDENT, *OF_ALL, *OF_QDAGGER),
    *both(*VECTORS, *OF_VECTORS),
    *(Mutant("cleanrl/dqn_atari.py", *pair) for pair in OF_GAMES),
    Mutant("cleanrl/dqn.py", "self.truncations[self.head] = step.truncations",
           "self.truncations[self.head] = step.terminations", PROBES),
    # What is written differently in the two frameworks.
    Mutant("cleanrl/dqn_atari.py", "step.terminations, step.truncations, self.age",
           "step.truncations, step.truncations, self.age"),
    Mutant("cleanrl/dqn_atari.py", "step.terminations, step.truncations, self.age",
           "step.terminations, step.terminations, self.age"),
    Mutant("cleanrl/dqn_atari_jax.py", "step.terminations, step.truncations", "step.truncations, step.terminations"),
    Mutant("cleanrl/dqn_atari.py", "\"weight_decay\": args.weight_decay", "\"weight_decay\": 0.0"),
    Mutant("cleanrl/dqn_atari_jax.py", "optax.add_decayed_weights(args.weight_decay)", "optax.add_decayed_weights(0.0)"),
    Mutant("cleanrl/dqn_atari.py", "functools.partial(greedy_actions, self.q_network)",
           "functools.partial(greedy_actions, self.target_network)"),
    Mutant("cleanrl/qdagger_dqn_atari_impalacnn.py", "learner.teacher_act(obs)", "learner.act(obs)"),
    Mutant("cleanrl/qdagger_dqn_atari_impalacnn.py", "learner.set_rates(args.distill_coefficient, linear_schedule",
           "learner.set_rates(1.0, linear_schedule"),
    Mutant("cleanrl/qdagger_dqn_atari_impalacnn.py", "learner.act(obs)", "learner.teacher_act(obs)", last=True),
    Mutant(UTILS + "evals/atari.py", "sticky if args.sticky_actions is None else args.sticky_actions", "sticky"),
    Mutant(UTILS + "evals/atari.py", '"noop_max": args.noop_max', '"noop_max": 30', ALL_GAMES),
    Mutant(UTILS + "evals/atari.py", "resets = self.frame_numbers < before", "resets = terminations | truncations", GAMES),
    Mutant(UTILS + "evals/atari.py", "np.where(resets, 0, self.returns + rewards)", "self.returns + rewards", GAMES),
    Mutant(UTILS + "seeds.py", "[seed, purpose, environment, number]", "[seed, purpose, number]", ALL_GAMES),
    Mutant(UTILS + "seeds.py", "[seed, purpose, environment, number]", "[seed, environment, number]", ALL_GAMES),
    Mutant(UTILS + "evals/play.py", "returns += step.rewards * running", "returns += step.rewards", GAMES),
    Mutant(UTILS + "evals/play.py", "np.sign(step.rewards) * running", "step.rewards * running",
           "tests/test_enjoy.py::test_clipped_returns_are_the_sums_of_the_signs"),
    Mutant(UTILS + "evals/play.py", "[seed, EVALUATION, game]", "[seed, EVALUATION]", GAMES),
    Mutant(UTILS + "evals/gym.py", "if resets.any() and self.purpose != EVALUATION", "if False", "tests/test_episodes.py"),
]  # fmt: skip


def run(mutant: Mutant, compiled: str) -> str:
    """Make the mutant and run its tests: killed, alive, or no mutant, if its text is not there.

    `compiled` is a folder for what JAX compiles, most of which is the same in each mutant.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("cleanrl", "tests"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(
            ROOT / "cleanrl_utils", folder / "cleanrl_utils", ignore=shutil.ignore_patterns("__pycache__", "*-*")
        )
        for model in (ROOT / "cleanrl_utils/zoo").glob("*-*"):
            (folder / "cleanrl_utils/zoo" / model.name).symlink_to(model)
        for part in ("pyproject.toml", "benchmark", "docs", "README.md"):
            (folder / part).symlink_to(ROOT / part)
        path = folder / mutant.path
        text = path.read_text()
        if mutant.old not in text:
            return "no mutant"
        before, after = text.rpartition(mutant.old)[::2] if mutant.last else text.partition(mutant.old)[::2]
        path.write_text(before + mutant.new + after)
        environment = os.environ | {"PYTHONPATH": name, "OMP_NUM_THREADS": "1", "JAX_COMPILATION_CACHE_DIR": compiled}
        for choice in choices(mutant):
            command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", choice]
            command += mutant.tests.split()
            try:
                done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT)
            except subprocess.TimeoutExpired:
                return "killed"
            if done.returncode == FAILED:
                return "killed"
            if done.returncode not in (PASSED, NONE_CHOSEN):
                return f"broken: {done.stdout[-500:]} {done.stderr[-500:]}"
        return "alive"


def choices(mutant: Mutant) -> list[str]:
    """Which of its tests to run, for pytest's -k: first those of the flag that it ignores, then all of its script."""
    script = Path(mutant.path).stem
    if mutant.tests != WIRING or script not in (*ATARI, *STUDENT):
        return ["not docs"]
    framework = "jax" if "jax" in script else "torch"
    of_dqn = "(test_dqn_ or what_dqn_)"
    of_dqn = of_dqn if script in ATARI else f"not {of_dqn}"
    every = f"({of_dqn} and {framework}) or (row and cleanrl.{script}])"
    flag = re.search(r"args\.(\w+)", mutant.old)
    return [f"changes and {flag[1].replace('_', '-')} and ({every})", every] if flag else [every]


def main() -> None:
    """Run the mutants; print what became of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="mutants whose line holds this text")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    mutants = [mutant for mutant in MUTANTS if arguments.only in str(mutant)]
    with ThreadPoolExecutor(arguments.workers) as pool, tempfile.TemporaryDirectory() as compiled:
        found = {}
        for mutant, result in zip(mutants, pool.map(partial(run, compiled=compiled), mutants), strict=True):
            found[mutant] = result
            print(f"{result:9} {mutant}", flush=True)  # noqa: T201
    killed = sum(result == "killed" for result in found.values())
    print(f"{killed} of {len(found)} killed")  # noqa: T201
    sys.exit(killed < len(found))


if __name__ == "__main__":
    main()
