"""Where models come from: a run folder, the box, the Hugging Face Hub."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from cleanrl_utils.console import notice
from cleanrl_utils.errors import BadInput, first_line
from cleanrl_utils.files import file_name
from cleanrl_utils.models.files import SUFFIX, ModelError

ZOO = Path(__file__).parents[1] / "zoo"
"""The models in the box, each in the layout of a Hub repository."""
TWINS = {"qdagger_dqn_atari_impalacnn": "qdagger_dqn_atari_jax_impalacnn"}
"""The JAX script of a torch script, where its name is not the torch script's name followed by `_jax`."""


class MissingModel(ModelError):
    """The folder or repository does not hold the model file that was asked for."""


def atari_id(env_id: str) -> str:
    """Return the id under which an Atari game's models are published: PongNoFrameskip-v4 for ALE/Pong-v5."""
    game = re.sub(r"(NoFrameskip|Deterministic)?-v\d+$", "", env_id.removeprefix("ALE/"))
    return f"{game}NoFrameskip-v4"


def boxed(env_id: str, exp_name: str, twin: bool = True) -> Path | None:
    """Return the folder of a model in the box by environment and script; with `twin`, else that of the script's twin."""
    other = exp_name.replace("_jax", "") if "_jax" in exp_name else TWINS.get(exp_name, f"{exp_name}_jax")
    names = [exp_name, other] if twin else [exp_name]
    folders = (ZOO / f"{file_name(env)}-{name}-seed1" for name in names for env in (env_id, atari_id(env_id)))
    return next((folder for folder in folders if folder.is_dir()), None)


class TeacherFlags(Protocol):
    """The flags that choose a teacher."""

    env_id: str
    teacher_model_exp_name: str


def teacher_source(args: TeacherFlags) -> str:
    """Return the default source of a teacher: the model in the box, else CleanRL's repository on the Hub.

    The model in the box is the one that `--teacher-model-exp-name` names; if that is the default, its twin will do too.
    """
    exp_name = args.teacher_model_exp_name
    folder = boxed(args.env_id, exp_name, twin=exp_name == type(args).teacher_model_exp_name)
    return str(folder or f"cleanrl/{atari_id(args.env_id)}-{exp_name}-seed1")


def public_name(source: str) -> str:
    """Return a model's source without local folders: the folder's name, or the repository."""
    return Path(source).name if Path(source).exists() else source


