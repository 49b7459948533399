"""What the coordinator runs: the method is found by its entry point."""

from flwr_dmml.strategies import make_server_app

app = make_server_app()
