"""Write state to a file and read it back: a tree of plain values and arrays, from objects of either framework.

The file is a zip archive: `state.json` holds the tree, and each array is a separate member, compressed with zstandard.
Arrays are written and read in pieces, so a replay buffer is never held in memory twice. The file contains no code, and
nothing in it is run.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import zipfile
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import zstandard

from cleanrl_utils.errors import CannotGoOn
from cleanrl_utils.evals.play import Evaluation

if TYPE_CHECKING:
    import jax
    import torch

    Array = np.ndarray | torch.Tensor | jax.Array
    Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

PIECE = 1 << 24
"""Bytes of an array that are handled at a time."""
STATE = "state.json"


class ArchiveError(Exception):
    """The file holds no complete state, or one that does not fit; the text says why."""


# --- Into a file ---


def write(file: BinaryIO, tree: Mapping[str, object]) -> None:
    """Write a tree of values, arrays and objects that hold them: see `pack`."""
    arrays: dict[str, Array] = {}
    packed = pack(tree, "", arrays)
    # The window spans several frames of 64 games, so that a frame is compressed against the one before it.
    settings = zstandard.ZstdCompressionParameters.from_level(1, window_log=22, write_checksum=True)
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            compressor = zstandard.ZstdCompressor(compression_params=settings)
            with archive.open(name, "w", force_zip64=True) as member:
                with compressor.stream_writer(member, closefd=False) as stream:
                    for piece in pieces(array):
                        stream.write(piece)
        archive.writestr(STATE, json.dumps(packed))


def pack(value: object, name: str, arrays: dict[str, Array]) -> Json:
    """Return `value` as plain JSON; arrays (NumPy, torch, JAX) go to `arrays` by name.

    What is kept: the fields of a dataclass; the attributes that an object lists in `KEPT`; what its method `saved` returns;
    the state of a module; what an optimizer keeps for each weight; the random state of a generator.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Evaluation):
        return {"evaluation": dataclasses.asdict(value)}
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif isinstance(value, np.random.Generator):
        value = value.bit_generator.state
    elif hasattr(value, "saved"):
        value = value.saved()
    elif hasattr(value, "KEPT"):
        value = {attribute: getattr(value, attribute) for attribute in value.KEPT}
    elif hasattr(value, "param_groups"):
        value = value.state_dict()["state"]
    elif hasattr(value, "state_dict"):
        value = value.state_dict()
    if isinstance(value, Mapping):
        return {str(key): pack(item, f"{name}/{key}".strip("/"), arrays) for key, item in value.items()}
    if isinstance(value, list | tuple | deque):
        return [pack(item, f"{name}/{i}", arrays) for i, item in enumerate(value)]
    arrays[name] = value
    return {"array": name, "dtype": dtype_name(value), "shape": list(value.shape)}


def pieces(array: Array) -> Iterator[np.ndarray]:
    """Yield the array as NumPy, in pieces along its first axis, from any device."""
    if array.ndim == 0:
        array = array.reshape(1)
    rows = rows_per_piece(np.dtype(dtype_name(array)), tuple(array.shape))
    for first in range(0, len(array), rows):
        if isinstance(array, np.ndarray):
            yield np.ascontiguousarray(array[first : first + rows])
        elif hasattr(array, "detach"):  # torch
            yield array[first : first + rows].detach().cpu().contiguous().numpy()
        else:  # JAX: a copy, since NumPy's view of an array would keep it from being donated
            from jax import lax  # noqa: PLC0415

            yield np.asarray(lax.dynamic_slice_in_dim(array, first, min(rows, len(array) - first)))


def dtype_name(array: Array) -> str:
    """Return an array's type as NumPy spells it, such as float32."""
    return str(array.dtype).removeprefix("torch.")


