"""The help text of a script: its flags in groups, each with its docstring."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import textwrap
import typing
from typing import Annotated, Any

import tyro

GROUPS = {
    "exp_name": "run",
    "env_id": "environment",
    "teacher_policy_hf_repo": "teacher_and_distillation",
    "n_iterations": "algorithm",
    "total_timesteps": "algorithm",
}
"""The flags that begin a group in the help text of a script."""


def grouped(args_class: type, default: Any) -> type:
    """Make a class with the fields of a script's `args_class` in groups, for its help."""
    hints = typing.get_type_hints(args_class, include_extras=True)
    texts = field_docs(args_class)
    groups: dict[str, list[tuple[str, Any, Any]]] = {}
    for name in (field.name for field in dataclasses.fields(args_class)):
        group = groups.setdefault(GROUPS.get(name) or next(reversed(groups), "run"), [])
        value = dataclasses.field(default_factory=functools.partial(getattr, default, name))  # since it may be a mapping
        group.append((name, Annotated[hints[name], tyro.conf.arg(help=texts.get(name))], value))
    made = [(group, dataclasses.make_dataclass(group, fields)) for group, fields in groups.items()]
    return dataclasses.make_dataclass(args_class.__name__, made)


def field_docs(args_class: type) -> dict[str, str]:
    """Return the docstring under each field of a dataclass and its bases, on one line; numbers lose their commas, at
    which lines could break.

    Empty if there is no source to read, as in a notebook.
    """
    texts: dict[str, str] = {}
    for part in reversed([part for part in args_class.__mro__ if dataclasses.is_dataclass(part)]):
        try:
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(part))).body
        except (OSError, TypeError):
            continue
        texts |= {
            field.target.id: re.sub(r"(?<=\d),(?=\d{3})", "", " ".join(text.value.value.split()))
            for field, text in itertools.pairwise(definition.body)
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
        }
    return texts


def in_one_line(box: str) -> str:
    """Return in one line what tyro says in a box about a flag."""
    words = " ".join(re.sub(r"[^\x20-\x7e]+", " ", box.split("For full help")[0]).split())
    words = words.split(" Argument helptext:")[0]
    words = re.sub(r"^(.+) (?=\1)", "", words)  # the first words of the box may repeat its title
    of_type = re.search(r"Error parsing (--\S+): .*?\b(int|float)\b.*?'([^']*)'", words, re.IGNORECASE)
    if of_type is None:
        return words
    name, kind, value = of_type.groups()
    return f"{name} {value}: must be a {'whole number' if kind.lower() == 'int' else 'number'}"
