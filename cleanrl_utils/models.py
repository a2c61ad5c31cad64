"""Model files: written whole or not at all, read without running code from them."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cleanrl_utils import formats
from cleanrl_utils.config import BadInput, file_name, first_line, notice, replacing

if TYPE_CHECKING:
    import torch
    from flax import linen as nn

ZOO = Path(__file__).parent / "zoo"
"""The models in the box, each in the layout of a Hub repository."""
SUFFIX = ".cleanrl_model"
TWINS = {"qdagger_dqn_atari_impalacnn": "qdagger_dqn_atari_jax_impalacnn"}
"""The script in JAX where its name is not that of the script in torch with `_jax` behind it."""


class ModelError(Exception):
    """A model file that is missing or unusable; the text says what to do."""


class MissingModel(ModelError):
    """A folder or a repository that does not hold the model file it was asked for."""


def atari_id(env_id: str) -> str:
    """The id under which an Atari game's models are published: PongNoFrameskip-v4 for ALE/Pong-v5."""
    game = re.sub(r"(NoFrameskip|Deterministic)?-v\d+$", "", env_id.removeprefix("ALE/"))
    return f"{game}NoFrameskip-v4"


def boxed(env_id: str, exp_name: str, twin: bool = True) -> Path | None:
    """The folder of a model in the box, by environment and script; with `twin`, else of the other framework's script."""
    other = exp_name.replace("_jax", "") if "_jax" in exp_name else TWINS.get(exp_name, f"{exp_name}_jax")
    names = [exp_name, other] if twin else [exp_name]
    folders = (ZOO / f"{file_name(env)}-{name}-seed1" for name in names for env in (env_id, atari_id(env_id)))
    return next((folder for folder in folders if folder.is_dir()), None)


def teacher_source(args: Any) -> str:
    """Where the teacher is unless a flag says: in the box, else CleanRL's repository on the Hub.

    Of the box, the model that `--teacher-model-exp-name` names; by its default, one of either framework.
    """
    exp_name = args.teacher_model_exp_name
    folder = boxed(args.env_id, exp_name, twin=exp_name == type(args).teacher_model_exp_name)
    return str(folder or f"cleanrl/{atari_id(args.env_id)}-{exp_name}-seed1")


def public_name(source: str) -> str:
    """A model's source without local folders: the folder's own name, or the repository."""
    return Path(source).name if Path(source).is_dir() else source


@contextlib.contextmanager
def explained(flag: str, source: str, hint: str = "--teacher-model-exp-name names it") -> Iterator[None]:
    """Turn failures to fetch or load the model at `source` into `BadInput`, each with what to do.

    `hint` says what to do about a file that is not there.
    """
    from huggingface_hub import errors, get_token, logging  # noqa: PLC0415

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
    except errors.LocalEntryNotFoundError:
        text = "is not in the local cache, and the Hub cannot be reached; give a local folder, or try again online"
    except errors.EntryNotFoundError:
        text = f"does not hold the model's file; {hint}"
    except errors.OfflineModeIsEnabled:
        text = "is not in the local cache, and HF_HUB_OFFLINE is set; give a local folder, or unset it"
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
    """The model file of a local folder or a Hub repository; of one that holds a single model, that one, unless `exact`.

    A model is a `.cleanrl_model` file or, where there is none, a zip archive of Stable-Baselines3. Raises `ModelError`, or
    the errors of the Hub's client: call it under `explained`.
    """
    from huggingface_hub import HfApi, errors, hf_hub_download, snapshot_download  # noqa: PLC0415

    if Path(source).is_dir():
        if (Path(source) / filename).is_file():
            return Path(source) / filename
        names = [] if exact else [path.name for path in Path(source).iterdir()]
        return Path(source) / _only_model(names, public_name(source), filename)
    ask(source)
    try:
        return Path(hf_hub_download(source, filename, revision=revision))
    except errors.LocalEntryNotFoundError:  # no network: the cache may hold the repository's one model
        folder = Path(snapshot_download(source, revision=revision, local_files_only=True))
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
    """A file of a local folder or a Hub source, None where it has none, or where the Hub is not reached.

    Raises the errors of the Hub's client: call it under `explained`.
    """
    from huggingface_hub import errors, hf_hub_download  # noqa: PLC0415

    if Path(source).is_dir():
        return Path(source) / filename if (Path(source) / filename).is_file() else None
    ask(source)
    try:
        return Path(hf_hub_download(source, filename, revision=revision))
    except errors.EntryNotFoundError:
        return None


@functools.cache
def ask(repository: str) -> None:
    """Say, once, that the Hub is asked, since its client tries for long, in silence, where it is not reached."""
    from huggingface_hub import constants  # noqa: PLC0415

    if not constants.HF_HUB_OFFLINE:
        notice(
            f"no folder {repository} here: asking the Hugging Face Hub; without a network, that takes half a minute to fail"
        )


def _only_model(names: list[str], place: str, wanted: str) -> str:
    """The one model among the files of a place, with a line that says so. Raises `MissingModel`."""
    found = _models(names)
    if len(found) != 1:
        there = f", but {', '.join(found)}" if found else ""
        raise MissingModel(f"holds no file {wanted}{there}")
    notice(f"{place} holds {found[0]}, not {wanted}: using that")
    return found[0]


