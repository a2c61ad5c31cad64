"""Push a finished run to the Hugging Face Hub: `python -m cleanrl_utils.huggingface push RUN_FOLDER --hf-entity NAME`."""

from __future__ import annotations

import re
import shlex
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import tyro

from cleanrl_utils.console import notice, output
from cleanrl_utils.errors import BadInput, first_line
from cleanrl_utils.evals.play import Evaluation
from cleanrl_utils.files import file_name, json_text
from cleanrl_utils.flags import run
from cleanrl_utils.models.files import FQI_FILES, SUFFIX, ModelError, read_arrays
from cleanrl_utils.private import public, require_nothing_private
from cleanrl_utils.record import event_files, read_run
from cleanrl_utils.run import replay
from cleanrl_utils.run.archive import ArchiveError


@dataclass
class Args:
    """Push a finished run to the Hugging Face Hub: models, flags, script, events, scores and a model card."""

    action: tyro.conf.Positional[Literal["push"]] = "push"
    """what to do"""
    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN_FOLDER")] = ""
    """run folder of a complete training run with --save-model"""
    hf_entity: str = ""
    """user or organization on the Hub; the repository is {hf_entity}/{env_id}-{exp_name}-seed{seed}"""
    video: str | None = None
    """film to show on the model card, FILE.mp4; default: the last film from the run's --capture-video"""
    private: bool = False
    """make the repository private if it does not exist yet"""
    with_replay: bool = False
    """also upload the replay buffer, if the run was trained with --save-replay"""


class UploadFlags(Protocol):
    """The flags that say where a model goes."""

    env_id: str
    exp_name: str
    seed: int
    save_model: bool
    upload_model: bool
    hf_entity: str


def check_upload(args: UploadFlags) -> None:
    """Raise `BadInput` if `--upload-model` is on but cannot work: it needs a saved model, an entity, a token for the Hub."""
    if not args.upload_model:
        return
    if not args.save_model:
        raise BadInput("--upload-model", "on", "needs --save-model")
    if not args.hf_entity:
        raise BadInput("--upload-model", "on", "needs --hf-entity, a user or organization on the Hugging Face Hub")
    repository_name(args.hf_entity, vars(args))
    require_entity(args.hf_entity)


def repository_name(entity: str, flags: dict[str, Any]) -> str:
    """Return the repository's name for a run with these flags. Raises `BadInput` if the Hub does not accept it."""
    from huggingface_hub import errors  # noqa: PLC0415 - slow to import, and needed to upload only
    from huggingface_hub.utils import validate_repo_id  # noqa: PLC0415

    name = f"{entity}/{file_name(flags['env_id'])}-{flags['exp_name']}-seed{flags['seed']}"
    try:
        validate_repo_id(name)
    except errors.HFValidationError as error:
        raise BadInput("--exp-name", flags["exp_name"], f"is not valid in a repository name ({first_line(error)})") from None
    return name


def require_entity(entity: str) -> None:
    """Raise `BadInput` unless the Hub knows the token, the token may write, and the entity is the user or one of theirs."""
    from huggingface_hub import HfApi  # noqa: PLC0415

    try:
        account = HfApi().whoami()
    except Exception as error:  # the HTTP library's own errors differ between versions of the client
        raise BadInput("--hf-entity", entity, f"needs the Hub and a token, `hf auth login` ({first_line(error)})") from None
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise BadInput("--hf-entity", entity, "needs a token that may write; yours may only read")
    names = [account["name"], *(organization["name"] for organization in account.get("orgs", []))]
    if entity not in names:
        raise BadInput("--hf-entity", entity, f"must be one this token may write for: {', '.join(names)}")


def push(folder: Path, entity: str) -> str | None:
    """Upload a run that has just ended; returns the repository's id, or None, with a line that says why it failed."""
    try:
        return upload(folder, entity)
    except Exception as error:  # the run is complete and saved; the upload must not hide that behind a traceback
        again = f"`python -m cleanrl_utils.huggingface push {folder} --hf-entity {entity}` tries again"
        notice(f"upload failed ({first_line(error)}); {again}")
        return None


