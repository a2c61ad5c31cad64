"""Sweeps on this machine: every run once, what is complete left alone, what was interrupted resumed, failures told."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cleanrl import dqn
from cleanrl_utils.benchmark import __main__ as benchmark
from cleanrl_utils.benchmark.plan import Args, plan
from cleanrl_utils.flags import parse
from cleanrl_utils.report import __main__ as report
from tests.conftest import all_slow, scalars
from tests.support.slurm import wait

ROOT = Path(__file__).parents[1]
TOY = Path(__file__).parent / "support/toy_training.py"


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)} | more


def start(flags: str, *env_ids: str, **env: str) -> subprocess.Popen:
    words = [sys.executable, "-m", "cleanrl_utils.benchmark", *flags.split(), "--env-ids", *env_ids]
    words += ["--command", env.pop("command", f"python {TOY}")]
    return subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(**env))


def sweep(flags: str, *env_ids: str, **env: str) -> tuple[int, str]:
    """Status and error stream of a sweep of the toy."""
    process = start(flags, *env_ids, **env)
    said = process.communicate(timeout=120)[1]
    return process.returncode, said


def folders() -> list[Path]:
    return sorted(path.parent for path in Path("runs").glob("*/config.json"))


def stored(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def test_every_environment_and_seed_is_run_once_and_what_is_complete_is_left_alone():
    status, said = sweep("--num-seeds 2 --start-seed 5 --workers 2", "CartPole-v1", "Acrobot-v1")
    assert status == 0, said
    made = folders()
    flags = [stored(folder)["flags"] for folder in made]
    wanted = [(env, seed) for env in ("Acrobot-v1", "CartPole-v1") for seed in (5, 6)]
    assert [(of["env_id"], of["seed"]) for of in flags] == wanted
    assert "4 complete" in said.splitlines()[-1]

    status, said = sweep("--num-seeds 3 --start-seed 5", "Acrobot-v1")
    assert "3 seeds of one environment are too few for a verdict: `report compare` needs 4 seeds of each setting" in said
    assert status == 0
    assert said.count("complete before") == 3  # a line for each, and the sum
    assert len(folders()) == 5

    assert sweep("--num-seeds 1 --start-seed 5", "Acrobot-v1", command=f"python {TOY} --level 1")[0] == 0
    assert len(folders()) == 6, "another flag is another run"


def test_a_run_whose_buffer_was_enlarged_is_found_again():
    flags = "--total-timesteps 20 --num-envs 4 --buffer-size 10"
    command = f"python {ROOT / 'cleanrl/dqn.py'} {flags}"
    (work,) = plan(parse(Args, ["--env-ids", "CartPole-v1", "--num-seeds", "1", "--command", command]))
    assert work.next_command()[2:8] == flags.split()
    dqn.main(parse(dqn.Args, [*flags.split(), "--threads", "1"]))
    assert work.next_command() == [], "it is complete"


def test_a_failed_run_is_told_with_the_end_of_its_log_and_the_others_go_on():
    status, said = sweep("--num-seeds 3", "CartPole-v1", command=f"python {TOY} --fail-seed 2")
    assert status == 1
    assert "CartPole-v1 seed 2 failed; the end of runs/sweeps/CartPole-v1__toy__2__" in said
    assert "    error: a loss was not finite (counting, 15 steps done" in said
    assert said.splitlines()[-1] == "2 complete, 1 failed"
    assert [stored(folder)["status"] for folder in folders()] == ["complete", "failed", "complete"]


def test_a_run_that_dies_before_it_logs_is_told_with_the_output_of_its_job():
    (work,) = benchmark.plan(benchmark.Args(env_ids=("CartPole-v1",), command=f"python {TOY}", num_seeds=1))
    log = work.log
    log.mkdir(parents=True)  # so it cannot be opened
    status, said = sweep("--num-seeds 1", "CartPole-v1")
    assert status == 1
    assert "CartPole-v1 seed 1 failed; the end of runs/sweeps/jobs/" in said
    assert f"IsADirectoryError: [Errno 21] Is a directory: '{log}'" in said


def test_a_killed_run_goes_on_from_its_checkpoint_in_the_next_sweep():
    command = f"python {TOY} --die-seed 1"
    assert sweep("--num-seeds 1", "CartPole-v1", command=command)[0] == 1
    status, said = sweep("--num-seeds 1", "CartPole-v1", command=command)
    assert status == 0, said
    (folder,) = folders()
    assert len(stored(folder)["resumed"]) == 1
    assert [step for step, _ in scalars(folder)["charts/episodic_return"]] == list(range(1, 31))


@pytest.mark.slow
def test_a_run_without_a_checkpoint_begins_anew():
    command = f"python {TOY} --fail-seed 1 --checkpoint-frequency 0"
    for _ in range(2):
        assert sweep("--num-seeds 1", "CartPole-v1", command=command)[0] == 1
    assert [stored(folder).get("resumed") for folder in folders()] == [None, None]


@pytest.mark.parametrize("number", [*all_slow(signal.SIGINT), signal.SIGTERM])
def test_an_interrupted_sweep_stops_its_runs_and_the_same_command_finishes_it(number):
    command = f"python {TOY} --pause 0.2 --slow-seed 1"
    process = start("--num-seeds 1", "CartPole-v1", command=command)
    wait(lambda: len(list(Path("runs").glob("*/checkpoints/*.zip"))) > 1, "the second checkpoint")
    process.send_signal(number)
    assert process.wait(30) == 128 + number
    (folder,) = folders()
    assert stored(folder)["status"] == "stopped"
    assert "CartPole-v1 seed 1: stopped" in process.communicate()[1]
    assert sweep("--num-seeds 1", "CartPole-v1", command=command)[0] == 0
    assert folders() == [folder]
    assert [step for step, _ in scalars(folder)["charts/episodic_return"]] == list(range(1, 31))


@pytest.mark.slow
def test_two_sweeps_at_the_same_time_do_not_do_the_same_run_twice():
    processes = [start("--num-seeds 1", "CartPole-v1", command=f"python {TOY} --pause 0.1") for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert len(folders()) == 1
    for process in processes:
        process.communicate()


def test_each_worker_has_its_gpu_and_its_share_of_the_cores():
    cores = sorted(os.sched_getaffinity(0))
    assert (
        sweep("--num-seeds 2 --workers 2", "CartPole-v1", command=f"python {TOY} --pause 0.1", CUDA_VISIBLE_DEVICES="3,5")[0]
        == 0
    )
    seen = [json.loads((folder / "seen.json").read_text()) for folder in folders()]
    share = max(1, len(cores) // 2)
    assert {one["gpu"] for one in seen} == {"3", "5"}
    assert {one["threads"] for one in seen} == {share}
    assert all(len(one["cores"]) == share for one in seen)
    if len(cores) > 1:
        assert not set(seen[0]["cores"]) & set(seen[1]["cores"])


def test_a_run_is_resumed_with_the_threads_that_it_began_with():
    command = f"python {TOY} --die-seed 1"
    assert sweep("--num-seeds 1 --workers 2", "CartPole-v1", command=command)[0] == 1
    assert sweep("--num-seeds 1 --workers 1", "CartPole-v1", command=command)[0] == 0


@pytest.mark.slow
def test_a_run_that_may_not_be_resumed_is_told_with_the_reason():
    command = f"python {TOY} --die-seed 1"
    assert sweep("--num-seeds 1", "CartPole-v1", command=command, TOY_SETTING="a")[0] == 1
    status, said = sweep("--num-seeds 1", "CartPole-v1", command=command, TOY_SETTING="b")
    assert status == 1
    assert "setting a then, b now: the same weights cannot be guaranteed" in said


def test_placeholders_are_filled_and_json_is_not_one(capsys):
    command = "python cleanrl/dqn.py --exp-name {env_id}-s{seed} --env-kwargs '{\"sutton_barto_reward\": true}'"
    os.symlink(ROOT / "cleanrl", "cleanrl")
    args = benchmark.Args(env_ids=("CartPole-v1",), command=command, num_seeds=2, dry_run=True)
    benchmark.main(args)
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [line[line.index("--exp-name") + 1] for line in lines] == ["CartPole-v1-s1", "CartPole-v1-s2"]
    assert [line[-4:] for line in lines] == [["--env-id", "CartPole-v1", "--seed", seed] for seed in "12"]
    assert not Path("runs").exists()


BAD = {
    "no environment": ([], "python TOY", "--env-ids (none): must name at least one"),
    "no script": (["CartPole-v1"], "python -m toy", "--command 'python -m toy': must look like"),
    "missing script": (["CartPole-v1"], "python cleanrl/dnq.py", "--command cleanrl/dnq.py: is no file"),
    "other file": (["CartPole-v1"], f"python {ROOT}/tests/support/twin_diff.py", "is no training script"),
    "placeholder": (["CartPole-v1"], "python TOY --exp-name {env}", "has {env}; there are {env_id} and {seed}"),
    "quotes": (["CartPole-v1"], "python TOY --exp-name 'a", "cannot be split into words"),
    "seed": (["CartPole-v1"], "python TOY --seed 3", "contains --seed, which the sweep sets"),
    "environment": (["CartPole-v1"], "python TOY --env_id=a", "contains --env-id, which the sweep sets"),
    "dashed placeholder": (["CartPole-v1"], "python TOY --exp-name {env-id}", "has {env-id}; there are {env_id} and {seed}"),
    "launcher": (["CartPole-v1"], "pyhton TOY", "--command pyhton: is no program here"),
    "flag": (["CartPole-v1"], "python TOY --leve 3", "Unrecognized options: --leve"),
    "value": (["CartPole-v1"], "python TOY --total-timesteps 0", "--total-timesteps 0: must be above 0"),
    "workers": (["CartPole-v1"], "python TOY --workers", "Unrecognized options"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_anything_is_run(name, refused: Callable[..., str]):
    env_ids, command, reason = BAD[name]
    flags = ["--command", command.replace("TOY", str(TOY)), *(["--env-ids", *env_ids] if env_ids else [])]
    assert reason in refused(benchmark, *flags)


@pytest.mark.parametrize(
    "flag", ["--num-seeds 0", "--workers 0", "--start-seed -1", "--slurm-time 0", "--slurm-time 2 --slurm-signal-delay 120"]
)
def test_numbers_out_of_range_are_refused(flag, refused: Callable[..., str]):
    name = flag.split()[-2]
    assert f"{name} {flag.split()[-1]}: must be" in refused(
        benchmark, "--env-ids", "CartPole-v1", "--command", f"python {TOY}", *flag.split()
    )


def test_a_script_with_an_error_in_it_is_refused_in_one_line(refused: Callable[..., str]):
    Path("broken.py").write_text("class Args\n")
    line = refused(benchmark, "--env-ids", "CartPole-v1", "--command", "python broken.py")
    assert "--command broken.py: cannot be loaded here (expected ':'" in line


def test_slurm_is_asked_for_what_a_run_needs(tmp_path, monkeypatch):
    for name, answer in {"sbatch": "Submitted batch job 7", "srun": "", "squeue": ""}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n[ $0 = {tmp_path}/sbatch ] && cp $1 {tmp_path}/asked\nprintf '{answer}'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    flags = "--backend slurm --slurm-gpus-per-task 1 --slurm-cpus-per-task 4 --slurm-time 90 --slurm-array-parallelism 2"
    words = [*flags.split(), "--no-wait", "--slurm-partition", "gpu", "--slurm-parameters", '{"account": "lab"}']
    benchmark.main(parse(benchmark.Args, [*words, "--env-ids", "CartPole-v1", "--command", f"python {TOY}"]))
    asked = (tmp_path / "asked").read_text()
    wanted = "gpus-per-node=1 cpus-per-task=4 time=90 array=0-2%2 partition=gpu account=lab requeue signal=USR2@120"
    for line in wanted.split():
        assert f"#SBATCH --{line}\n" in asked, asked
    assert "--cpus-per-task=4 " in asked.split("\nsrun")[1]


def test_without_slurm_its_backend_is_refused(refused: Callable[..., str], monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    line = refused(benchmark, "--backend", "slurm", "--env-ids", "CartPole-v1", "--command", f"python {TOY}")
    assert "--backend slurm: finds no Slurm here" in line


SCRIPTS = sorted({*ROOT.glob("benchmark/*.sh")} - {ROOT / "benchmark/gpu.sh"})


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_each_sweep_that_is_in_the_box_plans_runs_with_flags_that_exist(path, tmp_path, monkeypatch):
    shim = tmp_path / "bin" / "python"
    shim.parent.mkdir()
    tell = (
        r'import json, os, sys; os.write(1, (json.dumps(sys.argv[1:]) + "\n").encode())'  # whole lines: two sweeps may run
    )
    shim.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{tell}' \"$@\"\n")
    service = shim.with_name("nvidia-cuda-mps-control")
    service.write_text("#!/bin/sh\n")
    for program in (shim, service):
        program.chmod(0o755)
    env = environment(PATH=f"{shim.parent}:{os.environ['PATH']}", FLAGS="--exp-name mine")
    flags = [] if path.stem == "plots" else ["--num-seeds", "1"]
    monkeypatch.chdir(ROOT)
    ran = subprocess.run(["bash", str(path), *flags], env=env, capture_output=True, text=True, check=True)
    commands = [json.loads(line) for line in ran.stdout.splitlines()]
    assert commands
    for _, module, *words in commands:
        if module == "cleanrl_utils.report":
            parse(report.Args, words)
        else:
            works = benchmark.plan(parse(benchmark.Args, words))
            assert all(work.flags["exp_name"] == "mine" for work in works)
    assert f"bash benchmark/{path.name}" in path.read_text()