def _models(names: list[str]) -> list[str]:
    """The model files among the files of a place; archives count where there are no files of ours."""
    ours = sorted(name for name in names if name.endswith(SUFFIX))
    return ours or sorted(name for name in names if name.endswith(".zip") and name != "train_eval_metrics.zip")


def save_weights(weights: dict[str, torch.Tensor], path: Path) -> None:
    """Write a torch state_dict to `path`, whole or not at all."""
    import torch  # noqa: PLC0415 - the JAX scripts import this module too

    with replacing(path) as file:
        torch.save({key: value.detach().cpu().contiguous() for key, value in weights.items()}, file)


def save_params(params: Any, path: Path) -> None:
    """Write the parameters of a flax network to `path` as msgpack, whole or not at all."""
    from flax import serialization  # noqa: PLC0415 - the torch scripts import this module too

    with replacing(path) as file:
        file.write(serialization.to_bytes(params))


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights in `path`, of any format, as a state_dict on the CPU. Raises `ModelError`."""
    import pickle  # noqa: PLC0415 - for the name of its error only

    import torch  # noqa: PLC0415

    _require_file(path)
    if formats.is_flax(path):
        weights = _read(lambda: formats.to_torch(formats.read_flax(path)))
        return {key: torch.tensor(value, dtype=torch.float32) for key, value in weights.items()}
    of_sb3 = formats.is_sb3(path)
    file = _read(lambda: formats.open_sb3(path)) if of_sb3 else path
    _read(lambda: formats.require_uncompressed(file))
    try:
        if of_sb3:
            file.seek(0)
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ModelError("is not a plain state_dict: it is no model file, or holds code, which is refused") from None
    except Exception as error:  # torch raises whatever the damage leads to
        raise ModelError(f"cannot be read as a torch model ({type(error).__name__}: is it damaged?)") from None
    if not (isinstance(weights, dict) and all(_plain(key, value) for key, value in weights.items())):
        raise ModelError("is not a state_dict of plain tensors")
    return _read(lambda: formats.from_sb3(weights)) if of_sb3 else weights


def read_arrays(path: Path) -> formats.Weights:
    """The weights in `path`, of any format, in NumPy under flax's names. Needs no torch. Raises `ModelError`."""
    _require_file(path)
    if formats.is_flax(path):
        return _read(lambda: formats.read_flax(path))
    if formats.is_sb3(path):
        return _read(lambda: formats.to_flax(formats.from_sb3(formats.read_torch(formats.open_sb3(path)))))
    return _read(lambda: formats.to_flax(formats.read_torch(path)))


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise ModelError("is no file, or cannot be read")


def _read(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except formats.FormatError as error:
        raise ModelError(str(error)) from None


def _plain(key: object, value: object) -> bool:
    """Whether an entry is a name and a dense tensor of floats in memory."""
    import torch  # noqa: PLC0415

    if not (isinstance(key, str) and isinstance(value, torch.Tensor)):
        return False
    return value.layout == torch.strided and value.device.type == "cpu" and value.is_floating_point()


def load_into(network: torch.nn.Module, path: Path) -> None:
    """Load the model in `path`, of any format, into `network`. Raises `ModelError` where keys or shapes differ."""
    weights = load_weights(path)
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    _require_same({key: tuple(value.shape) for key, value in weights.items()}, expected, type(network).__name__)
    network.load_state_dict(weights)


def load_params(network: nn.Module, params: Any, path: Path) -> Any:
    """The model in `path`, of any format, as parameters of `network` like `params`, float32 in NumPy.

    Needs no torch. Raises `ModelError` where names or shapes differ.
    """
    from flax import traverse_util  # noqa: PLC0415

    weights = read_arrays(path)
    template = traverse_util.flatten_dict(params["params"], sep="/")
    expected = {name: tuple(value.shape) for name, value in template.items()}
    _require_same({name: value.shape for name, value in weights.items()}, expected, type(network).__name__)
    floats = {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in weights.items()}
    return {"params": traverse_util.unflatten_dict(floats, sep="/")}


def hidden_units(path: Path) -> tuple[int, ...]:
    """Sizes of the hidden layers of the perceptron in a model file. Raises `ModelError`."""
    biases = {name: value for name, value in read_arrays(path).items() if name.endswith("/bias")}
    return tuple(biases[f"Dense_{i}/bias"].size for i in range(len(biases) - 1) if f"Dense_{i}/bias" in biases)


def _require_same(found: dict[str, tuple], expected: dict[str, tuple], network: str) -> None:
    """Raise `ModelError` unless a file's names and shapes are those of the network."""
    for missing in sorted(expected.keys() - found.keys()):
        raise ModelError(f"is not a {network}: it lacks `{missing}`")
    for odd in sorted(found.keys() - expected.keys()):
        raise ModelError(f"is not a {network}: it has `{odd}` besides")
    for key, shape in expected.items():
        if found[key] != shape:
            raise ModelError(f"has `{key}` of shape {found[key]}, not {shape}; another game's number of actions?")
