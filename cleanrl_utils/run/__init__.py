"""One training run: what it reports and what it keeps."""
