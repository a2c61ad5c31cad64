"""Upload to a real server on loopback, and back again as a teacher, through the ordinary client.

The client reads its settings when it is imported, so each run is a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from cleanrl import dqn, dqn_atari, fqi, qdagger_dqn_atari_impalacnn
from cleanrl_utils import enjoy, huggingface, private
from cleanrl_utils.errors import BadInput
from cleanrl_utils.flags import parse
from cleanrl_utils.run import replay
from tests.conftest import TINY_DQN, TINY_FQI, TINY_RUN, TINY_TEACHER, Bomb
from tests.support import children
from tests.support.hub import BROKEN, Hub

TOKEN = "hf_secret"
REPO = "me/PongNoFrameskip-v4-dqn_atari-seed1"


@pytest.fixture
def hub():
    server = Hub(TOKEN)
    yield server
    server.shutdown()
    server.server_close()


def use_hub(_: ModuleType, settings: dict[str, str]) -> None:
    """Before a run: set the client's environment, which it reads when it is imported."""
    assert "huggingface_hub" not in sys.modules
    for name in [name for name in os.environ if name.startswith("HF_")]:
        del os.environ[name]
    os.environ.update(settings)


def run(hub, script: ModuleType, *flags: str, token: str | None = TOKEN, offline: bool = False) -> tuple[int, str]:
    """A run with the Hub's address, in a process of its own: status, and what it wrote."""
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(Path("hf").absolute()), "HF_HUB_DISABLE_XET": "1"}
    settings |= ({"HF_TOKEN": token} if token else {}) | ({"HF_HUB_OFFLINE": "1"} if offline else {})
    return children.run(script, *flags, before=use_hub, args=(settings,))


def push(hub, folder: Path | str, *flags: str, **settings) -> tuple[int, str]:
    return run(hub, huggingface, "push", str(folder), "--hf-entity", "me", *flags, **settings)


def card(files: dict[str, bytes]) -> dict:
    return yaml.safe_load(files["README.md"].decode().split("---")[1])


# --- Upload ---


def test_a_trained_run_is_uploaded_and_comes_back_as_a_teacher_in_a_fresh_cache(hub, teacher):
    flags = ["--save-model", "--save-replay", "--upload-model", "--hf-entity", "me", "--capture-video"]
    status, said = run(hub, dqn_atari, *TINY_RUN, *flags)
    assert status == 0, said
    files = hub.repos[REPO]
    (folder,) = Path("runs").iterdir()
    (events,) = folder.glob("events*")
    (film,) = Path("videos", folder.name).iterdir()
    assert set(files) == {"dqn_atari.cleanrl_model", "config.json", "README.md", "dqn_atari.py", events.name, "replay.mp4"}
    for name in ("dqn_atari.cleanrl_model", events.name):
        assert files[name] == (folder / name).read_bytes()
    assert files["dqn_atari.py"] == Path(dqn_atari.__file__).read_bytes()
    assert files["replay.mp4"] == film.read_bytes()
    kept = json.loads(files["config.json"])
    assert kept["evaluations"] == json.loads((folder / "config.json").read_text())["evaluations"]
    assert kept["status"] == "complete"
    assert "hf_entity" not in kept["flags"]

    metadata = card(files)
    assert (metadata["library_name"], metadata["pipeline_tag"]) == ("cleanrl", "reinforcement-learning")
    assert "PongNoFrameskip-v4" in metadata["tags"]
    (result,) = metadata["model-index"][0]["results"]
    assert result["dataset"]["name"] == "PongNoFrameskip-v4"
    (score,) = kept["evaluations"]["agent"]["returns"]
    assert result["metrics"][0]["value"] == f"{score:.2f} +/- 0.00"

    # The card's command makes this run again: the same flags, but for what is of this account.
    lines = files["README.md"].decode().splitlines()
    command = next(line for line in lines if line.startswith("python cleanrl/dqn_atari.py"))
    again = vars(parse(dqn_atari.Args, shlex.split(command)[2:]))
    assert {name: again[name] for name in kept["flags"]} == kept["flags"]
    assert again["hf_entity"] == ""

    # 16 updates do not make a teacher; the one in the box takes its place behind the same name.
    files["dqn_atari.cleanrl_model"] = (teacher / "dqn_atari.cleanrl_model").read_bytes()
    flags = [*TINY_RUN, *TINY_TEACHER, "--teacher-policy-hf-repo", REPO]
    status, said = run(hub, qdagger_dqn_atari_impalacnn, *flags, token=None)
    assert status == 0, said
    assert f"no folder {REPO} here: asking the Hugging Face Hub" in said


