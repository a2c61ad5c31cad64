"""Flags in files: YAML of plain values, each checked against its field's type."""

from __future__ import annotations

import difflib
import json
import types
import typing
from pathlib import Path
from typing import Any

import yaml

from cleanrl_utils.errors import BadInput


class _EachKeyOnce(yaml.SafeLoader):
    """Loads YAML of plain values and refuses a repeated key, of which the last would win silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Load a mapping. Raises `ValueError` for a repeated key."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := next((key for i, key in enumerate(keys) if key in keys[:i]), None):
            raise ValueError(f"the key `{twice}` is there twice")
        return super().construct_mapping(node, deep)


def load_yaml(path: str, args_class: type) -> dict[str, Any]:
    """Load the values of a YAML file of flags, `{field: value}`, each checked against its field's type.

    Keys are spelled as fields or as flags (`env_id`, `env-id`). Nothing in the file is executed: tags are
    refused. Raises `BadInput` for a file that cannot be read, an unknown key or a value of the wrong type.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        tag = next((token for token in yaml.scan(text) if isinstance(token, yaml.TagToken)), None)
        values = {} if tag else yaml.load(text, _EachKeyOnce)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput("--config", path, f"cannot be read ({getattr(error, 'strerror', None) or 'not text'})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadInput("--config", path, f"is not YAML ({' '.join(str(error).split())})") from None
    if tag:
        raise BadInput("--config", path, f"line {tag.start_mark.line + 1} has a tag; plain values only")
    if not isinstance(values, dict):
        raise BadInput("--config", path, "must hold `flag: value` lines")
    return checked(values, args_class, "--config", path, not_in_files=("config", "resume", "resume_anyway"))


def checked(
    values: dict[str, Any], args_class: type, source: str, path: str, not_in_files: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Return the values of a file by field, each checked against its field's type. Raises `BadInput`."""
    hints = typing.get_type_hints(args_class)
    typed = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in hints or name in not_in_files:
            close = difflib.get_close_matches(name, hints.keys() - {*not_in_files}, n=1)
            raise BadInput(source, path, f"unknown key `{key}`" + (f"; did you mean `{close[0]}`?" if close else ""))
        typed[name] = _typed(value, hints[name], source, f"{path}: {key}")
    return typed


def _typed(value: Any, hint: Any, source: str, where: str) -> Any:
    """Return `value` if it has the type `hint`; strings like 1e-4 (text in YAML 1.1) pass as numbers, integers as floats."""
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    options = typing.get_args(hint) if union else (hint,)
    for option in options:
        if typing.get_origin(option) is typing.Literal and value in typing.get_args(option):
            return value
        if option in (float, int) and isinstance(value, str | float | int) and not isinstance(value, bool):
            try:
                number = float(value)
            except (ValueError, OverflowError):
                continue
            if option is float:
                return number
            if type(value) is not int and number.is_integer():  # 1e6, which YAML takes for text
                return int(number)
        if typing.get_origin(option) is tuple and isinstance(value, list):
            return tuple(_typed(item, typing.get_args(option)[0], source, where) for item in value)
        if option == dict[str, Any] and not _is_json_object(value):
            continue
        if type(value) is (typing.get_origin(option) or option):
            return value
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", types.NoneType: "null"}
    names |= {tuple: "a list", dict: "a mapping of plain values by name"}
    kinds = ((typing.get_origin(option) or option, typing.get_args(option)) for option in options)
    allowed = " or ".join(names.get(kind) or " or ".join(map(repr, choices)) for kind, choices in kinds)
    raise BadInput(source, where, f"{value!r} must be {allowed}")


def _is_json_object(value: Any) -> bool:
    """Whether a value is a mapping that JSON can hold."""
    try:
        return isinstance(value, dict) and json.loads(json.dumps(value)) == value
    except (TypeError, ValueError):
        return False
