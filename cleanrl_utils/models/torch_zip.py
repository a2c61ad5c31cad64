"""Read torch's weight files, zip archives with a pickle in them, without torch and without running the pickle."""

from __future__ import annotations

import math
import pickletools
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from cleanrl_utils.models.formats import FormatError, Weights, from_bfloat16, state_dict


class _Global(NamedTuple):
    """A name that the pickle mentions. It is compared, never looked up."""

    name: str


class _Stored(NamedTuple):
    """The persistent id of a tensor's memory: ("storage", type, key, device, number of elements)."""

    id: tuple


class _Called(NamedTuple):
    """A call that the pickle describes. It is read, never made."""

    name: str
    arguments: tuple


STORAGES = {"torch HalfStorage": "<f2", "torch FloatStorage": "<f4", "torch DoubleStorage": "<f8"}
BFLOAT16 = "torch BFloat16Storage"
TENSOR, PARAMETER, ORDERED_DICT = (
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "collections OrderedDict",
)
NEW = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "NONE": lambda: None}
NEW |= {"NEWTRUE": lambda: True, "NEWFALSE": lambda: False}
VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "BINFLOAT"}
CODE = {"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"}
"""Instructions of a pickle: those in NEW make empty containers or constants, in VALUES hold a value, in CODE run code."""
NOT_PLAIN = "is not a state_dict of plain tensors"
HOLDS_CODE = "is not a plain state_dict: it holds code, which is refused"
_MARK = object()


def read_torch(path: Path | BinaryIO) -> Weights:
    """Read the tensors of a torch state_dict, with names such as `network.0.weight`, without torch. Raises `FormatError`.

    The file is a zip archive: `data.pkl` describes the dictionary, `data/KEY` holds the memory of tensors. The arrays are
    views of that memory.
    """
    try:
        require_uncompressed(path)
        with zipfile.ZipFile(path) as archive:
            root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
            entries = state_dict(_read_pickle(archive.read(f"{root}data.pkl")), lambda entry: isinstance(entry, _Called))
            if not isinstance(entries, dict):
                raise FormatError(NOT_PLAIN)
            memories: dict[str, bytes] = {}
            return {_text(name): _tensor(archive, root, entry, memories) for name, entry in entries.items()}
    except FormatError:
        raise
    except zipfile.BadZipFile:
        text = "cannot be read as a torch model: no zip archive, as torch writes since 1.6; is it older, or damaged?"
        raise FormatError(text) from None
    except Exception as error:  # zipfile, pickletools and NumPy raise whatever the damage leads to
        raise FormatError(f"cannot be read as a torch model ({type(error).__name__}: is it damaged?)") from None


def require_uncompressed(file: Path | BinaryIO) -> None:
    """Raise `FormatError` for a compressed zip file: torch writes no such files, and it may unpack to fill the memory."""
    try:
        if not zipfile.is_zipfile(file):
            return
        with zipfile.ZipFile(file) as archive:
            compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
    except Exception as error:  # zipfile raises whatever the damage leads to
        raise FormatError(f"cannot be read as a torch model ({type(error).__name__}: is it damaged?)") from None
    if compressed:
        raise FormatError("cannot be read as a torch model: torch does not compress")


def _text(name: Any) -> str:
    if not isinstance(name, str):
        raise FormatError(NOT_PLAIN)
    return name


def _key(name: Any) -> str | int:
    """Return a key of a dictionary: a name, or a number, such as optimizers use."""
    return name if isinstance(name, int) else _text(name)


def _tensor(archive: zipfile.ZipFile, root: str, entry: Any, memories: dict[str, bytes]) -> np.ndarray:
    """Return the array that `_rebuild_tensor_v2(storage, offset, shape, strides, ...)` describes."""
    if isinstance(entry, _Called) and entry.name == PARAMETER:
        entry = entry.arguments[0]
    if not (isinstance(entry, _Called) and entry.name == TENSOR):
        raise FormatError(NOT_PLAIN)
    stored, offset, shape, strides, *_ = entry.arguments
    _, kind, key, *_ = stored.id
    if kind.name not in (*STORAGES, BFLOAT16):
        raise FormatError(f"{NOT_PLAIN}: one is a {kind.name}")
    if _text(key) not in memories:
        memories[key] = archive.read(f"{root}data/{key}")
    of_bfloat16 = kind.name == BFLOAT16
    memory = from_bfloat16(memories[key]) if of_bfloat16 else np.frombuffer(memories[key], STORAGES[kind.name])
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if min((offset, last, *shape, *strides)) < 0 or last >= len(memory) or math.prod(shape) > len(memory):
        raise FormatError("is damaged: a tensor reaches beyond its memory")
    return np.lib.stride_tricks.as_strided(memory[offset:], shape, [stride * memory.itemsize for stride in strides])


def _read_pickle(data: bytes) -> Any:
    """Return what a pickle describes, as plain data: no name in it is looked up, and nothing is called.

    Only the instructions that a state_dict needs are known; all others are refused.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = max(i for i, item in enumerate(stack) if item is _MARK)
        items = stack[start + 1 :]
        del stack[start:]
        return items

    for operation, argument, _ in pickletools.genops(data):
        name = operation.name
        if name in NEW:
            stack.append(NEW[name]())
        elif name in VALUES:
            stack.append(argument)
        elif name == "GLOBAL":
            stack.append(_Global(argument))
        elif name == "BINPERSID":
            stack.append(_Stored(stack.pop()))
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            size = int(name[-1])
            stack[-size:] = [tuple(stack[-size:])]
        elif name in ("SETITEM", "SETITEMS"):
            items = since_mark() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            stack[-1].update(zip(map(_key, items[::2]), items[1::2], strict=True))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop().name
            if function not in (TENSOR, PARAMETER, ORDERED_DICT):
                raise FormatError(NOT_PLAIN if function.startswith("torch") else HOLDS_CODE)
            stack.append({} if function == ORDERED_DICT else _Called(function, arguments))
        elif name == "BUILD":
            stack.pop()  # attributes of the dictionary, such as its version: not needed
        elif name == "STOP":
            return stack.pop()
        elif name != "PROTO":
            raise FormatError(HOLDS_CODE if name in CODE else NOT_PLAIN)
    raise FormatError("is damaged: its description has no end")
