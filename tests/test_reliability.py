"""Faults: what a run does when the disk is full, when learning diverges, when a file is not what it should be."""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from benchmark.kills import differing, outcome
from cleanrl import dqn_atari
from cleanrl_utils.errors import BadInput
from cleanrl_utils.flags import parse
from cleanrl_utils.models import formats, torch_zip
from cleanrl_utils.models.files import ModelError, load_weights, save_params, save_weights
from cleanrl_utils.run.archive import Archive, ArchiveError
from cleanrl_utils.run.archive import write as write_archive
from cleanrl_utils.run.tracker import Tracker
from tests.conftest import TINY_DQN, TINY_RUN, TINY_TEACHER, Bomb, all_slow, needs_compiler, twin_is_slow, weights
from tests.support import children
from tests.test_checkpoint import ATARI, the_run

linux = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_FSIZE, other users")


# --- The disk ---


@pytest.fixture(scope="module")
def pong_left_alone(tmp_path_factory) -> dict:
    """What the run of dqn_atari on Pong comes to if the disk never fills."""
    folder, before = tmp_path_factory.mktemp("pong"), Path.cwd()
    os.chdir(folder)
    assert children.run(children.dqn_atari, *ATARI)[0] == 0
    os.chdir(before)
    return outcome(next((folder / "runs").iterdir()))


@pytest.mark.slow
@linux
def test_a_full_disk_while_a_checkpoint_is_written_leaves_the_one_before(pong_left_alone):
    status, errors = children.run(children.dqn_atari, *ATARI, before=children.fill_disk, args=("training", 65, 2_000_000))
    assert status == 1
    (error,) = (line for line in errors.splitlines() if line.startswith("error:"))
    assert "000005-training-160.zip: cannot be written (File too large)" in error
    assert f"step 120 of training: --resume {the_run()}" in errors
    assert "Traceback" not in errors
    names = sorted(path.name for path in (the_run() / "checkpoints").iterdir())
    assert names == ["000003-training-80.zip", "000004-training-120.zip"], "nothing half-written"
    assert json.loads((the_run() / "config.json").read_text())["status"] == "failed"
    assert children.run(children.dqn_atari, "--resume", str(the_run()))[0] == 0
    assert differing(outcome(the_run()), pong_left_alone) == []


@pytest.mark.slow
@linux
def test_a_full_disk_while_logging_leaves_a_run_that_can_be_resumed(pong_left_alone):
    """Event files grow by a hundred bytes per game and evaluation: the limit is just above what is there."""
    status, errors = children.run(children.dqn_atari, *ATARI, before=fill_disk_for_events)
    assert status == 1
    assert "events.out.tfevents" in errors
    assert "cannot be written (File too large)" in errors
    assert "Traceback" not in errors
    assert children.run(children.dqn_atari, "--resume", str(the_run()))[0] == 0
    assert differing(outcome(the_run()), pong_left_alone) == []


def fill_disk_for_events(_) -> None:
    """At the first evaluation, let the event file grow by ten bytes more, which is less than a record."""
    import resource

    scalars = Tracker.scalars

    def limited(tracker, metrics, step):
        if "eval/episodic_return" in metrics and step == 200:
            (path,) = tracker.folder.glob("events*")
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10,) * 2)
        scalars(tracker, metrics, step)

    Tracker.scalars = limited


@linux
def test_a_folder_that_is_not_writable_is_an_error_in_one_line(tmp_path):
    os.chmod(tmp_path, 0o755)
    Path("runs").mkdir(mode=0o555)
    status, errors = children.run(children.dqn, *TINY_DQN, before=be_nobody)
    assert status == 1
    assert errors.strip().splitlines()[-1].startswith("error: runs/CartPole-v1__dqn__1__")
    assert "cannot be written (Permission denied)" in errors
    assert list(Path("runs").iterdir()) == []


def be_nobody(script) -> None:
    """Root may write everywhere; another user may not be able to import, so become one when all is imported."""
    started = script.Run.started

    def start_as_nobody(*about):
        if os.getuid() == 0:
            os.setuid(65534)
        return started(*about)

    script.Run.started = start_as_nobody


def test_a_file_in_place_of_the_folder_of_runs_is_an_error_in_one_line():
    Path("runs").touch()
    status, errors = children.run(children.dqn, *TINY_DQN)
    assert (status, len(errors.strip().splitlines())) == (1, 1)
    assert "cannot be written" in errors


# --- Learning ---


