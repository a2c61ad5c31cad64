"""Model files: written whole or not at all, read without running code from them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cleanrl_utils.config import BadInput, first_line, replacing

if TYPE_CHECKING:
    import torch

ZOO = Path(__file__).parent / "zoo"
"""The models in the box, each in the layout of a Hub repository."""


class ModelError(Exception):
    """A model file that is missing or unusable; the text says what to do."""


def public_name(source: str) -> str:
    """A model's source without local folders: the folder's own name, or the repository."""
    return Path(source).name if Path(source).is_dir() else source


@contextlib.contextmanager
def explained(flag: str, source: str) -> Iterator[None]:
    """Turn failures to fetch or load the model at `source` into `BadInput`, each with what to do."""
    from huggingface_hub import errors, logging  # noqa: PLC0415

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the client reports each retry; the user reads one line
    try:
        yield
    except ModelError as error:
        raise BadInput(flag, source, str(error)) from None
    # Most specific first: gated is a kind of missing repository, a missing cache entry a kind of missing entry.
    except errors.GatedRepoError:
        text = "is gated: accept its terms on the Hub, then `hf auth login`"
    except errors.RepositoryNotFoundError:
        text = "is no public repository on the Hub and no local folder; for a private one, `hf auth login` first"
    except errors.RevisionNotFoundError:
        text = "has no such revision; see its branches and tags on the Hub"
    except errors.LocalEntryNotFoundError:
        text = "is not in the local cache, and the Hub cannot be reached; give a local folder, or try again online"
    except errors.EntryNotFoundError:
        text = "does not hold the model's file; its name comes from --teacher-model-exp-name"
    except errors.OfflineModeIsEnabled:
        text = "is not in the local cache, and HF_HUB_OFFLINE is set; give a local folder, or unset it"
    except errors.HFValidationError:
        text = "is neither a local folder nor a repository name like cleanrl/PongNoFrameskip-v4-dqn_atari-seed1"
    except (errors.HfHubHTTPError, OSError) as error:
        text = f"cannot be fetched ({first_line(error)})"
    else:
        return
    finally:
        logging.set_verbosity(verbosity)
    raise BadInput(flag, source, text)


def save_weights(weights: dict[str, torch.Tensor], path: Path) -> None:
    """Write a torch state_dict to `path`, whole or not at all."""
    import torch  # noqa: PLC0415 - the JAX scripts import this module too

    with replacing(path) as file:
        torch.save({key: value.detach().cpu().contiguous() for key, value in weights.items()}, file)


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The state_dict in `path`, on the CPU. Raises `ModelError`; never runs code from the file."""
    import pickle  # noqa: PLC0415 - for the name of its error only

    import torch  # noqa: PLC0415

    if not path.is_file():
        raise ModelError(f"holds no file {path.name}")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ModelError("is not a plain state_dict: it is no torch file, or holds code, which is refused") from None
    except Exception as error:  # torch raises whatever the damage leads to
        raise ModelError(f"cannot be read as a torch model ({type(error).__name__}: is it damaged?)") from None
    if not (isinstance(weights, dict) and all(_plain(key, value) for key, value in weights.items())):
        raise ModelError("is not a state_dict of plain tensors")
    return weights


def _plain(key: object, value: object) -> bool:
    """Whether an entry is a name and a dense tensor of floats in memory."""
    import torch  # noqa: PLC0415

    if not (isinstance(key, str) and isinstance(value, torch.Tensor)):
        return False
    return value.layout == torch.strided and value.device.type == "cpu" and value.is_floating_point()


def load_into(network: torch.nn.Module, path: Path) -> None:
    """Load `path` into `network`, key by key. Raises `ModelError` where keys or shapes differ."""
    weights = load_weights(path)
    expected = network.state_dict()
    if weights.keys() != expected.keys():
        odd = sorted(weights.keys() ^ expected.keys())[0]
        raise ModelError(f"is not a {type(network).__name__}: `{odd}` is in one of them only")
    for key, value in expected.items():
        if weights[key].shape != value.shape:
            found, wanted = tuple(weights[key].shape), tuple(value.shape)
            raise ModelError(f"has `{key}` of shape {found}, not {wanted}; another game's number of actions?")
    network.load_state_dict(weights)