@pytest.fixture(scope="module")
def short_run(tmp_path_factory) -> Path:
    """A complete run, as short as can be."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("saved"))
    folder = dqn.main(parse(dqn.Args, [*TINY_DQN, "--total-timesteps", "20", "--save-model"])).absolute()
    os.chdir(before)
    return folder


@pytest.fixture
def saved(short_run) -> Path:
    """A copy of it, that a test may spoil."""
    return Path(shutil.copytree(short_run, Path("runs", short_run.name)))


def test_a_replay_is_uploaded_where_that_is_asked_for(hub, train, saved):
    assert "needs a run of --save-replay" in push(hub, saved, "--with-replay")[1]
    assert not hub.repos
    folder = train(dqn_atari, *TINY_RUN, "--save-model", "--save-replay")
    assert push(hub, folder, "--with-replay")[0] == 0
    files = hub.repos[REPO]
    assert files[replay.FILE] == (folder / replay.FILE).read_bytes()
    assert "`replay.zip` is the replay buffer" in files["README.md"].decode()
    (folder / replay.FILE).write_bytes(files[replay.FILE][:-100])
    status, said = push(hub, folder, "--with-replay")
    assert (status, "replay.zip is damaged" in said) == (2, True)


def test_nothing_private_is_in_a_repository(hub, train, tmp_path):
    (tmp_path / "own.yaml").write_text("hidden_units: [16]\n")
    flags = ["--config", str(tmp_path / "own.yaml"), "--wandb-project-name", "my-project", "--wandb-entity", "my-team"]
    flags += ["--tracker", "trackio"]
    folder = train(dqn, *TINY_DQN, *flags, "--save-model")
    status, said = push(hub, folder)
    assert status == 0, said
    assert said.splitlines()[-1] == f"{hub.url}/me/CartPole-v1-dqn-seed1"
    files = hub.repos["me/CartPole-v1-dqn-seed1"]
    ours = [str(tmp_path), str(Path.home()), TOKEN, "my-project", "my-team", "own.yaml"]
    ours += [socket.gethostname()] if len(socket.gethostname()) > 5 else []  # short ones are words of any text
    assert [(name, text) for name, content in files.items() for text in ours if text.encode() in content] == []
    assert json.loads(files["config.json"])["flags"]["hidden_units"] == [16]
    assert "tracker" not in json.loads(files["config.json"])["flags"], "what logged it is nobody's business"
    assert "--hidden-units 16" in files["README.md"].decode(), "what the file said is in the command"


def test_a_file_that_holds_what_is_private_stops_the_upload(hub, saved):
    (saved / "dqn.py").write_text(f"DATA = '{Path.cwd()}/data'")
    status, said = push(hub, saved)
    assert (status, hub.repos) == (2, {})
    assert "dqn.py: holds a local path" in said
    (saved / "dqn.py").write_text(f"TOKEN = '{TOKEN}'")
    status, said = push(hub, saved)
    assert (status, hub.repos) == (2, {})
    assert "holds your token" in said
    assert TOKEN not in said


@pytest.mark.parametrize(
    ("home", "host", "refused"),
    [
        ("/data", "box-17", False),  # every torch file holds /data.pkl, as part of a name
        ("/nowhere", "torch", False),  # a key of the versions
        ("/nowhere", "learn", False),
        ("/home/someone", "box-17", True),
        ("/nowhere", "box-17", True),
    ],
)
def test_private_things_are_looked_for_as_whole_paths_and_in_values(short_run, monkeypatch, home, host, refused):
    run = json.loads((short_run / "config.json").read_text())
    files = {path.name: path.read_bytes() for path in short_run.glob("*.cleanrl_model")}
    if refused and home != "/nowhere":
        files["dqn.py"] = b"open('/home/someone/data')"
    if refused and home == "/nowhere":
        run["flags"]["env_kwargs"] = {"server": "box-17:8080"}
    files["config.json"] = json.dumps(run).encode()
    monkeypatch.setattr(Path, "home", lambda: Path(home))
    monkeypatch.setattr(private.socket, "gethostname", lambda: host)
    with pytest.raises(BadInput, match="must not go out") if refused else contextlib.nullcontext():
        private.require_nothing_private(files)


def test_a_push_can_be_repeated_and_replaces_what_it_put_there(hub, saved):
    assert push(hub, saved)[0] == 0
    files = hub.repos["me/CartPole-v1-dqn-seed1"]
    first = dict(files)
    own = {"notes.txt": b"the owner's own", "merged.cleanrl_model": b"too"}
    files |= {
        "events.out.tfevents.0000000001": b"of a run before",
        "replay.mp4": b"too",
        "dqn-best.cleanrl_model": b"too",
    } | own
    status, said = push(hub, saved)
    assert status == 0, said
    assert files == first | own
    assert len(hub.commits) == 2, "one commit each: whole or not at all"
    status, said = push(hub, saved, "--private")
    assert (status, files) == (2, first | own)
    assert "already exists and is public" in said


def test_a_run_of_fqi_is_uploaded_and_played_from_there(hub, train):
    folder = train(fqi, *TINY_FQI, "--save-model", "--regressor", "linear")
    assert push(hub, folder)[0] == 0
    assert {"dataset.npz", "targets.npz", "config.json", "fqi.py"} <= hub.repos["me/CartPole-v1-fqi-seed1"].keys()
    flags = ["--exp-name", "fqi", "--env-id", "CartPole-v1", "--hf-repository", "me/CartPole-v1-fqi-seed1"]
    status, said = run(hub, enjoy, *flags, "--eval-episodes", "2", token=None)
    assert status == 0, said
    assert said.splitlines()[-1].startswith("episodes=2 mean=")


def test_a_private_repository(hub, saved):
    assert push(hub, saved, "--private")[0] == 0
    assert hub.private == {"me/CartPole-v1-dqn-seed1"}
    play = ["--exp-name", "dqn", "--env-id", "CartPole-v1", "--hf-repository", "me/CartPole-v1-dqn-seed1"]
    status, said = run(hub, enjoy, *play, token=None)
    assert status == 2
    assert "no public repository on the Hub; for a private one, `hf auth login` first" in said
    status, said = run(hub, enjoy, *play, "--eval-episodes", "1")
    assert status == 0, said


def test_a_model_of_vectors_is_uploaded_under_a_name_that_the_hub_takes(hub):
    flags = ["--env-id", "flappy_bird_gymnasium:FlappyBird-v0", "--env-kwargs", '{"use_lidar": false}']
    status, said = run(hub, dqn, *TINY_DQN, *flags, "--save-model", "--upload-model", "--hf-entity", "me")
    assert status == 0, said
    files = hub.repos["me/flappy_bird_gymnasium-FlappyBird-v0-dqn-seed1"]
    assert card(files)["model-index"][0]["results"][0]["dataset"]["name"] == "flappy_bird_gymnasium:FlappyBird-v0"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [("targets.npz", None, "holds no model: train with --save-model"), ("dataset.npz", b"PK no", "dataset.npz ")],
)
def test_half_a_run_of_fqi_is_not_pushed(hub, train, name, content, says):
    folder = train(fqi, *TINY_FQI, "--save-model", "--regressor", "linear")
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    status, said = push(hub, folder)
    assert (status, hub.repos) == (2, {})
    assert says in said


def test_a_token_that_may_only_read(hub, saved):
    hub.role = "read"
    status, said = push(hub, saved)
    assert (status, hub.repos) == (2, {})
    assert "needs a token that may write; yours may only read" in said


def change(**changes) -> Callable[[Path], None]:
    """A change of a run's config.json."""

    def write(folder: Path) -> None:
        run = json.loads((folder / "config.json").read_text())
        flags = run["flags"] | changes.pop("flags", {})
        (folder / "config.json").write_text(json.dumps(run | changes | {"flags": flags}))

    return write


