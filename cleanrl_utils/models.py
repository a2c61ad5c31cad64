"""Model files: written whole or not at all, read without running code from them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cleanrl_utils.config import BadInput

if TYPE_CHECKING:
    import torch

ZOO = Path(__file__).parent / "zoo"
"""The models in the box, each in the layout of a Hub repository."""


class ModelError(Exception):
    """A model file that is missing or unusable; the text says what to do."""


@contextlib.contextmanager
def explained(flag: str, source: str) -> Iterator[None]:
    """Turn failures to fetch or load the model at `source` into `BadInput`, each with what to do."""
    from huggingface_hub import errors  # noqa: PLC0415

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
        text = f"cannot be fetched ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    else:
        return
    raise BadInput(flag, source, text)


def save_weights(weights: dict[str, torch.Tensor], path: Path) -> None:
    """Write a torch state_dict to `path`: to a temporary name, then renamed."""
    import torch  # noqa: PLC0415 - the JAX scripts import this module too

    temporary = path.with_name(path.name + ".tmp")
    torch.save({key: value.detach().cpu().contiguous() for key, value in weights.items()}, temporary)
    temporary.replace(path)


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The state_dict in `path`, on the CPU. Raises `ModelError`; never runs code from the file."""
    import pickle  # noqa: PLC0415 - for the name of its error only

    import torch  # noqa: PLC0415

    if not path.is_file():
        raise ModelError(f"there is no file {path.name} in {path.parent}")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ModelError(f"{path} is not a plain state_dict: it is no torch file, or holds code, which is refused") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise ModelError(f"{path} cannot be read as a torch model ({str(error).splitlines()[0]})") from None
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ModelError(f"{path} is not a state_dict of tensors")
    return weights


def load_into(network: torch.nn.Module, path: Path) -> None:
    """Load `path` into `network`, key by key. Raises `ModelError` where keys or shapes differ."""
    weights = load_weights(path)
    expected = network.state_dict()
    if weights.keys() != expected.keys():
        odd = sorted(weights.keys() ^ expected.keys())[0]
        raise ModelError(f"{path} is not a {type(network).__name__}: `{odd}` is in one of them only")
    for key, value in expected.items():
        if weights[key].shape != value.shape:
            found, wanted = tuple(weights[key].shape), tuple(value.shape)
            raise ModelError(f"{path}: `{key}` has shape {found}, not {wanted}; another game's number of actions?")
    network.load_state_dict(weights)
