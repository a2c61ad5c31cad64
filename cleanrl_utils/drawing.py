"""matplotlib's pyplot, which draws into files here, whatever the environment asks for. Needs the extra `plots`."""

from __future__ import annotations

import os

os.environ["MPLBACKEND"] = "Agg"  # a notebook's kernel exports another one, which matplotlib reads when imported

import matplotlib

matplotlib.use("Agg")  # it may have been imported before
from matplotlib import pyplot as plt

__all__ = ["plt"]
