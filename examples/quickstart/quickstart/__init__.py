"""The quickstart app of flwr-dmml."""