@pytest.mark.parametrize("name", [*twin_is_slow("dqn", "dqn_jax"), *twin_is_slow("dqn_atari", "dqn_atari_jax")])
def test_a_run_that_diverges_says_where_and_can_be_seen_to_diverge_again(name):
    """Metrics are read every 30 steps here. It diverges between such a step and a checkpoint, which must see it too."""
    script, vectors = getattr(children, name), "atari" not in name
    flags = [*(TINY_DQN if vectors else ATARI), "--learning-rate", "1e30"]
    flags += ["--checkpoint-frequency", "310" if vectors else "40", "--learning-starts", "612" if vectors else "150"]
    said = []
    for again in (flags, ["--resume", "the run"]):
        status, errors = children.run(script, *[str(the_run()) if flag == "the run" else flag for flag in again])
        assert status == 1
        assert "Traceback" not in errors
        said.append([line for line in errors.splitlines() if "a loss was not finite" in line])
        assert len(said[-1]) == 1
        assert "steps done" in said[-1][0]
        assert f"--resume {the_run()}" in errors
        run = json.loads((the_run() / "config.json").read_text())
        assert run["status"] == "failed"
        assert "a loss was not finite" in run["error"]
    assert said[0] == said[1], "at the same step"
    newest = Archive(max(the_run().glob("checkpoints/*.zip")))
    assert newest.tree["step"] == (310 if vectors else 120), "no checkpoint of a run that has diverged"


def test_a_run_that_diverges_without_checkpoints_says_how_to_get_there_again(train):
    with pytest.raises(FloatingPointError, match=r"training, \d+ steps done; the flags in .*config.json reproduce this"):
        train(dqn_atari, *TINY_RUN, "--learning-rate", "1e30", "--checkpoint-frequency", "0")


# --- Determinism ---


@pytest.mark.parametrize("name", ["dqn", *all_slow("dqn_jax", "dqn_atari", "dqn_atari_jax")])
def test_evaluations_do_not_change_what_is_learned(name, train):
    script = getattr(children, name)
    flags, often = (TINY_DQN, "100") if "atari" not in name else ([*TINY_RUN, "--total-timesteps", "128"], "10")
    plain, watched = (
        weights(script, train(script, *flags, "--save-model", "--eval-frequency", period)) for period in ("0", often)
    )
    assert all(torch.equal(plain[key], watched[key]) for key in plain)


@pytest.mark.slow
def test_evaluations_do_not_change_what_a_student_learns(train, qdagger):
    flags = [*TINY_RUN, *TINY_TEACHER, "--save-model"]
    often = ["--eval-frequency", "10", "--offline-eval-frequency", "3"]
    plain, watched = (weights(qdagger, train(qdagger, *flags, *more)) for more in (["--offline-eval-frequency", "0"], often))
    assert all(torch.equal(plain[key], watched[key]) for key in plain)


@pytest.mark.slow
@needs_compiler
def test_compiled_runs_in_processes_of_their_own_have_the_same_weights():
    flags = [flag for flag in ATARI if flag != "--no-compile"]
    ends = []
    for place in ("a", "b"):
        Path(place).mkdir()
        os.chdir(place)
        assert children.run(children.dqn_atari, *flags)[0] == 0
        ends.append(outcome(the_run()))
        os.chdir("..")
    assert differing(*ends) == []


# --- Files from others ---

NUM_MUTANTS = 1000
"""How many mutants of each file are tried."""


