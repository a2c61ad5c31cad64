"""Types of flags that take only some values: each has a plain type, its bounds, and the words for them in an error."""

from __future__ import annotations

import math
import re
from typing import Annotated

from annotated_types import Ge, Gt, Interval, Predicate

Positive = Annotated[int, Gt(0), "must be above 0"]
PositiveFloat = Annotated[float, Interval(gt=0, lt=math.inf), "must be above 0"]
PositiveSizes = tuple[Positive, ...]
NotNegative = Annotated[int, Ge(0), "must be 0 or more"]
NotNegativeFloat = Annotated[float, Interval(ge=0, lt=math.inf), "must be 0 or more"]
Probability = Annotated[float, Interval(ge=0, le=1), "must be between 0 and 1"]
MOST_THREADS = 1024
"""Maximum number of threads; no system can start far more."""
Threads = Annotated[int, Interval(ge=1, le=MOST_THREADS), f"must be between 1 and {MOST_THREADS}"]
Seed = Annotated[int, Interval(ge=0, lt=2**32), "must be 0 or more, and below 2**32"]
"""A seed that every library takes."""
GridSize = Annotated[
    str,
    Predicate(re.compile(r"([1-9]|10)x([1-9]|10)").fullmatch),
    "must be COLUMNSxROWS, from 1x1 to 10x10",
]
"""How many pictures stand side by side, and in how many rows."""
FileName = Annotated[
    str,
    Predicate(re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}").fullmatch),
    "must be letters, digits, `.`, `_`, `-`, a letter or digit first, 100 at most",
]
"""A part of a file's name on any system, and of a repository's name."""
