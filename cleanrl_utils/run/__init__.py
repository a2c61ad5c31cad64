"""One training run: its folder, what it reports, and what it keeps to go on after a stop."""
