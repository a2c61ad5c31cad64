"""Read published weights as NumPy arrays by name: torch's state_dict, safetensors and flax's msgpack.

Reading needs neither framework, so a script of either framework can load every format. An archive of Stable-Baselines3
holds a state_dict under other names. Nothing in a file is executed.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgpack
import numpy as np
import safetensors

from cleanrl_utils.console import notice

Weights = dict[str, np.ndarray]

NATURE = {f"network.{i}": name for i, name in ((0, "Conv_0"), (2, "Conv_1"), (4, "Conv_2"), (7, "Dense_0"), (9, "Dense_1"))}
"""Layers of the Nature CNN: name in torch, name in flax."""
IMPALA = (
    {f"network.{i}.conv": f"ConvSequence_{i}/Conv_0" for i in range(3)}
    | {
        f"network.{i}.res_block{block}.conv{conv}": f"ConvSequence_{i}/ResidualBlock_{block}/Conv_{conv}"
        for i in range(3)
        for block in range(2)
        for conv in range(2)
    }
    | {"network.5": "Dense_0", "network.7": "Dense_1"}
)
"""Layers of the IMPALA CNN: name in torch, name in flax."""
SB3_NATURE = {f"q_net.features_extractor.cnn.{i}": f"network.{i}" for i in (0, 2, 4)}
SB3_NATURE |= {"q_net.features_extractor.linear.0": "network.7", "q_net.q_net.0": "network.9"}
"""Layers of Stable-Baselines3's DQN with CnnPolicy: its name, ours."""
SB3_ACTIVATIONS = {"ReLU": "relu", "Tanh": "tanh", "ELU": "elu", "LeakyReLU": "leaky_relu"}
"""Activation functions by their names in an archive of Stable-Baselines3: the value of `--activation`."""
LAST_CONV_BIASES = ("network.4.bias", "Conv_2/bias", "network.2.conv.bias", "ConvSequence_2/Conv_0/bias")
"""Names, in either format, of a bias with one number per channel of the features that the linear layers take."""


class FormatError(Exception):
    """The file is not what it should be; the text says in what way."""


def is_flax(path: Path) -> bool:
    """Whether a file begins as flax's msgpack does: a map of at least one entry, whose first key is text."""
    with path.open("rb") as file:
        head = file.read(8)
    key = {0xDE: 3, 0xDF: 5}.get(head[0], 1) if head else 0
    is_map = len(head) > key and (0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF))
    return is_map and (0xA0 <= head[key] <= 0xBF or head[key] in (0xD9, 0xDA))


PREFIXES = ("module.", "_orig_mod.")
"""What torch puts before all names of a network that was compiled or wrapped for several GPUs."""
NO_MODELS = {
    (b"version https://git-lfs",): "is a pointer of Git LFS, not the file that it stands for: `git lfs pull` fetches that",
    (b"<!doctype html", b"<html"): "is a web page: was a page saved in place of the file?",
}
"""The first bytes of files that are found in place of models, and what those files are."""


def state_dict(entries: object, is_tensor: Callable[[object], bool]) -> object:
    """Return the state_dict in the content of a torch file, which may be a checkpoint with other things in it.

    A prefix that all names share is removed, with a line that says so. Raises `FormatError`.
    """
    if isinstance(entries, dict) and not all(map(is_tensor, entries.values())):
        inner = {name: item for name, item in entries.items() if isinstance(item, dict) and item}
        inner = {name: item for name, item in inner.items() if all(map(is_tensor, item.values()))}
        if len(inner) > 1:
            raise FormatError(f"holds several state_dicts ({', '.join(map(str, inner))}): save the one to be used by itself")
        entries = next(iter(inner.values()), entries)
    for prefix in PREFIXES:
        if isinstance(entries, dict) and entries and all(str(name).startswith(prefix) for name in entries):
            notice(f"all names in the model file begin with `{prefix}`, which is left out")
            entries = {name.removeprefix(prefix): item for name, item in entries.items()}
    return entries


def from_bfloat16(memory: bytes) -> np.ndarray:
    """Convert bfloat16, which NumPy does not have, to float32: its bits are the upper half of a float32."""
    return (np.frombuffer(memory, "<u2").astype(np.uint32) << 16).view(np.float32)


