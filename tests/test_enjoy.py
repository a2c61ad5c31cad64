"""Saved agents played, filmed, shown and put into tables; the models in the box."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from cleanrl import dqn, dqn_atari, dqn_jax, fqi
from cleanrl_utils import enjoy
from cleanrl_utils.evals import __main__ as tables
from cleanrl_utils.evals import human, players, video
from cleanrl_utils.evals.play import Evaluation
from cleanrl_utils.flags import command_line, parse, run
from cleanrl_utils.models.source import ZOO
from cleanrl_utils.zoo import __main__ as zoo
from tests.conftest import QDAGGER, TEACHER, TINY_DQN, TINY_FQI, TINY_RUN, TINY_TEACHER, score, twin_is_slow
from tests.support import children, video_of_noise

LAST_LINE = re.compile(r"episodes=(\d+) mean=(\S+) std=(\S+) min=(\S+) max=(\S+) env_id=\S+ script=\w+")


@pytest.fixture
def command(capsys):
    """Run a command in process; returns the lines it printed."""

    def lines_of(module, *flags: str) -> list[str]:
        capsys.readouterr()
        run(module.main, module.Args, list(flags))
        return capsys.readouterr().out.splitlines()

    return lines_of


def statistics(lines: list[str]) -> tuple[float, ...]:
    """Episodes, mean, standard deviation, least and most, of the last line."""
    return tuple(map(float, LAST_LINE.fullmatch(lines[-1]).groups()))


# --- enjoy ---


@pytest.mark.parametrize("exp_name", twin_is_slow("dqn_atari", "dqn_atari_jax"))
def test_with_no_source_the_model_in_the_box_plays_in_either_framework(command, exp_name, monkeypatch):
    monkeypatch.setattr(players.Player, "settings", cut_at(2000))
    lines = command(enjoy, "--exp-name", exp_name, "--eval-episodes", "2")
    assert len(lines) == 3
    assert lines[0].startswith("episode=1 return=")
    episodes, mean, _, low, high = statistics(lines)
    assert (episodes, mean) == (2, (low + high) / 2)
    assert mean > 0, "500 steps of a player that wins all but one or two points"


def cut_at(frames: int):
    """`Player.settings` with games cut after so many frames."""
    settings = players.Player.settings

    def cut(self, *given):
        args = settings(self, *given)
        args.eval_max_frames = frames
        return args

    return cut


@pytest.mark.slow
@pytest.mark.parametrize("qdagger", QDAGGER)
def test_a_qdagger_student_plays_and_so_does_the_one_before_the_online_phase(train, qdagger, command):
    folder = str(train(qdagger, *TINY_RUN, *TINY_TEACHER, "--save-model"))
    run = json.loads(Path(folder, "config.json").read_text())
    for weights, player in (("last", "online student"), ("offline", "offline student")):
        flags = ["--run", folder, "--weights", weights, "--eval-episodes", "1"]
        assert statistics(command(enjoy, *flags))[1] == run["evaluations"][player]["returns"][0]


def test_agents_of_vectors_play_as_they_were_evaluated(train, agent, command):
    tiny = TINY_FQI if agent is fqi else TINY_DQN
    folder = train(agent, *tiny, "--save-model", "--eval-episodes", "3", "--eval-max-steps", "100")
    expected = json.loads((folder / "config.json").read_text())["evaluations"]["agent"]["returns"]
    lines = command(enjoy, "--run", str(folder), "--eval-episodes", "3")
    assert [float(re.search("return=(.*) length", line)[1]) for line in lines[:-1]] == expected
    assert statistics(lines)[0] == 3


def test_the_best_weights_and_the_twins_script(train, command):
    folder = str(train(dqn, *TINY_DQN, "--save-model", "--eval-frequency", "500", "--eval-max-steps", "200"))
    best, last = (Path(folder, f"dqn{part}.cleanrl_model") for part in ("-best", ""))
    scores = {}
    for weights in ("best", "last"):
        for script in ("dqn", "dqn_jax"):
            flags = ["--run", folder, "--exp-name", script, "--weights", weights, "--eval-episodes", "4"]
            lines = command(enjoy, *flags)
            scores[weights, script] = [*lines[:-1], statistics(lines)]
        assert scores[weights, "dqn"] == scores[weights, "dqn_jax"]
    best.write_bytes(last.read_bytes())
    lines = command(enjoy, "--run", folder, "--weights", "best", "--eval-episodes", "4")
    assert [*lines[:-1], statistics(lines)] == scores["last", "dqn"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--exp-name", "ppo"], "--exp-name ppo: must be a script: dqn, dqn_atari,"),
        (["--env-id", "QbertNoFrameskip-v4"], "has no model of dqn_atari in the box (BeamRiderNoFrameskip-v4-dqn_atari-"),
        (["--run", "nowhere"], "--run nowhere: is no run folder"),
        (["--run", "a", "--hf-repository", "b/c"], "--run a: excludes --hf-repository"),
        (["--env-id", "Pong-v99"], "--env-id Pong-v99: must be an Atari game"),
        (["--env-id", "Qbert-v99"], "--env-id Qbert-v99: must be an Atari game"),
        (["--env-id", "CartPol-v1", "--exp-name", "dqn"], "closest: CartPole-v1"),
        (["--env-id", "ale_py:ALE/Qbert-v5"], "must be an Atari game like PongNoFrameskip-v4 or ALE/Pong-v5: ALE/Qbert-v5"),
        (["--revision", "main"], "--revision main: is of a repository on the Hub"),
        (["--run", str(TEACHER), "--weights", "best"], "holds no file dqn_atari-best.cleanrl_model; --weights names it"),
        (
            ["--hf-repository", str(TEACHER), "--env-id", "ALE/Breakout-v5"],
            "another game's number of actions",
        ),
        (["--eval-episodes", "0"], "--eval-episodes 0: must be above 0"),
        (["--epsilon", "2"], "--epsilon 2.0: must be between 0 and 1"),
        (["--seed", "-1"], "--seed -1: must be 0 or more"),
        (["--video", "game.avi"], "--video game.avi: must end in .mp4 or .gif"),
        (["--video", "/dev/null/game.mp4"], "--video /dev/null/game.mp4: cannot be written"),
        *(
            (["--video", "x.mp4", "--grid", grid], f"--grid '{grid}': must be COLUMNSxROWS, from 1x1 to 10x10")
            for grid in ("3", "0x3", "3x", "3x11", "100x1", "-1x2", "2x2x2", "x", "3 x 3")
        ),
        (["--grid", "3x3"], "--grid 3x3: is the shape of a film: give --video FILE"),
        (["--grid", "3x3", "--video", "x.mp4", "--render"], "--grid 3x3: excludes --render"),
    ],
)
def test_what_cannot_be_played_is_one_line(refused, flags, says):
    assert says in refused(enjoy, *flags)


def test_a_missing_extra_is_named(refused, monkeypatch):
    import sys

    monkeypatch.delitem(sys.modules, "cleanrl.dqn_jax")
    monkeypatch.setitem(sys.modules, "jax", None)
    assert "needs `jax`: pip install -e '.[jax]'" in refused(enjoy, "--exp-name", "dqn_jax", "--run", str(TEACHER))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert "--video on: needs `imageio_ffmpeg`: pip install -e '.[atari,video]'" in refused(enjoy, "--video", "x.mp4")


@pytest.mark.parametrize(
    ("repository", "env_id", "script"),
    [
        ("cleanrl/SpaceInvadersNoFrameskip-v4-dqn_atari-seed1", "SpaceInvadersNoFrameskip-v4", "dqn_atari"),
        ("me/ALE-Breakout-v5-qdagger_dqn_atari_jax_impalacnn-seed12", "ALE/Breakout-v5", "qdagger_dqn_atari_jax_impalacnn"),
        ("me/BreakoutNoFrameskip-v4-c51_atari-seed1", "BreakoutNoFrameskip-v4", "dqn_atari"),
        ("sb3/dqn-SpaceInvadersNoFrameskip-v4", "SpaceInvadersNoFrameskip-v4", "dqn_atari"),
        ("dqn-CartPole-v1", "CartPole-v1", "dqn"),
        ("me/MountainCar-v0-dqn_jax-seed3", "MountainCar-v0", "dqn_jax"),
        ("sb3/ppo-CartPole-v1", None, None),
        ("me/my-best-agent", None, None),
    ],
)
def test_the_name_of_a_repository_tells_environment_and_script(repository, env_id, script):
    assert players.named(repository) == (env_id, script)


def test_a_model_whose_game_nothing_tells_is_not_taken_for_one_of_pong(refused, command, tmp_path, monkeypatch):
    monkeypatch.setattr(players.Player, "settings", cut_at(800))
    for name in ("mine", "SpaceInvadersNoFrameskip-v4-dqn_atari-seed1"):
        shutil.copytree(ZOO / "SpaceInvadersNoFrameskip-v4-dqn_atari-seed1", tmp_path / name)
        (tmp_path / name / "config.json").unlink()
    assert "--env-id (none): say which environment" in refused(enjoy, "--hf-repository", "mine")
    said = command(enjoy, "--hf-repository", "SpaceInvadersNoFrameskip-v4-dqn_atari-seed1", "--eval-episodes", "1")
    assert said[-1].endswith("env_id=SpaceInvadersNoFrameskip-v4 script=dqn_atari")


@pytest.mark.parametrize("source", ["--run", "--hf-repository"])
def test_a_file_does_not_choose_a_package_that_is_imported(refused, source):
    """`package:Name` imports the package, which a folder of others could bring along."""
    folder = Path("runs", "downloaded")
    folder.mkdir(parents=True)
    flags = {"env_id": "runs.downloaded.evil:CartPole-v1", "exp_name": "dqn", "seed": 1}
    run = {"status": "complete", "script": "dqn", "flags": flags}
    (folder / "config.json").write_text(json.dumps(run))
    (folder / "evil.py").write_text("import pathlib\npathlib.Path('hacked').touch()\n")
    assert "give this id with --env-id" in refused(enjoy, source, str(folder))
    assert "give this id with --env-id" in refused(tables, str(folder))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"hidden_units": [-3]}, "--hidden-units (-3,): must be above 0"),
        ({"eval_epsilon": 5.0}, "--eval-epsilon 5.0: must be between 0 and 1"),
        ({"eval_max_steps": -1}, "--eval-max-steps -1: must be above 0"),
        ({"hidden_units": "many"}, "must be a list"),
        ({"unknown": 1}, None),
    ],
)
def test_values_of_a_saved_run_are_checked(command, refused, cartpole, flags, says):
    folder = Path("run")
    shutil.copytree(cartpole, folder)
    run = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(run | {"flags": run["flags"] | flags}))
    if says is None:
        assert statistics(command(enjoy, "--run", "run", "--eval-episodes", "1"))
    else:
        assert says in refused(enjoy, "--run", "run")


def test_another_environment_than_the_runs_is_played_when_it_is_asked_for(capsys):
    player = enjoy.load(enjoy.Args(env_id="ALE/Pong-v5"))
    assert player.args.env_id == "ALE/Pong-v5"
    assert "PongNoFrameskip-v4-dqn_atari-seed1 was trained on PongNoFrameskip-v4" in capsys.readouterr().err


def test_a_config_of_another_project_is_none(command, cartpole, tmp_path):
    """As its packages for the Hub write one beside the model."""
    (tmp_path / "theirs").mkdir()
    shutil.copy(Path(cartpole, "dqn.cleanrl_model"), tmp_path / "theirs")
    (tmp_path / "theirs" / "config.json").write_text('{"policy_class": {":type:": "<class>"}}')
    source = ["--hf-repository", str(tmp_path / "theirs"), "--exp-name", "dqn", "--env-id", "CartPole-v1"]
    assert statistics(command(enjoy, *source, "--eval-episodes", "1"))


def test_a_repository_without_a_config_is_of_dqn_atari_unless_a_flag_says(tmp_path):
    (tmp_path / "theirs").mkdir()
    shutil.copy(TEACHER / "dqn_atari.cleanrl_model", tmp_path / "theirs")
    player = enjoy.load(enjoy.Args(hf_repository=str(tmp_path / "theirs"), env_id="PongNoFrameskip-v4"))
    assert (player.script, player.args.env_id) == ("dqn_atari", "PongNoFrameskip-v4")


# --- Films ---


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory) -> str:
    """The folder of a saved run on CartPole."""
    import os

    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("cartpole"))
    folder = dqn.main(parse(dqn.Args, [*TINY_DQN, "--save-model", "--eval-max-steps", "60"])).absolute()
    os.chdir(before)
    return str(folder)


def read_film(path: str) -> tuple[dict, list[np.ndarray]]:
    import imageio_ffmpeg

    frames = imageio_ffmpeg.read_frames(path)
    about = next(frames)
    width, height = about["size"]
    return about, [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in frames]


def test_a_film_of_atari_shows_every_raw_frame_of_the_screen_with_the_score(command, monkeypatch):
    monkeypatch.setattr(players.Player, "settings", cut_at(600))
    command(enjoy, "--eval-episodes", "1", "--video", "films/pong.mp4")
    about, frames = read_film("films/pong.mp4")
    assert about["fps"] == 60
    assert about["size"] == (320, 448)
    assert 570 <= len(frames) <= 602, "one per raw frame, but for the no-ops of the reset"
    band = [frame[424:].astype(int) for frame in frames]
    assert band[0].max() > 150, "light text on black"
    assert np.abs(band[-1] - band[0]).max() > 100, "the score changes"
    assert np.abs(frames[300][:420].astype(int) - frames[310][:420]).max() > 100, "the game goes on"
    assert [path.name for path in Path("films").iterdir()] == ["pong.mp4"]


def test_a_gif_plays_at_the_speed_of_the_game(command, cartpole):
    from PIL import Image

    lines = command(enjoy, "--run", cartpole, "--eval-episodes", "2", "--video", "cart.gif")
    assert statistics(lines)[0] == 2
    with Image.open("cart.gif") as film:
        steps = int(re.search("length=(.*)", lines[0])[1])
        seconds = film.n_frames * film.info["duration"] / 1000
        assert film.info["loop"] == 0
    assert seconds == pytest.approx((steps + 1) / 50, abs=0.1), "50 pictures a second"


def test_a_gif_stays_under_its_limit(monkeypatch, tmp_path, capsys):
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    sizes = {}
    for limit, name in ((10**9, "all.gif"), (80_000, "half.gif"), (15_000, "part.gif")):
        monkeypatch.setattr(video, "GIF_BYTES", limit)
        with video.Film(tmp_path / name) as film:
            for picture in noise:
                film(picture, 20)
        with Image.open(tmp_path / name) as gif:
            sizes[name] = ((tmp_path / name).stat().st_size, gif.n_frames, gif.info["duration"])
    assert sizes["all.gif"][1:] == (60, 50)
    assert sizes["half.gif"][0] < 80_000
    assert sizes["half.gif"][1:] == (30, 100), "half as many, each for twice as long"
    assert sizes["part.gif"][0] < 15_000
    assert sizes["part.gif"][2] == 100
    assert 1 < sizes["part.gif"][1] < 30
    assert "a GIF of the first" in capsys.readouterr().err


def test_a_gif_whose_start_is_harder_than_its_rest_stays_under_its_limit(monkeypatch, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    monkeypatch.setattr(video, "GIF_BYTES", 15_000)
    with video.Film(tmp_path / "a.gif") as film:
        for i in range(200):
            film(noise[min(i, 19)], 20)
    assert 1000 < (tmp_path / "a.gif").stat().st_size < 15_000


@pytest.mark.parametrize("num_pictures", [5, 120])
def test_a_film_that_a_full_disk_cuts_short_does_not_take_the_place_of_the_one_before(tmp_path, num_pictures):
    """ffmpeg ends with an error, or with a shorter film and none."""
    status, said = children.run(video_of_noise, str(tmp_path / "game.mp4"), str(num_pictures))
    assert status == 1, said
    assert "game.mp4: cannot be written (ffmpeg has not written all of it: is the disk full?)" in said
    assert "Traceback" not in said
    assert [(path.name, path.read_bytes()) for path in tmp_path.glob("*.mp4")] == [("game.mp4", b"the one before")]


def test_a_long_game_makes_a_gif_of_its_beginning(tmp_path, capsys):
    blank = np.zeros((16, 16, 3), np.uint8)
    with video.Film(tmp_path / "long.gif") as film:
        for i in range(20 * (video.GIF_SECONDS + 10)):
            film(blank + i % 200, 20)
    assert len(film.reel.packed) == 20 * video.GIF_SECONDS
    assert "a GIF of the first 120 seconds" in capsys.readouterr().err


def test_a_grid_is_three_columns_and_two_rows_and_keeps_the_last_pictures_of_games_that_have_ended():
    lengths, shown = (1, 3, 2, 1, 4, 2), []

    def play(show: video.Show, game: int) -> float:
        """A game whose pictures say which game it is and how many pictures came before."""
        for time in range(lengths[game]):
            show(np.full((4, 6, 3), 10 * game + time, np.uint8), 60)
        return 100.0 + game

    scores = video.show_grid(lambda picture, fps: shown.append((picture, fps)), 3, 2, play)
    assert scores == [100, 101, 102, 103, 104, 105]
    assert [fps for _, fps in shown] == [60] * 4
    pictures = [picture for picture, _ in shown]
    assert {picture.shape for picture in pictures} == {(2 * (4 + 2), 3 * (6 + 2), 3)}, "each with a line of two pixels"
    # Each row of three numbers is a row of three games.
    assert [picture[::6, ::8, 0].tolist() for picture in pictures] == [
        [[0, 10, 20], [30, 40, 50]],
        [[0, 11, 21], [30, 41, 51]],
        [[0, 12, 21], [30, 42, 51]],
        [[0, 12, 21], [30, 43, 51]],
    ]
    assert np.unique(pictures[3][:4, 8:14]).tolist() == [12], "the whole tile"
    assert not pictures[3][4:6].any()
    assert not pictures[3][:, 6:8].any()


def test_pictures_of_a_grid_are_made_smaller_by_a_whole_number_until_they_fit():
    screen = np.random.default_rng(0).integers(0, 256, (224, 160, 3), dtype=np.uint8)
    doubled = screen.repeat(2, axis=0).repeat(2, axis=1)
    assert (video.tile(doubled, 322, 450)[:448, :320] == doubled).all()
    assert video.tile(doubled, 322, 449).shape == (226, 162, 3)
    assert (video.tile(doubled, 321, 450)[:224, :160] == screen).all()
    assert video.tile(np.zeros((426, 600, 3), np.uint8), 426, 426).shape == (212 + 2, 300 + 2, 3), "sides are even"


def test_a_grid_of_atari_is_one_film_of_games_with_seeds_of_their_own(command, monkeypatch):
    monkeypatch.setattr(players.Player, "settings", cut_at(250))
    assert len(command(enjoy, "--eval-episodes", "1", "--video", "grid.mp4", "--grid", "2x1")) == 2
    about, frames = read_film("grid.mp4")
    assert about["fps"] == 60
    assert about["size"] == (2 * 322, 450)
    assert 220 < len(frames) <= 252
    left, right = frames[-1][:448, :320].astype(int), frames[-1][:448, 322:642]
    assert left[424:].max() > 150, "the score"
    assert np.abs(left - right).max() > 100, "another game"


def test_a_grid_of_vector_environments_is_as_long_as_its_longest_episode(cartpole, capsys):
    flags = f"--run {cartpole} --eval-episodes 1 --epsilon 1 --seed 5"
    run(enjoy.main, enjoy.Args, f"{flags} --video grid.mp4 --grid 2x3".split())
    said = re.search(r"video: grid.mp4, 6 episodes of their own, mean return (.*)", capsys.readouterr().err)
    player = players.from_folder(cartpole, "--run")
    lengths = [player.show(lambda *_: None, 1.0, seed) for seed in range(5, 11)]
    assert len(set(lengths)) > 1
    assert float(said[1]) == pytest.approx(np.mean(lengths))
    about, frames = read_film("grid.mp4")
    assert len(frames) == max(lengths) + 1
    assert about["size"] == (2 * 302, 3 * 214)


@pytest.mark.parametrize("suffix", ["mp4", "gif"])
def test_a_film_that_is_interrupted_leaves_the_one_before(tmp_path, suffix):
    path = tmp_path / f"game.{suffix}"
    path.write_bytes(b"the one before")
    with pytest.raises(KeyboardInterrupt), video.Film(path) as film:
        film(np.zeros((32, 32, 3), np.uint8), 30)
        raise KeyboardInterrupt
    assert path.read_bytes() == b"the one before"
    assert list(tmp_path.iterdir()) == [path]


def test_episodes_are_shown_in_a_window(command, cartpole, monkeypatch, capsys):
    import pygame

    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.delenv("DISPLAY", raising=False)
    shown = []
    show = video.Window.__call__
    monkeypatch.setattr(video.Window, "__call__", lambda self, *picture: (show(self, *picture), shown.append(picture))[0])
    monkeypatch.setattr(pygame.time, "Clock", lambda: type("Clock", (), {"tick": staticmethod(shown.append)}))
    run(enjoy.main, enjoy.Args, ["--run", cartpole, "--eval-episodes", "2", "--render"])
    printed = capsys.readouterr()
    lengths = [int(re.search("length=(.*)", line)[1]) for line in printed.out.splitlines()[:1]]
    assert "episode 2, return" in printed.err
    assert shown.count(50) == len(shown) / 2 >= lengths[0] + 1

    monkeypatch.setattr(pygame.event, "get", lambda *_: [1])  # the window is closed
    shown.clear()
    assert statistics(command(enjoy, "--run", cartpole, "--eval-episodes", "2", "--render"))[0] == 2
    assert len(shown) <= 2


def test_a_machine_without_a_screen(cartpole):
    """The real thing, in a process of its own, where drawing environments in memory has set SDL's driver meanwhile."""
    status, said = children.run(enjoy, "--run", cartpole, "--render", "--video", "x.gif", before=no_screen)
    assert status == 2, said
    assert "--render on: finds no screen" in said
    assert not Path("x.gif").exists()


