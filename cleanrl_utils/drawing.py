"""matplotlib's pyplot, which draws into files whatever the environment asks for. Needs the extra `plots`."""

from __future__ import annotations

import os

os.environ["MPLBACKEND"] = "Agg"  # the kernel of a notebook exports one of its own, and matplotlib reads that when imported

import matplotlib

matplotlib.use("Agg")  # it may have been imported before
from matplotlib import pyplot as plt

__all__ = ["plt"]