@pytest.mark.parametrize(
    ("spoil", "flags", "says"),
    [
        (lambda folder: (folder / "dqn.cleanrl_model").unlink(), [], "holds no model: train with --save-model"),
        (lambda folder: (folder / "dqn.cleanrl_model").write_bytes(b"PK no"), [], "dqn.cleanrl_model cannot be read"),
        (change(status="stopped"), [], "is not complete but stopped"),
        (change(evaluations={}), [], "no evaluations are in it"),
        (change(evaluations={"agent": {"returns": [], "lengths": [], "capped": 0}}), [], "a config.json that is damaged"),
        (change(flags={"exp_name": "a--b"}), [], "--exp-name a--b: is not valid in a repository name"),
        (change(flags={"env_kwargs": {"file": "/mnt/me/m.xml"}}), [], "config.json: holds a local path (/mnt/me/m.xml)"),
        (change(command=["dqn.py", "--dataset=C:\\\\me\\\\x.npz"]), [], "holds a local path"),
        (lambda folder: (folder / "config.json").unlink(), [], "is no run folder"),
        (change(), ["--video", "none.mp4"], "--video none.mp4: must be an MP4 file"),
        (change(), ["--hf-entity", "someone-else"], "must be one this token may write for: me"),
        (change(), ["--hf-entity", ""], "--hf-entity (none): name a user"),
    ],
)
def test_what_cannot_be_pushed_is_said_before_a_repository_is_made(hub, saved, spoil, flags, says):
    spoil(saved)
    status, said = push(hub, saved, *flags)
    assert (status, hub.repos) == (2, {})
    assert says in said
    assert "Traceback" not in said