def no_screen(_) -> None:
    """Before a run: nothing that says where a screen is."""
    import os

    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        os.environ.pop(name, None)


def test_an_environment_without_a_picture(refused, train):
    folder = train(dqn, *TINY_DQN, "--env-id", "tests.support.probes:Constant-v0", "--total-timesteps", "20", "--save-model")
    flags = ["--run", str(folder), "--env-id", "tests.support.probes:Constant-v0"]
    assert "--video on: tests.support.probes:Constant-v0 has no picture" in refused(enjoy, *flags, "--video", "x.mp4")
    assert "give this id with --env-id" in refused(enjoy, "--run", str(folder))


def test_large_scores_keep_their_digits():
    assert video._band(160, 14, "score 1").shape == (14, 160, 3)
    assert tables._cell("max", 1234567.0) == "1234567"


# --- Tables ---


def test_a_table_holds_what_the_games_say_raw_and_clipped():
    player = players.Player("model", "dqn_atari", dqn_atari.Args(env_id="SpaceInvadersNoFrameskip-v4"), None)
    result = Evaluation([1000.0, 490.0, 346.0], [700, 650, 600], 1, [49.0, 30.0, 20.0])
    raw, clipped = tables.rows(player, result, 0.05)
    assert raw == {
        "model": "model", "environment": "SpaceInvadersNoFrameskip-v4", "rewards": "raw", "epsilon": 0.05, "max": 1000.0,
        "mean": 612.0, "min": 346.0, "sd": pytest.approx(280.58, abs=0.01),
        "human-normalised": pytest.approx((612 - 148.0) / (1668.7 - 148.0)), "length": 650.0, "games": 3, "cut": 1,
    }  # fmt: skip
    assert (clipped["rewards"], clipped["max"], clipped["mean"], clipped["min"]) == ("clipped", 49.0, 33.0, 20.0)
    lines = tables.markdown([raw, clipped], "raw").splitlines()
    assert len(lines) == 3
    assert lines[2] == "| model | SpaceInvadersNoFrameskip-v4 | 0.05 | 1000 | 612.0 | 346 | 280.6 | 30.5% | 650.0 | 3 | 1 |"
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    assert "human" not in tables.markdown([raw, clipped], "clipped"), "human scores are raw"


