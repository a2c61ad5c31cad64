"""Self-contained training scripts: one file, one algorithm."""