def upload(folder: Path, entity: str, video: str | None = None, private: bool = False, with_replay: bool = False) -> str:
    """Upload a complete run in one commit; returns the repository's id. A second upload replaces the first one's files.

    Everything but the card's metadata is checked before a repository is made. Raises `BadInput`, or the client's errors.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi  # noqa: PLC0415

    run = read_run(folder / "config.json", "RUN_FOLDER", folder)
    if run.get("status") != "complete":
        raise BadInput("RUN_FOLDER", folder, f"is not complete but {run.get('status')}: nothing to show yet")
    repository = repository_name(entity, run["flags"])
    files = contents(folder, run, video, with_replay)
    try:
        files["README.md"] = card(public(run), repository, set(files)).encode()
    except (LookupError, TypeError, ValueError, AttributeError):
        raise BadInput("RUN_FOLDER", folder, "has a config.json that is damaged: no evaluations are in it") from None
    require_nothing_private(files)
    require_entity(entity)
    api = HfApi()
    if private and api.repo_exists(repository) and not api.repo_info(repository).private:
        raise BadInput("--private", "on", f"{repository} already exists and is public; make it private on the Hub first")

    api.create_repo(repository, exist_ok=True, private=private)
    models_of_run = re.compile(rf"{re.escape(run['flags']['exp_name'])}(-[a-z]+)?{re.escape(SUFFIX)}")
    there = api.list_repo_files(repository)
    stale = {name for name in there if name.startswith("events.out.tfevents.") or models_of_run.fullmatch(name)}
    stale |= {"replay.mp4"} & set(there)
    operations = [CommitOperationDelete(name) for name in sorted(stale - files.keys())]
    operations += [CommitOperationAdd(name, content) for name, content in files.items()]
    api.create_commit(repository, operations, commit_message="Model, flags, script, events and scores of a run")
    return repository


def contents(folder: Path, run: dict[str, Any], video: str | None, with_replay: bool) -> dict[str, bytes]:
    """Return the files of a run to upload, by name, without the card. Raises `BadInput` if a model is missing or damaged."""
    is_fqi = run["script"] == "fqi"
    saved = [folder / name for name in FQI_FILES] if is_fqi else sorted(folder.glob(f"*{SUFFIX}"))
    if not saved or not saved[-1].is_file():
        raise BadInput("RUN_FOLDER", folder, "holds no model: train with --save-model")
    if with_replay and not (folder / replay.FILE).is_file():
        raise BadInput("--with-replay", "on", f"needs a run of --save-replay: {folder} holds no {replay.FILE}")
    saved += [folder / replay.FILE] * with_replay
    for path in saved:
        try:
            if path.name == replay.FILE:
                replay.read(path)
            elif is_fqi:
                with np.load(path, allow_pickle=False) as file:
                    _ = [file[name] for name in file.files]
            else:
                read_arrays(path)
        except (ModelError, ArchiveError, OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise BadInput("RUN_FOLDER", folder, f"{path.name} {error}") from None
    script = [path for path in [folder / f"{run['script']}.py"] if path.is_file()]
    files = {path.name: path.read_bytes() for path in [*saved, *script, *event_files(folder)]}
    files["config.json"] = json_text(public(run)).encode()
    films = sorted((Path("videos") / folder.name).glob("*.mp4"), key=lambda path: path.stat().st_mtime)
    film = Path(video) if video is not None else next((path for path in reversed(films) if path.stem != "teacher"), None)
    if film is not None:
        if film.suffix != ".mp4" or not film.is_file():
            raise BadInput("--video", str(film), "must be an MP4 file, as `cleanrl_utils.enjoy --video FILE.mp4` writes")
        files["replay.mp4"] = film.read_bytes()  # the name that the Hub plays on the model's page
    return files


def card(run: dict[str, Any], repository: str, files: set[str]) -> str:
    """Write a model card with the metadata that the Hub shows: task, environment, mean and deviation of the last evaluation.

    `files` are the names of the other files in the repository.
    """
    from huggingface_hub import EvalResult, ModelCardData  # noqa: PLC0415

    flags, scores = run["flags"], {name: Evaluation(**score) for name, score in run["evaluations"].items()}
    if not all(score.returns for score in scores.values()):
        raise ValueError("an evaluation without games")
    env_id, script = flags["env_id"], run["script"] or flags["exp_name"]
    headline = scores["agent" if "agent" in scores else [*scores][-1]]
    data = ModelCardData(
        library_name="cleanrl",
        pipeline_tag="reinforcement-learning",
        tags=[env_id, "deep-reinforcement-learning", "reinforcement-learning", "custom-implementation", script],
        model_name=flags["exp_name"],
        eval_results=[
            EvalResult(
                task_type="reinforcement-learning",
                dataset_name=env_id,
                dataset_type=env_id,
                metric_type="mean_reward",
                metric_name="mean_reward",
                metric_value=f"{headline.mean:.2f} +/- {headline.std:.2f}",
            )
        ],
    )
    rows = [f"| {name} | {score} | {len(score.returns)} | {score.capped} |" for name, score in scores.items()]
    return f"""---
{data.to_yaml()}
---

# {flags["exp_name"]} on {env_id}, seed {flags["seed"]}

| player | return, mean +- sd | whole games | cut by a limit |
|---|---|---|---|
{chr(10).join(rows)}

Evaluation: {run.get("protocol", {}).get("evaluation", "see the flags")}. Hardware: {run.get("hardware", "unknown")}. Commit:
{run.get("commit") or "unknown"}. Every single return, all flags and the versions of packages are in `config.json`.
{f"`{script}.py` is the script as it ran." if f"{script}.py" in files else ""}
{"`replay.mp4` shows a game." if "replay.mp4" in files else ""}
{f"`{replay.FILE}` is the replay buffer at its end." if replay.FILE in files else ""}

To train it again, in a checkout of that commit:

```bash
{shlex.join(["python", f"cleanrl/{script}.py", *run["command"][1:]])}
```

To watch it play:

```bash
python -m cleanrl_utils.enjoy --exp-name {script} --env-id {env_id} --hf-repository {repository} --video game.mp4
```
"""


def main(args: Args) -> None:
    """Push, and say where to. Raises `BadInput` before anything is uploaded."""
    if not args.run:
        raise BadInput("RUN_FOLDER", "(none)", "name a run folder: push RUN_FOLDER --hf-entity NAME")
    if not args.hf_entity:
        raise BadInput("--hf-entity", "(none)", "name a user or organization on the Hugging Face Hub")
    try:
        repository = upload(Path(args.run), args.hf_entity, args.video, args.private, args.with_replay)
    except BadInput:
        raise
    except Exception as error:  # the Hub's, or its client's
        notice(f"error: upload failed ({first_line(error)}); run the same command again")
        sys.exit(1)
    from huggingface_hub import constants  # noqa: PLC0415

    output(f"{constants.ENDPOINT}/{repository}")


if __name__ == "__main__":
    run(main, Args)
