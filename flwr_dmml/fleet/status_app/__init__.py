"""The Flower app that ``flwr-dmml fleet status`` runs: it asks devices how they are."""