def test_a_model_with_code_in_it_is_not_pushed(hub, saved):
    import torch

    torch.save({"network.0.weight": Bomb()}, saved / "dqn.cleanrl_model")
    status, said = push(hub, saved)
    assert (status, hub.repos) == (2, {})
    assert "holds code, which is refused" in said
    assert not Path("hacked").exists()


def test_an_upload_that_fails_after_training_leaves_the_run_complete_and_says_how_to_go_on(hub, monkeypatch):
    import tests.support.hub

    monkeypatch.setattr(tests.support.hub.Handler, "do_PUT", lambda self: self.answer(403))
    monkeypatch.setattr(tests.support.hub, "LFS_SIZE", 1)
    status, said = run(hub, dqn, *TINY_DQN, "--save-model", "--upload-model", "--hf-entity", "me")
    (folder,) = Path("runs").iterdir()
    assert status == 0, said
    assert f"push {folder} --hf-entity me` tries again" in said
    assert json.loads((folder / "config.json").read_text())["status"] == "complete"


def test_an_entity_that_the_token_may_not_write_for_is_refused_before_training(hub):
    status, said = run(hub, dqn_atari, *TINY_RUN, "--save-model", "--upload-model", "--hf-entity", "someone-else")
    assert status == 2
    assert "--hf-entity someone-else: must be one this token may write for: me" in said


def test_a_token_that_the_hub_does_not_know_is_refused_before_training(hub):
    status, said = run(hub, dqn_atari, *TINY_RUN, "--save-model", "--upload-model", "--hf-entity", "me", token="hf_wrong")
    assert status == 2
    assert "needs the Hub and a token" in said
    assert hub.repos == {}
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("flags", "says"), [([], "--hf-entity"), (["--hf-entity", "me", "--no-save-model"], "--save-model")]
)
def test_an_upload_without_what_it_needs(refused, flags, says):
    assert says in refused(dqn_atari, *TINY_RUN, "--save-model", "--upload-model", *flags)


# --- Download ---


def test_a_repository_with_one_model_under_another_name_is_used_also_offline(hub, saved):
    """And without our config.json, as CleanRL's are: the sizes of the layers are those of the file."""
    hub.repos["me/one"] = {"dqn.cleanrl_model": (saved / "dqn.cleanrl_model").read_bytes(), "README.md": b""}
    flags = ["--exp-name", "dqn_jax", "--env-id", "CartPole-v1", "--hf-repository", "me/one", "--eval-episodes", "1"]
    status, said = run(hub, enjoy, *flags)
    assert status == 0, said
    told = "me/one holds dqn.cleanrl_model, not dqn_jax.cleanrl_model: using that"
    assert told in said
    status, said = run(hub, enjoy, *flags, offline=True)
    assert status == 0, said
    assert told in said
    assert "asking" not in said