def test_clipped_returns_are_the_sums_of_the_signs():
    result = score(
        lambda obs: np.zeros(len(obs), int), "SpaceInvadersNoFrameskip-v4", 2, seed=3, epsilon=1.0, eval_max_frames=2000
    )
    assert all(0 < clipped * 5 <= raw for clipped, raw in zip(result.clipped_returns, result.returns, strict=True))


def test_a_table_of_several_models_is_printed_and_written(command, monkeypatch, cartpole):
    monkeypatch.setattr(players.Player, "settings", cut_at(400))
    lines = command(tables, str(TEACHER), cartpole, "--episodes", "2", "--epsilon", "0.1", "--out", "scores")
    assert Path("scores.md").read_text() == "\n".join(lines[:-1]) + "\n"
    rows = list(csv.DictReader(Path("scores.csv").open()))
    assert [(row["model"], row["rewards"]) for row in rows] == [
        (TEACHER.name, "raw"), (TEACHER.name, "clipped"), (Path(cartpole).name, "raw"),
    ]  # fmt: skip
    assert {row["epsilon"] for row in rows} == {"0.1"}
    assert rows[2]["human-normalised"] == "", "nobody has measured a human there"
    assert str(Path(cartpole).parent) not in Path("scores.md").read_text() + Path("scores.csv").read_text()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "RUN_FOLDER (none): name one run folder or more"),
        (["nowhere"], "RUN_FOLDER nowhere: is no run folder"),
        ([str(TEACHER), "--episodes", "0"], "--episodes 0: must be above 0"),
        ([str(TEACHER), "--out", "no/where"], "--out no/where: must be in a folder that exists"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(refused, flags, says):
    assert says in refused(tables, *flags)


def test_human_normalised_scores():
    assert human.human_normalised("PongNoFrameskip-v4", -20.7) == 0
    assert human.human_normalised("ALE/Breakout-v5", 30.5) == 1
    assert human.human_normalised("BreakoutNoFrameskip-v4", (1.7 + 30.5) / 2) == pytest.approx(0.5)
    assert human.human_normalised("CartPole-v1", 500) is None
    assert len(human.SCORES) == 57


def test_games_with_human_scores_are_games():
    import ale_py.roms

    assert human.SCORES.keys() <= set(ale_py.roms.get_all_rom_ids())


# --- The box ---


def test_every_model_in_the_box_is_listed_with_card_curve_and_evaluation(command):
    lines = "\n".join(command(zoo))
    folders = sorted(path.parent for path in ZOO.glob("*/*.cleanrl_model"))
    folders += sorted(path.parent for path in ZOO.glob("*/targets.npz"))
    assert len(folders) >= 1
    for folder in folders:
        assert {"README.md", "config.json", "curve.png", "evaluation.csv", "evaluation.md"} <= {
            p.name for p in folder.iterdir()
        }
        row = next(csv.DictReader((folder / "evaluation.csv").open()))
        card = (folder / "README.md").read_text()
        assert f"{float(row['mean']):.2f} +- {float(row['sd']):.2f}" in card.replace("+/-", "+-"), folder.name
        assert f"zoo/{folder.name}/README.md" in lines
    assert len(zoo.models()) == len(folders)


@pytest.mark.parametrize("folder", [m["folder"] for m in zoo.models()], ids=lambda folder: folder.name)
def test_every_model_in_the_box_can_be_played(folder):
    player = players.from_folder(str(folder), "--run")
    args = player.settings(1, None, 1)
    if player.is_atari:
        obs = np.zeros((3, 4, 84, 84), np.uint8)
    else:
        from cleanrl_utils.evals.gym import sizes

        obs = np.zeros((3, sizes(args)[0]), np.float32)
    assert player.act(obs).shape == (3,)


def test_nothing_private_is_in_the_box():
    texts = [path for path in ZOO.rglob("*") if path.suffix in (".json", ".md", ".csv")]
    assert [path for path in texts if re.search(r"/(home|root|tmp|work|Users)/", path.read_text())] == []


def test_a_command_line_makes_the_same_flags_again():
    args = dqn.Args(
        env_kwargs={"a": [1]}, hidden_units=(8, 4), cuda=False, learning_rate=1e-5, exp_name="x y", eval_frequency=3
    )
    words = command_line(args)
    assert words == [
        "--exp-name", "x y", "--no-cuda", "--env-kwargs", '{"a": [1]}', "--eval-frequency", "3", "--learning-rate", "1e-05",
        "--hidden-units", "8", "4",
    ]  # fmt: skip
    assert parse(dqn.Args, words) == args
    assert command_line(dqn_jax.Args()) == []
