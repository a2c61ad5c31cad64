"""matplotlib's pyplot, which draws into files here, whatever the environment asks for. Needs the extra `plots`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cleanrl_utils.errors import BadInput
from cleanrl_utils.files import replacing

os.environ["MPLBACKEND"] = "Agg"  # a notebook's kernel exports another one, which matplotlib reads when imported

import matplotlib

matplotlib.use("Agg")  # it may have been imported before
from matplotlib import pyplot as plt

__all__ = ["plt", "save"]


def save(figure: Any, path: Path, **settings: Any) -> None:
    """Write a figure, whole or not at all. Raises `WriteError`, and `BadInput` for `--out` with a kind that is unknown."""
    kind, kinds = path.suffix[1:].lower(), figure.canvas.get_supported_filetypes()
    if kind not in kinds:
        raise BadInput("--out", path, f"must end in .{', .'.join(sorted(kinds))}")
    with replacing(path) as file:
        figure.savefig(file, format=kind, **settings)