@pytest.mark.parametrize(
    ("repo", "flags", "token", "says"),
    [
        ("me/nothing", [], None, "no public repository on the Hub; for a private one, `hf auth login` first"),
        ("me/nothing", [], TOKEN, "no repository on the Hub that your token may read"),
        ("me/private", [], None, "for a private one, `hf auth login` first"),
        ("me/gated", [], TOKEN, "is gated: accept its terms on the Hub"),
        ("me/empty", [], TOKEN, "holds no file dqn_atari.cleanrl_model; --teacher-model-exp-name names it"),
        ("me/two", [], TOKEN, "but a.cleanrl_model, b.cleanrl_model; --teacher-model-exp-name names it"),
        ("me/empty", ["--teacher-revision", "v9"], TOKEN, "has no such revision"),
        ("me/odd", [], TOKEN, "is not a plain state_dict"),
        ("me/broken", [], TOKEN, "the connection to the Hub broke"),
        ("me/odd", [], "hf_wrong", "the Hub does not know your token"),
        ("one/two/three", [], TOKEN, "is neither a local folder nor a repository name"),
    ],
)
def test_what_cannot_be_had_from_the_hub_has_its_own_sentence(hub, repo, flags, token, says):
    hub.repos |= {"me/empty": {}, "me/private": {}, "me/gated": {}, "me/odd": {"dqn_atari.cleanrl_model": b"no model"}}
    hub.repos["me/two"] = {"a.cleanrl_model": b"", "b.cleanrl_model": b""}
    hub.repos["me/broken"] = {"dqn_atari.cleanrl_model": BROKEN}
    hub.private, hub.gated = {"me/private"}, {"me/gated"}
    teacher = [*TINY_RUN, *TINY_TEACHER, "--teacher-policy-hf-repo", repo]
    status, said = run(hub, qdagger_dqn_atari_impalacnn, *teacher, *flags, token=token)
    assert status == 2, said
    assert f"error: --teacher-policy-hf-repo {repo}: " in said
    assert says in said
    assert "Traceback" not in said
    assert not Path("runs").exists()


@pytest.mark.parametrize("status", [429, 503])
def test_a_hub_that_is_busy_is_told_with_what_it_answers(hub, status):
    hub.repos["me/busy"] = {"dqn_atari.cleanrl_model": status}
    flags = [*TINY_RUN, *TINY_TEACHER, "--teacher-policy-hf-repo", "me/busy"]
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(Path("hf").absolute())}
    found, said = children.run(qdagger_dqn_atari_impalacnn, *flags, before=no_patience, args=(settings,))
    assert found == 2, said
    assert str(status) in said.splitlines()[-1]
    assert "Traceback" not in said


def test_offline_and_not_in_the_cache(hub):
    teacher = [*TINY_RUN, *TINY_TEACHER, "--teacher-policy-hf-repo", "me/nothing"]
    status, said = run(hub, qdagger_dqn_atari_impalacnn, *teacher, offline=True)
    assert status == 2, said
    assert "is not in the local cache, and HF_HUB_OFFLINE is set" in said


def no_patience(script: ModuleType, settings: dict[str, str]) -> None:
    """Before a run: the client's retries do not wait."""
    import time

    use_hub(script, settings)
    time.sleep = lambda _: None


def test_no_network_is_said_before_the_clients_retries(hub):
    hub.shutdown()
    hub.server_close()
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(Path("hf").absolute())}
    teacher = [*TINY_RUN, *TINY_TEACHER, "--teacher-policy-hf-repo", "me/nothing"]
    status, said = children.run(qdagger_dqn_atari_impalacnn, *teacher, before=no_patience, args=(settings,))
    assert status == 2, said
    lines = [line for line in said.splitlines() if "me/nothing" in line]
    assert "no folder me/nothing here: asking the Hugging Face Hub; without a network, that takes half a minute" in lines[0]
    assert "is not in the local cache, and the Hub cannot be reached" in lines[-1]
