"""Flags from the command line and from YAML files, and the errors a user sees when one is wrong."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import sys
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import tyro
import yaml

Args = TypeVar("Args")


class BadInput(Exception):
    """A user's mistake: one line that names the flag, its value and what is allowed."""

    def __init__(self, flag: str, value: object, allowed: str) -> None:
        super().__init__(f"{flag} {value}: {allowed}")


def run(main: Callable[[Args], Any], args_class: type[Args], argv: list[str] | None = None) -> None:
    """Parse the flags and call `main`; a `BadInput` ends the process with one line and status 2."""
    try:
        main(parse(args_class, sys.argv[1:] if argv is None else argv))
    except BadInput as error:
        notice(f"error: {error}")
        sys.exit(2)


def parse(args_class: type[Args], argv: list[str]) -> Args:
    """Flags as an `args_class`: its defaults, under the values of `--config FILE`, under the command line.

    Raises `BadInput` for an unusable configuration file; tyro itself exits with status 2 on a bad flag.
    """
    path = next((argv[i + 1] for i, a in enumerate(argv[:-1]) if a == "--config"), None)
    path = next((a.removeprefix("--config=") for a in argv if a.startswith("--config=")), path)
    default = args_class(**load_yaml(path, args_class)) if path is not None else args_class()
    return tyro.cli(args_class, default=default, args=argv)


def load_yaml(path: str, args_class: type) -> dict[str, Any]:
    """Values of a YAML file of flags, `{field: value}`, each checked against its field's type.

    Keys are spelled as fields or as flags (`env_id`, `env-id`). Nothing in the file is executed: tags are
    refused. Raises `BadInput` for a file that cannot be read, an unknown key or a value of the wrong type.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        tag = next((token for token in yaml.scan(text) if isinstance(token, yaml.TagToken)), None)
        values = {} if tag else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput("--config", path, f"cannot be read ({getattr(error, 'strerror', None) or 'not text'})") from None
    except yaml.YAMLError as error:
        raise BadInput("--config", path, f"is not YAML ({' '.join(str(error).split())})") from None
    if tag:
        raise BadInput("--config", path, f"line {tag.start_mark.line + 1} has a tag; plain values only")
    if not isinstance(values, dict):
        raise BadInput("--config", path, "must hold `flag: value` lines")
    hints = typing.get_type_hints(args_class)
    checked = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in hints or name == "config":
            close = difflib.get_close_matches(name, hints, n=1)
            raise BadInput("--config", path, f"unknown key `{key}`" + (f"; did you mean `{close[0]}`?" if close else ""))
        checked[name] = _typed(value, hints[name], f"{path}: {key}")
    return checked


def _typed(value: Any, hint: Any, where: str) -> Any:
    """`value` if it has the type `hint`; integers and strings like 1e-4 (text in YAML 1.1) pass as floats."""
    for option in typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,):
        if typing.get_origin(option) is typing.Literal and value in typing.get_args(option):
            return value
        if option is float and not isinstance(value, bool):
            try:
                return float(value)
            except (TypeError, ValueError):
                continue
        if isinstance(option, type) and type(value) is option:
            return value
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", types.NoneType: "null"}
    options = typing.get_args(hint) or (hint,)
    allowed = " or ".join(names.get(option, repr(option)) for option in options)
    raise BadInput("--config", where, f"{value!r} must be {allowed}")


def flag(field: str) -> str:
    """The flag of a field: `learning_rate` is `--learning-rate`."""
    return "--" + field.replace("_", "-")


def require_positive(args: Any, *fields: str) -> None:
    """Raise `BadInput` unless every field is a finite number above 0."""
    for field in fields:
        value = getattr(args, field)
        if not (math.isfinite(value) and value > 0):
            raise BadInput(flag(field), value, "must be above 0")


def require_not_negative(args: Any, *fields: str) -> None:
    """Raise `BadInput` unless every field is a finite number of 0 or more; None passes."""
    for field in fields:
        value = getattr(args, field)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise BadInput(flag(field), value, "must be 0 or more")


def require_probability(args: Any, *fields: str) -> None:
    """Raise `BadInput` unless every field is in [0, 1]; None passes."""
    for field in fields:
        value = getattr(args, field)
        if value is not None and not 0 <= value <= 1:
            raise BadInput(flag(field), value, "must be between 0 and 1")


def at_least(args: Any, field: str, minimum: int) -> int:
    """The field's value, or `minimum` with one line that says so: toy sizes should run."""
    value = getattr(args, field)
    if value < minimum:
        notice(f"{flag(field)} {value} is raised to {minimum}, the least that these settings need")
    return max(value, minimum)


def notice(text: str) -> None:
    """Tell the user something on the error stream, where the progress bar is."""
    print(text, file=sys.stderr)  # noqa: T201 - a line meant for the user


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all: to a temporary name, flushed to disk, then renamed."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, default=str)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def flags(args: Any) -> dict[str, Any]:
    """The flags of a run as a dictionary."""
    return dataclasses.asdict(args)
