"""Model files: written whole or not at all, read without running code from them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cleanrl_utils.files import replacing
from cleanrl_utils.models import formats, torch_zip

if TYPE_CHECKING:
    import torch
    from flax import linen as nn

SUFFIX = ".cleanrl_model"
FQI_FILES = ("dataset.npz", "targets.npz")
"""What `fqi.py` saves in place of weights."""


class ModelError(Exception):
    """The model file is missing or unusable; the text says what to do."""


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
    """Load the weights in `path`, of any format, as a state_dict on the CPU. Raises `ModelError`."""
    import pickle  # noqa: PLC0415 - for the name of its error only

    import torch  # noqa: PLC0415

    _require_file(path)
    if formats.is_flax(path):
        weights = _read(lambda: formats.to_torch(formats.read_flax(path)))
        return {key: torch.tensor(value, dtype=torch.float32) for key, value in weights.items()}
    if formats.is_safetensors(path):
        return {key: torch.tensor(value) for key, value in _read(lambda: formats.read_safetensors(path)).items()}
    of_sb3 = formats.is_sb3(path)
    file = _read(lambda: formats.open_sb3(path)) if of_sb3 else path
    _read(lambda: torch_zip.require_uncompressed(file))
    try:
        if of_sb3:
            file.seek(0)
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ModelError("is not a plain state_dict: it is no model file, or holds code, which is refused") from None
    except Exception as error:  # torch raises whatever the damage leads to
        raise ModelError(f"cannot be read as a torch model ({type(error).__name__}: is it damaged?)") from None
    weights = _read(lambda: formats.state_dict(weights, lambda entry: isinstance(entry, torch.Tensor)))
    if not (isinstance(weights, dict) and all(_plain(key, value) for key, value in weights.items())):
        raise ModelError("is not a state_dict of plain tensors")
    return _read(lambda: formats.from_sb3(weights)) if of_sb3 else weights


def read_arrays(path: Path) -> formats.Weights:
    """Read the weights in `path`, of any format, as NumPy arrays under flax's names. Needs no torch. Raises `ModelError`."""
    _require_file(path)
    if formats.is_flax(path):
        return _read(lambda: formats.read_flax(path))
    if formats.is_safetensors(path):
        return _read(lambda: formats.to_flax(formats.read_safetensors(path)))
    if formats.is_sb3(path):
        return _read(lambda: formats.to_flax(formats.from_sb3(torch_zip.read_torch(formats.open_sb3(path)))))
    return _read(lambda: formats.to_flax(torch_zip.read_torch(path)))


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise ModelError("is no file, or cannot be read")
    with path.open("rb") as file:
        head = file.read(32).lstrip().lower()
    for starts, what in formats.NO_MODELS.items():
        if head.startswith(starts):
            raise ModelError(what)


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
    """Load the model in `path`, of any format, into `network`. Raises `ModelError` if keys or shapes differ."""
    weights = load_weights(path)
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    _require_same({key: tuple(value.shape) for key, value in weights.items()}, expected, type(network).__name__)
    _require_settings(path, network)
    network.load_state_dict(weights)


def load_params(network: nn.Module, params: Any, path: Path) -> Any:
    """Load the model in `path`, of any format, as parameters of `network` with the structure of `params`, float32 in NumPy.

    Needs no torch. Raises `ModelError` if names or shapes differ.
    """
    from flax import traverse_util  # noqa: PLC0415

    weights = read_arrays(path)
    template = traverse_util.flatten_dict(params["params"], sep="/")
    expected = {name: tuple(value.shape) for name, value in template.items()}
    _require_same({name: value.shape for name, value in weights.items()}, expected, type(network).__name__)
    _require_settings(path, network)
    floats = {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in weights.items()}
    return {"params": traverse_util.unflatten_dict(floats, sep="/")}


def hidden_units(path: Path) -> tuple[int, ...]:
    """Return the sizes of the hidden layers of the perceptron in a model file. Raises `ModelError`."""
    biases = {name: value for name, value in read_arrays(path).items() if name.endswith("/bias")}
    return tuple(biases[f"Dense_{i}/bias"].size for i in range(len(biases) - 1) if f"Dense_{i}/bias" in biases)


def activation(path: Path) -> str:
    """Return the activation function of the perceptron in a model file, as for `--activation`; ReLU if it does not say.

    Raises `ModelError`.
    """
    found = _read(lambda: formats.sb3_settings(path)[0]) if formats.is_sb3(path) else "relu"
    if found not in (known := formats.SB3_ACTIVATIONS.values()):
        raise ModelError(f"has the activation function {found}; those here are {', '.join(known)}")
    return found


def _require_settings(path: Path, network: torch.nn.Module | nn.Module) -> None:
    """Raise `ModelError` for an archive of Stable-Baselines3 whose network computes something else."""
    if not formats.is_sb3(path):
        return
    found, divided = _read(lambda: formats.sb3_settings(path))
    expected = getattr(network, "activation", None)  # CnnPolicy does not use it in any layer
    if expected not in (None, found):
        raise ModelError(f"has the activation function {found}, where this network has {expected}: --activation {found}")
    if expected is None and not divided:
        raise ModelError("was trained on images that were not divided by 255, as they are here")


def _require_same(found: dict[str, tuple], expected: dict[str, tuple], network: str) -> None:
    """Raise `ModelError` unless a file's names and shapes are those of the network."""
    for missing in sorted(expected.keys() - found.keys()):
        raise ModelError(f"is not a {network}: it lacks `{missing}`")
    for odd in sorted(found.keys() - expected.keys()):
        raise ModelError(f"is not a {network}: it also has `{odd}`")
    *_, last = expected
    outputs = [name for name in expected if re.split("[./]", name)[:-1] == re.split("[./]", last)[:-1]]  # weights and bias
    same_actions = all(found[name] == expected[name] for name in outputs if len(expected[name]) == 1)
    for key, shape in expected.items():
        if found[key] != shape:
            of_layers = "another environment, or other sizes of layers (--hidden-units, --student)?"
            hint = "another game's number of actions?" if key in outputs and not same_actions else of_layers
            raise ModelError(f"has `{key}` of shape {found[key]}, not {shape}; {hint}")