@contextlib.contextmanager
def explained(flag: str, source: str, hint: str = "--teacher-model-exp-name names it") -> Iterator[None]:
    """Turn failures to fetch or load the model at `source` into `BadInput`, which says what to do.

    `hint` says what to do about a missing file.
    """
    from huggingface_hub import constants, errors, get_token, logging  # noqa: PLC0415

    offline = "is not in the local cache, and HF_HUB_OFFLINE is set; give a local folder, or unset it"
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the client reports each retry; the user reads one line
    try:
        yield
    except MissingModel as error:
        raise BadInput(flag, source, f"{error}; {hint}") from None
    except ModelError as error:
        raise BadInput(flag, source, str(error)) from None
    # Most specific first: gated is a kind of missing repository, a missing cache entry a kind of missing entry.
    except errors.GatedRepoError:
        text = "is gated: accept its terms on the Hub, then `hf auth login`"
    except errors.RepositoryNotFoundError:
        text = "is no local folder, and no public repository on the Hub; for a private one, `hf auth login` first"
        if get_token():
            text = "is no local folder, and no repository on the Hub that your token may read: check its name"
    except errors.RevisionNotFoundError:
        text = "has no such revision; see its branches and tags on the Hub"
    except errors.LocalEntryNotFoundError as error:
        cause = f" ({first_line(error.__cause__)})" if error.__cause__ else ""
        text = f"is not in the local cache, and the Hub cannot be reached{cause}; give a local folder, or try again online"
        text = offline if constants.HF_HUB_OFFLINE else text
    except errors.EntryNotFoundError:
        text = f"does not hold the model's file; {hint}"
    except errors.OfflineModeIsEnabled:
        text = offline
    except errors.HFValidationError:
        text = "is neither a local folder nor a repository name like cleanrl/PongNoFrameskip-v4-dqn_atari-seed1"
    except (errors.HfHubHTTPError, OSError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        text = f"cannot be fetched ({first_line(error)})"
        if status == 401:
            text = "cannot be fetched: the Hub does not know your token; `hf auth login` again, or `hf auth logout`"
    except Exception as error:
        if not type(error).__module__.startswith("httpx"):
            raise
        text = f"cannot be fetched: the connection to the Hub broke ({first_line(error)}); try again"
    else:
        return
    finally:
        logging.set_verbosity(verbosity)
    raise BadInput(flag, source, text)


def fetch(source: str, filename: str, revision: str | None, exact: bool = False) -> Path:
    """Return the model file of a local folder or a Hub repository; if it holds a single model, that one, unless `exact`.

    A model is a `.cleanrl_model` file or, if there is no such file, a zip archive of Stable-Baselines3, or a `.pth` or
    `.safetensors` file. A source that is a file is returned as it is. Raises `ModelError`, or the errors of the Hub's
    client: call it under `explained`.
    """
    from huggingface_hub import HfApi, errors, hf_hub_download, snapshot_download  # noqa: PLC0415

    if Path(source).is_file() and not exact:
        return Path(source)
    if Path(source).is_dir():
        if (Path(source) / filename).is_file():
            return Path(source) / filename
        names = [] if exact else [path.name for path in Path(source).iterdir()]
        return Path(source) / _only_model(names, public_name(source), filename)
    ask(source)
    try:
        return Path(hf_hub_download(source, filename, revision=revision))
    except errors.LocalEntryNotFoundError as unreached:  # the cache may hold the repository's one model
        try:
            folder = Path(snapshot_download(source, revision=revision, local_files_only=True))
        except errors.LocalEntryNotFoundError:
            raise unreached from unreached.__cause__  # which says why the Hub was not reached
        names = [path.name for path in folder.iterdir()]
        if exact or not _models(names):
            raise
        return folder / _only_model(names, f"the local cache of {source}", filename)
    except errors.EntryNotFoundError:
        if exact:
            raise
        name = _only_model(HfApi().list_repo_files(source, revision=revision), source, filename)
        return Path(hf_hub_download(source, name, revision=revision))


def fetch_optional(source: str, filename: str, revision: str | None) -> Path | None:
    """Return a file of a local folder or a Hub repository; None if there is no such file, or the Hub cannot be reached.

    Raises the errors of the Hub's client: call it under `explained`.
    """
    from huggingface_hub import errors, hf_hub_download  # noqa: PLC0415

    if Path(source).exists():
        return Path(source) / filename if (Path(source) / filename).is_file() else None
    ask(source)
    try:
        return Path(hf_hub_download(source, filename, revision=revision))
    except errors.EntryNotFoundError:
        return None


@functools.cache
def ask(repository: str) -> None:
    """Say once that the Hub is asked, since its client retries silently for a long time if it cannot reach the Hub."""
    from huggingface_hub import constants  # noqa: PLC0415

    if not constants.HF_HUB_OFFLINE:
        notice(
            f"no folder {repository} here: asking the Hugging Face Hub; without a network, that takes half a minute to fail"
        )


def _only_model(names: list[str], place: str, wanted: str) -> str:
    """Return the only model among the files of a place, with a line that says so. Raises `MissingModel`."""
    found = _models(names)
    if len(found) != 1:
        there = f", but {', '.join(found)}" if found else ""
        raise MissingModel(f"holds no file {wanted}{there}")
    notice(f"{place} holds {found[0]}, not {wanted}: using that")
    return found[0]


def _models(names: list[str]) -> list[str]:
    """Return the model files among the files of a place; other formats count only if there are no files of ours."""
    ours = sorted(name for name in names if name.endswith(SUFFIX))
    archives = sorted(
        name for name in names if name.endswith(".zip") and name not in ("train_eval_metrics.zip", "replay.zip")
    )
    return ours or archives or sorted(name for name in names if name.endswith((".pth", ".pt", ".safetensors")))