def mutants(content: bytes, seed: int, count: int = NUM_MUTANTS):
    """Damaged copies of a file: bits flipped, bytes set, cut out, doubled, swapped in from elsewhere, or the end cut off."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        data = bytearray(content)
        for _ in range(int(rng.integers(1, 4))):
            at, size = int(rng.integers(len(data))), int(rng.integers(1, 9))
            other = int(rng.integers(len(data)))
            match rng.integers(6):
                case 0:
                    data[at] ^= 1 << int(rng.integers(8))
                case 1:
                    data[at] = int(rng.integers(256))
                case 2:
                    del data[at : at + size]
                case 3:
                    data[at:at] = data[other : other + size]
                case 4:
                    data[at : at + size] = data[other : other + size]
                case _:
                    del data[max(at, len(data) // 2) :]
            if not data:
                break
        yield bytes(data)


def small_network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))


def a_model(path: Path) -> None:
    save_weights(small_network().state_dict(), path)


def a_flax_model(path: Path) -> None:
    names = {"0": "Dense_0", "2": "Dense_1"}
    state = small_network().state_dict()
    params = {names[i]: {"kernel": state[f"{i}.weight"].numpy().T, "bias": state[f"{i}.bias"].numpy()} for i in names}
    save_params({"params": params}, path)


def load_model(path: Path) -> dict[str, torch.Tensor]:
    return load_weights(path)


def read_model(path: Path) -> dict[str, np.ndarray]:
    return torch_zip.read_torch(path)


def a_checkpoint(path: Path) -> None:
    tree = {"network": small_network(), "numbers": np.arange(20), "step": 7, "rng": np.random.default_rng(1)}
    with path.open("wb") as file:
        write_archive(file, tree)


def load_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    archive = Archive(path)
    try:
        network, tree = small_network(), archive.tree
        for parameter in network.parameters():
            parameter.data.zero_()
        numbers, rng = np.zeros(20, dtype=np.int64), np.random.default_rng(2)
        for name, like in (("network", network), ("numbers", numbers), ("step", 0), ("rng", rng)):
            if name not in tree:
                raise ArchiveError(f"has no {name}")
            archive.fill(like, tree[name])
        assert numbers.tolist() == list(range(20))
        assert rng.random() == np.random.default_rng(1).random()
        return network.state_dict()
    finally:
        archive.close()


KINDS = {
    "torch model": (a_model, load_model, ModelError),
    "torch model, read without torch": (a_model, read_model, formats.FormatError),
    "flax model": (a_flax_model, load_model, ModelError),
    "checkpoint": (a_checkpoint, load_checkpoint, ArchiveError),
}


@pytest.mark.parametrize("kind", KINDS)
def test_mutants_of_a_file_are_refused_or_loaded_and_nothing_else(kind, tmp_path):
    make, load, error = KINDS[kind]
    make(tmp_path / "file")
    right = {name: np.asarray(value) for name, value in load(tmp_path / "file").items()}
    refused = other = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for mutant in mutants((tmp_path / "file").read_bytes(), seed=1):
            (tmp_path / "mutant").write_bytes(mutant)
            try:
                found = load(tmp_path / "mutant")
            except error as refusal:
                assert str(refusal)
                refused += 1
            else:
                same = found.keys() == right.keys() and all(np.array_equal(found[name], right[name]) for name in right)
                other += not same
    assert refused > NUM_MUTANTS // 2
    if kind == "checkpoint":
        assert other == 0, "checksums see every change"


@pytest.mark.parametrize("source", ["--config", "--resume"])
def test_mutants_of_a_configuration_are_refused_or_understood(source, tmp_path):
    args = vars(dqn_atari.Args(env_id="PongNoFrameskip-v4", n_step=3))
    flags = {name: value for name, value in args.items() if not name.startswith("resume") and name != "config"}
    (tmp_path / "run").mkdir()
    if source == "--config":
        content, path, given = yaml.safe_dump(flags).encode(), tmp_path / "flags.yaml", tmp_path / "flags.yaml"
    else:
        content = json.dumps({"script": "dqn_atari", "flags": flags}).encode()
        path, given = tmp_path / "run" / "config.json", tmp_path / "run"
    refused = 0
    for mutant in mutants(content, seed=2):
        path.write_bytes(mutant)
        try:
            parsed = parse(dqn_atari.Args, [source, str(given)])
        except BadInput as refusal:
            assert str(refusal).startswith(source)
            assert "\n" not in str(refusal)
            refused += 1
        else:
            for name, value in vars(parsed).items():
                assert value is None or isinstance(value, bool | int | float | str), name
    assert refused > NUM_MUTANTS // 2


def test_a_pickle_with_code_is_refused_wherever_a_file_is_read(stopped_run):
    import pickle

    for write in (lambda path: torch.save({"a": Bomb()}, path), lambda path: path.write_bytes(pickle.dumps(Bomb()))):
        write(Path("bomb"))
        for load, error in (
            (load_model, ModelError),
            (read_model, formats.FormatError),
            (load_checkpoint, ArchiveError),
        ):
            with pytest.raises(error):
                load(Path("bomb"))
        for path in (stopped_run / "checkpoints").iterdir():
            write(path)
        with pytest.raises(BadInput, match="no whole checkpoint"):
            dqn_atari.main(parse(dqn_atari.Args, ["--resume", str(stopped_run)]))
    assert not Path("hacked").exists()
    pickle.loads(pickle.dumps(Bomb()))
    assert Path("hacked").exists(), "it would have shown"


@pytest.fixture
def stopped_run() -> Path:
    """A run of dqn_atari that was killed behind its first checkpoint."""
    children.run(children.dqn_atari, *ATARI, before=children.die, args=("training", 25))
    return the_run()


def test_every_test_that_the_page_names_is_there():
    page = (Path(__file__).parents[1] / "docs" / "reliability.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", page))
    written = {
        name
        for path in Path(__file__).parent.glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert len(named) > 15
    assert named <= written
