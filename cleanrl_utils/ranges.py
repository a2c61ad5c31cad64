"""Types of flags that take only some values: each is a plain type, its bounds, and the words for them in an error."""

from __future__ import annotations

import math
import operator
import re
import typing
from collections.abc import Iterator
from typing import Annotated, Any

from annotated_types import Ge, Gt, Interval, Predicate

from cleanrl_utils.errors import BadInput
from cleanrl_utils.flags import flag

Positive = Annotated[int, Gt(0), "must be above 0"]
PositiveFloat = Annotated[float, Interval(gt=0, lt=math.inf), "must be above 0"]
PositiveSizes = tuple[Positive, ...]
NotNegative = Annotated[int, Ge(0), "must be 0 or more"]
NotNegativeFloat = Annotated[float, Interval(ge=0, lt=math.inf), "must be 0 or more"]
Probability = Annotated[float, Interval(ge=0, le=1), "must be between 0 and 1"]
Seed = Annotated[int, Interval(ge=0, lt=2**32), "must be 0 or more, and below 2**32"]
"""A seed that every library takes."""
FileName = Annotated[
    str,
    Predicate(re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}").fullmatch),
    "must be letters, digits, `.`, `_`, `-`, a letter or digit first, 100 at most",
]
"""A part of a file's name on any system and of a repository's name."""

COMPARISONS = {"gt": operator.gt, "ge": operator.ge, "lt": operator.lt, "le": operator.le}
"""How a value compares with each limit of a bound, by the names that annotated-types gives them."""


def check_ranges(args: Any) -> None:
    """Raise `BadInput` for the first flag whose value is outside the bounds of its type.

    Each item of a tuple is checked. None passes: the parser accepts it only where the type says `| None`.
    """
    for name, hint in typing.get_type_hints(type(args), include_extras=True).items():
        value = getattr(args, name)
        items = value if isinstance(value, tuple) else (value,)
        for bounds in _bounds(hint):
            if not all(item is None or _inside(item, bounds) for item in items):
                words = next((bound for bound in bounds if isinstance(bound, str)), f"must be in {bounds}")
                raise BadInput(flag(name), repr(value) if isinstance(value, str) else value, words)


def _bounds(hint: Any) -> Iterator[tuple[Any, ...]]:
    """The bounds of a type and of the types inside it, such as `Probability | None` or `tuple[Positive, ...]`."""
    if typing.get_origin(hint) is Annotated:
        yield hint.__metadata__
    for part in typing.get_args(hint):
        yield from _bounds(part)


def _inside(value: Any, bounds: tuple[Any, ...]) -> bool:
    """Whether a value meets all bounds: limits and predicates. NaN meets no limit."""
    for bound in bounds:
        for name, holds in COMPARISONS.items():
            limit = getattr(bound, name, None)
            if limit is not None and not holds(value, limit):
                return False
        if isinstance(bound, Predicate) and not bound.func(value):
            return False
    return True