# --- safetensors ---

SAFETENSORS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
"""NumPy's names for the types of numbers in a safetensors file; bfloat16 is read separately."""


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors does: the length of a header in JSON, and the header."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size - 8


def read_safetensors(path: Path) -> Weights:
    """Read the arrays in a safetensors file, by the names of a state_dict. Raises `FormatError`."""
    try:
        entries = dict(safetensors.deserialize(path.read_bytes()))
    except safetensors.SafetensorError as error:
        raise FormatError(f"cannot be read as safetensors ({error})") from None
    arrays = {}
    for name, entry in entries.items():
        kind, memory = entry["dtype"], bytes(entry["data"])
        if kind != "BF16" and kind not in SAFETENSORS:
            raise FormatError(f"is not a state_dict of plain tensors: `{name}` has the type {kind}")
        flat = from_bfloat16(memory) if kind == "BF16" else np.frombuffer(memory, SAFETENSORS[kind])
        arrays[name] = flat.reshape(entry["shape"])
    return state_dict(arrays, lambda entry: isinstance(entry, np.ndarray))


# --- Stable-Baselines3 ---

Value = TypeVar("Value")
MOST_BYTES = 1 << 30
"""Maximum size of weights that are unpacked from an archive: a small file may unpack to a very large one."""


def is_sb3(path: Path) -> bool:
    """Whether a file is an archive of Stable-Baselines3: a zip file that holds `policy.pth`."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "policy.pth" in archive.namelist()
    except Exception:  # zipfile raises whatever the damage leads to
        return False


def open_sb3(path: Path) -> BinaryIO:
    """Open the state_dict in an archive of Stable-Baselines3 as a file. Raises `FormatError`."""
    return io.BytesIO(_member(path, "policy.pth"))


def sb3_settings(path: Path) -> tuple[str, bool]:
    """Return the activation function in an archive of Stable-Baselines3, and whether images are divided by 255.

    The function is a value of `--activation` or, if no network here has it, its own name. The archive's `data` says both
    in plain text, next to pickled objects, which are not loaded. Raises `FormatError`.
    """
    try:
        settings = json.loads(_member(path, "data"))["policy_kwargs"] or {}
        activation = re.sub(r"^<class '(torch\.nn\.modules\.activation\.)?|'>$", "", settings.get("activation_fn", "ReLU"))
        divided = bool(settings.get("normalize_images", True))
    except FormatError:
        raise
    except Exception as error:  # JSON of another kind
        raise FormatError(f"has a `data` that says nothing of its network ({type(error).__name__})") from None
    return SB3_ACTIVATIONS.get(activation, activation), divided


def _member(path: Path, name: str) -> bytes:
    """Read a file in an archive of Stable-Baselines3. Raises `FormatError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(name).file_size > MOST_BYTES:
                raise FormatError(f"is no archive of a DQN: its {name} is too large")
            return archive.read(name)
    except FormatError:
        raise
    except Exception as error:  # as above
        raise FormatError(f"cannot be read as an archive ({type(error).__name__}: is it damaged?)") from None


def from_sb3(weights: dict[str, Value]) -> dict[str, Value]:
    """Return the online network of Stable-Baselines3's DQN (CnnPolicy or MlpPolicy) under our names. Raises `FormatError`.

    The layouts are the same. The activation function is not among the weights: see `sb3_settings`.
    """
    online = {key: value for key, value in weights.items() if not key.startswith("q_net_target.")}
    if not online or any(not key.startswith("q_net.") for key in online):
        raise FormatError("is an archive of Stable-Baselines3, but not of DQN with CnnPolicy or MlpPolicy")
    convolutional = any(key.startswith("q_net.features_extractor.") for key in online)
    renamed = {}
    for key, value in online.items():
        layer, _, kind = key.rpartition(".")
        name = SB3_NATURE.get(layer, layer) if convolutional else layer.removeprefix("q_net.").replace("q_net.", "network.")
        renamed[f"{name}.{kind}"] = value
    return renamed


# --- flax ---


def read_flax(path: Path) -> Weights:
    """Read the parameters in a flax msgpack file, with names such as `Conv_0/kernel`. Raises `FormatError`."""
    weights: Weights = {}
    try:
        tree = msgpack.unpackb(path.read_bytes(), ext_hook=_flax_array)
        _flatten(tree["params"] if isinstance(tree, dict) and tree.keys() == {"params"} else tree, "", weights)
    except FormatError:
        raise
    except Exception as error:  # msgpack and NumPy raise whatever the damage leads to
        raise FormatError(f"cannot be read as a flax model ({type(error).__name__}: is it damaged?)") from None
    return weights


def _flax_array(code: int, data: bytes) -> np.ndarray:
    """Unpack an array as flax packs it: (shape, name of the dtype, bytes), as extension 1."""
    if code != 1:
        raise FormatError("is not a flax model of plain arrays")
    shape, name, content = msgpack.unpackb(data)
    if name == "bfloat16":
        return from_bfloat16(content).reshape(shape)
    if name not in ("float16", "float32", "float64"):
        raise FormatError(f"is not a flax model of plain arrays: one is of {name}")
    return np.frombuffer(content, name).reshape(shape)


def _flatten(tree: Any, prefix: str, weights: Weights) -> None:
    if not isinstance(tree, dict):
        raise FormatError("is not a flax model of plain arrays")
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, np.ndarray):
            weights[name] = value
        else:
            _flatten(value, f"{name}/", weights)


# --- From one to the other ---


def to_flax(weights: Weights) -> Weights:
    """Convert a torch state_dict of one of our networks to flax's names and layouts; other names stay as they are.

    Convolutions go from OIHW to HWIO, linear layers from (out, in) to (in, out), and the inputs of the first linear layer
    from channels, rows, columns to rows, columns, channels.
    """
    names = _layers(weights)
    converted = {}
    for key, value in weights.items():
        layer, _, kind = key.rpartition(".")
        if layer not in names:
            converted[key] = value
        elif kind == "weight" and value.ndim == 4:
            converted[f"{names[layer]}/kernel"] = value.transpose(2, 3, 1, 0)
        elif kind == "weight" and value.ndim == 2:
            channels, side = _flattened(value.shape[1], names[layer], weights)
            inputs = value.reshape(len(value), channels, side, side).transpose(0, 2, 3, 1).reshape(value.shape)
            converted[f"{names[layer]}/kernel"] = inputs.T
        else:
            converted[f"{names[layer]}/{kind}"] = value
    return converted


def to_torch(weights: Weights) -> Weights:
    """Convert in the reverse direction of `to_flax`."""
    torch_names = {flax_name: name for name, flax_name in _layers(weights).items()}
    converted = {}
    for key, value in weights.items():
        layer, _, kind = key.rpartition("/")
        if layer not in torch_names:
            converted[key] = value
        elif kind == "kernel" and value.ndim == 4:
            converted[f"{torch_names[layer]}.weight"] = value.transpose(3, 2, 0, 1)
        elif kind == "kernel" and value.ndim == 2:
            channels, side = _flattened(value.shape[0], layer, weights)
            inputs = value.T.reshape(value.shape[1], side, side, channels).transpose(0, 3, 1, 2).reshape(value.T.shape)
            converted[f"{torch_names[layer]}.weight"] = inputs
        else:
            converted[f"{torch_names[layer]}.{kind}"] = value
    return converted


def _layers(weights: Weights) -> dict[str, str]:
    """Return the layers of the network that the weights (in either format) belong to: names in torch to names in flax."""
    if "network.0.conv.weight" in weights or "ConvSequence_0/Conv_0/kernel" in weights:
        return IMPALA
    if any(value.ndim == 4 for value in weights.values()):
        return NATURE
    return {f"network.{2 * i}": f"Dense_{i}" for i in range(len(weights))}  # a perceptron: ReLU stands between


def _flattened(inputs: int, layer: str, weights: Weights) -> tuple[int, int]:
    """Return channels and side of the square feature maps that are a linear layer's flattened input; else (inputs, 1)."""
    channels = next((weights[bias].size for bias in LAST_CONV_BIASES if bias in weights), 0)
    if layer != "Dense_0" or channels == 0 or all(value.ndim < 4 for value in weights.values()):
        return inputs, 1
    side = math.isqrt(inputs // channels)
    return (channels, side) if channels * side**2 == inputs else (inputs, 1)
