"""Label smoothing at the start of a run: a method of one's own for flwr-dmml."""
