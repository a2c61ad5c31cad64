"""Model files: written whole or not at all, read without running code from them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ZOO = Path(__file__).parent / "zoo"
"""The models in the box, each in the layout of a Hub repository."""


class ModelError(Exception):
    """A model file that is missing or unusable; the text says what to do."""


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