def rows_per_piece(dtype: np.dtype, shape: tuple[int, ...]) -> int:
    """Return how many entries of an array's first axis are handled at a time."""
    return max(1, PIECE // max(1, dtype.itemsize * math.prod(shape[1:])))


# --- Out of a file ---


class Archive:
    """A file that `write` wrote; opening it verifies the checksums of everything in it."""

    def __init__(self, path: Path) -> None:
        """Open the file. Raises `ArchiveError` if it is damaged or is something else."""
        self.path = path
        try:
            self.zip = zipfile.ZipFile(path)
            damaged = self.zip.testzip()
            self.tree = {} if damaged else json.loads(self.zip.read(STATE))
        except Exception as error:  # whatever the damage leads to
            raise ArchiveError(f"is damaged, or no checkpoint ({type(error).__name__})") from None
        if damaged or not isinstance(self.tree, dict):
            raise ArchiveError(f"is damaged (the checksum of {damaged} is wrong)" if damaged else "is no checkpoint")

    def close(self) -> None:
        """Close the file."""
        self.zip.close()

    def fill(self, like: object, saved: Json) -> object:
        """Put the packed value `saved` into `like` if `like` can be changed, else make a value like it; returns the result.

        Raises `ArchiveError` if it does not fit.
        """
        try:
            return self._fill(like, saved)
        except (ArchiveError, CannotGoOn):
            raise
        except Exception as error:
            raise ArchiveError(f"does not fit this run ({type(error).__name__}: {error})") from None

    def _fill(self, like: object, saved: Json) -> object:  # one case per kind of object, as in `pack`
        if isinstance(like, Evaluation):
            return self._plain(saved)
        if dataclasses.is_dataclass(like):
            self._fill_dataclass(like, saved)
        elif isinstance(like, np.random.Generator):
            like.bit_generator.state = saved
        elif hasattr(like, "saved"):
            like.restore(self._plain(saved))
        elif hasattr(like, "KEPT"):
            for attribute in like.KEPT:
                setattr(like, attribute, self._fill(getattr(like, attribute), saved[attribute]))
        elif hasattr(like, "param_groups"):
            self._fill_optimizer(like, saved)
        elif hasattr(like, "load_state_dict"):
            import torch  # noqa: PLC0415

            like.load_state_dict({name: torch.from_numpy(self._read(item)) for name, item in saved.items()})
        elif isinstance(like, dict):
            like.update({name: self._fill(like.get(name), item) for name, item in saved.items()})
        elif isinstance(like, deque):
            like.clear()
            like.extend(saved)
        elif isinstance(like, tuple):
            items = [self._fill(*pair) for pair in zip(like, saved, strict=True)]
            return type(like)(*items) if hasattr(like, "_fields") else tuple(items)
        elif hasattr(like, "shape") and hasattr(like, "dtype"):
            return self._fill_array(like, saved)
        else:
            return self._plain(saved)
        return like

    def _fill_dataclass(self, like: object, saved: dict[str, Json]) -> None:
        """Fill all fields by name. Raises `ArchiveError` for a missing or unknown field."""
        fields = {field.name for field in dataclasses.fields(like)}
        if missing := fields - saved.keys():
            raise ArchiveError(f"lacks {', '.join(sorted(missing))}, which a state of this script has")
        if unknown := saved.keys() - fields:
            raise ArchiveError(f"holds {', '.join(sorted(unknown))}, which no state of this script has")
        for name in sorted(fields):
            setattr(like, name, self._fill(getattr(like, name), saved[name]))

    def _plain(self, saved: Json) -> object:
        """Unpack a value of unknown type: as it is in JSON, except for arrays (as NumPy) and evaluations."""
        if isinstance(saved, dict) and saved.keys() == {"evaluation"}:
            return Evaluation(**saved["evaluation"])
        if isinstance(saved, dict) and saved.keys() == {"array", "dtype", "shape"}:
            return self._read(saved)
        if isinstance(saved, dict):
            return {name: self._plain(item) for name, item in saved.items()}
        return saved

    def _fill_array(self, like: Array, saved: dict[str, Json]) -> Array:
        """Fill an array piece by piece, in place except for JAX arrays."""
        found, expected = (saved["dtype"], tuple(saved["shape"])), (dtype_name(like), tuple(like.shape))
        if found != expected:
            raise ArchiveError(f"holds {saved['array']} as {found}, where this run has {expected}")
        if isinstance(like, np.ndarray):
            for first, piece in self.pieces(saved):
                (like[first : first + len(piece)] if like.ndim else like.reshape(1))[:] = piece
        elif hasattr(like, "detach"):
            import torch  # noqa: PLC0415

            with torch.no_grad():
                for first, piece in self.pieces(saved):
                    (like[first : first + len(piece)] if like.ndim else like.view(1)).copy_(torch.from_numpy(piece))
        else:
            return self._into_jax(like, saved)
        return like

    def _into_jax(self, like: jax.Array, saved: dict[str, Json]) -> jax.Array:
        """Return the array on the device of `like`; a large one reuses the memory of `like`."""
        import jax  # noqa: PLC0415

        if like.nbytes <= PIECE:  # a copy: XLA cannot be given NumPy's memory for good
            return jax.device_put(jax.numpy.array(self._read(saved)), like.device)
        write_piece = jax.jit(jax.lax.dynamic_update_slice_in_dim, static_argnames="axis", donate_argnums=0)
        device = like.device
        for first, piece in self.pieces(saved):
            like = write_piece(like, jax.device_put(piece, device), first, axis=0)
        return like

    def _fill_optimizer(self, optimizer: torch.optim.Optimizer, saved: dict[str, Json]) -> None:
        """Fill what a torch optimizer keeps for each weight; learning rates stay the tensors that compiled code reads."""
        import torch  # noqa: PLC0415

        state = {int(i): {k: torch.from_numpy(self._read(v)) for k, v in items.items()} for i, items in saved.items()}
        rates = [group["lr"] for group in optimizer.param_groups]
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        for weight, items in optimizer.state.items():
            for name, value in items.items():
                if value.shape == weight.shape:  # in the memory order of the weight, which fused kernels assume
                    items[name] = torch.empty_like(weight).copy_(value)

    def _read(self, saved: dict[str, Json]) -> np.ndarray:
        """Read a whole array."""
        array = np.empty(saved["shape"], dtype=saved["dtype"])
        for first, piece in self.pieces(saved):
            (array[first : first + len(piece)] if array.ndim else array.reshape(1))[:] = piece
        return array

    def pieces(self, saved: dict[str, Json]) -> Iterator[tuple[int, np.ndarray]]:
        """Yield each piece of an array: its position on the first axis, and its values."""
        dtype, shape = np.dtype(saved["dtype"]), tuple(saved["shape"]) or (1,)
        rows = rows_per_piece(dtype, shape)
        with self.zip.open(saved["array"]) as member:
            stream = io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(member), PIECE)
            for first in range(0, shape[0], rows):
                piece = np.empty((min(rows, shape[0] - first), *shape[1:]), dtype=dtype)
                if stream.readinto(piece.reshape(-1).view(np.uint8)) != piece.nbytes:
                    raise ArchiveError(f"is cut short in {saved['array']}")
                yield first, piece
            if stream.read(1):
                raise ArchiveError(f"holds more of {saved['array']} than it says")
