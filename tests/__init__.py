"""Tests. What must be set before the libraries are imported is set here."""

import os

os.environ["WANDB_MODE"] = "offline"
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach the network
