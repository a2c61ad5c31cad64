"""Tests. What must be set before the libraries are imported is set here."""

import os

os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach the network
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # on a GPU: it is shared with torch and between processes
