"""An agent plays whole games: evaluation, films, tables."""
