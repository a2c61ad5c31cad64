"""fqi.py: its formulas on numbers worked by hand, its files, runs end to end."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cleanrl import fqi
from cleanrl_utils.errors import BadInput
from cleanrl_utils.seeds import EVALUATION
from tests.conftest import TINY_FQI, Bomb, scalars
from tests.support import pages


class Sum:
    """A regressor that predicts the sum of what it sees."""

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        return inputs.sum(1)


def data_of(rewards, next_obs, terminations, num_actions=2) -> fqi.Dataset:
    n = len(rewards)
    obs = np.zeros((n, 1), np.float32)
    rows = (np.zeros(n, int), np.array(rewards), np.array(next_obs, np.float32), np.array(terminations))
    return fqi.Dataset(obs, *rows, np.array(num_actions), np.array("made up"))


# --- The maths ---


def test_two_actions_are_one_number_and_more_are_one_hot():
    obs = np.array([[5.0, 6.0], [7.0, 8.0]])
    assert fqi.features(obs, np.array([0, 1]), 2).tolist() == [[5, 6, 0], [7, 8, 1]]
    assert fqi.features(obs, np.array([0, 2]), 3).tolist() == [[5, 6, 1, 0, 0], [7, 8, 0, 0, 1]]


def test_q_values_are_predictions_for_every_action():
    assert fqi.q_values(Sum(), np.array([[5.0], [7.0]]), 2).tolist() == [[5, 6], [7, 8]]
    assert fqi.q_values(Sum(), np.array([[5.0], [7.0]]), 3).tolist() == [[6, 6, 6], [8, 8, 8]]


def test_targets_are_rewards_plus_the_best_next_value_but_after_a_termination():
    # Next states 4 and 6, best next values (action 1) 5 and 7: 1 + 0.9 * 5 = 5.5, and -1 where it ended.
    targets = fqi.td_targets(Sum(), data_of([1.0, -1.0], [[4.0], [6.0]], [False, True]), 0.9)
    assert targets.tolist() == pytest.approx([5.5, -1.0])


def test_the_greedy_policy_is_the_argmax():
    assert fqi.player(Sum(), 2)(np.zeros((3, 1))).tolist() == [1, 1, 1]


# --- The data ---


def test_the_random_policys_transitions_follow_each_other_and_keep_only_true_ends():
    args = fqi.Args(n_steps=600, env_kwargs={"max_episode_steps": 12})
    data = fqi.collect(args)
    assert data.obs.shape == data.next_obs.shape == (600, 4)
    assert (data.obs.dtype, data.actions.dtype.kind, data.terminations.dtype) == (np.float32, "i", bool)
    assert np.bincount(data.actions).tolist() == pytest.approx([300, 300], abs=60)
    begins = np.flatnonzero((data.obs[1:] != data.next_obs[:-1]).any(1)) + 1
    lengths = np.diff([0, *begins])
    cut = (lengths == 12) & ~data.terminations[begins - 1]
    assert cut.sum() >= 5, "episodes of 12 steps that were only cut"
    assert lengths.max() == 12
    assert data.terminations[begins - 1][~cut].all()
    # The pole has fallen, or the cart has left, exactly where an end is recorded.
    fallen = (np.abs(data.next_obs[:, 2]) > 12 * 2 * np.pi / 360) | (np.abs(data.next_obs[:, 0]) > 2.4)
    assert np.array_equal(fallen, data.terminations)


def test_another_seed_collects_other_transitions():
    first, again, other = (fqi.collect(fqi.Args(n_steps=50, seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(first.obs, again.obs)
    assert not np.array_equal(first.obs, other.obs)


def test_a_dataset_is_written_once_and_learned_from_again(train):
    first = train(fqi, *TINY_FQI, "--dataset", "data.npz", "--save-model")
    written = Path("data.npz").read_bytes()
    second = train(fqi, *TINY_FQI, "--dataset", "data.npz", "--save-model", "--n-steps", "7")
    assert Path("data.npz").read_bytes() == written
    for name in ("dataset.npz", "targets.npz"):
        ours, theirs = (dict(np.load(folder / name)) for folder in (first, second))
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


BAD_ARRAYS = {
    "no transitions": {"obs": np.zeros((0, 4), np.float32)},
    "other lengths": {"actions": np.zeros(3, int)},
    "an action that is not there": {"actions": np.full(50, 2)},
    "actions that are no numbers of actions": {"actions": np.full(50, 0.5)},
    "a number that is not finite": {"rewards": np.full(50, np.nan)},
    "flat observations": {"obs": np.zeros(50, np.float32)},
    "ends that are no flags": {"terminations": np.zeros(50)},
    "an object": {"rewards": np.array([None] * 50)},
    "observations of another size": {"obs": np.zeros((50, 3), np.float32), "next_obs": np.zeros((50, 3), np.float32)},
    "another number of actions": {"num_actions": np.array(3)},
    "no number of actions": {"num_actions": np.array([2])},
}


@pytest.mark.parametrize("arrays", BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_a_dataset_that_does_not_fit(refused, arrays):
    data = fqi.collect(fqi.Args(n_steps=50))
    np.savez("data.npz", **data._asdict() | arrays)
    line = refused(fqi, *TINY_FQI, "--dataset", "data.npz")
    assert "--dataset data.npz" in line
    assert any(f"`{name}`" in line for name in data._fields) or "allow_pickle" in line or "other actions than the 2" in line


def header(shape: str) -> bytes:
    """An .npy file with this shape in its header and no content."""
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize("shape", ["(10**30,)", f"({10**15},)", f"({10**30},)", "((", "(-5,)", "'a'"])
def test_a_dataset_whose_arrays_lie_about_their_shape(refused, shape):
    fqi.save_arrays(Path("whole.npz"), fqi.collect(fqi.Args(n_steps=50))._asdict())
    with zipfile.ZipFile("whole.npz") as whole, zipfile.ZipFile("data.npz", "w") as archive:
        for name in whole.namelist():
            archive.writestr(name, header(shape) if name == "obs.npy" else whole.read(name))
    assert "is no file of fqi.py" in refused(fqi, *TINY_FQI, "--dataset", "data.npz")


def test_a_dataset_that_is_encrypted(refused):
    fqi.save_arrays(Path("data.npz"), fqi.collect(fqi.Args(n_steps=50))._asdict())
    content = bytearray(Path("data.npz").read_bytes())
    content[6] |= 1  # the flag of the first entry
    content[content.index(b"PK\x01\x02") + 8] |= 1
    Path("data.npz").write_bytes(content)
    assert "is no file of fqi.py" in refused(fqi, *TINY_FQI, "--dataset", "data.npz")


@pytest.mark.parametrize(
    "content",
    [b"", b"nonsense", b"PK\x03\x04 nonsense", pickle.dumps(Bomb())],
    ids=["empty", "nonsense", "no archive", "a pickle"],
)
def test_a_dataset_that_is_damaged_or_holds_code(refused, content):
    Path("data.npz").write_bytes(content)
    assert "is no file of fqi.py" in refused(fqi, *TINY_FQI, "--dataset", "data.npz")
    assert not Path("hacked").exists()


def test_a_dataset_with_code_in_an_array_or_with_bytes_changed(refused):
    fqi.save_arrays(Path("whole.npz"), fqi.collect(fqi.Args(n_steps=500))._asdict())
    content = Path("whole.npz").read_bytes()
    for place in range(200, len(content), len(content) // 7):
        Path("data.npz").write_bytes(content[:place] + bytes(40) + content[place + 40 :])
        refused(fqi, *TINY_FQI, "--dataset", "data.npz")
    Path("data.npz").write_bytes(content[: len(content) // 2])
    refused(fqi, *TINY_FQI, "--dataset", "data.npz")
    np.savez("data.npz", **fqi.collect(fqi.Args(n_steps=50))._asdict() | {"env": np.array(Bomb())})
    refused(fqi, *TINY_FQI, "--dataset", "data.npz")
    assert not Path("hacked").exists()


def test_a_dataset_of_another_environment(refused):
    fqi.save_arrays(Path("data.npz"), fqi.collect(fqi.Args(n_steps=50, env_id="Acrobot-v1"))._asdict())
    line = refused(fqi, *TINY_FQI, "--dataset", "data.npz")
    assert "Acrobot-v1" in line
    assert "CartPole-v1" in line


def test_a_dataset_in_a_folder_that_is_not_there(refused):
    assert "--dataset" in refused(fqi, *TINY_FQI, "--dataset", "no/such/folder/data.npz")
    assert "--dataset" in refused(fqi, *TINY_FQI, "--dataset", ".")
    assert "--dataset" in refused(fqi, *TINY_FQI, "--dataset", "x" * 300)


# --- The regressor ---


@pytest.mark.parametrize("name", ["knn", "linear", "tree", "forest", "gradient-boosting", "mlp", "Ridge"])
def test_every_regressor_learns_and_comes_back_as_it_was(train, name):
    kwargs = {"forest": '{"n_estimators": 5}', "mlp": '{"hidden_layer_sizes": [5], "max_iter": 500}'}.get(name, "{}")
    flags = ["--regressor", name, "--regressor-kwargs", kwargs, "--n-iterations", "2", "--save-model"]
    folder = train(fqi, *TINY_FQI, *flags)
    model, args = fqi.load_run(folder)
    assert (args.regressor, args.seed) == (name, 1)
    again = fqi.load_run(folder)[0]
    obs = np.random.default_rng(0).standard_normal((20, 4))
    assert np.array_equal(fqi.q_values(model, obs, 2), fqi.q_values(again, obs, 2))
    episodes = fqi.Episodes(args, EVALUATION, args.eval_episodes)
    result = fqi.evaluate(fqi.player(model, 2), episodes, args.seed, args.eval_epsilon, args.eval_max_steps)
    assert result.returns == json.loads((folder / "config.json").read_text())["evaluations"]["agent"]["returns"]


def test_nothing_of_a_saved_run_is_a_pickle(train):
    folder = train(fqi, *TINY_FQI, "--save-model")
    files = {path.name for path in folder.iterdir() if "tfevents" not in path.name}
    assert files == {"config.json", "dataset.npz", "targets.npz", "fqi.py"}
    for name in ("dataset.npz", "targets.npz"):
        with zipfile.ZipFile(folder / name) as archive:
            for member in archive.namelist():
                np.lib.format.read_array(archive.open(member), allow_pickle=False)


def test_knn_has_30_neighbours_unless_told_and_what_draws_has_the_seed():
    assert fqi.make_regressor(fqi.Args()).n_neighbors == 30
    assert fqi.make_regressor(fqi.Args(regressor_kwargs={"n_neighbors": 3})).n_neighbors == 3
    assert fqi.make_regressor(fqi.Args(regressor="forest", seed=7)).random_state == 7
    assert fqi.make_regressor(fqi.Args(regressor="forest", seed=7, regressor_kwargs={"random_state": 1})).random_state == 1


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--regressor", "knnn"], "--regressor knnn: must be knn, linear, tree"),
        (["--regressor", "KMeans"], "must be knn"),
        (["--regressor-kwargs", '{"n_neighbours": 3}'], "max_depth"),
        (["--regressor-kwargs", '{"max_depth": "deep"}'], "max_depth"),
        (["--regressor", "knn"], "--n-steps knn {} on 20 transitions: "),  # it has 30 neighbours
        (["--regressor", "StackingRegressor"], "StackingRegressor"),  # needs further regressors
        (["--regressor-kwargs", "max_depth=3"], "--regressor-kwargs"),
        (["--regressor-kwargs", "[3]"], "--regressor-kwargs"),
        (["--n-steps", "0"], "--n-steps"),
        (["--n-iterations", "0"], "--n-iterations"),
        (["--gamma", "2"], "--gamma"),
        (["--eval-frequency", "-1"], "--eval-frequency"),
    ],
)
def test_bad_flags(refused, flags, says):
    assert says in refused(fqi, *TINY_FQI, "--n-steps", "20", *flags)


@pytest.mark.parametrize("missing", ["config.json", "dataset.npz", "targets.npz"])
def test_a_saved_run_that_lacks_a_file(train, missing):
    folder = train(fqi, *TINY_FQI, "--save-model")
    (folder / missing).unlink()
    with pytest.raises(BadInput):
        fqi.load_run(folder)


def damage(content: bytes) -> bytes:
    return content[: len(content) // 2] + bytes(40) + content[len(content) // 2 + 40 :]


@pytest.mark.parametrize("name", ["dataset.npz", "targets.npz"])
def test_a_saved_run_that_is_damaged(train, name):
    folder = train(fqi, *TINY_FQI, "--save-model")
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    with pytest.raises(BadInput, match="is no saved run"):
        fqi.load_run(folder)


@pytest.mark.parametrize("targets", [np.zeros(7), np.full(200, np.inf), np.array(1.0)])
def test_a_saved_run_whose_targets_do_not_fit(train, targets):
    folder = train(fqi, *TINY_FQI, "--save-model")
    fqi.save_arrays(folder / "targets.npz", {"targets": targets})
    with pytest.raises(BadInput, match="is no saved run"):
        fqi.load_run(folder)


@pytest.mark.parametrize("flags", [{"regressor_kwargs": [1]}, {"no_such_flag": 1}, {"regressor": "knnn"}])
def test_a_saved_run_whose_flags_do_not_fit(train, flags):
    folder = train(fqi, *TINY_FQI, "--save-model")
    config = json.loads((folder / "config.json").read_text())
    config["flags"] |= flags
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput):
        fqi.load_run(folder)


# --- Runs ---


def test_a_run_logs_returns_scores_and_targets_by_iteration(train):
    logged = scalars(train(fqi, *TINY_FQI, "--n-iterations", "5"))
    assert set(logged) == pages.metrics("docs/rl-algorithms/fqi.md")
    assert all([step for step, _ in series] == [2, 4, 5] for series in logged.values())
    # A tree remembers its targets, so the fit is perfect; values of CartPole grow with each iteration.
    assert [value for _, value in logged["charts/score"]] == pytest.approx([1.0] * 3, abs=0.01)
    targets = [value for _, value in logged["charts/mean_target"]]
    assert targets == sorted(targets)
    assert 1 < targets[0] < targets[-1] < 2


def test_targets_that_grow_without_bounds_end_the_run_with_one_line(monkeypatch, capsys):
    monkeypatch.setattr(fqi, "td_targets", lambda *_: np.full(200, np.inf))
    with pytest.raises(SystemExit) as stopped:
        fqi.flags.run(fqi.main, fqi.Args, TINY_FQI)
    assert stopped.value.code == 1
    assert "error: iteration 1 cannot be fitted (Input" in capsys.readouterr().err


def test_neighbours_learn_to_balance_better_than_chance(train):
    """The random policy's 22 steps or so, and the neighbours' 60 or more, from a tenth of the data and of the iterations."""
    folder = train(fqi, "--n-steps", "5000", "--n-iterations", "6", "--eval-frequency", "0")
    assert np.mean(json.loads((folder / "config.json").read_text())["evaluations"]["agent"]["returns"]) > 60
